"""The learning rate of a resumed run, and the line that tells when it is another."""

import json
from pathlib import Path

import pytest

import sfactory
from sfactory.config import Config, Env, Optim, Stop
from sfactory.learning.resumed_rate import resumed_rate

pytestmark = pytest.mark.usefixtures("forked")


def resumed(schedule, lr, steps, state, stop=100_000):
    config = Config(env=Env("a/b"), optim=Optim(lr=lr, schedule=schedule), stop=Stop(env_steps=stop))
    return resumed_rate(config, {"kl": 0.01, "ess": 0.5, **state}, steps)


@pytest.mark.parametrize(
    ("schedule", "lr", "steps", "state"),
    [
        ("constant", 1e-3, 5000, {"lr": 1e-3, "initial_lr": 1e-3}),
        ("kl_adaptive", 1e-3, 5000, {"lr": 7e-3, "initial_lr": 1e-3}),
        ("kl_adaptive", 1e-3, 5000, {"lr": 7e-3}),  # of an older version
        ("linear", 1e-3, 50_000, {"lr": 5.1e-4, "initial_lr": 1e-3}),
        ("linear", 1e-3, 99_000, {"lr": 3e-5, "initial_lr": 1e-3}),  # the last updates
        ("ess", 1e-3, 5000, {"lr": 7.2e-4, "initial_lr": 1e-3}),
    ],
)
def test_resumed_rate_goes_on_without_a_word_where_nothing_changed(schedule, lr, steps, state):
    assert resumed(schedule, lr, steps, state) == (state["lr"], "")


THEN = {"lr": 5.1e-4, "initial_lr": 1e-3, "schedule": "linear", "schedule_end": 100_000}
"""What a checkpoint stores, at half of a linear schedule."""


def test_checkpoint_of_a_version_without_a_decay_share_fell_over_the_whole_run():
    config = Config(env=Env("a/b"), optim=Optim(schedule="linear", decay_share=0.5), stop=Stop(env_steps=100_000))
    state = {"kl": 0.01, "ess": 0.5, **THEN}
    assert "before, 0.001 from here on" in resumed_rate(config, state, 50_000)[1]
    assert resumed_rate(config, {**state, "decay_share": 0.5, "lr": 1e-3}, 50_000) == (1e-3, "")


@pytest.mark.parametrize(
    ("schedule", "stop", "state", "text"),
    [
        ("linear", 100_000, THEN, ""),
        (
            "linear",
            102_000,
            THEN,
            "0.00051 before, 0.00051 from here on (optim.lr 0.001, optim.schedule linear",
        ),
        ("linear", 1_000_000, THEN, "0.00051 before, 0.00095 from here on"),
        ("constant", 100_000, THEN, "0.00051 before, 0.001 from here on (optim.lr 0.001, optim.schedule constant)"),
        ("kl_adaptive", 100_000, {**THEN, "lr": 7e-3, "schedule": "kl_adaptive"}, ""),
        ("kl_adaptive", 100_000, {**THEN, "schedule": "linear"}, "0.00051 before, 0.00051 from here on"),
        ("constant", 900_000, {**THEN, "lr": 1e-3, "schedule": "constant"}, ""),
        ("ess", 900_000, {**THEN, "lr": 1e-3, "schedule": "ess"}, ""),  # lr: of an update with another ess
    ],
)
def test_resumed_rate_tells_every_change_of_the_schedule_however_small(schedule, stop, state, text):
    rate, line = resumed(schedule, 1e-3, 50_000, state, stop)
    assert rate == state["lr"]
    assert text in line
    assert bool(line) == bool(text)


@pytest.mark.parametrize(
    ("schedule", "lr", "steps", "state", "rate", "text"),
    [
        ("kl_adaptive", 1e-6, 5000, {"lr": 7e-3, "initial_lr": 2e-3}, 1e-6, "0.007 before, 1e-06 from here on (optim"),
        ("kl_adaptive", 5e-3, 5000, {"lr": 1e-3, "initial_lr": 2e-3}, 5e-3, "0.001 before, 0.005 from"),
        ("constant", 1e-4, 5000, {"lr": 1e-3, "initial_lr": 1e-3}, 1e-4, "0.001 before, 0.0001 from"),
        ("constant", 1e-4, 5000, {"lr": 1e-3}, 1e-3, "0.001 before, 0.0001 from"),
        ("linear", 1e-3, 30_000, {"lr": 3.2e-5, "initial_lr": 1e-3}, 3.2e-5,
         "3.2e-05 before, 0.0007 from here on (optim.lr 0.001, optim.schedule linear, 0 at stop.env-steps 100,000)"),
        ("linear", 1e-3, 80_000, {"lr": 9e-4, "initial_lr": 1e-3}, 9e-4, "0.0009 before, 0.0002 from"),
        ("constant", 1e-3, 30_000, {"lr": 3.2e-5, "initial_lr": 1e-3}, 3.2e-5, "3.2e-05 before, 0.001 from"),
    ],
)  # fmt: skip
def test_resumed_rate_tells_a_change(schedule, lr, steps, state, rate, text):
    found, line = resumed(schedule, lr, steps, state)
    assert found == rate
    assert line.startswith("learning rate: ")
    assert text in line


def rates(run):
    rows = [json.loads(line) for line in Path(run, "metrics.jsonl").read_text().splitlines()]
    return [row["charts/learning_rate"] for row in rows if "charts/learning_rate" in row]


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    ("schedule", "changes", "low", "high", "text"),
    [
        ("kl_adaptive", {"optim": {"lr": 1e-6}}, 0, 2e-5, "1e-06 from here on (optim.lr 1e-06, optim"),
        ("linear", {}, 4e-4, 1e-3, "from here on (optim.lr 0.001, optim.schedule linear, 0 at stop.env-steps 1,200)"),
        ("constant", {}, 1e-3, 1e-3, ""),
    ],
)  # fmt: skip
def test_a_resumed_run_trains_with_the_rate_that_its_log_names(tmp_path, schedule, changes, low, high, text):
    tiny = {"num_samplers": 1, "envs_per_group": 4, "rollout_length": 8}
    sections = {
        "run": {"mode": "lockstep", "dir": tmp_path / "a"}, "sampling": tiny, "batch": {"minibatches": 1},
        "optim": {"schedule": schedule, "lr": 1e-3}, "log": {"quiet": True, "every_updates": 1},
    }  # fmt: skip
    sfactory.train("classic/cartpole", **sections, stop={"env_steps": 600})
    before = len(rates(tmp_path / "a"))
    sfactory.resume(tmp_path / "a", **changes, stop={"env_steps": 1200})
    after = rates(tmp_path / "a")[before:]
    assert low <= after[0] <= high
    log = (tmp_path / "a/log.txt").read_text()
    assert text in log if text else "learning rate:" not in log
