"""`Policy.act` for one of several agents: observation and action are those of the agent."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from agent_envs import Bits
from gymnasium import spaces

import sfactory
from sfactory.envs.agent_group import AgentGroup
from sfactory.envs.saved_spec import spaces_to_json
from sfactory.learning.network import build_model
from sfactory.play.policy import Policy


class Masked(Bits):
    """Has a mask in `info`."""

    def reset(self, seed=None, options=None):
        obs, infos = super().reset(seed, options)
        return obs, {agent: {"action_mask": np.array([1, 0], np.int8)} for agent in infos}


class Unequal(Bits):
    """`b` has a third number more, and a third choice."""

    def observation_space(self, agent):
        return spaces.Box(0, 1, (3 if agent == "a" else 4,), np.float32)

    def action_space(self, agent):
        return spaces.Discrete(2 if agent == "a" else 3)


def policy_of(env, core="none", **options):
    """An untrained policy; its last layer is random, so that actions depend on what it reads."""
    group = AgentGroup(env, 1, [0], name="bits", **options)
    spec = replace(group.spec, spaces=spaces_to_json(group))
    config = sfactory.make_config("classic/cartpole", model={"core": core, "separate": False})
    model = build_model(config, spec).eval()
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data.normal_(generator=generator)
    return Policy(model, spec, config, Path(), 0, seed=0)


OBS = np.array([1, 0, 0.5], np.float32)


def test_policy_acts_for_an_agent_with_the_observation_of_the_environment():
    policy = policy_of(Bits)
    assert policy.act(OBS) in (0, 1)
    assert policy.act(np.tile(OBS, (5, 1))).shape == (5,)
    assert policy.act(OBS, agent="b") == policy.act(OBS)  # does not read the agent
    with pytest.raises(ValueError, match=r"agent 'c': bits has a, b"):
        policy.act(OBS, agent="c")
    with pytest.raises(ValueError, match="no mask beside its observation"):
        policy.act(OBS, mask=[1, 0])


def test_policy_with_agent_id_reads_the_agent_by_name_or_number():
    policy = policy_of(Bits, agent_id=True)
    batch = np.random.default_rng(0).random((200, 3)).astype(np.float32)
    a, b = (policy.act(batch, agent=agent) for agent in "ab")
    assert a.tolist() != b.tolist()
    assert policy.act(batch, agent=1).tolist() == b.tolist()
    mixed = policy.act(batch, agent=["a", "b"] * 100)
    assert mixed.tolist() == np.where(np.arange(200) % 2, b, a).tolist()
    with pytest.raises(ValueError, match=r"trained with env\.agent-id; give one of a, b"):
        policy.act(OBS)
    with pytest.raises(ValueError, match="3 agents for 200 observations"):
        policy.act(batch, agent=[0, 1, 0])


def test_policy_obeys_the_mask_that_the_environment_has_in_info():
    policy = policy_of(Masked)
    batch = np.random.default_rng(0).random((50, 3)).astype(np.float32)
    assert set(policy.act(batch, greedy=False).tolist()) == {0, 1}
    assert set(policy.act(batch, greedy=False, mask=[0, 1]).tolist()) == {1}
    rows = np.eye(2)[np.arange(50) % 2]
    assert policy.act(batch, mask=rows).tolist() == (np.arange(50) % 2).tolist()
    for wrong in ([1, 1, 1], rows[:7], 1):
        with pytest.raises(ValueError, match=r"mask has shape .* expected \(2,\)"):
            policy.act(batch, mask=wrong)


def test_policy_of_padded_spaces_takes_padded_observations_and_a_mask():
    policy = policy_of(Unequal, pad_spaces=True)
    batch = np.random.default_rng(0).random((50, 4)).astype(np.float32)
    assert set(policy.act(batch, greedy=False, mask=[1, 1]).tolist()) == {0, 1}
    assert policy.act(batch[0], mask=[0, 0, 1]) == 2
    with pytest.raises(ValueError, match=r"obs has shape \(3,\); bits has \(4,\)"):
        policy.act(OBS)


def test_policy_of_padded_spaces_counts_actions_from_0_whatever_the_start_of_the_agents_space():
    class Started(Unequal):
        def action_space(self, agent):
            return spaces.Discrete(2, start=7) if agent == "a" else spaces.Discrete(3, start=-1)

    policy = policy_of(Started, pad_spaces=True)
    assert [policy.act(np.zeros(4, np.float32), mask=mask) for mask in np.eye(3)] == [0, 1, 2]


def test_policy_with_memory_keeps_its_state_between_the_steps_of_an_agent():
    policy = policy_of(Bits, core="gru")
    policy.act(OBS)
    before = policy._actor.state.clone()
    policy.act(OBS)
    assert not before.equal(policy._actor.state)
