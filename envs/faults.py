"""Environments for tests: counters that identify every row and fail on request. NumPy only.

    faults/count    terminates after `length` steps
    faults/clock    never terminates; is truncated after `length` steps

Observation [3] float32: environment, its steps so far (resets not counted), its episode. The reward is the step within
the episode. Two actions, which do nothing.

The fault settings hold the step of the group at which the environment with index `env` fails: 0 is the first step, -1
the constructor, -3 the first reset. With `marker`, a file that is created exclusively, a fault occurs only once, also
if the process is restarted.

    raise_at                                  raise an exception
    nan_obs_at, nan_reward_at, bad_shape_at   return invalid data
    hang_at, segv_at, exit_at                 sleep for an hour, segmentation fault, exit the process
    crash_at                                  raise from the group itself, which a correct group never does
    slow_reset, slow_step                     seconds that each reset or step of the group waits
    spin_us                                   microseconds of computation of each environment's step, for benchmarks
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping, Sequence

import numpy as np

from sfactory.envs import (
    ActionLeaf,
    EnvError,
    EnvFault,
    EnvSpec,
    EpisodeTally,
    Leaf,
    Step,
    env_fault,
    finite_rows,
    next_seed,
    one_line,
    suggest,
)

IDS = ("clock", "count")
CONSTRUCTOR, NEVER, RESET = -1, -2, -3


class FaultsGroup:
    """Group of E counters. A row that fails is marked as in any other group: valid 0, first 1."""

    def __init__(
        self, env_id: str, num_envs: int, seeds: Sequence[int], length: int, env: int, marker: str,
        slow_reset: float, slow_step: float, spin_us: float, knobs: Mapping[str, int],
    ) -> None:  # fmt: skip
        if env_id not in IDS:
            raise EnvError(f"faults has no environment {env_id!r}{suggest(env_id, IDS)}")
        self.num_envs, self.length, self.env, self.marker = num_envs, length, env, marker
        self.seeds, self.truncates = list(seeds), env_id == "clock"
        self.slow_reset, self.slow_step, self.spin_s = slow_reset, slow_step, 1e-6 * spin_us * num_envs
        self.knobs = {at: name for name, at in knobs.items() if at != NEVER}
        self.spec = EnvSpec(
            f"faults/{env_id}",
            {"obs": Leaf((3,), "float32")},
            {"action": ActionLeaf((), "int64", "discrete", (2,))},
            max_episode_steps=length if self.truncates else None,
            protocol=f"{env_id}, {length} steps",
        )
        # Columns: environment, steps, episode. Changed in place; the caller copies them before the next step.
        self.rows = np.zeros((num_envs, 3), np.float32)
        self.rows[:, 0] = np.arange(num_envs)
        self.calls = 0
        self.over = np.zeros(num_envs, bool)
        self.tally = EpisodeTally(num_envs)
        self.at = np.full(1, -1)
        self._fail(CONSTRUCTOR)

    def reset(self) -> dict[str, np.ndarray]:
        """Reset every counter."""
        time.sleep(self.slow_reset)
        try:
            self._fail(RESET)
        except Exception as error:
            raise EnvError(f"{self.spec.name} failed at its first reset: {one_line(error)}") from error
        self.over[:] = False
        self.tally = EpisodeTally(self.num_envs)
        return {"obs": self.rows}

    def step(self, action: Mapping[str, np.ndarray]) -> Step:
        """Step every counter."""
        if self.slow_step:
            time.sleep(self.slow_step)
        if self.spin_s:
            spin(self.spin_s)
        valid = ~self.over
        self.rows[:, 1] += valid
        self.rows[:, 2] += self.over
        reward = np.where(valid, self.tally.lengths + 1, 0).astype(np.float32)
        faults = self._faults(action["action"], reward, valid)
        self.calls += 1
        self.tally.count(reward, valid)
        ends = valid & (self.tally.lengths >= self.length)
        episodes = self.tally.end(np.flatnonzero(ends).tolist())
        self.over = ends
        never = np.zeros(self.num_envs, bool)
        terminated, truncated = (never, ends.copy()) if self.truncates else (ends.copy(), never)
        return Step({"obs": self.rows}, reward, terminated, truncated, valid, ~valid, episodes, faults)

    def close(self) -> None:
        """Do nothing."""

    def _faults(self, action: np.ndarray, reward: np.ndarray, valid: np.ndarray) -> tuple[EnvFault, ...]:
        """Trigger the fault of this step, check the data, and restart failed environments."""
        was_over = self.over
        errors: dict[int, Exception] = {}
        illegal = ~((action >= 0) & (action < 2)) & ~was_over
        for env in np.flatnonzero(illegal).tolist() if illegal.any() else ():
            errors[env] = ValueError(f"illegal action {action[env]}")
        before = self.rows[self.env].copy()
        self.at[0] = self.env
        try:
            self._fail(self.calls, reward)
        except CrashError:
            raise
        except Exception as error:
            errors[self.env] = error
        finite = finite_rows({"obs": self.rows}, reward)
        if finite is not None:
            for env in np.flatnonzero(~finite).tolist():
                errors[env] = ValueError("NaN or infinity in the observation or reward")
            self.rows[self.env] = before
        reports = []
        for env in sorted(errors):
            reports.append(env_fault(env, errors[env], self.seeds[env], int(self.tally.lengths[env])))
            self.seeds[env] = next_seed(self.seeds[env])
            if valid[env]:  # in a reset row the new episode has already begun
                self.rows[env, 1] -= 1
                self.rows[env, 2] += 1
            valid[env], reward[env] = False, 0.0
            self.tally.drop(env)
        return tuple(reports)

    def _fail(self, now: int, reward: np.ndarray | None = None) -> None:
        """Trigger the fault that is set for this step, if any."""
        name = self.knobs.get(now)
        if name is None or not self._first_time():
            return
        match name:
            case "hang_at":
                time.sleep(3600)
            case "segv_at":
                os.kill(os.getpid(), signal.SIGSEGV)
            case "exit_at":
                os._exit(3)
            case "crash_at":
                raise CrashError(f"crash requested at call {now}")
            case "nan_obs_at":
                self.rows[self.env, 1] = np.nan
            case "nan_reward_at" if reward is not None:
                reward[self.env] = np.nan
            case _:
                raise ValueError(f"failure requested by {name} = {now}")

    def _first_time(self) -> bool:
        if not self.marker:
            return True
        try:
            os.close(os.open(self.marker, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return False
        return True


def spin(seconds: float) -> None:
    """Compute for so much processor time of this thread, however long it is interrupted."""
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


class CrashError(RuntimeError):
    """Exception that a correct group never raises."""


def make(
    env_id: str, *, num_envs: int, seeds: Sequence[int],
    length: int = 10, env: int = 0, marker: str = "", slow_reset: float = 0.0, slow_step: float = 0.0,
    spin_us: float = 0.0,
    raise_at: int = NEVER, hang_at: int = NEVER, segv_at: int = NEVER, exit_at: int = NEVER, crash_at: int = NEVER,
    nan_obs_at: int = NEVER, nan_reward_at: int = NEVER, bad_shape_at: int = NEVER,
) -> FaultsGroup:  # fmt: skip
    """Build a group; the top of this file lists the settings."""
    knobs = {
        "raise_at": raise_at, "hang_at": hang_at, "segv_at": segv_at, "exit_at": exit_at, "crash_at": crash_at,
        "nan_obs_at": nan_obs_at, "nan_reward_at": nan_reward_at, "bad_shape_at": bad_shape_at,
    }  # fmt: skip
    if not 0 <= env < num_envs and any(at != NEVER for at in knobs.values()):
        env = 0  # make_spec builds a group with one environment
    return FaultsGroup(env_id, num_envs, seeds, length, env, marker, slow_reset, slow_step, spin_us, knobs)
