"""Exit codes of exceptions, and imports from modules that have moved."""

import importlib
import importlib.util
import inspect
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
from import_graph import modules

import sfactory
from sfactory import _moved, errors
from sfactory.errors import Exit
from sfactory.play.export import ExportMismatch
from sfactory.run.outcome import Outcome
from sfactory.tools.bench import BenchFailed
from sfactory.tools.verify_resume import TrialRunFailed

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize(
    "error",
    [
        *(kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, Exception)),
        BenchFailed,
        TrialRunFailed,
        ExportMismatch,
    ],
    ids=lambda kind: kind.__name__,
)
def test_error_carries_its_exit_code(error):
    if issubclass(error, Warning):
        return
    outcome = Outcome("busy", 3, "why", run_dir="runs/a")
    arguments = {
        errors.CommandError: (Exit.USAGE, "why"),
        errors.OnlyRegisteredHere: ("why", "gymnasium/Mine-v0"),
        errors.RunFailed: (outcome,),
    }
    raised = error(*arguments.get(error, ("why",)))
    assert isinstance(raised.exit_code, Exit)
    assert str(raised) == ("busy (exit 3): why; see runs/a/log.txt" if error is errors.RunFailed else "why")
    again = pickle.loads(pickle.dumps(raised))
    assert (type(again), str(again), again.exit_code) == (error, str(raised), raised.exit_code)


def test_every_exit_code_has_a_word():
    assert len({code.outcome for code in Exit}) == len(Exit)


@pytest.mark.parametrize(("old", "new"), _moved.MOVED.items())
def test_moved_module_is_gone_and_its_successor_exists(old, new):
    assert f"sfactory.{old}" not in modules(ROOT)
    assert importlib.util.find_spec(f"sfactory.{new}") is not None


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        ("import sfactory.env_group", "sfactory.env_group has moved to sfactory.envs.gymnasium_adapter"),
        ("from sfactory.policy import load_policy", "sfactory.policy has moved to sfactory.play.policy"),
        ("from sfactory import checkpoint", "sfactory.checkpoint has moved to sfactory.run.checkpoint"),
        ("import sfactory.memory.slots", "sfactory.memory has moved to sfactory.shm"),
        ("import sfactory.workers.birth", "sfactory.workers.birth has moved to sfactory.supervisor.spawn"),
        ("import sfactory.absent", "No module named 'sfactory.absent'"),
    ],
)
def test_import_of_a_moved_module_names_the_new_path(statement, message):
    done = subprocess.run([sys.executable, "-c", statement], capture_output=True, text=True, timeout=30)
    assert done.stderr.splitlines()[-1].endswith(message)


@pytest.mark.parametrize("name", sfactory.__all__)
def test_public_names_are_importable(name):
    assert getattr(importlib.import_module("sfactory"), name)
    assert name in dir(sfactory)
