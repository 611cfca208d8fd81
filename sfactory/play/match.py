"""Play a match: a policy of a run has one seat of an environment with several agents, an opponent all other seats.

The opponent is the policy of a run, of a checkpoint or of a pool, or random legal play. Seats alternate from episode to
episode, so that every seat is played equally often, and never change within one. How episodes are shared out and
played: `sfactory.play.episodes`. A seat has won an episode if its return is above the mean return of the other seats.

Shapes: E environments of A agents are E x A rows; row `env * A + agent`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from sfactory.algo.ratings import rating_difference, score_interval
from sfactory.config import Config
from sfactory.config.parsing import ConfigLayer
from sfactory.envs import EnvSpec, bounded
from sfactory.envs.agent_spaces import AGENT_ID
from sfactory.errors import CommandError, EnvError, Exit
from sfactory.play.episodes import MAX_ENVS, num_play_envs, play_task
from sfactory.play.evaluate import (
    actions_in_words,
    broken_share,
    changed_config,
    check_counts,
    cut_episodes,
    differences,
    steps_in_words,
)
from sfactory.play.policy import SEED_STREAM, Actor
from sfactory.play.random_action import random_action
from sfactory.play.watched_group import NO_CLOCK, EnvClock
from sfactory.run import checkpoint
from sfactory.run.recorded_spec import check_same_spaces, recorded_spec

RANDOM = "random"
"""The opponent that plays any legal action with the same probability."""
EPISODES = 500  # the 95 % interval of the score is then at most 0.09 wide


# -- players -------------------------------------------------------------------------------------------------


class Player(Protocol):
    """Acts in some of the rows of a group."""

    def __call__(self, obs: Mapping[str, np.ndarray], first: np.ndarray, rows: np.ndarray) -> dict[str, np.ndarray]:
        """obs leaves [E x A, ...], first [E x A], numbers of rows [R] -> action leaves [R, ...] of the environment."""


class RandomPlayer:
    """Draws legal actions."""

    def __init__(self, spec: EnvSpec, seed: int, player: int) -> None:
        self.spec, self.generator = spec, np.random.default_rng([seed, SEED_STREAM, player])

    def __call__(self, obs: Mapping[str, np.ndarray], first: np.ndarray, rows: np.ndarray) -> dict[str, np.ndarray]:
        read = self.spec.mask or next(iter(obs))  # all that it looks at
        return random_action(self.spec, {read: obs[read][rows]}, self.generator)


class NetworkPlayer:
    """Acts with a network, which has a memory of its own for every row."""

    def __init__(self, model: Any, config: Config, trained: EnvSpec, greedy: bool, seed: int, player: int) -> None:
        """config, trained: settings and spec of the policy's own run. player: its number in the match."""
        self.leaves, self.greedy, self.actor = list(trained.obs), greedy, Actor(model, seed, player)
        self._limits = bounded(trained, config.model.squash)

    def __call__(self, obs: Mapping[str, np.ndarray], first: np.ndarray, rows: np.ndarray) -> dict[str, np.ndarray]:
        own = {name: obs[name] for name in self.leaves}
        return self._limits(self.actor.of_rows(own, first, rows, self.greedy))


class Table:
    """Has two players act for the agents of a group, each in one pass over its rows (an ActFunction and a Seating)."""

    def __init__(self, num_envs: int = MAX_ENVS) -> None:
        """num_envs: of a group, at most."""
        self._seat = np.zeros(num_envs, np.int64)

    def set_players(self, spec: EnvSpec, player: Player, opponent: Player) -> None:
        """Say who plays. player: has one seat of each environment; opponent: all others."""
        self.spec, self.player, self.opponent = spec, player, opponent

    @property
    def seats(self) -> int:
        return self.spec.rows

    def begin(self, env: int, seat: int) -> None:
        """See `sfactory.play.episodes.Seating`."""
        self._seat[env] = seat

    def __call__(self, obs: Mapping[str, np.ndarray], first: np.ndarray) -> dict[str, np.ndarray]:
        """Actions of all rows; 0 where the agent does not act now, which has no effect."""
        envs = len(first) // self.seats
        own = (self._seat[:envs, None] == np.arange(self.seats)).ravel()
        acts = obs[self.spec.acting] if self.spec.acting else np.ones(len(first), bool)
        actions = {n: np.zeros((len(first), *leaf.shape), leaf.dtype) for n, leaf in self.spec.actions.items()}
        for player, rows in ((self.player, own), (self.opponent, ~own)):
            chosen = np.flatnonzero(rows & acts)
            for name, action in player(obs, first, chosen).items():
                actions[name][chosen] = action
        return actions


