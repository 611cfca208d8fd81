"""Environments whose agents follow a script, whatever they do, and what each agent's own episode is by hand.

A script has one entry per step of the environment: the rewards, and the agents that die, are cut off or are born.
`EPISODES` was written from the scripts by hand, not computed: for every agent its own actions, the step of the
environment with which its episode ends, and how.
"""

from typing import ClassVar, NamedTuple

import numpy as np
from gymnasium import spaces
from pettingzoo import AECEnv, ParallelEnv


class Common:
    """Observations are random numbers: every row has another value."""

    metadata: ClassVar = {"name": "script", "render_modes": []}
    render_mode = None
    script: ClassVar = ()

    def observation_space(self, agent):
        return spaces.Box(-9, 9, (3,), np.float32)

    def action_space(self, agent):
        return spaces.Discrete(3)

    def observe(self, agent):
        return self.rng.normal(size=3).clip(-9, 9).astype(np.float32)

    def begin_episode(self, seed):
        if seed is not None or not hasattr(self, "rng"):
            self.rng = np.random.default_rng(seed)
        self.t = 0


class Together(Common, ParallelEnv):
    """Agents act together."""

    possible_agents: ClassVar = ["a", "b", "c"]
    begin: ClassVar = ("a", "b", "c")

    def reset(self, seed=None, options=None):
        self.begin_episode(seed)
        self.agents = list(self.begin)
        return {agent: self.observe(agent) for agent in self.agents}, {agent: {} for agent in self.agents}

    def step(self, actions):
        now, self.t = self.script[self.t], self.t + 1
        dead, cut, born = now.get("dead", ""), now.get("cut", ""), now.get("born", "")
        there = self.agents + list(born)
        self.agents = [agent for agent in there if agent not in dead + cut]
        return (
            {agent: self.observe(agent) for agent in there},
            {agent: float(now.get(agent, 0)) for agent in there},
            {agent: agent in dead for agent in there},
            {agent: agent in cut for agent in there},
            {agent: {} for agent in there},
        )


class InTurns(Common, AECEnv):
    """`a` and `b` act in turns; `end` says how the last step ends the game for both."""

    possible_agents: ClassVar = ["a", "b"]

    def reset(self, seed=None, options=None):
        self.begin_episode(seed)
        self.agents, self.agent_selection = ["a", "b"], "a"
        self.rewards, self._cumulative_rewards = dict.fromkeys("ab", 0.0), dict.fromkeys("ab", 0.0)
        self.terminations, self.truncations = dict.fromkeys("ab", False), dict.fromkeys("ab", False)
        self.infos = {"a": {}, "b": {}}

    def step(self, action):
        agent = self.agent_selection
        if self.terminations[agent] or self.truncations[agent]:
            self._was_dead_step(action)
            return
        now, self.t = self.script[self.t], self.t + 1
        self._cumulative_rewards[agent] = 0.0
        self.rewards = {name: float(now.get(name, 0)) for name in "ab"}
        self.agent_selection = "b" if agent == "a" else "a"
        if now.get("end") == "dead":
            self.terminations = dict.fromkeys("ab", True)
        if now.get("end") == "cut":
            self.truncations = dict.fromkeys("ab", True)
        self._accumulate_rewards()


class Dies(Together):
    script = (
        {"a": 1, "b": 2, "c": -1}, {"b": 3}, {"dead": "b", "a": 1, "b": -5}, {"a": 2, "c": 4},
        {"dead": "ac", "a": -1, "c": 2},
    )  # fmt: skip


class CutEarly(Together):
    script = ({"b": 1}, {"cut": "b", "b": 4, "a": 2}, {"a": 1, "c": -2}, {"dead": "a", "cut": "c", "a": 3, "c": 1})


class Born(Together):
    begin = ("a", "b")
    script = (
        {"a": 1}, {"born": "c", "b": 2}, {"c": 5, "a": -1}, {"dead": "b", "c": -2}, {"dead": "ac", "c": 1, "a": 4},
    )  # fmt: skip


class AllDie(Together):
    script = ({"a": 1, "b": -2}, {"c": 3}, {"dead": "abc", "a": -1, "b": 2, "c": -3})


class AllCut(Together):
    script = ({"a": -1, "b": -2}, {"c": -1}, {"a": -3}, {"cut": "abc", "a": -1, "b": -2, "c": -3})


class Game(InTurns):
    script = ({"b": 7}, {"a": 1}, {"b": 2}, {"a": 3, "b": 1}, {"end": "dead", "a": -1, "b": 5})


class CutGame(InTurns):
    script = ({"a": 2}, {"a": -1}, {"a": 1, "b": 4}, {"end": "cut", "a": 2, "b": 3})


class Own(NamedTuple):
    """An agent's own episode: (step of the environment, reward until it acts again), the last step, the end."""

    actions: tuple
    last: int
    end: str


EPISODES = {
    "Dies": {
        "a": Own(((0, 1), (1, 0), (2, 1), (3, 2), (4, -1)), 4, "dead"),
        "b": Own(((0, 2), (1, 3), (2, -5)), 2, "dead"),
        "c": Own(((0, -1), (1, 0), (2, 0), (3, 4), (4, 2)), 4, "dead"),
    },
    "CutEarly": {
        "a": Own(((0, 0), (1, 2), (2, 1), (3, 3)), 3, "dead"),
        "b": Own(((0, 1), (1, 4)), 1, "cut"),
        "c": Own(((0, 0), (1, 0), (2, -2), (3, 1)), 3, "cut"),
    },
    "Born": {
        "a": Own(((0, 1), (1, 0), (2, -1), (3, 0), (4, 4)), 4, "dead"),
        "b": Own(((0, 0), (1, 2), (2, 0), (3, 0)), 3, "dead"),
        "c": Own(((2, 5), (3, -2), (4, 1)), 4, "dead"),
    },
    "AllDie": {
        "a": Own(((0, 1), (1, 0), (2, -1)), 2, "dead"),
        "b": Own(((0, -2), (1, 0), (2, 2)), 2, "dead"),
        "c": Own(((0, 0), (1, 3), (2, -3)), 2, "dead"),
    },
    "AllCut": {
        "a": Own(((0, -1), (1, 0), (2, -3), (3, -1)), 3, "cut"),
        "b": Own(((0, -2), (1, 0), (2, 0), (3, -2)), 3, "cut"),
        "c": Own(((0, 0), (1, -1), (2, 0), (3, -3)), 3, "cut"),
    },
    "Game": {  # what comes before an agent's first action belongs to none of its actions
        "a": Own(((0, 1), (2, 3), (4, -1)), 4, "dead"),
        "b": Own(((1, 2), (3, 6)), 4, "dead"),
    },
    "CutGame": {
        "a": Own(((0, 1), (2, 3)), 3, "cut"),
        "b": Own(((1, 4), (3, 3)), 3, "cut"),
    },
}
