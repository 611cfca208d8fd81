"""Who plays in which seat: the policy that learns, or an opponent from the pool. Free of torch.

Seats and opponent are chosen at the first observation of an episode of the environment and stay until its end. The
choice is counter-based, keyed by seed and group and counted by environment and request: no clock decides.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from sfactory.envs import Step
from sfactory.shm.trajectory import CURRENT
from sfactory.workers.shared import RunSpec, SharedState

SEAT_STREAM = 6
"""Keeps these random numbers apart from the others of a run."""


class Seats:
    """Players of one group of E environments with A agents, and how their games end."""

    def __init__(self, shared: SharedState, group: int) -> None:
        run_spec: RunSpec = shared.run_spec
        assert shared.pool is not None
        self.pool, self.share = shared.pool, run_spec.config.selfplay.share
        self.group, self.seed, self.launch = group, run_spec.config.run.seed, run_spec.launch
        self.agents, self.num_envs = run_spec.spec.rows, run_spec.config.sampling.envs_per_group
        self.player = np.full(self.num_envs * self.agents, CURRENT, np.int64)
        """[E x A], who acts for the newest observation."""
        self.returns = np.zeros((self.num_envs, self.agents))
        """Return of every agent since its environment was reset."""

    def begin(self, envs: np.ndarray, number: int) -> None:
        """Choose the players of environments that begin an episode. envs: [E] bool; number: of the last request."""
        self.returns[envs] = 0.0
        numbers = self.pool.read()
        opponents = numbers[1 : 1 + int(numbers[0])].astype(np.int64)
        for env in np.flatnonzero(envs).tolist():
            players = self.player[env * self.agents : (env + 1) * self.agents]
            players[:] = CURRENT
            if not len(opponents):
                continue
            bits = np.random.Philox(
                key=[self.seed, SEAT_STREAM << 32 | self.group], counter=[0, env, number + 1, self.launch]
            )
            generator = np.random.Generator(bits)
            if generator.random() < self.share:
                players[:] = opponents[generator.integers(len(opponents))]
                players[generator.integers(self.agents)] = CURRENT

    def step(self, step: Step, number: int) -> np.ndarray:
        """Count a step of the group; choose players where it begins an episode. number: of the last request.

        Returns [E x A] float32: +1, 0 or -1 in the row of the policy that learns where it has won, drawn or lost a
        game against an opponent, NaN elsewhere. A game is won if the return is above the mean of the other agents.
        """
        self.returns += step.reward.reshape(self.num_envs, self.agents)
        outcome = np.full(len(self.player), np.nan, np.float32)
        for episode in step.episodes:
            row = episode.env * self.agents
            own = self.player[row : row + self.agents] == CURRENT
            if not own.all():
                returns = self.returns[episode.env]
                outcome[row + int(own.argmax())] = np.sign(returns[own].mean() - returns[~own].mean())
        begins: np.ndarray = np.logical_and.reduce(step.first.reshape(self.num_envs, self.agents), axis=1)
        if begins.any():
            self.begin(begins, number)
        return outcome

    def state(self) -> dict[str, Any]:
        """For an exact resume."""
        return {"player": self.player, "returns": self.returns}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state`."""
        self.player[:], self.returns[:] = state["player"], state["returns"]
