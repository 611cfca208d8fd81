"""The last 100 episodes, and what is known of a run from them."""

import json

import pytest

from sfactory.errors import CheckpointError
from sfactory.monitor.episodes import Episodes, stored_episodes


def filled(*counts):
    """Episodes of as many tasks as there are counts."""
    episodes = Episodes(len(counts))
    for task, count in enumerate(counts):
        episodes.add([(0.1 * number + 100 * task, number, task) for number in range(count)])
    return episodes


@pytest.mark.parametrize("counts", [(0,), (1,), (99,), (250,), (3, 0, 130)])
def test_episodes_are_the_same_after_a_checkpoint_and_through_shared_memory(counts):
    episodes, stored, shared = filled(*counts), filled(*[7] * len(counts)), filled(*[7] * len(counts))
    stored.set_state(json.loads(json.dumps(episodes.state())))
    shared.set_numbers(episodes.numbers())
    assert len(episodes.numbers()) == Episodes.size(len(counts))
    for other in (stored, shared):
        assert other.state() == episodes.state()
        assert (other.training_return, other.in_mean) == (episodes.training_return, episodes.in_mean)


def test_episodes_are_settled_when_every_task_has_a_hundred():
    assert not filled(100, 99).settled
    assert filled(100, 99).settled_return is None
    assert (filled(100, 99).in_mean, filled(100, 0).in_mean) == (99, 100)
    assert filled(100, 130).settled
    assert filled(100, 130).settled_return == filled(100, 130).training_return


def test_stored_episodes_of_an_earlier_version_are_unknown_until_there_are_a_hundred():
    episodes = stored_episodes({"env_steps": 5000}, 1)
    episodes.add([(0.0, 1, 0)] * 99)
    assert episodes.training_return is None
    again = stored_episodes({"env_steps": 5000, "episodes": episodes.state()}, 1)
    assert again.training_return is None, "after another resume too"
    again.add([(0.0, 1, 0)])
    assert again.training_return == 0.0
    assert stored_episodes({}, 1).complete, "a new run"


def test_stored_episodes_refuses_those_of_another_number_of_tasks():
    with pytest.raises(CheckpointError, match="another number of tasks than 2"):
        stored_episodes({"episodes": Episodes(1).state()}, 2)
