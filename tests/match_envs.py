"""Games of known results for tests, which also copy this file to train on it."""

from typing import ClassVar

import numpy as np
from gymnasium import spaces
from pettingzoo import AECEnv, ParallelEnv


class Highest(ParallelEnv):
    """All players name a number, 0 to 2, in every round. The highest numbers get 1 point each, the others nothing."""

    metadata: ClassVar = {"name": "highest", "render_modes": []}
    render_mode = None

    def __init__(self, players=2, rounds=3):
        self.possible_agents = [f"p{i}" for i in range(players)]
        self.rounds = rounds

    def observation_space(self, agent):
        return spaces.Box(0, 1, (2,), np.float32)

    def action_space(self, agent):
        return spaces.Discrete(3)

    def reset(self, seed=None, options=None):
        if seed is not None or not hasattr(self, "rng"):
            self.rng = np.random.default_rng(seed)
        self.time, self.agents = 0, list(self.possible_agents)
        self.length = self.rounds
        return self.see(), self.infos()

    def step(self, actions):
        there, best = self.agents, max(actions.values())
        reward = {agent: float(actions[agent] == best) for agent in there}
        self.time += 1
        over = self.time == self.length
        self.agents = [] if over else there
        return self.see(), reward, dict.fromkeys(there, over), dict.fromkeys(there, False), self.infos()

    def see(self):
        """The number of the player and the time."""
        count = len(self.possible_agents)
        return {
            agent: np.array([i / count, self.time / self.length], np.float32)
            for i, agent in enumerate(self.possible_agents)
        }

    def infos(self):
        return {agent: {} for agent in self.possible_agents}


class Masked(Highest):
    """The first player may not name 2, the others may not name 0; an illegal number is an error."""

    def infos(self):
        masks = [np.array([1, 1, 0] if i == 0 else [0, 1, 1], np.int8) for i in range(len(self.possible_agents))]
        return {agent: {"action_mask": mask} for agent, mask in zip(self.possible_agents, masks, strict=True)}

    def step(self, actions):
        for agent, action in actions.items():
            assert self.infos()[agent]["action_mask"][action], f"{agent} named {action}"
        return super().step(actions)


class Weights(Highest):
    """The numbers are any between 0 and 5."""

    def action_space(self, agent):
        return spaces.Box(0.0, 5.0, (), np.float32)


class Absent(Highest):
    """The last player never comes."""

    def reset(self, seed=None, options=None):
        super().reset(seed, options)
        self.agents = self.possible_agents[:-1]
        return self.see(), self.infos()

    def see(self):
        return {agent: obs for agent, obs in super().see().items() if agent != self.possible_agents[-1]}


class Lucky(Highest):
    """One round or thirty, by chance."""

    def reset(self, seed=None, options=None):
        result = super().reset(seed, options)
        self.length = int(self.rng.choice([1, 30]))
        return result


class Nim(AECEnv):
    """Players take 1 to 3 of 10 stones in turns; who takes the last one wins. The observation has a mask."""

    metadata: ClassVar = {"name": "nim", "render_modes": []}
    possible_agents: ClassVar = ["left", "right"]
    render_mode = None

    def observation_space(self, agent):
        mask = spaces.Box(0, 1, (3,), np.int8)
        return spaces.Dict(observation=spaces.Box(0, 1, (11,), np.float32), action_mask=mask)

    def action_space(self, agent):
        return spaces.Discrete(3)

    def observe(self, agent):
        legal = np.array([self.stones >= n for n in (1, 2, 3)], np.int8)
        return {"observation": np.eye(11, dtype=np.float32)[self.stones], "action_mask": legal}

    def reset(self, seed=None, options=None):
        self.stones, self.agents, self.agent_selection = 10, list(self.possible_agents), "left"
        self.rewards, self._cumulative_rewards = dict.fromkeys(self.agents, 0.0), dict.fromkeys(self.agents, 0.0)
        self.terminations, self.truncations = dict.fromkeys(self.agents, False), dict.fromkeys(self.agents, False)
        self.infos = {agent: {} for agent in self.agents}

    def step(self, action):
        agent = self.agent_selection
        if self.terminations[agent]:
            self._was_dead_step(action)
            return
        assert self.stones > action, f"{agent} took {action + 1} of {self.stones}"
        other = "right" if agent == "left" else "left"
        self._cumulative_rewards[agent] = 0.0
        self.stones -= int(action) + 1
        over = self.stones == 0
        self.rewards = {agent: float(over), other: -float(over)}
        self.terminations = dict.fromkeys(self.agents, over)
        self.agent_selection = other
        self._accumulate_rewards()