class Outcomes(NamedTuple):
    """Of N episodes, [N] each."""

    returns: np.ndarray
    """Of the policy's seat."""
    opponent_returns: np.ndarray
    """Mean over the other seats."""
    outcomes: np.ndarray
    """int: 1 won, 0 drawn, -1 lost."""


def outcomes(returns: np.ndarray, seats: np.ndarray) -> Outcomes:
    """Say who won. returns: [N, A] of every agent; seats: [N] of the policy."""
    others = returns.shape[1] - 1
    own = np.take_along_axis(returns, seats[:, None], axis=1)[:, 0]
    rest = returns.sum(axis=1, where=np.arange(returns.shape[1]) != seats[:, None])
    outcome = np.sign(own * others - rest).astype(np.int64)  # sums are exact where their mean would be rounded
    return Outcomes(own, rest / others, outcome)


# -- result --------------------------------------------------------------------------------------------------


class Score(NamedTuple):
    """Counts of some episodes, with what follows from them."""

    wins: int
    draws: int
    losses: int

    def as_dict(self) -> dict[str, float | None]:
        """Counts; score and Elo difference with 95 % intervals. An Elo difference without a bound is None."""
        mean, low, high = score_interval(*self)
        scores = {"score": mean, "score_low": low, "score_high": high}
        elo = {name.replace("score", "elo"): rating_difference(score) for name, score in scores.items()}
        finite = {name: value if math.isfinite(value) else None for name, value in elo.items()}
        return {**self._asdict(), **scores, **finite}


