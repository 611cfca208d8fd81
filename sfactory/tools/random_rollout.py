"""Step a group of environments with random actions and record every row, for the rules of `check_env`.

Shapes: T steps of E environments; row t of a [T, E] array is what step t returned. With A agents every E is E x A.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sfactory.envs import EnvFault, EnvSpec, Episode, Group, Step, finite_rows
from sfactory.errors import one_line, own_place
from sfactory.play.random_action import random_action
from sfactory.play.watched_group import EnvCallError

KEPT = 8  # steps whose observations are kept, for one update of the network
COLUMNS = ("reward", "terminated", "truncated", "valid", "first")  # of a Step, kept row by row


def shifted(rows: np.ndarray) -> np.ndarray:
    """Shift rows [T, E] by one step; the first row becomes zero."""
    return np.concatenate([np.zeros_like(rows[:1]), rows[:-1]])


@dataclass(frozen=True)
class RandomRollout:
    """What T steps with random actions returned; [T, E] unless noted."""

    reward: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    valid: np.ndarray
    first: np.ndarray
    failed: np.ndarray  # the environment failed and was reset in this row
    reported: np.ndarray  # an Episode was reported with this row
    acting: np.ndarray  # [T + 1, E] the agent chooses an action; row 0 is the reset
    checksums: np.ndarray  # [T + 1, E] of the observations without `acting`; row 0 is the reset
    looks: np.ndarray  # [T + 1, E] checksums of what a network reads: without the mask too
    seconds: np.ndarray  # [T] duration of a step
    obs_range: dict[str, tuple[np.ndarray, np.ndarray]]  # leaf -> minimum and maximum [*shape]
    kept: dict[str, np.ndarray]  # leaf -> [up to KEPT + 1, E, *shape] of the first observations
    episodes: list[Episode]
    faults: list[EnvFault]
    problem: str  # why the recording ended early, or an empty string
    agents: int = 1  # rows of an environment

    @property
    def ended(self) -> np.ndarray:
        return self.terminated | self.truncated

    @property
    def under_way(self) -> np.ndarray:
        """Rows in which something can happen: valid ones, and those of agents that wait for their turn."""
        return self.valid if self.agents == 1 else self.valid | ~self.first

    @property
    def reset(self) -> np.ndarray:
        """[T, environments] the environment was reset, or failed."""
        gone = ~self.valid if self.agents == 1 else ~self.valid & self.first
        return np.asarray(gone.reshape(len(gone), -1, self.agents).all(axis=2))

    @property
    def age(self) -> np.ndarray:
        """Steps of the row's episode up to and including the row; those in which an agent waits count."""
        steps = self.under_way
        count, begins = steps.cumsum(axis=0), ~steps | shifted(self.ended)
        return count - np.maximum.accumulate(np.where(begins, count - steps, 0))


# -- playing -------------------------------------------------------------------------------------------------


def spec_mismatch(spec: EnvSpec, num_rows: int, obs: Mapping[str, np.ndarray], step: Step | None = None) -> str:
    """Return how data differs from its spec, or an empty string."""
    if set(obs) != set(spec.obs):
        return f"the observation has leaves {sorted(obs)}, the spec has {sorted(spec.obs)}"
    arrays = [(name, obs[name], leaf.shape, leaf.dtype) for name, leaf in spec.obs.items()]
    if step is not None:
        arrays += [(n, getattr(step, n), (), "float32" if n == "reward" else "bool") for n in COLUMNS]
    for name, array, shape, dtype in arrays:
        actual, expected = np.asarray(array), (num_rows, *shape)
        if actual.shape != expected or actual.dtype != dtype:
            return f"{name} is {actual.dtype} {list(actual.shape)}, the spec has {dtype} {list(expected)}"
    if finite_rows(obs, np.zeros(1) if step is None else step.reward) is not None:
        return "NaN or infinity in the observation or reward, and the group reported no fault"
    return ""


