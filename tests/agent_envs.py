"""Environments with two agents for tests, which also copy this file to train on it."""

from typing import ClassVar

import numpy as np
from gymnasium import spaces
from pettingzoo import AECEnv, ParallelEnv

AGENTS = ["a", "b"]
MOVES = 20


class Sees:
    """Each agent sees a bit, its number and the time. Right is the bit for `a`, the other value for `b`."""

    metadata: ClassVar = {"name": "bits", "render_modes": []}
    possible_agents: ClassVar = AGENTS
    render_mode = None

    def observation_space(self, agent):
        return spaces.Box(0, 1, (3,), np.float32)

    def action_space(self, agent):
        return spaces.Discrete(2)

    def observe(self, agent):
        number = AGENTS.index(agent)
        return np.array([self.bits[number], number, self.time / (2 * MOVES)], np.float32)

    def is_right(self, agent, action):
        number = AGENTS.index(agent)
        return float(action == (self.bits[number] + number) % 2)

    def begin(self, seed):
        if seed is not None or not hasattr(self, "rng"):
            self.rng = np.random.default_rng(seed)
        self.time, self.agents, self.bits = 0, list(AGENTS), self.rng.integers(2, size=2)


class Bits(Sees, ParallelEnv):
    """The agents act together. A right action is worth 1, so 20 is perfect and 10 is chance. Then it is truncated."""

    def reset(self, seed=None, options=None):
        self.begin(seed)
        return {agent: self.observe(agent) for agent in AGENTS}, {agent: {} for agent in AGENTS}

    def step(self, actions):
        reward = {agent: self.is_right(agent, actions[agent]) for agent in AGENTS}
        self.time, self.bits = self.time + 1, self.rng.integers(2, size=2)
        over = self.time == MOVES
        self.agents = [] if over else self.agents
        obs, infos = {agent: self.observe(agent) for agent in AGENTS}, {agent: {} for agent in AGENTS}
        return obs, reward, dict.fromkeys(AGENTS, False), dict.fromkeys(AGENTS, over), infos


class Turns(Sees, AECEnv):
    """The agents act in turns. What a right action is worth comes with the next move of the other agent."""

    def reset(self, seed=None, options=None):
        self.begin(seed)
        self.agent_selection, self.owed = "a", 0.0
        self.rewards, self._cumulative_rewards = dict.fromkeys(AGENTS, 0.0), dict.fromkeys(AGENTS, 0.0)
        self.terminations, self.truncations = dict.fromkeys(AGENTS, False), dict.fromkeys(AGENTS, False)
        self.infos = {agent: {} for agent in AGENTS}

    def step(self, action):
        agent = self.agent_selection
        if self.terminations[agent]:
            self._was_dead_step(action)
            return
        self._cumulative_rewards[agent] = 0.0
        other = AGENTS[1 - AGENTS.index(agent)]
        self.rewards = {agent: 0.0, other: self.owed}
        self.owed = self.is_right(agent, action)
        self.bits[AGENTS.index(agent)] = self.rng.integers(2)
        self.time += 1
        if self.time == 2 * MOVES:
            self.rewards[agent] += self.owed
            self.terminations = dict.fromkeys(AGENTS, True)
        self.agent_selection = other
        self._accumulate_rewards()
