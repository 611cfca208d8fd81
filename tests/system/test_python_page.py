"""docs/python.md: every example is taken from the page and run."""

import re
import sys

import pytest
from documents import ROOT, blocks, named
from forked_processes import run_forked

import sfactory

PAGE = ROOT / "docs" / "python.md"
pytestmark = pytest.mark.timeout(300)


def output(folder, name):
    """Lines that an example of the page prints."""
    (folder / name).write_text(named(PAGE, name))
    done = run_forked([sys.executable, name], cwd=folder, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.splitlines()


def test_python_page_first_run_has_an_outcome_a_history_and_a_policy(tmp_path):
    outcome, curve, action = output(tmp_path, "first.py")
    assert outcome.startswith("<Outcome finished (exit 0): stop.env-steps 2,000 was reached")
    assert re.fullmatch(r"\d+ True", curve)
    assert action in ("0", "1")


@pytest.mark.slow
def test_python_page_environment_of_the_main_script_trains_and_is_evaluated(tmp_path):
    assert output(tmp_path, "own.py") == ["finished 10.0", "4"]


@pytest.mark.slow
def test_python_page_callback_stops_the_run(tmp_path):
    *rows, sentence, newest = output(tmp_path, "watched.py")
    assert sentence == "stopped by a callback: no better return for 3 rows"
    assert newest == "True"
    assert len(rows) >= 4
    assert all(re.fullmatch(r"\d+ charts/FPS", row) for row in rows)


@pytest.mark.slow
def test_python_page_policy_acts_predicts_and_values(tmp_path):
    policy, actions, shapes, predicted = output(tmp_path, "acting.py")
    assert policy.startswith("<Policy of gymnasium/CartPole-v1 after ")
    assert re.fullmatch(r"\[[01] [01]\] [01]", actions)
    assert shapes == "(2,) (2, 2) True"
    assert predicted == "True None"


def test_python_page_optuna_prunes_trials(tmp_path):
    assert output(tmp_path, "tuned.py") == ["['PRUNED', 'PRUNED']"]
    log = (tmp_path / "runs" / "trial-1" / "log.txt").read_text()
    assert "finished (exit 0): stopped by a callback: pruned by Optuna" in log


def test_python_page_examples_are_all_tested():
    names = {block.text.partition("\n")[0] for block in blocks(PAGE, "python")}
    assert names == {"# first.py", "# own.py", "# watched.py", "# acting.py", "# tuned.py"}


def test_python_page_lists_every_public_function():
    functions = {name for name in sfactory.__all__ if name[0].islower()}
    assert functions == set(re.findall(r"^\| `(\w+)\(", PAGE.read_text(), re.MULTILINE))