@dataclass(frozen=True)
class MatchResult:
    """Whole episodes of a policy against an opponent, and the conditions they were played under."""

    env: str
    protocol: str
    opponent: str
    """As it was named: a folder, or `random`."""
    greedy: bool
    seed: int
    max_steps: int
    env_steps: int
    """Trained steps of the policy."""
    opponent_env_steps: int | None
    """Trained steps of the opponent; None for random play."""
    agents: tuple[str, ...]
    """Names of the seats."""
    seats: tuple[int, ...]
    """Seat of the policy in each episode."""
    returns: tuple[float, ...]
    """Return of the policy's seat in each episode."""
    opponent_returns: tuple[float, ...]
    """Mean return of the other seats in each episode."""
    outcomes: tuple[int, ...]
    """1, 0 or -1: the policy won, drew or lost the episode."""
    lengths: tuple[int, ...]
    capped: int
    """Episodes cut at `max_steps`; they count with their returns so far."""
    faults: int
    """Episodes discarded because their environment failed; others were played instead."""
    changes: tuple[str, ...] = ()
    """What differs from the settings of training, of either policy, in words."""

    def score(self, seat: int | None = None) -> Score:
        """Wins, draws and losses of the policy in all episodes, or in those in which it had a seat.

        seat: a number, in the order of `agents`. Raises ValueError for one that is none.
        """
        if seat is not None and seat not in range(len(self.agents)):
            numbers = ", ".join(f"{number} ({name})" for number, name in enumerate(self.agents))
            raise ValueError(f"seat {seat!r} is none of {numbers}; by_seat has the scores by name")
        chosen = [outcome for outcome, own in zip(self.outcomes, self.seats, strict=True) if seat in (None, own)]
        return Score(chosen.count(1), chosen.count(0), chosen.count(-1))

    @property
    def by_seat(self) -> dict[str, Score]:
        """Score in each seat that was played, by the name of its agent."""
        return {name: self.score(seat) for seat, name in enumerate(self.agents) if seat in self.seats}

    @property
    def sentence(self) -> str:
        """The result in one sentence, for the last line on stderr."""
        found, (wins, draws, losses) = self.score().as_dict(), self.score()
        return (
            f"{len(self.outcomes)} episodes against {self.opponent}: {wins} won, {draws} drawn, {losses} lost, "
            f"score {found['score']:.3f}"
        )

    def as_dict(self) -> dict[str, Any]:
        """Return the fields and what follows from them, for --json."""
        return {
            **asdict(self),
            "episodes": len(self.outcomes),
            "broken_share": broken_share(len(self.outcomes), self.faults),
            **self.score().as_dict(),
            "by_seat": {name: score.as_dict() for name, score in self.by_seat.items()},
        }

    def report(self) -> str:
        """Return the result as text."""
        found = self.score().as_dict()
        steps, others = steps_in_words(self.agents)
        after = "" if self.opponent_env_steps is None else f", after {self.opponent_env_steps:,} {steps} of training"
        lines = [
            f"{len(self.outcomes)} episodes of {self.env}, {actions_in_words(self.greedy)}",
            f"policy    after {self.env_steps:,} {steps} of training; seed {self.seed}",
            f"against   {self.opponent}{after}",
            f"protocol  {self.protocol or self.env}; at most {self.max_steps:,} {others} per episode",
            f"result    {_counts(self.score())}",
            f"score     {found['score']:.3f}   95% interval {found['score_low']:.3f} to {found['score_high']:.3f}",
            f"Elo       {_elo(found['elo'], found['score'])}   95% interval "
            f"{_elo(found['elo_low'], 0.0)} to {_elo(found['elo_high'], 1.0)}",
            f"return    {np.mean(self.returns):.2f}; the other seats {np.mean(self.opponent_returns):.2f}",
            f"length    {np.mean(self.lengths):.1f} {others}",
        ]
        for name, score in self.by_seat.items():
            mean, low, high = score_interval(*score)
            lines.append(f"seat      {name}: {_counts(score)}; score {mean:.3f} ({low:.3f} to {high:.3f})")
        if self.greedy and self.opponent_env_steps is not None:
            lines.append("greedy    episodes may repeat each other; the interval is that of independent episodes")
        lines += cut_episodes(len(self.outcomes), self.capped, self.max_steps, self.faults)
        return "\n".join(lines + [f"changed   {change}" for change in self.changes])

    __str__ = report


def _counts(score: Score) -> str:
    return f"{score.wins} won, {score.draws} drawn, {score.losses} lost"


def _elo(difference: float | None, score: float | None) -> str:
    """A difference with its sign; without a bound if it is None, because the score is 0 or 1."""
    return f"{difference:+.0f}" if difference is not None else "-inf" if score == 0.0 else "+inf"


# -- match ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class OpponentPolicy:
    """A policy that is played against."""

    name: str
    """As the user named it."""
    path: Path | None = None
    """Folder of a verified checkpoint; None: random play."""
    config: Config | None = None
    """Settings of its run."""


