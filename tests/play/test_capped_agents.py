"""Episodes of several agents that are cut at `max_steps`."""

import agent_scripts
import numpy as np
import pytest

from sfactory.envs.agent_group import AgentGroup
from sfactory.play.episodes import play


@pytest.mark.parametrize(("steps", "returns"), [(1, (1, 0)), (2, (1, 2)), (3, (0, 2, 5)), (4, (0, 2, 3))])
def test_play_averages_a_capped_episode_over_the_agents_that_took_part(steps, returns):
    def make(envs, first):
        return AgentGroup(agent_scripts.Born, envs, list(range(envs)), name="born")

    def act(obs, first):
        return {"action": np.zeros(len(first), np.int64)}

    results = play(make, act, 3, steps, num_envs=2)
    assert results.lengths == [steps] * 3
    assert results.returns == pytest.approx([np.mean(returns)] * 3)
    assert results.capped == 3
