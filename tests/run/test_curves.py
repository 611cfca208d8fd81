"""The metrics of a run as curves, and the outcome that has them."""

import json

import numpy as np
import pytest

from sfactory.errors import Exit
from sfactory.run.curves import read_history
from sfactory.run.outcome import Outcome

RETURN = "charts/episodic_return"
ROWS = [
    {"env_steps": 10, "seconds": 1.0, "charts/SPS": 10.0},
    {"env_steps": 20, "seconds": 2.0, "charts/SPS": 11.0, RETURN: 4.0},
    {"env_steps": 30, "seconds": 3.0, "charts/SPS": 12.0, RETURN: None},
    {"env_steps": 40, "seconds": 4.0, "charts/SPS": 13.0, RETURN: 6.5},
]


@pytest.fixture
def run(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return tmp_path


def outcome(code, steps=0, checkpoint="", **fields):
    return Outcome(code.outcome, int(code), "why", env_steps=steps, checkpoint=checkpoint, **fields)


def test_history_has_the_steps_of_every_value(run):
    history = outcome(Exit.FINISHED, run_dir=str(run)).history
    steps, values = history[RETURN]
    assert (steps.tolist(), values.tolist()) == ([20, 40], [4.0, 6.5])
    assert history.steps.tolist() == [10, 20, 30, 40]
    assert history.seconds.tolist() == [1, 2, 3, 4]
    assert sorted(history) == ["charts/SPS", RETURN] == sorted(dict(history))
    assert np.isnan(history.table[RETURN]).tolist() == [True, False, True, False]
    assert repr(history) == f"<History of 4 rows to 40 steps: charts/SPS, {RETURN}>"


def test_history_suggests_the_nearest_metric(run):
    with pytest.raises(KeyError, match=f"no such metric in this run; did you mean {RETURN}"):
        read_history(run)["charts/episode_return"]
    with pytest.raises(KeyError, match=r"no such metric; it is history\.steps, and history\.table\['env_steps'\]"):
        read_history(run)["env_steps"]
    for several in (0, None, [RETURN]):
        with pytest.raises(KeyError, match=r"expected the name of one metric; history\.table has several"):
            read_history(run)[several]


def test_history_of_a_run_without_rows_is_empty(tmp_path):
    history = read_history(tmp_path)
    assert (len(history), len(history.steps)) == (0, 0)
    assert repr(history) == "<History of 0 rows to 0 steps: no metrics>"
    with pytest.raises(ValueError, match="does not exist"):
        read_history(tmp_path / "absent")


@pytest.mark.parametrize(
    ("ended", "failed"),
    [
        (outcome(Exit.FINISHED, 100, "a/000100"), False),
        (outcome(Exit.FINISHED), False),
        (outcome(Exit.INTERRUPTED, 100, "a/000100"), False),
        (outcome(Exit.TERMINATED, 100, "a/000100"), False),
        (outcome(Exit.REQUEUE, 100, "a/000100"), False),
        (outcome(Exit.INTERRUPTED, 0), False),  # nothing was trained yet
        (outcome(Exit.INTERRUPTED, 100, "a/000060"), True),  # a second Ctrl-C
        (outcome(Exit.INTERRUPTED, 100), True),
        (outcome(Exit.WORKER_LOST, 100, "a/000100"), True),
        (outcome(Exit.BUG, 100, "a/000100"), True),
    ],
    ids=lambda x: f"{x.name} {x.env_steps} {x.checkpoint}" if isinstance(x, Outcome) else str(x),
)
def test_outcome_of_a_saved_stop_is_no_failure(ended, failed):
    assert ended.failed == failed
    assert ended.stopped == (ended.code in (75, 130, 143))


def test_outcome_repr_says_how_it_ended_and_where():
    ended = outcome(Exit.FINISHED, 1200, run_dir="runs/a", training_return=21.537, episodes=30)
    assert repr(ended) == (
        "<Outcome finished (exit 0): why; 1,200 steps, training return 21.54 (30 episodes), run_dir 'runs/a'>"
    )
    assert "training return unknown" in repr(outcome(Exit.FINISHED))