@dataclass(frozen=True)
class Match:
    """What is played, as a job for a process of its own (`sfactory.supervisor.env_child.Job`)."""

    config: Config
    """Of the run, with the settings of this match."""
    path: Path
    """Folder of a verified checkpoint."""
    opponent: OpponentPolicy
    episodes: int = EPISODES
    greedy: bool = False
    max_steps: int = 0
    """Limit of an episode; 0 is the environment's own, or DEFAULT_MAX_STEPS."""
    seed: int = 0
    num_envs: int = 0
    """Environments that play at the same time, at most; 0: as `eval.num_envs` of the run says."""
    changes: tuple[str, ...] = ()
    """What differs from the settings of training, in words."""

    def __post_init__(self) -> None:
        """Raise ValueError for what cannot be played."""
        check_counts(self.episodes, self.max_steps, self.num_envs, self.seed)
        if len(self.config.env.tasks) > 1:
            raise ValueError(
                f"a match is played in one environment, and the run has {len(self.config.env.tasks)}: "
                f"{', '.join(self.config.env.tasks)}"
            )

    def run(self, clock: EnvClock = NO_CLOCK) -> MatchResult:
        """Play. Writes nothing. Raises ValueError or EnvError for what cannot be played."""
        import torch

        torch.set_num_threads(self.config.run.inference_threads)  # batches are small: more threads would only spin
        (task,) = self.config.env.tasks
        num_envs = self.num_envs or num_play_envs(self.config)
        table, steps = Table(num_envs), dict[int, int]()

        def load_players(spec: EnvSpec) -> None:
            """Load both policies."""
            if spec.rows < 2:
                raise EnvError(f"{spec.name} has one agent; a match needs an environment with two or more")
            options, rival = {"greedy": self.greedy, "seed": self.seed}, self.opponent
            own, steps[0] = load_player(self.path, self.config, spec, "the policy", player=0, **options)
            other: Player = RandomPlayer(spec, self.seed, 1)
            if rival.path is not None and rival.config is not None:
                other, steps[1] = load_player(rival.path, rival.config, spec, rival.name, player=1, **options)
            table.set_players(spec, own, other)

        spec, limit, played = play_task(
            task,
            replace(self.config.env.options, agent_id=self._agent_id),
            table,
            self.episodes,
            self.seed,
            squash=False,  # each player squashes its own actions
            max_steps=self.max_steps,
            num_envs=num_envs,
            clock=clock,
            env_index=checkpoint.index_beside(self.path, self.config),
            check=load_players,
            seating=table,
        )
        results = outcomes(np.array(played.agent_returns), np.array(played.seats))
        return MatchResult(
            env=task,
            protocol=spec.protocol,
            opponent=self.opponent.name,
            greedy=self.greedy,
            seed=self.seed,
            max_steps=limit,
            env_steps=steps[0],
            opponent_env_steps=steps.get(1),
            agents=spec.agents,
            seats=tuple(played.seats),
            returns=tuple(results.returns.tolist()),
            opponent_returns=tuple(results.opponent_returns.tolist()),
            outcomes=tuple(results.outcomes.tolist()),
            lengths=tuple(played.lengths),
            capped=played.capped,
            faults=played.faults,
            changes=self.changes,
        )

    @property
    def _agent_id(self) -> bool:
        """Whether one of the policies reads the number of its agent."""
        configs = (self.config, self.opponent.config)
        return any(config is not None and config.env.agent_id for config in configs)


def load_player(path: Path, config: Config, spec: EnvSpec, who: str, **options: Any) -> tuple[NetworkPlayer, int]:
    """Load the policy of a verified checkpoint for an environment; returns its trained steps too.

    config: of its run. spec: of the environment. who: its name in messages. options: see `NetworkPlayer`. Raises
    EnvError if it was trained with other spaces, or without the environment's action mask.
    """
    known = spec if config.env.agent_id else _without_agent_id(spec)
    trained = recorded_spec(checkpoint.read_state(path)) or known  # earlier versions recorded none
    check_same_spaces(trained, known, who)
    model, state = checkpoint.restore_policy(path, config, trained)
    return NetworkPlayer(model, config, trained, **options), int(state["env_steps"])


def _without_agent_id(spec: EnvSpec) -> EnvSpec:
    """A spec without the number of the agent, which only one of two policies may read."""
    return replace(spec, obs={name: leaf for name, leaf in spec.obs.items() if name != AGENT_ID})


def match(path: Path, opponent: Path | None, name: str, changes: ConfigLayer, **options: Any) -> Match:
    """Say what is played: the policy of a checkpoint against that of another one, or against random play (None).

    name: of the opponent, as the user wrote it. changes: settings of this match alone. options: the other fields of
    `Match`. Raises ValueError (CommandError) for what is wrong.
    """
    if "env.info_keys" in changes:
        raise CommandError(Exit.USAGE, "env.info-keys: a match reports no numbers of info; leave it out")
    trained, config = changed_config(path, changes)
    said = differences(trained, config)
    if opponent is None:
        return Match(config, path.absolute(), OpponentPolicy(name), changes=said, **options)
    theirs, _ = changed_config(opponent, {})
    here = replace(config, env=replace(config.env, agent_id=theirs.env.agent_id))  # it gets its own
    said += differences(theirs, here, f"{name} was ")
    rival = OpponentPolicy(name, opponent.absolute(), theirs)
    return Match(config, path.absolute(), rival, changes=said, **options)
