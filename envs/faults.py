"""Environments for tests: they say where every row came from, and fail when told to. numpy only.

    faults/count    terminates after `length` steps
    faults/clock    never terminates, is truncated after `length` steps

Observation [3] float32: environment, its steps so far (resets not counted), its episode. Reward is the step within the
episode. Fault knobs (`raise_at`, `hang_at`, `segv_at`, `exit_at`, `nan_obs_at`, `nan_reward_at`, `bad_shape_at`) hold a
step of the environment with number `env` in its group: 0 is the first step, -1 the constructor. With `marker`, a file
that is created exclusively, a fault fires once however often the process is born again.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sfactory.envs import ActionLeaf, EnvError, EnvFault, EnvSpec, Episode, Leaf, Step, suggest as suggestion

IDS = ("count", "clock")
NEVER = -2
KNOBS = ("raise_at", "hang_at", "segv_at", "exit_at", "nan_obs_at", "nan_reward_at", "bad_shape_at")


class FaultsGroup:
    """E counters. Rows that fail are marked as any other group marks them: not valid, next observation first."""

    def __init__(
        self, env_id: str, num_envs: int, seeds: Sequence[int], *,
        length: int = 10, env: int = 0, marker: str = "", slow_reset: float = 0.0, step_s: float = 0.0, **knobs: int,
    ) -> None:  # fmt: skip
        if env_id not in IDS:
            raise EnvError(f"faults/ has no {env_id!r}{suggestion(env_id, IDS)}; it has {', '.join(IDS)}")
        for name in knobs:
            if name not in KNOBS:
                raise EnvError(f"env.settings.{name}: faults has no such knob{suggestion(name, KNOBS)}")
        self.num_envs, self.length, self.env, self.marker = num_envs, length, env, marker
        self.truncates, self.knobs = env_id == "clock", {name: knobs.get(name, NEVER) for name in KNOBS}
        self.slow_reset, self.step_s = slow_reset, step_s
        self.seeds = np.asarray(seeds)
        self.spec = EnvSpec(
            f"faults/{env_id}",
            {"obs": Leaf((3,), "float32")},
            {"action": ActionLeaf((), "int64", "discrete", (2,))},
            max_episode_steps=length if self.truncates else None,
        )
        self.calls = -1
        self._fire()
        self.calls = 0
        self.steps, self.t = np.zeros(num_envs), np.zeros(num_envs)
        self.episode, self.returns = np.zeros(num_envs), np.zeros(num_envs)
        self.pending = np.zeros(num_envs, bool)

    def reset(self) -> dict[str, np.ndarray]:
        time.sleep(self.slow_reset)
        return {"obs": self._obs()}

    def step(self, action: Mapping[str, np.ndarray]) -> Step:
        assert action["action"].shape == (self.num_envs,)
        if self.step_s:
            time.sleep(self.step_s)
        valid = ~self.pending
        faults = []
        failed = self._fire()
        if failed:
            valid[self.env] = False
            faults.append(EnvFault(self.env, f"{failed} at step {self.calls}, seed {self.seeds[self.env]}"))
        self.calls += 1
        begins = ~valid
        self.steps[valid] += 1
        self.t[valid] += 1
        self.episode[begins] += 1
        self.t[begins], self.returns[begins] = 0, 0
        reward = np.where(valid, self.t, 0.0).astype(np.float32)
        self.returns += reward
        ends = valid & (self.t >= self.length)
        episodes = tuple(Episode(int(i), float(self.returns[i]), int(self.t[i])) for i in np.flatnonzero(ends))
        self.pending = ends
        nothing = np.zeros(self.num_envs, bool)
        terminated, truncated = (nothing, ends.copy()) if self.truncates else (ends.copy(), nothing)
        return Step({"obs": self._obs()}, reward, terminated, truncated, valid, begins, episodes, tuple(faults))

    def close(self) -> None:
        pass

    def _obs(self) -> np.ndarray:
        return np.stack([np.arange(self.num_envs), self.steps, self.episode], 1).astype(np.float32)

    def _fire(self) -> str:
        """Do what a knob says at this call; the name of a fault the group catches itself, or nothing."""
        due = [name for name, at in self.knobs.items() if at == self.calls]
        if not due or not self._first_time():
            return ""
        name = due[0]
        if name == "hang_at":
            time.sleep(3600)
        elif name == "segv_at":
            os.kill(os.getpid(), signal.SIGSEGV)
        elif name == "exit_at":
            os._exit(3)
        elif name == "raise_at" and self.calls < 0:
            raise RuntimeError("told to fail in the constructor")
        return name.removesuffix("_at")

    def _first_time(self) -> bool:
        if not self.marker:
            return True
        try:
            os.close(os.open(self.marker, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return False
        return True


def make(env_id: str, *, num_envs: int, seeds: Sequence[int], **settings: Any) -> FaultsGroup:
    """See the top of this file for the settings."""
    return FaultsGroup(env_id, num_envs, seeds, **settings)
