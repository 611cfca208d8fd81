"""Wrapper for pictures of several agents: smaller, grey, and with the last frames.

`env.wrappers SmallPictures` names it for environments with several agents; gymnasium's wrappers are for one.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium.spaces import Box
from pettingzoo import ParallelEnv
from pettingzoo.utils import BaseParallelWrapper


class SmallPictures(BaseParallelWrapper):  # type: ignore[misc]
    """Makes the pictures of every agent smaller.

    shrink: a block of so many rows and columns becomes one pixel, their mean; rows and columns beyond the last whole
    block are left out. grey: the mean of the colors. frames: so many of the newest pictures, the oldest first; at its
    first one an agent sees it in all of them.

    Pictures are bytes [H, W] or [H, W, colors], those of the wrapped environment [frames,] h, w [, colors]. Raises
    ValueError for other observations.
    """

    def __init__(self, env: ParallelEnv, shrink: int = 1, grey: bool = True, frames: int = 1) -> None:
        super().__init__(env)
        if shrink < 1 or frames < 1:
            raise ValueError(f"shrink {shrink} and frames {frames} must be 1 or more")
        self.shrink, self.grey, self.frames = int(shrink), bool(grey), int(frames)
        self._spaces = {agent: self._small_space(agent) for agent in env.possible_agents}
        self._seen: dict[Any, np.ndarray] = {}  # the newest pictures of each agent, [frames, h, w [, colors]]

    def _small_space(self, agent: Any) -> Box:
        space = self.env.observation_space(agent)
        if not isinstance(space, Box) or space.dtype != np.uint8 or len(space.shape) not in (2, 3):
            raise ValueError(f"pictures of bytes are needed, [H, W] or [H, W, colors]; {agent} observes {space}")
        if min(space.shape[:2]) < self.shrink:
            raise ValueError(f"shrink {self.shrink} leaves nothing of {space.shape[0]} x {space.shape[1]} pixels")
        one = self._small(np.zeros(space.shape, np.uint8))
        return Box(0, 255, one.shape if self.frames == 1 else (self.frames, *one.shape), np.uint8)

    def observation_space(self, agent: Any) -> Box:
        """The pictures that an agent observes."""
        return self._spaces[agent]

    def reset(self, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[dict[Any, Any], Any]:
        """Reset the environment."""
        obs, infos = self.env.reset(seed=seed, options=options)
        self._seen.clear()
        return self._take(obs), infos

    def step(self, actions: dict[Any, Any]) -> tuple[dict[Any, Any], Any, Any, Any, Any]:
        """Step the environment."""
        obs, *rest = self.env.step(actions)
        return (self._take(obs), *rest)

    def _take(self, obs: dict[Any, np.ndarray]) -> dict[Any, np.ndarray]:
        if self.frames == 1:
            return {agent: self._small(picture) for agent, picture in obs.items()}
        for agent, picture in obs.items():
            small, seen = self._small(picture)[None], self._seen.get(agent)
            self._seen[agent] = np.repeat(small, self.frames, 0) if seen is None else np.concatenate([seen[1:], small])
        return {agent: self._seen[agent] for agent in obs}

    def _small(self, picture: np.ndarray) -> np.ndarray:
        """One picture [H, W [, colors]] -> [h, w [, colors]]."""
        s, (height, width) = self.shrink, picture.shape[:2]
        h, w = height // s, width // s
        part, count = picture[: h * s, : w * s], s * s
        if picture.ndim == 3 and self.grey:
            count *= picture.shape[2]
            total = part[..., 0].astype(np.uint32)
            for color in range(1, picture.shape[2]):
                total += part[..., color]
        else:
            total = part.astype(np.uint32)
        # Sums of slices: a third of the time of one sum over the axes of blocks.
        rows = total[0::s].copy()
        for i in range(1, s):
            rows += total[i::s]
        blocks = rows[:, 0::s].copy()
        for i in range(1, s):
            blocks += rows[:, i::s]
        small: np.ndarray = (blocks // count).astype(np.uint8)
        return small
