"""A group of environments played at random, and what every row of it said: the evidence `check_env` judges.

Shapes: T steps of E environments; row t of a [T, E] array is what step t returned.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from sfactory.envs import EnvFault, EnvSpec, Episode, Group, Step, finite_rows, one_line

COLUMNS = ("reward", "terminated", "truncated", "valid", "first")  # of a Step, kept row by row


def later(rows: np.ndarray) -> np.ndarray:
    """[T, E]: what was true of the row before; nothing was before the first."""
    return np.concatenate([np.zeros_like(rows[:1]), rows[:-1]])


@dataclass(frozen=True)
class Trace:
    """What T steps with random actions returned; [T, E] unless said otherwise."""

    reward: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    valid: np.ndarray
    first: np.ndarray
    failed: np.ndarray  # a fault is why this row begins anew
    reported: np.ndarray  # an Episode came with this row
    prints: np.ndarray  # [T + 1, E] checksums of the observations; row 0 is that of the reset
    seconds: np.ndarray  # [T] that a step took
    span: dict[str, tuple[np.ndarray, np.ndarray]]  # leaf -> least and largest [*shape]
    whole: set[str]  # float leaves that held whole numbers only
    games: list[Episode]
    faults: list[EnvFault]
    problem: str  # what ended the recording early, or an empty string

    @property
    def ended(self) -> np.ndarray:
        return self.terminated | self.truncated

    @property
    def age(self) -> np.ndarray:
        """Valid steps of the row's episode so far."""
        count, begins = self.valid.cumsum(axis=0), ~self.valid | later(self.ended)
        return count - np.maximum.accumulate(np.where(begins, count - self.valid, 0))


# -- playing -------------------------------------------------------------------------------------------------


def random_action(spec: EnvSpec, obs: Mapping[str, np.ndarray], draws: np.random.Generator) -> dict[str, np.ndarray]:
    """Uniform among the actions that are allowed; normal where a box has no bounds. Leaves [E, *shape]."""
    num_envs, at, actions = len(next(iter(obs.values()))), 0, {}
    for name, leaf in spec.actions.items():
        if leaf.kind == "discrete":
            heads = []
            for size in leaf.sizes:
                chance = draws.random((num_envs, size))
                if spec.mask:
                    chance[obs[spec.mask][:, at : at + size] == 0] = -1.0
                heads.append(chance.argmax(axis=1))
                at += size
            values = np.stack(heads, axis=1)
        else:
            low, high = np.array(leaf.low), np.array(leaf.high)
            free = np.clip(draws.standard_normal((num_envs, len(low))), low, high)
            with np.errstate(invalid="ignore"):  # infinite bounds, which are not used
                values = np.where(np.isfinite(high - low), low + (high - low) * draws.random(free.shape), free)
        actions[name] = values.reshape(num_envs, *leaf.shape).astype(leaf.dtype)
    return actions


def misfit(spec: EnvSpec, num_envs: int, obs: Mapping[str, np.ndarray], step: Step | None = None) -> str:
    """How data differs from what its spec promises, or an empty string."""
    if set(obs) != set(spec.obs):
        return f"the observation has leaves {sorted(obs)}, the spec says {sorted(spec.obs)}"
    arrays = [(name, obs[name], leaf.shape, leaf.dtype) for name, leaf in spec.obs.items()]
    if step is not None:
        arrays += [(n, getattr(step, n), (), "float32" if n == "reward" else "bool") for n in COLUMNS]
    for name, array, shape, dtype in arrays:
        got, wanted = np.asarray(array), (num_envs, *shape)
        if got.shape != wanted or got.dtype != dtype:
            return f"{name} is {got.dtype} {list(got.shape)}, the spec says {dtype} {list(wanted)}"
    if finite_rows(obs, np.zeros(1) if step is None else step.reward) is not None:
        return "NaN or infinity in the observation or reward, and the group reported no fault"
    return ""


def record(group: Group, steps: int, seconds: float, seed: int) -> Trace:
    """Play for so many steps or seconds, whatever is over first, or until something cannot be read."""
    spec, num_envs, draws = group.spec, group.num_envs, np.random.default_rng(seed)
    span: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    prints: list[list[int]] = []
    kept: list[Step] = []
    times, failed, reported, whole = [], [], [], {name for name, leaf in spec.obs.items() if "float" in leaf.dtype}

    def look(obs: Mapping[str, np.ndarray]) -> None:
        """Keep what the rules need: the next step may overwrite it."""
        prints.append([zlib.crc32(b"".join(obs[n][env].tobytes() for n in spec.obs)) for env in range(num_envs)])
        for n, rows in obs.items():
            low, high = span.get(n, (rows[0], rows[0]))
            span[n] = np.minimum(low, rows.min(axis=0)), np.maximum(high, rows.max(axis=0))
            if n in whole and (rows != np.rint(rows)).any():
                whole.remove(n)

    try:
        obs = group.reset()
        problem = misfit(spec, num_envs, obs)
    except Exception as error:
        problem = f"the first reset raised {one_line(error)}"
    if not problem:
        look(obs)
    end = time.perf_counter() + seconds
    while not problem and len(kept) < steps and (not kept or time.perf_counter() < end):
        action = random_action(spec, obs, draws)
        begun = time.perf_counter()
        try:
            step = group.step(action)
        except Exception as error:  # groups report faults; one that raises would take its sampler down
            problem = f"step {len(kept)} raised {one_line(error)}"
            break
        took, obs = time.perf_counter() - begun, step.obs
        if problem := misfit(spec, num_envs, obs, step):
            problem = f"step {len(kept)}: {problem}"
            break
        look(obs)
        times.append(took)
        everyone = bool(step.faults) and not step.valid.any()  # native code begins every game anew
        failed.append(np.isin(range(num_envs), [fault.env for fault in step.faults]) | everyone)
        reported.append(np.isin(range(num_envs), [episode.env for episode in step.episodes]))
        kept.append(step._replace(obs={}, **{name: getattr(step, name).copy() for name in COLUMNS}))
    columns: dict[str, Any] = {name: [getattr(step, name) for step in kept] for name in COLUMNS}
    columns |= {"failed": failed, "reported": reported, "prints": prints}
    games = [game for step in kept for game in step.episodes]
    faults = [fault for step in kept for fault in step.faults]
    arrays = {name: np.array(column).reshape(-1, num_envs) for name, column in columns.items()}
    return Trace(**arrays, seconds=np.array(times), span=span, whole=whole, games=games, faults=faults, problem=problem)
