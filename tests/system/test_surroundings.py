"""What surrounds a command does not change how it ends: streams, locale, home, folders, limits, signals."""

import contextlib
import fcntl
import json
import os
import pty
import resource
import shlex
import shutil
import signal
import subprocess
import termios
from pathlib import Path

import pytest
from forked_processes import ForkedCommand, run_forked
from run_helpers import children, command, rows, steps, wait_for, workers_named

from sfactory.run.checkpoint_writer import exchange

TINY = ("--stop.env-steps", "2k", "--sampling.num-samplers", "1", "--run.device", "cpu")
SFACTORY = shlex.join(command())
FOREVER = ("--stop.env-steps", "100M", "--log.every-seconds", "0.2", "--log.console-seconds", "0.01", *TINY[2:])


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with a finished run `good` and one whose only checkpoints are damaged, `damaged`."""
    folder = tmp_path_factory.mktemp("surroundings")
    done = run_forked(
        command("train", "classic/cartpole", *TINY, "--run.dir", "good"), cwd=folder, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    shutil.copytree(folder / "good", folder / "damaged")
    for file in (folder / "damaged").glob("checkpoints/*/model.safetensors"):
        file.write_bytes(b"damaged")
    return folder


def shell(text, cwd, **variables):
    """Run a command line in bash; `sfactory` is the command."""
    script = f'set -o pipefail; sfactory() {{ {SFACTORY} "$@"; }}; {text}'
    environ = {**os.environ, **{name: value for name, value in variables.items() if value is not None}}
    for name in [name for name, value in variables.items() if value is None]:
        environ.pop(name, None)
    return subprocess.run(
        ["bash", "-c", script], cwd=cwd, env=environ, capture_output=True, text=True, timeout=120, errors="replace"
    )


STREAMS = (">&-", "2>&-", ">/dev/full", "2>/dev/full", ">/dev/full 2>&1", "| true", "2>&1 >/dev/null | true")
COMMANDS = (
    ("presets", 0),
    ("train --help", 0),
    ("info good", 0),
    ("info good --json", 0),
    ("info damaged", 5),
    ("info nowhere", 2),
)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("streams", [*STREAMS, "<&- >&- 2>&-"])
def test_command_ends_with_its_own_code_whatever_its_streams_are(trained, streams):
    text = "; ".join(f"sfactory {words} {streams}; codes+=($?)" for words, _ in COMMANDS)
    done = shell(f"{text}; printf '%s ' \"${{codes[@]}}\" > {trained}/codes", trained)
    assert (trained / "codes").read_text().split() == [str(code) for _, code in COMMANDS], done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    if streams == ">/dev/full":
        assert "sfactory: note: standard output cannot be written: No space left on device" in done.stderr


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    "streams", [">&-", "2>&-", "--json >/dev/full", "--quiet 2>/dev/full", "<&- >&- 2>&-", "2>&1 | true"]
)
def test_train_ends_with_its_own_code_whatever_its_streams_are(tmp_path, streams):
    done = shell(f"sfactory train classic/cartpole {shlex.join(TINY)} --run.dir run {streams}", tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads((tmp_path / "run" / "status.json").read_text())["state"] == "finished"


NO_UTF8 = {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
NO_HOME = "unshare --user --map-user=54321 env -u HOME"  # a user without an account, too


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    ("text", "variables"),
    [
        ("sfactory train classic/cartpole {tiny} --run.dir ü && sfactory info ü && sfactory report ü", NO_UTF8),
        (f"{NO_HOME} {SFACTORY} train classic/cartpole {{tiny}} --run.dir run", {}),
        # In lockstep: every process compiles the packages it imports for PYTHONOPTIMIZE.
        ("sfactory train classic/cartpole {tiny} --run.dir run --run.mode lockstep",
         {"PYTHONIOENCODING": "ascii", "HOME": "/proc", "TMPDIR": "/nowhere", "TERM": None, "PYTHONOPTIMIZE": "2",
          "PYTHONWARNINGS": "error", "COLUMNS": "0"}),
        ("unshare --user --map-root-user --mount sh -c 'mount -t tmpfs -o ro tmpfs /dev/shm && mount -t tmpfs tmpfs "
         f"/proc && {SFACTORY} train classic/cartpole {{tiny}} --run.dir run'", {}),
    ],
    ids=["no UTF-8", "no home", "variables", "no /proc, /dev/shm read-only"],
)  # fmt: skip
def test_train_works_in_unusual_surroundings(tmp_path, text, variables):
    done = shell(text.format(tiny=shlex.join(TINY)), tmp_path, **variables)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "Traceback" not in done.stderr


LONG = "a" * 300
NOT_UTF8 = os.fsdecode(b"\xff")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        *(((name, LONG), "File name too long") for name in ("info", "resume", "report", "watch", "compare")),
        (("train", "classic/cartpole", "--run.dir", LONG), "a name of more than 255 bytes"),
        (("train", "classic/cartpole", "--run.dir", NOT_UTF8), r"run.dir \udcff: a name that is not UTF-8"),
    ],
)
def test_command_refuses_a_name_that_cannot_be_used(typed, tmp_path, words, message):
    code, _, line = typed(*words)
    assert code == 2
    assert message in line
    assert len(line) < 200
    assert list(tmp_path.iterdir()) == []


def test_command_names_the_current_folder_if_it_was_removed(tmp_path):
    done = shell("mkdir gone; cd gone; rmdir ../gone; sfactory presets", tmp_path)
    assert done.returncode == 2
    assert f"{tmp_path}/gone: No such file or directory; change to a folder that exists" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("kib", [0, 64])
def test_train_refuses_a_small_limit_of_file_sizes_and_leaves_nothing(tmp_path, kib):
    words = command("train", "classic/cartpole", "--run.dir", "runs/a", *TINY)
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1024 * kib, 1024 * kib))  # noqa: E731
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=120, preexec_fn=limit)
    assert done.returncode == 11
    assert f"the limit of file sizes is {kib / 1024:.3g} MiB" in done.stderr
    assert list(tmp_path.iterdir()) == []


# -- during a run ------------------------------------------------------------------------------------------------


@pytest.fixture
def running(tmp_path):
    """Start a run in tmp_path/run; the process is killed at the end of the test."""
    started = []

    def start(*words, popen=subprocess.Popen, **options):
        options = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True, **options}
        words = command("train", "classic/cartpole", *FOREVER, "--run.dir", tmp_path / "run", *words)
        process = popen(words, start_new_session=True, **{"cwd": tmp_path, **options})
        started.append(process)
        wait_for(lambda: steps(tmp_path / "run") > 0, 120, process)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()
        if process.stderr:
            process.stderr.close()


def test_ignored_signals_stay_ignored_in_a_run_and_in_its_workers(tmp_path, running):
    def ignore():
        for number in (signal.SIGHUP, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)

    process = running(preexec_fn=ignore)
    for number in (signal.SIGHUP, signal.SIGINT):
        process.send_signal(number)
    before = steps(tmp_path / "run")
    wait_for(lambda: steps(tmp_path / "run") > before, 60, process)
    for one in (process, *children(process)):
        status = Path(f"/proc/{one.pid}/status").read_text()
        ignored = int(next(line.split()[1] for line in status.splitlines() if line.startswith("SigIgn")), 16)
        assert ignored & 1 << signal.SIGHUP - 1, status
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 143


@pytest.mark.sampled(3)
@pytest.mark.parametrize("kind", ["pipe", "stopped terminal", "terminal that is not read"])
def test_console_that_is_not_read_does_not_block_a_run(tmp_path, running, kind):
    """Rows go on, and SIGTERM ends the run in order."""
    if kind == "pipe":
        reader, console = os.pipe()
        fcntl.fcntl(console, fcntl.F_SETPIPE_SZ, 4096)
        os.set_blocking(console, False)
        with contextlib.suppress(BlockingIOError):
            while os.write(console, b"x" * 64):
                pass
        os.set_blocking(console, True)
    else:
        reader, console = pty.openpty()
        if kind == "stopped terminal":
            termios.tcflow(console, termios.TCOOFF)  # Ctrl-S
    process = running(stderr=console, env={**os.environ, "TERM": "xterm"})
    os.close(console)
    before = steps(tmp_path / "run")
    wait_for(lambda: steps(tmp_path / "run") > before + 20_000, 60)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 143
    os.close(reader)
    assert json.loads((tmp_path / "run" / "status.json").read_text())["state"] == "terminated"


def test_terminal_that_is_closed_ends_a_run_in_order(tmp_path, running):
    reader, console = pty.openpty()

    def take_terminal():
        fcntl.ioctl(2, termios.TIOCSCTTY, 0)

    process = running(stderr=console, preexec_fn=take_terminal, env={**os.environ, "TERM": "xterm"})
    os.close(console)
    os.close(reader)  # SIGHUP, and every write fails
    assert process.wait(60) == 143
    assert json.loads((tmp_path / "run" / "status.json").read_text())["state"] == "terminated"


@pytest.mark.parametrize("moved", [True, False])
def test_run_goes_on_in_a_new_folder_if_its_own_is_removed_or_moved(tmp_path, running, moved):
    run, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    process = running("--checkpoint.every-seconds", "0.5", popen=ForkedCommand)
    run.rename(elsewhere)
    if not moved:
        shutil.rmtree(elsewhere)
    wait_for(lambda: (run / "config.toml").exists() and rows(run), 60, process)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 143, err[-2000:]
    what = f"was moved to {elsewhere}" if moved else "was "  # a folder that is removed slowly counts as moved
    assert f"{run} {what}" in err
    assert "; training continues in a new folder of this name" in err
    assert f"resume: sfactory resume {run}" in err.splitlines()[-1]
    done = run_forked(command("info", run), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_run_leaves_a_folder_alone_that_another_run_has_taken(tmp_path, running):
    process, run = running("--checkpoint.every-seconds", "1000", popen=ForkedCommand), tmp_path / "run"
    new = tmp_path / "new"
    new.mkdir()
    (new / "config.toml").write_text("")
    exchange(new, run)  # in one step: between two the run would make its folder again
    _, err = process.communicate(timeout=60)
    assert process.returncode == 10, err[-2000:]
    assert "and another run is in its place" in err.splitlines()[-1]
    assert [path.name for path in run.iterdir()] == ["config.toml"]


def test_run_outlives_the_folder_where_it_was_started(tmp_path, running):
    """A sampler can be started again there, too."""
    start = tmp_path / "start"
    start.mkdir()
    process = running("--run.dir", "../run", "--stop.env-steps", "20k", cwd=start, popen=ForkedCommand)
    start.rmdir()
    workers_named(process, "sampler")[0].kill()
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err[-2000:]
    assert "sampler-0 exited (killed by SIGKILL); restarted" in err
