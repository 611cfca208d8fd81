"""A stranger's run folder may be opened: none of its code runs, nothing outside it changes, no command hangs.

Every folder of `hostile_folders` x every command that takes a run, each as if it was typed inside the folder (where
Python would find its modules). The workers of `resume` and `train` are replaced; how the learner refuses a checkpoint
that does not fit is tested below.
"""

import contextlib
import hashlib
import os
import shutil
import signal
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hostile_folders import CHECKPOINT, FOLDERS, GOOD, forge_tensors, make_folder

import sfactory
from sfactory.cli import main as cli
from sfactory.cli.exit_line import exit_of
from sfactory.config.toml_file import from_toml
from sfactory.envs import make_spec, make_specs
from sfactory.errors import CheckpointError, CommandError, Exit
from sfactory.learning.network import build_model
from sfactory.learning.update import Update
from sfactory.monitor.episodes import Episodes
from sfactory.play.watched_group import NO_CLOCK
from sfactory.run.outcome import Outcome
from sfactory.supervisor import train as training
from sfactory.workers.checkpointing import Checkpointing
from sfactory.workers.counters import Counters
from sfactory.workers.shared import RunSpec

OWN_WORK_S = 10.0
WAIT_S = 60.0
"""The clock of this process, and that of the wall, which shows that a command waits for something."""
NO_KERNELS = ("--run.kernels", "torch")  # to be built
COMMANDS = {
    "info": ("info", "."),
    "report": ("report", "."),
    "watch": ("watch", "."),
    "compare": ("compare", ".", str(GOOD)),
    "eval": ("eval", ".", "--episodes", "1", "--max-steps", "3"),
    "load_policy": (),
    "export": ("export", ".", "-o", "policy.pt2"),
    "init_from": ("train", "gymnasium/CartPole-v1", "--run.init-from", ".", "--run.dir", "new", *NO_KERNELS),
    "resume": ("resume", ".", *NO_KERNELS, "--stop.env-steps", "1M"),
}
DOCUMENTED = {int(code) for code in Exit} - {int(Exit.BUG)}


class Hang(BaseException):
    """A command that takes too long."""


def finished_at_once(run_spec, recorder, signals):
    """Takes the place of the workers."""
    return Outcome.of(Exit.FINISHED, "nothing was trained")


@contextlib.contextmanager
def limited():
    """Raise Hang in code that takes too long."""

    def hang(number, frame):
        raise Hang(signal.Signals(number).name)

    before = {number: signal.signal(number, hang) for number in (signal.SIGPROF, signal.SIGALRM)}
    signal.setitimer(signal.ITIMER_PROF, OWN_WORK_S)
    signal.setitimer(signal.ITIMER_REAL, WAIT_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in before.items():
            signal.signal(number, handler)


def run_command(name):
    """Exit code of a command in the current folder."""
    try:
        if name == "load_policy":
            sfactory.load_policy(".")
            return 0
        cli.main(COMMANDS[name])
    except SystemExit as exit_:
        return exit_.code
    except Exception as error:
        return int(exit_of(error)[0])


def outside(place, run):
    """Everything beside the folder: path -> kind, content, time of the last change."""
    found = {}
    for folder, folders, files in os.walk(place):
        folders[:] = [name for name in folders if Path(folder, name) != run]
        for path in (Path(folder, name) for name in (*folders, *files)):
            stat = path.lstat()
            content = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
            found[path] = stat.st_mode, content, stat.st_mtime_ns if files else 0
    return found


@pytest.fixture
def place(tmp_path, monkeypatch):
    for variable in ("XDG_STATE_HOME", "HOME", "TMPDIR"):
        monkeypatch.setenv(variable, str(tmp_path / "elsewhere"))
    monkeypatch.setattr(training, "run_workers", finished_at_once)
    monkeypatch.setattr(training, "read_specs", lambda config, ranks: make_specs(config.env.tasks, config.env.options))
    for module in ("env_task", "network_check", "specs"):  # in this process, where code of the folder would be seen
        monkeypatch.setattr(f"sfactory.supervisor.{module}.run_env_task", lambda job, env, **_: job.run(NO_CLOCK))
    monkeypatch.setattr("torch.export.export", stop_export)
    return tmp_path


def stop_export(*args, **options):
    raise CommandError(Exit.FINISHED, "stopped here: tracing a network takes seconds")


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", FOLDERS)
def test_hostile_folder_is_opened_by_every_command_without_harm(place, name, capfd, monkeypatch):
    run = make_folder(name, place)
    before, modules, path = outside(place, run), set(sys.modules), list(sys.path)
    monkeypatch.chdir(run)
    for command in COMMANDS:
        with limited():
            code = run_command(command)
        out, err = capfd.readouterr()
        shown = f"{command}: exit {code}\n{out}{err}"
        assert "Traceback" not in err, shown
        assert code in DOCUMENTED, shown
        assert code == FOLDERS[name].codes.get(command, code), shown
        assert not set("\x1b\x07\x9b\u202e") & set(out + err), shown
        assert not (place / "ran").exists(), shown
        assert outside(place, run) == before, shown
        if (run / "report.html").is_file() and command == "report" and code == 0:
            page = (run / "report.html").read_text()
            assert "<script" not in page
            assert "onerror=alert(1)>" not in page
            assert "default-src 'none'" in page
    assert not {module for module in set(sys.modules) - modules if module.startswith("evil")}
    sys.path[:] = path


def test_hostile_folders_are_many():
    assert len(FOLDERS) >= 40


FORGED = {
    "model.safetensors": lambda arrays: arrays.pop("value_head.bias"),
    "optimizer.safetensors": lambda arrays: arrays.pop("0.exp_avg"),
    "normalizers.safetensors": lambda arrays: arrays.update({"reward.mean": np.zeros(3)}),
    "proximal.safetensors": lambda arrays: arrays.update({"mean.value_head.bias": np.zeros(7, np.float32)}),
}


@pytest.mark.parametrize("file", [*FORGED, ""])
def test_checkpointing_restores_no_part_of_another_network(tmp_path, file):
    run = tmp_path / "run"
    shutil.copytree(GOOD, run)
    if file:
        forge_tensors(run, file, FORGED[file])
    config = from_toml(run / "config.toml")
    spec = make_spec(config.env.name)
    update = Update(config, build_model(config, spec), torch.device("cpu"))
    words = SimpleNamespace(checkpoint=0, saved=0)
    learner = Checkpointing(RunSpec(config, spec, str(run), 1), update, Counters(), Episodes(), words, None, print, 0)
    before = {name: tensor.clone() for name, tensor in update.model.state_dict().items()}
    if not file:
        learner.restore(run / CHECKPOINT)
        assert words.checkpoint == 3114
        return
    with pytest.raises(CheckpointError, match="another"):
        learner.restore(run / CHECKPOINT)
    assert all(torch.equal(tensor, before[name]) for name, tensor in update.model.state_dict().items())
