"""Environments with several agents that break PettingZoo's rules: each is played right, or refused in one line."""

from typing import ClassVar

import numpy as np
import pytest
from gymnasium import spaces
from pettingzoo import ParallelEnv

from sfactory.envs import EnvError
from sfactory.envs.agent_group import AgentGroup
from sfactory.tools.random_rollout import record


class Hostile(ParallelEnv):
    """Two agents, six steps, a reward of 1 for each in every step. `change` spoils what `step` returns."""

    metadata: ClassVar = {"name": "hostile", "render_modes": []}
    possible_agents: ClassVar = ["a", "b"]
    length = 6

    def observation_space(self, agent):
        return spaces.Box(-9, 9, (3,), np.float32)

    def action_space(self, agent):
        return spaces.Discrete(3)

    def obs(self, agent):
        return self.rng.uniform(-9, 9, 3).astype(np.float32)

    def reset(self, seed=None, options=None):
        self.rng, self.t, self.agents = np.random.default_rng(seed), 0, list(self.possible_agents[:2])
        return {agent: self.obs(agent) for agent in self.agents}, {agent: {} for agent in self.agents}

    def step(self, actions):
        self.t += 1
        there, over = list(self.agents), self.t >= self.length
        self.agents = [] if over else there
        obs, infos = {agent: self.obs(agent) for agent in there}, {agent: {} for agent in there}
        flags = dict.fromkeys(there, over)
        return self.change(obs, dict.fromkeys(there, 1.0), flags, dict.fromkeys(there, False), infos)

    def change(self, *result):
        return result


class Renamed(Hostile):
    def change(self, obs, *rest):
        if self.t == 3:
            self.agents = ["a", "bb"]
            obs["bb"] = obs.pop("b")
        return obs, *rest


class EmptyAtReset(Hostile):
    def reset(self, seed=None, options=None):
        super().reset(seed)
        self.agents = []
        return {}, {}


class EmptyAtSecondReset(Hostile):
    resets = 0

    def reset(self, seed=None, options=None):
        self.resets += 1
        result = super().reset(seed)
        self.agents = self.agents if self.resets == 1 else []
        return result


class OneWithoutObservation(Hostile):
    def reset(self, seed=None, options=None):
        obs, infos = super().reset(seed)
        return {"a": obs["a"]}, infos


class BornWithOtherSpaces(Hostile):
    possible_agents: ClassVar = ["a", "b", "c"]

    def change(self, obs, *rest):
        if self.t == 2:
            self.agents, obs["c"] = [*self.agents, "c"], np.zeros(5, np.float32)
        return obs, *rest


class BornUnknown(BornWithOtherSpaces):
    possible_agents: ClassVar = ["a", "b"]


class RewardMissing(Hostile):
    def change(self, obs, rewards, *rest):
        return obs, {"a": 1.0} if self.t == 3 else rewards, *rest


class InfosMissing(Hostile):
    def change(self, *result):
        return *result[:4], {}


class InfosAreNone(Hostile):
    def change(self, *result):
        return *result[:4], None


class OtherDtype(Hostile):
    def change(self, obs, *rest):
        return obs | ({"b": obs["b"].astype(complex)} if self.t == 3 else {}), *rest


class EndsOfAbsentAgents(Hostile):
    """`b` dies in step 2; its later rewards and ends belong to nothing, as those of `ghost`."""

    def change(self, obs, rewards, ended, *rest):
        if self.t == 2:
            self.agents = ["a"]
        if self.t >= 2:
            ended |= {"b": True, "ghost": True}
            rewards |= {"b": 1.0 if self.t == 2 else 100.0, "ghost": 100.0}
        return obs, rewards, ended, *rest


class ComesBack(EndsOfAbsentAgents):
    def change(self, *result):
        obs, rewards, ended, cut, infos = super().change(*result)
        if self.t == 4:
            self.agents, obs["b"] = ["a", "b"], np.ones(3, np.float32)
        return obs, rewards, ended, cut, infos


class MaskOfNothing(Hostile):
    mask = np.zeros(3, np.int8)

    def reset(self, seed=None, options=None):
        obs, infos = super().reset(seed)
        return obs, {agent: {"action_mask": np.ones(3, np.int8)} for agent in infos}

    def change(self, *result):
        return *result[:4], {agent: {"action_mask": self.mask} for agent in result[0]}


class LongMask(MaskOfNothing):
    mask = np.ones(7, np.int8)


class ShortMask(MaskOfNothing):
    mask = np.ones(2, np.int8)


class NoMask(MaskOfNothing):
    mask = None


class LengthOne(Hostile):
    length = 1


class AgentsAreNone(Hostile):
    def change(self, *result):
        self.agents = None
        return result


class OneNameTwice(Hostile):
    possible_agents: ClassVar = [1, "1"]


def rollout_of(env):
    return record(AgentGroup(env, 2, [1, 2], name="hostile"), 28, 60, seed=0)


@pytest.mark.parametrize(
    ("env", "reason"),
    [
        (Renamed, "agents has bb, which possible_agents did not name when the environment was built; see step, "),
        (EmptyAtSecondReset, "reset() left no agent in the environment: agents is empty"),
        (BornWithOtherSpaces, "obs of c has shape (5,), its space has (3,)"),
        (BornUnknown, "agents has c, which possible_agents did not name"),
        (RewardMissing, "step() returned no reward of b"),
        (InfosAreNone, "step() must return five dicts by agent: observations, rewards, terminations"),
        (OtherDtype, "obs of b has dtype complex128, but its space has float32"),
        (LongMask, "action_mask of a has shape (7,), expected (3,)"),
        (ShortMask, "action_mask of a has shape (2,), expected (3,)"),
        (NoMask, "action_mask of a has shape (), expected (3,)"),
        (AgentsAreNone, "agents is None, it must be the list of the agents that are there"),
    ],
)
def test_agent_group_reports_an_environment_that_breaks_the_rules(env, reason):
    found = rollout_of(env)
    assert not found.problem
    assert found.faults[0].message.startswith(f"ValueError: {reason}")


@pytest.mark.usefixtures("short_retries")
@pytest.mark.parametrize(
    ("env", "reason"),
    [
        (EmptyAtReset, "failed at its first reset: ValueError: reset() left no agent in the environment"),
        (OneWithoutObservation, "reset() returned no observation of b, which is among the agents"),
    ],
)
def test_agent_group_refuses_an_environment_without_its_agents_at_the_first_reset(env, reason):
    assert reason in rollout_of(env).problem


def test_agent_group_refuses_two_agents_of_one_name():
    with pytest.raises(EnvError, match=r"every agent needs a name of its own; possible_agents is \[1, '1'\]"):
        AgentGroup(OneNameTwice, 1, [0], name="hostile")


@pytest.mark.parametrize(
    ("env", "episodic_return", "length"),
    [
        (InfosMissing, 6.0, 6),
        (EndsOfAbsentAgents, (6 + 2) / 2, 6),
        (ComesBack, (6 + 2) / 2, 6),
        (MaskOfNothing, 6.0, 6),  # every action is as good as another
        (LengthOne, 1.0, 1),
    ],
)
def test_agent_group_plays_an_environment_that_is_strange_but_clear(env, episodic_return, length):
    found = rollout_of(env)
    assert not found.problem
    assert not found.faults
    assert len(found.episodes) == 2 * 28 // (length + 1)
    assert {(one.episodic_return, one.length) for one in found.episodes} == {(episodic_return, length)}
