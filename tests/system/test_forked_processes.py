"""Forked commands and workers do what real ones do: tests that use them test the real thing."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from builders import TINY, trained
from forked_processes import ForkedCommand, run_forked

import sfactory
from sfactory.run import checkpoint
from sfactory.supervisor import train as training
from sfactory.supervisor.lockstep_task import LockstepTask

SFACTORY = [sys.executable, "-m", "sfactory"]
PIPES = {"capture_output": True, "text": True, "timeout": 60}


def weights(folder):
    return {path.name: path.read_bytes() for path in checkpoint.newest(folder).glob("*.safetensors")}


def test_run_of_forked_workers_equals_a_real_run_bit_for_bit(tmp_path):
    forked = trained(tmp_path / "forked", "classic/cartpole")
    assert training.train(sfactory.make_config("classic/cartpole", **TINY), tmp_path / "real").code == 0
    assert weights(forked) == weights(tmp_path / "real")
    other = trained(tmp_path / "other", "classic/cartpole", run={"seed": 2})
    assert weights(forked) != weights(other), "the test above can fail"


@pytest.mark.parametrize("words", [["--version"], ["presets", "nothing"], ["info", "nowhere"]])
def test_forked_command_prints_and_ends_like_the_real_one(tmp_path, words):
    forked, real = (run([*SFACTORY, *words], cwd=tmp_path, **PIPES) for run in (run_forked, subprocess.run))
    assert (forked.returncode, forked.stdout, forked.stderr) == (real.returncode, real.stdout, real.stderr)
    assert forked.stdout + forked.stderr


def test_forked_script_has_its_folder_variables_and_arguments(tmp_path):
    (tmp_path / "script.py").write_text(
        "import os, signal, sys\n"
        "print(__name__, os.getcwd(), dict(os.environ), sys.argv[1:])\n"
        "print(signal.getsignal(signal.SIGTERM) == signal.SIG_DFL)\n"
        "sys.exit(3)\n"
    )
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        done = run_forked([sys.executable, "script.py", "word"], cwd=tmp_path, env={"A": "b"}, **PIPES)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert done.returncode == 3
    assert done.stdout == f"__main__ {tmp_path} {{'A': 'b'}} ['word']\nTrue\n"


def test_forked_script_that_raises_ends_with_its_traceback(tmp_path):
    (tmp_path / "script.py").write_text("raise LookupError('in the script')")
    done = run_forked([sys.executable, "script.py"], cwd=tmp_path, **PIPES)
    assert done.returncode == 1
    assert done.stderr.endswith("LookupError: in the script\n")


def test_forked_command_has_none_of_the_files_of_the_tests(tmp_path):
    (tmp_path / "script.py").write_text("import os; print(*sorted(os.listdir('/proc/self/fd'), key=int))")
    with (tmp_path / "open").open("w"):
        process = ForkedCommand([sys.executable, "script.py"], cwd=tmp_path, stdout=subprocess.PIPE, text=True)
        numbers = list(map(int, process.communicate(timeout=60)[0].split()))
    assert numbers[:3] == [0, 1, 2]
    assert len(numbers) <= 5, "besides these a pipe to the resource tracker, and the listed folder"
    assert Path.cwd() != tmp_path
    assert os.getpid() != process.pid


def test_forked_worker_has_none_of_the_files_of_the_process_that_trains(tmp_path, monkeypatch):
    train = LockstepTask.run

    def list_files(self, *arguments):  # runs in the worker
        links = [link for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]  # without the listing's own
        (tmp_path / "files.txt").write_text("\n".join(os.readlink(link) for link in links))
        return train(self, *arguments)

    monkeypatch.setattr(LockstepTask, "run", list_files)
    with (tmp_path / "open").open("w"):
        trained(tmp_path / "run", "classic/cartpole")
    files = (tmp_path / "files.txt").read_text().splitlines()
    assert not [name for name in files if name.startswith(str(tmp_path)) and not name.endswith("lockstep.txt")], files
    assert any(name.startswith("pipe:") for name in files)
