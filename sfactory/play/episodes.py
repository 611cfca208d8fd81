"""Playing whole games with a policy, in environments of its own: what `sfactory eval` and the evaluator do.

A fixed number of games is shared out among the environments beforehand. Taking the first N games that end
anywhere would prefer short ones: an environment that dies early would send in more of them.

Shapes: E environments; every leaf of an observation or action is [E, ...].
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from sfactory.envs import EnvSpec, Group, Settings, bounded, make_group, make_spec
from sfactory.play.policy import SEED_STREAM, Actor

ENVS = 32  # at most: more would play more games at once and wait longer for the last one
STEPS = 10_000  # of a game in an environment without a limit
FAULTS = 10  # broken environments an evaluation survives

Policy = Callable[[Mapping[str, np.ndarray], np.ndarray], dict[str, np.ndarray]]
"""(obs [E, ...], first [E]) -> action [E, ...]."""


class Film(Protocol):
    """Watches environment 0 while it plays. `add` at every step of a game; `end` when it was scored."""

    @property
    def wanted(self) -> bool:
        """Whether there is anything left to film: a picture may cost more than a step."""

    def begin(self, group: Any) -> None:
        """A game has begun; what was filmed of another one that was never scored is void."""

    def add(self, group: Any) -> None: ...
    def end(self, episodic_return: float, length: int) -> None: ...


class NoFilm:
    """Nobody watches."""

    wanted = False

    def begin(self, group: Any) -> None: ...
    def add(self, group: Any) -> None: ...
    def end(self, episodic_return: float, length: int) -> None: ...


def environments(task: str, seed: int, settings: Settings, render: bool = False) -> Callable[[int, int], Group]:
    """What `play` builds its groups with. render: groups that can be filmed."""

    def make(num_envs: int, first_env: int) -> Group:
        sequences = [np.random.SeedSequence([seed, SEED_STREAM, first_env + i]) for i in range(num_envs)]
        seeds = [int(sequence.generate_state(1)[0]) >> 1 for sequence in sequences]
        return make_group(task, num_envs, seeds, settings, render=render)

    return make


@dataclass
class Games:
    """What has been played so far."""

    returns: list[float]
    lengths: list[int]
    capped: int = 0
    faults: int = 0


def share(episodes: int, envs: int) -> list[int]:
    """Games per environment: as even as can be."""
    return [episodes // envs + (i < episodes % envs) for i in range(envs)]


def play(
    make: Callable[[int, int], Any], policy: Policy, episodes: int, max_steps: int, film: Film | None = None
) -> Games:
    """Exactly `episodes` games. make(num_envs, first_env) builds a group of environments never used before.

    An environment leaves when its share is played, when it broke, or when a game was capped: a group cannot be
    reset in parts. What is left of its share goes to a fresh environment of the next round.
    """
    games = Games([], [])
    shares = share(episodes, min(episodes, ENVS))
    used = 0
    while shares:
        group = make(len(shares), used)
        used += len(shares)
        try:
            _round(group, policy, shares, max_steps, games, film or NoFilm())
        finally:
            group.close()
        shares = [left for left in shares if left]
        if games.faults > FAULTS and shares:
            raise RuntimeError(f"{games.faults} environments broke during the evaluation; see `sfactory check-env`")
    return games


def _round(group: Any, policy: Policy, shares: list[int], max_steps: int, games: Games, film: Film) -> None:
    """Step one group until nobody has anything left to play; counts `shares` down."""
    count = len(shares)
    playing = np.array([left > 0 for left in shares])
    returns, lengths = np.zeros(count), np.zeros(count, np.int64)  # of the games under way
    obs, first = group.reset(), np.ones(count, bool)
    filmed = film.wanted
    if filmed:
        film.begin(group)

    def score(env: int, episodic_return: float, length: int) -> None:
        games.returns.append(episodic_return)
        games.lengths.append(length)
        shares[env] -= 1
        if env == 0 and filmed:
            film.end(episodic_return, length)

    while playing.any():
        step = group.step(policy(obs, first))
        obs, first = step.obs, step.first
        filmed = film.wanted and bool(playing[0])  # environment 0 may have left while others play on
        if filmed and step.valid[0]:
            film.add(group)
        returns += np.where(step.valid, step.reward, 0.0)
        lengths += step.valid
        for fault in step.faults:
            if playing[fault.env]:
                games.faults += 1
                playing[fault.env] = False
        for env, episodic_return, length in step.episodes:
            returns[env], lengths[env] = 0.0, 0
            if playing[env]:
                score(env, episodic_return, length)
                playing[env] = shares[env] > 0
        for env in np.flatnonzero(playing & (lengths >= max_steps)).tolist():
            score(env, float(returns[env]), int(lengths[env]))
            games.capped += 1
            playing[env] = False
        if film.wanted and playing[0] and not step.valid[0]:  # the reset step shows how the next game begins
            film.begin(group)


def torch_policy(model: Any, greedy: bool, seed: int) -> Policy:
    """The network as a policy; recurrent state is kept, sampling noise comes from `seed`."""
    actor = Actor(model, seed)
    return lambda obs, first: actor(obs, first, greedy)


def play_task(
    task: str, settings: Settings, policy: Policy, episodes: int, seed: int, *,
    squash: bool, max_steps: int = 0, film: Film | None = None,
) -> tuple[EnvSpec, int, Games]:  # fmt: skip
    """Games of one environment by name: its spec, the limit they were played under, and what came of them.

    max_steps: 0 is the environment's own limit, or STEPS where it has none. squash: `sfactory.envs.bounded`.
    """
    spec = make_spec(task, settings)
    limits, limit = bounded(spec, squash), max_steps or spec.max_episode_steps or STEPS
    make = environments(task, seed, settings, render=film is not None)
    return spec, limit, play(make, lambda obs, first: limits(policy(obs, first)), episodes, limit, film)
