"""The time to the first update is told once, if it is more than a minute, from the first environment steps."""

import pytest

from sfactory.config import Config, Env, Sampling
from sfactory.envs import make_spec
from sfactory.shm import atomics
from sfactory.shm.slots import Request
from sfactory.supervisor.first_update import FirstUpdate, first_update_line
from sfactory.workers.shared import Phase, RunSpec, SharedState, heartbeat_word


@pytest.fixture
def shared(tmp_path):
    """One sampler with two groups of 10 environments; an update needs 2 x 10 x 100 steps."""
    config = Config(env=Env("gymnasium/CartPole-v1"), sampling=Sampling(1, 2, 10, 100))
    return SharedState.create(RunSpec(config, make_spec(config.env.name), str(tmp_path), 0))


def at(shared, number, env=-1):
    """Both groups have made `number` requests, and the sampler has come to environment `env` of a group."""
    for group in range(2):
        shared.slot_table.request(group, Request(number, 0, number - 1))
    shared.arena["position"][0] = 0, env
    row = shared.run_spec.workers.index("sampler-0")
    atomics.store(shared.heartbeat, row, heartbeat_word(number, Phase.ENVIRONMENT))


def test_first_update_is_announced_once_from_the_measured_rate(shared):
    first = FirstUpdate(shared.run_spec, shared)
    assert first.line(100.0) == "", "environments are being built"
    at(shared, 1)
    assert first.line(200.0) == ""
    at(shared, 2)
    assert first.line(204.0) == "", "too short to tell"
    at(shared, 3)
    line = first.line(220.0)  # 40 steps in 20 s, and 2000 are needed
    assert line.startswith(
        "the first update will take about 17 min if the speed stays as it is: it needs 2,000 environment steps, and "
        "there were 2 per second in the last 20 s; fewer: sampling"
    )
    assert first.line(300.0) == ""


def test_first_update_measures_again_what_was_slow_while_processes_warmed_up(shared):
    """On a busy machine the first actions can take seconds: the rate of that time says nothing."""
    first = FirstUpdate(shared.run_spec, shared)
    at(shared, 1)
    assert first.line(100.0) == ""
    at(shared, 2)
    assert first.line(106.0) == "", "20 steps in 6 s would be 10 minutes"
    at(shared, 50)
    assert first.line(112.0) == "", "960 steps in 6 s, and still before the end of the warm-up"
    at(shared, 60)
    assert first.line(118.0) == "", "200 steps in 6 s: the update takes a minute at most"
    assert first.done


def test_first_update_is_announced_after_the_warm_up_if_it_stays_slow(shared):
    first = FirstUpdate(shared.run_spec, shared)
    told = []
    for number in range(1, 13):
        at(shared, number)
        told.append(first.line(100.0 + 2 * number))  # 10 steps per second
    assert told.count("") == 11
    (line,) = filter(None, told)
    assert "about 3 min if" in line
    assert told.index(line) >= 7, "after 15 s"


def test_first_update_counts_steps_within_a_group_that_is_slow(shared):
    """One step of the group takes a minute here: waiting for a whole one would say nothing for long."""
    first = FirstUpdate(shared.run_spec, shared)
    at(shared, 1, env=0)
    assert first.line(0.0) == ""
    at(shared, 1, env=3)
    assert first.line(18.0) == "", "three steps are few"
    at(shared, 1, env=5)
    assert "about 3.3 hours" in first.line(30.0)


def test_first_update_of_agents_is_in_agent_steps(tmp_path):
    config = Config(env=Env("pettingzoo/mpe/simple_spread"), sampling=Sampling(1, 2, 10, 100))
    shared = SharedState.create(RunSpec(config, make_spec(config.env.name), str(tmp_path), 0))
    first = FirstUpdate(shared.run_spec, shared)
    at(shared, 1, env=0)
    assert first.line(0.0) == ""
    at(shared, 1, env=5)  # 5 environments of 3 agents in 30 s, and 6000 rows are needed
    line = first.line(30.0)
    assert "3.3 hours if the speed stays as it is: it needs 6,000 agent steps, and there were 0.5 per second" in line


def test_first_update_is_not_announced_after_the_first_update(shared):
    first = FirstUpdate(shared.run_spec, shared)
    at(shared, 1)
    first.line(0.0)
    shared.slot_table.learner_rows[0].trained = 2000
    at(shared, 2)
    assert first.line(100.0) == ""


def test_first_update_is_not_announced_while_a_full_batch_waits_for_other_ranks(shared):
    first = FirstUpdate(shared.run_spec, shared)
    at(shared, 99)
    assert first.line(0.0) == ""
    at(shared, 100)  # 2 x 10 x 100 rows
    assert first.line(90.0) == ""
    assert first.done


@pytest.mark.parametrize(
    ("rate", "word"), [(40.0, ""), (34.0, ""), (33.0, "1 min"), (1.0, "33 min"), (0.1, "5.6 hours")]
)
def test_first_update_line_tells_more_than_a_minute(rate, word):
    line = first_update_line(2000, rate)
    assert word in line if word else not line
