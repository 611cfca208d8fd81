"""Classes and functions from Python: named by import path, or pickled under the digest of their bytes."""

import functools
import json
import os
import subprocess
import sys
import threading

import gymnasium
import pytest

from sfactory import pickled
from sfactory.errors import FileRefused, SettingError

AT_TOP_LEVEL = lambda: 1  # noqa: E731


def of_this_module():
    """Found by its name in other processes."""


def counting(limit):
    return lambda: limit


@pytest.fixture(autouse=True)
def restored(tmp_path, monkeypatch):
    """Folders that are searched, as before; an empty current folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(pickled.FOLDERS, os.environ.get(pickled.FOLDERS, ""))


def test_name_of_an_importable_class_or_function_is_its_import_path():
    assert pickled.name_of(gymnasium.Wrapper, "target") == "gymnasium.core:Wrapper"
    assert pickled.name_of(of_this_module, "target") == f"{__name__}:of_this_module"


@pytest.mark.parametrize(
    "code", [AT_TOP_LEVEL, counting(1), functools.partial(counting, 3)], ids=["lambda", "closure", "partial"]
)
def test_name_of_what_cannot_be_imported_is_that_of_a_pickle(code):
    name = pickled.name_of(code, "target")
    assert pickled.is_pickled(name)
    assert pickled.made_here(name)
    loaded = pickled.load(name)
    assert loaded is not code
    result = loaded()
    assert (result() if callable(result) else result) in (1, 3)


def test_name_of_a_function_that_the_main_script_defines_is_that_of_a_pickle(monkeypatch):
    monkeypatch.setattr(of_this_module, "__module__", "__main__")
    assert pickled.is_pickled(pickled.name_of(of_this_module, "target"))


def test_name_of_a_closure_depends_on_what_it_captures():
    one, same, other = (pickled.name_of(counting(limit), "target") for limit in (5, 5, 6))
    assert one == same != other
    assert [pickled.load(name)() for name in (one, other)] == [5, 6]


def test_name_of_the_same_code_is_the_same_in_another_process():
    code = (
        "from sfactory import pickled\n"
        "import gymnasium\n"
        "k = 3\n"
        "class Mine(gymnasium.Env):\n    size = k\n    def step(self, action): return self.size\n"
        "print(pickled.name_of(lambda: Mine(), 'target'))\n"
    )
    found = {
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        for _ in range(2)
    }
    assert len(found) == 1


def test_name_of_a_function_that_holds_a_lock_is_refused_in_one_line():
    lock = threading.Lock()
    with pytest.raises(SettingError, match=r"^target: .*lambda> cannot be sent to worker processes") as raised:
        pickled.name_of(lambda: lock, "target")
    assert "create what it uses inside the function" in str(raised.value)
    assert "\n" not in str(raised.value)


def test_load_refuses_a_pickle_whose_bytes_were_changed(tmp_path, monkeypatch):
    name = pickled.name_of(counting(7), "target")
    pickled.keep([name], tmp_path)
    file = tmp_path / "code" / pickled.file_name(name)
    file.write_bytes(b"cos\nsystem\n(S'touch hacked'\ntR.")
    monkeypatch.setenv(pickled.FOLDERS, "")
    with pickled.searching(tmp_path), pytest.raises(SettingError, match="its digest differs"):
        pickled.load(name)
    assert not os.path.exists("hacked")


def test_load_says_where_a_pickle_is_that_is_not_at_hand(monkeypatch):
    name = pickled.name_of(counting(8), "target")
    monkeypatch.setenv(pickled.FOLDERS, "")
    with pytest.raises(SettingError, match="its code is in the folder code of that run"):
        pickled.load(name)


@pytest.mark.parametrize("name", ["cloudpickle:../a-0123456789abcdef", "cloudpickle:a", "cloudpickle:a-0123"])
def test_load_refuses_names_that_are_no_names_of_pickles(name):
    with pytest.raises(SettingError, match="no name of a pickle"):
        pickled.load(name)


def test_load_follows_no_link(tmp_path, monkeypatch):
    name = pickled.name_of(counting(9), "target")
    pickled.keep([name], tmp_path)
    file = tmp_path / "code" / pickled.file_name(name)
    file.rename(tmp_path / "elsewhere")
    file.symlink_to(tmp_path / "elsewhere")
    monkeypatch.setenv(pickled.FOLDERS, "")
    with pickled.searching(tmp_path), pytest.raises((SettingError, FileRefused)):
        pickled.load(name)


def test_searching_ends_with_its_context_and_not_that_of_another_run(tmp_path, monkeypatch):
    monkeypatch.setenv(pickled.FOLDERS, "")
    for run in ("a", "b"):
        (tmp_path / run / "code").mkdir(parents=True)
    first, second = pickled.searching(tmp_path / "a"), pickled.searching(tmp_path / "b")
    first.__enter__()
    with second:
        assert len(json.loads(os.environ[pickled.FOLDERS])) == 2
        first.__exit__(None, None, None)
        assert json.loads(os.environ[pickled.FOLDERS]) == [str(tmp_path / "b" / "code")]
    assert pickled.FOLDERS not in os.environ


@pytest.mark.parametrize("name", ["10:30:00", "a;b", "two\nlines", "ünï", "not utf-8 \udcff", 'quo"te\\', " "])
def test_searching_finds_a_pickle_in_a_folder_of_any_name_also_in_another_process(tmp_path, monkeypatch, name):
    made = pickled.name_of(counting(7), "target")
    run = tmp_path / name
    run.mkdir()
    pickled.keep([made], run)
    monkeypatch.setenv(pickled.FOLDERS, "")
    with pickled.searching(run):
        assert pickled.load(made)() == 7
        program = f"from sfactory import pickled; print(pickled.load({made!r})())"
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.stdout == "7\n", done.stderr
    with pytest.raises(SettingError):
        pickled.load(made)