def row_checksums(obs: Mapping[str, np.ndarray], names: Sequence[str], rows: int) -> list[int]:
    """A checksum of some leaves for every row."""
    return [zlib.crc32(b"".join(obs[name][row].tobytes() for name in names)) for row in range(rows)]


def _reason(error: BaseException) -> str:
    """An exception of a group, and where it was raised if that is the user's own code."""
    cause = error.__cause__
    shown = cause if isinstance(error, EnvCallError) and cause else error
    return f"{one_line(shown)}{own_place(cause or error)}"


def record(group: Group, steps: int, seconds: float, seed: int) -> RandomRollout:
    """Step the group for `steps` steps or `seconds` seconds, whichever ends first, or until its data is invalid."""
    spec, generator = group.spec, np.random.default_rng(seed)
    envs, num_rows = range(group.num_envs), group.num_envs * spec.rows
    obs_range: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    checksums: list[list[int]] = []
    looks: list[list[int]] = []
    recorded: list[Step] = []
    durations, failed, reported, acting = [], [], [], []
    compared = [name for name in spec.obs if name != spec.acting]
    read = [name for name in compared if name != spec.mask]
    kept: dict[str, list[np.ndarray]] = {name: [] for name in spec.obs}

    def observe(obs: Mapping[str, np.ndarray]) -> None:
        """Record checksums and ranges now: the next step may overwrite the arrays."""
        checksums.append(row_checksums(obs, compared, num_rows))
        looks.append(row_checksums(obs, read, num_rows) if spec.mask else checksums[-1])
        acting.append(obs[spec.acting].copy() if spec.acting else np.ones(num_rows, bool))
        for n, rows in obs.items():
            low, high = obs_range.get(n, (rows[0], rows[0]))
            obs_range[n] = np.minimum(low, rows.min(axis=0)), np.maximum(high, rows.max(axis=0))
            if len(kept[n]) <= KEPT:
                kept[n].append(rows.copy())

    try:
        obs = group.reset()
        problem = spec_mismatch(spec, num_rows, obs)
    except Exception as error:
        problem = f"the first reset raised {_reason(error)}"
    if not problem:
        observe(obs)
    end = time.perf_counter() + seconds
    while not problem and len(recorded) < steps and (not recorded or time.perf_counter() < end):
        action = random_action(spec, obs, generator)
        start = time.perf_counter()
        try:
            step = group.step(action)
        except Exception as error:  # groups report faults; an exception would end the sampler
            problem = f"step {len(recorded)} raised {_reason(error)}"
            break
        duration, obs = time.perf_counter() - start, step.obs
        if problem := spec_mismatch(spec, num_rows, obs, step):
            problem = f"step {len(recorded)}: {problem}"
            break
        observe(obs)
        durations.append(duration)
        all_failed = bool(step.faults) and not step.valid.any()  # native code resets all environments
        failed.append(np.repeat(np.isin(envs, [fault.env for fault in step.faults]) | all_failed, spec.rows))
        reported.append(np.repeat(np.isin(envs, [episode.env for episode in step.episodes]), spec.rows))
        recorded.append(step._replace(obs={}, **{name: getattr(step, name).copy() for name in COLUMNS}))
    columns: dict[str, Any] = {name: [getattr(step, name) for step in recorded] for name in COLUMNS}
    columns |= {"failed": failed, "reported": reported, "acting": acting, "checksums": checksums, "looks": looks}
    episodes = [episode for step in recorded for episode in step.episodes]
    faults = [fault for step in recorded for fault in step.faults]
    arrays = {name: np.array(column).reshape(-1, num_rows) for name, column in columns.items()}
    return RandomRollout(
        **arrays,
        seconds=np.array(durations),
        obs_range=obs_range,
        kept={name: np.array(rows) for name, rows in kept.items()},
        episodes=episodes,
        faults=faults,
        problem=problem,
        agents=spec.rows,
    )
