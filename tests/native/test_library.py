import os
import stat
import subprocess
import sys
import threading

import pytest

from sfactory.native import library
from sfactory.native.library import NoKernels, build, compiler, library_path


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "sfactory" / "kernels"


@pytest.fixture
def small_source(tmp_path, monkeypatch):
    """A source that is compiled at once: the kernels take 2 s."""
    source = tmp_path / "small.c"
    source.write_text("int answer(void) { return 42; }\n")
    monkeypatch.setattr(library, "SOURCE", source)


def fake_compiler(folder, text):
    path = folder / "own-cc"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def test_build_compiles_once_and_finds_the_library_again(cache, small_source):
    path = build()
    assert path.parent == cache
    written = path.stat().st_mtime_ns
    assert build() == path
    assert path.stat().st_mtime_ns == written


def test_build_in_several_threads_compiles_once(cache, small_source, tmp_path, monkeypatch):
    count = tmp_path / "count"
    monkeypatch.setenv("CC", str(fake_compiler(tmp_path, f'[ "$1" = --version ] || echo x >> {count}\nexec cc "$@"')))
    threads = [threading.Thread(target=build) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert count.read_text() == "x\n"


def test_library_path_depends_on_source_compiler_and_processor(cache, tmp_path, monkeypatch):
    known = library_path(["cc"])
    assert library_path(["cc"]) == known
    assert library_path([str(fake_compiler(tmp_path, "echo another version"))]) != known
    monkeypatch.setattr(library, "processor", lambda: "another processor")
    other = library_path(["cc"])
    assert other != known
    changed = tmp_path / "kernels.c"
    changed.write_text("int x;")
    monkeypatch.setattr(library, "SOURCE", changed)
    assert library_path(["cc"]) != other


def test_compiler_without_any_compiler_says_what_to_install(monkeypatch):
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(NoKernels, match="install one, for example gcc, or set CC"):
        compiler()


def test_compiler_named_by_cc_must_exist(monkeypatch):
    monkeypatch.setenv("CC", "nonesuch -m64")
    with pytest.raises(NoKernels, match=r"CC \(nonesuch\) was not found"):
        compiler()


def test_build_reports_the_first_line_of_a_failing_compiler(cache, tmp_path, monkeypatch):
    text = '[ "$1" = --version ] && exit 0\necho "no such header" >&2; echo more >&2; exit 1'
    monkeypatch.setenv("CC", str(fake_compiler(tmp_path, text)))
    with pytest.raises(NoKernels, match=r"failed: no such header$"):
        build()
    assert not list(cache.glob("*.so"))


def test_build_without_a_writable_cache_uses_a_folder_among_temporary_files(small_source, tmp_path, monkeypatch):
    (tmp_path / "cache").write_text("a file, not a folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(library.tempfile, "gettempdir", lambda: str(tmp_path))
    path = build()
    assert path.parent == tmp_path / f"sfactory-kernels-{os.getuid()}"
    assert path.parent.stat().st_mode & 0o777 == 0o700


def test_build_does_not_load_from_a_folder_that_others_may_write(tmp_path, monkeypatch):
    (tmp_path / "cache").write_text("a file, not a folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(library.tempfile, "gettempdir", lambda: str(tmp_path))
    (tmp_path / f"sfactory-kernels-{os.getuid()}").mkdir()
    (tmp_path / f"sfactory-kernels-{os.getuid()}").chmod(0o777)
    with pytest.raises(NoKernels, match="set XDG_CACHE_HOME to a folder of your own"):
        build()


@pytest.mark.slow
@pytest.mark.parametrize("flags", ["-march=x86-64", "-march=haswell"] if os.uname().machine == "x86_64" else ["-O1"])
def test_kernels_of_narrower_vectors_give_the_same_results(cache, flags, tmp_path):
    """The whole test file of the network again, with the kernels of an older processor."""
    replace = f'for a; do shift; [ "$a" = -march=native ] && a={flags}; set -- "$@" "$a"; done'
    wrapper = fake_compiler(tmp_path, f'{replace}\nexec cc "$@"')
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-n",
        "0",
        "-q",
        "tests/native/test_network.py",
        "tests/native/test_head.py",
    ]
    result = subprocess.run(
        command, env={**os.environ, "CC": str(wrapper)}, capture_output=True, text=True, timeout=100
    )
    assert result.returncode == 0, result.stdout[-2000:]
