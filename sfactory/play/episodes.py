"""Play a fixed number of episodes with a policy, for `sfactory eval` and the evaluator.

The episodes are shared out among the environments beforehand. Taking the first N episodes that end in any environment
would prefer short ones: environments with short episodes would contribute more of them.

Shapes: E environments of A agents (1, where an environment has no more) are E x A rows; every leaf of an observation or
action is [E x A, ...].
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from sfactory.config import Config
from sfactory.config.schema import EVALUATION_ENVS
from sfactory.envs import (
    EnvError,
    EnvOptions,
    EnvSpec,
    Group,
    Settings,
    Step,
    bounded,
    make_group,
)
from sfactory.play.policy import SEED_STREAM, Actor
from sfactory.play.watched_group import NO_CLOCK, EnvClock, WatchedGroup, watched_spec

MAX_ENVS = EVALUATION_ENVS  # unless told otherwise; more would start more episodes at once and wait longer for the last
DEFAULT_MAX_STEPS = 10_000  # per episode, in an environment without a limit of its own
MAX_FAULTS = 10  # environment failures that an evaluation tolerates; of many episodes one in TOLERATED
TOLERATED = 20

ActFunction = Callable[[Mapping[str, np.ndarray], np.ndarray], dict[str, np.ndarray]]
"""(obs [E x A, ...], first [E x A]) -> action [E x A, ...]."""


class Recorder(Protocol):
    """Records environment 0: `begin` at a first observation, `add` after a step, `end` when the episode is complete."""

    @property
    def wanted(self) -> bool:
        """Whether another episode is to be recorded: rendering may cost more than a step."""

    def begin(self, group: Any) -> None:
        """Start an episode; discard one that was begun and did not end."""

    def add(self, group: Any) -> None: ...
    def end(self, episodic_return: float, length: int) -> None: ...


class Seating(Protocol):
    """Is told which agent of an environment a policy acts for, where it does not act for all of them."""

    @property
    def seats(self) -> int:
        """Number of seats; a seat is the number of an agent. Every seat is played equally often."""

    def begin(self, env: int, seat: int) -> None:
        """An episode begins, in which the policy has this seat. Called before its first action."""


class OneSeat:
    """The policy acts for all agents."""

    seats = 1

    def begin(self, env: int, seat: int) -> None: ...


class NoRecorder:
    """Records nothing."""

    wanted = False

    def begin(self, group: Any) -> None: ...
    def add(self, group: Any) -> None: ...
    def end(self, episodic_return: float, length: int) -> None: ...


def num_play_envs(config: Config) -> int:
    """Environments that play at the same time: as many as the run is told to use, else no more than training has."""
    return config.eval.num_envs or min(MAX_ENVS, config.sampling.num_envs)


def group_factory(
    task: str, seed: int, options: EnvOptions | Settings, render: bool = False, env_index: int = 0
) -> Callable[[int, int], Group]:
    """Return the function with which `play` builds its groups.

    render: build groups that can be rendered. env_index: number of the first environment; every group has the same
    numbers, because the one before it is closed.
    """

    def make(num_envs: int, first_env: int) -> Group:
        sequences = [np.random.SeedSequence([seed, SEED_STREAM, first_env + i]) for i in range(num_envs)]
        seeds = [int(sequence.generate_state(1)[0]) >> 1 for sequence in sequences]
        return make_group(task, num_envs, seeds, options, render=render, env_index=env_index)

    return make


@dataclass
class EpisodeResults:
    """Returns and lengths of complete episodes; counts of those cut by `max_steps`, and of failed environments."""

    returns: list[float] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    capped: int = 0
    faults: int = 0
    first_fault: str = ""
    infos: dict[str, list[float]] = field(default_factory=dict)
    """Numbers that `info` had at the end of episodes, by name."""
    seats: list[int] = field(default_factory=list)
    """Seat of the policy in each episode."""
    agent_returns: list[np.ndarray] = field(default_factory=list)
    """[A] per episode: the return of each agent; 0 for agents that never came."""

    def check(self, allowed: int) -> None:
        """Raise EnvError if more environments failed than an evaluation can replace."""
        if self.faults <= allowed:
            return
        complete = f"{len(self.returns)} complete ones"
        if self.returns:
            complete += f" have a mean return of {np.mean(self.returns):.2f}"
        raise EnvError(
            f"{self.faults} environments failed during the evaluation, and their episodes were cut (at most {allowed} "
            f"are replaced; {complete}); the first: {self.first_fault}",
            fault=True,
        )


def split_evenly(episodes: int, envs: int) -> list[int]:
    """Return the number of episodes per environment; they differ by at most one."""
    return [episodes // envs + (i < episodes % envs) for i in range(envs)]


def split_seats(episodes: int, envs: int, seats: int) -> list[list[int]]:
    """Return the seats of the episodes of each environment, in the order in which they are played.

    Over all episodes the seats are played equally often, up to one, and so are those of each environment.
    """
    block = math.lcm(envs, seats)  # after so many episodes every environment would begin with the same seat again
    counts = split_evenly(episodes, envs)
    return [[(n + n // block) % seats for n in range(env, envs * count, envs)] for env, count in enumerate(counts)]


def play(
    make: Callable[[int, int], Any],
    act: ActFunction,
    episodes: int,
    max_steps: int,
    recorder: Recorder | None = None,
    num_envs: int = MAX_ENVS,
    seating: Seating | None = None,
) -> EpisodeResults:
    """Play exactly `episodes` episodes in up to `num_envs` environments at a time.

    make(num_envs, first_env) builds a group of environments not used before.

    An environment stops when its share is played, when it failed, or when an episode reached `max_steps`: a group
    cannot be reset in parts. What is left of its share goes to a new environment in the next round. Raises EnvError
    after more than MAX_FAULTS failures, or one in TOLERATED episodes if these are more.
    """
    results, seating = EpisodeResults(), seating or OneSeat()
    shares = split_seats(episodes, min(episodes, num_envs), seating.seats)
    used = 0
    while shares:
        group = make(len(shares), used)
        used += len(shares)
        try:
            _Round(group, shares, max_steps, results, recorder or NoRecorder(), seating).run(act)
        finally:
            group.close()
        shares = [left for left in shares if left]
        if shares:
            results.check(max(MAX_FAULTS, episodes // TOLERATED))
    return results


class _Round:
    """One group whose environments play their shares of the episodes, until all of them have stopped."""

    def __init__(
        self,
        group: Any,
        shares: list[list[int]],
        max_steps: int,
        results: EpisodeResults,
        recorder: Recorder,
        seating: Seating,
    ) -> None:
        """shares: seats of the episodes of each environment; those of episodes that were played are removed."""
        self.group, self.shares, self.max_steps = group, shares, max_steps
        self.results, self.recorder, self.seating = results, recorder, seating
        self.playing = np.ones(len(shares), bool)
        self.obs = group.reset()
        self.first = np.ones(len(next(iter(self.obs.values()))), bool)
        self.returns = np.zeros((len(shares), len(self.first) // len(shares)))  # of the current episodes, by agent
        self.took_part = np.zeros(self.returns.shape, bool)  # agents that have been there in the current episode
        self.lengths = np.zeros(len(shares), np.int64)
        self.recording = recorder.wanted
        if self.recording:
            recorder.begin(group)
        for env, share in enumerate(shares):
            seating.begin(env, share[0])

    def run(self, act: ActFunction) -> None:
        """Play until all environments have stopped."""
        while self.playing.any():
            self._count(self.group.step(act(self.obs, self.first)))

    def _count(self, step: Step) -> None:
        """Add one step to the current episodes, and the episodes that it ends to the results."""
        self.obs, self.first = step.obs, step.first
        stepped = ~_reset_rows(step, len(self.shares))
        self.recording = self.recorder.wanted and bool(self.playing[0])  # environment 0 may stop before the others
        if self.recording and stepped[0]:
            self.recorder.add(self.group)
        self.returns += np.where(stepped[:, None], step.reward.reshape(self.returns.shape), 0.0)
        self.took_part |= stepped[:, None] & (step.valid | ~step.first).reshape(self.returns.shape)
        self.lengths += stepped
        self._count_faults(step)
        for env, episodic_return, length in step.episodes:
            if self.playing[env]:
                self._end(env, episodic_return, length)
                self.playing[env] = bool(self.shares[env])
            self._clear(env)
        for env in np.flatnonzero(self.playing & (self.lengths >= self.max_steps)).tolist():
            self._end(env, float(self.returns[env, self.took_part[env]].mean()), int(self.lengths[env]))
            self.results.capped += 1
            self.playing[env] = False
        # A reset row holds the next first observation. Native code also resets environments because another one failed.
        for env in np.flatnonzero(self.playing & ~stepped).tolist():
            self._clear(env)
            self.seating.begin(env, self.shares[env][0])
        if self.recorder.wanted and self.playing[0] and not stepped[0]:
            self.recorder.begin(self.group)

    def _count_faults(self, step: Step) -> None:
        """Stop environments that failed; add the numbers of `info` of the others."""
        for fault in step.faults:
            if self.playing[fault.env]:
                self.results.faults += 1
                self.results.first_fault = self.results.first_fault or fault.message.partition("\n")[0]
                self.playing[fault.env] = False
        for env, numbers in step.infos:
            for name, value in numbers.items() if self.playing[env] else ():
                self.results.infos.setdefault(name, []).append(value)

    def _end(self, env: int, episodic_return: float, length: int) -> None:
        """Add a complete episode to the results."""
        self.results.returns.append(episodic_return)
        self.results.lengths.append(length)
        self.results.agent_returns.append(self.returns[env].copy())
        self.results.seats.append(self.shares[env].pop(0))
        if env == 0 and self.recording:
            self.recorder.end(episodic_return, length)

    def _clear(self, env: int) -> None:
        """Forget the current episode of an environment."""
        self.returns[env], self.took_part[env], self.lengths[env] = 0.0, False, 0


def _reset_rows(step: Step, num_envs: int) -> np.ndarray:
    """[E] bool: the environment was reset in this step, or failed. In other steps an agent acts, or waits."""
    reset: np.ndarray = (~step.valid & step.first).reshape(num_envs, -1).all(axis=1)
    return reset


def model_policy(model: Any, greedy: bool, seed: int) -> ActFunction:
    """Return the network as an act function; it keeps recurrent state and draws sampling noise from `seed`."""
    actor = Actor(model, seed)
    return lambda obs, first: actor(obs, first, greedy)


def play_task(
    task: str,
    options: EnvOptions | Settings,
    act: ActFunction,
    episodes: int,
    seed: int,
    *,
    squash: bool,
    max_steps: int = 0,
    num_envs: int = MAX_ENVS,
    recorder: Recorder | None = None,
    clock: EnvClock = NO_CLOCK,
    env_index: int = 0,
    check: Callable[[EnvSpec], None] = lambda spec: None,
    seating: Seating | None = None,
) -> tuple[EnvSpec, int, EpisodeResults]:
    """Play episodes of an environment by name; returns its spec, the step limit that applied, and the results.

    max_steps: 0 is the environment's own limit, or DEFAULT_MAX_STEPS where it has none.
    squash: see `sfactory.envs.bounded`. num_envs: at most, at the same time. env_index: number of the first one.
    check: called with the spec before anything is played. seating: None: `act` acts for all agents.
    """
    spec = watched_spec(task, options, env_index, clock)
    check(spec)
    limits, limit = bounded(spec, squash), max_steps or spec.max_episode_steps or DEFAULT_MAX_STEPS
    factory = group_factory(task, seed, options, recorder is not None, env_index)

    def make(envs: int, first_env: int) -> WatchedGroup:
        return WatchedGroup(lambda: factory(envs, first_env), envs, clock)

    def limited(obs: Mapping[str, np.ndarray], first: np.ndarray) -> dict[str, np.ndarray]:
        return limits(act(obs, first))

    # The environment itself cuts the episodes that reach its own limit; some report it a row later.
    cap = limit + 1 if limit == spec.max_episode_steps else limit
    return spec, limit, play(make, limited, episodes, cap, recorder, num_envs, seating)
