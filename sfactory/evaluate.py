"""Evaluation: the newest policy of a run plays whole games in environments of its own.

A fixed number of games is shared out among the environments beforehand. Taking the first N games that end
anywhere would prefer short ones: an environment that dies early would send in more of them. Reported are mean,
median and interquartile mean with stratified-bootstrap intervals (Agarwal et al. 2021, arXiv 2108.13264).

Shapes: E environments; every leaf of an observation or action is [E, ...].
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sfactory.metrics import human_normalized
from sfactory.statistics import bootstrap, iqm

ENVS = 32  # at most: more would play more games at once and wait longer for the last one
SEED_STREAM = 5  # away from the seeds training uses
STEPS = 10_000  # of a game in an environment without a limit
FAULTS = 10  # broken environments an evaluation survives

Policy = Callable[[Mapping[str, np.ndarray], np.ndarray], dict[str, np.ndarray]]
"""(obs [E, ...], first [E]) -> action [E, ...]."""


@dataclass(frozen=True)
class Evaluation:
    """N whole games of one policy, and what they were played under."""

    env: str
    protocol: str
    greedy: bool
    seed: int
    max_steps: int
    env_steps: int
    """Trained steps of the policy that played."""
    returns: tuple[float, ...]
    lengths: tuple[int, ...]
    capped: int
    """Games cut at `max_steps`; they count with their return so far."""
    faults: int
    """Games thrown away because their environment broke; others were played in their place."""
    reference: tuple[float, float] | None = None
    """Returns of a random policy and of a human tester, where they are known."""

    @property
    def statistics(self) -> dict[str, float]:
        """Mean, median, IQM of the returns with 95 % intervals of mean and IQM, and the mean length."""
        returns = np.asarray(self.returns)
        low, high = bootstrap([returns], np.mean)
        iqm_low, iqm_high = bootstrap([returns], iqm)
        scale = {}
        if self.reference is not None and not self.capped:  # a game that was cut has no score to compare
            scale["human_normalized"] = human_normalized(float(returns.mean()), self.reference)
        return {
            **scale, "mean": float(returns.mean()), "mean_low": low, "mean_high": high,
            "median": float(np.median(returns)), "std": float(returns.std()),
            "iqm": float(iqm(returns)), "iqm_low": iqm_low, "iqm_high": iqm_high,
            "min": float(returns.min()), "max": float(returns.max()), "length": float(np.mean(self.lengths)),
        }  # fmt: skip

    @property
    def sentence(self) -> str:
        """The last word."""
        return f"{len(self.returns)} games, mean return {self.statistics['mean']:.2f}"

    def as_dict(self) -> dict[str, Any]:
        """For --json."""
        return {**asdict(self), "episodes": len(self.returns), **self.statistics}

    def report(self) -> str:
        """For people."""
        s = self.statistics
        actions = "greedy actions (the likeliest)" if self.greedy else "sampled actions (as in training)"
        lines = [
            f"{len(self.returns)} games of {self.env}, {actions}",
            f"policy    after {self.env_steps:,} steps of training; seed {self.seed}",
            f"protocol  {self.protocol or self.env}; at most {self.max_steps:,} steps per game",
            f"mean      {s['mean']:.2f}   95% interval {s['mean_low']:.2f} to {s['mean_high']:.2f}",
            f"IQM       {s['iqm']:.2f}   95% interval {s['iqm_low']:.2f} to {s['iqm_high']:.2f}",
            f"median    {s['median']:.2f}   from {s['min']:.2f} to {s['max']:.2f}",
            f"length    {s['length']:.1f} steps",
        ]
        if "human_normalized" in s:
            lines.append(f"human     {s['human_normalized']:.3f} of the way from a random policy to a human tester")
        if self.capped:
            lines.append(f"capped    {self.capped} of {len(self.returns)} games reached {self.max_steps:,} steps")
        if self.faults:
            lines.append(f"faults    {self.faults} games were lost to a broken environment and replaced")
        return "\n".join(lines)


@dataclass(frozen=True)
class Evaluations:
    """One policy in each of its tasks."""

    tasks: tuple[Evaluation, ...]

    @property
    def sentence(self) -> str:
        """The last word. Across tasks only relative scores can be put together, and only by a median."""
        games = f"{sum(len(e.returns) for e in self.tasks)} games of {len(self.tasks)} tasks"
        relative = [e.statistics.get("human_normalized", np.nan) for e in self.tasks if e.reference is not None]
        relative = [score for score in relative if np.isfinite(score)]
        if len(relative) == len(self.tasks):
            return f"{games}, median human-normalised score {np.median(relative):.3f}"
        return f"{games}, mean returns {', '.join(f'{np.mean(e.returns):.2f}' for e in self.tasks)}"

    def as_dict(self) -> dict[str, Any]:
        """For --json."""
        return {"tasks": [evaluation.as_dict() for evaluation in self.tasks]}

    def report(self) -> str:
        """For people."""
        return "\n\n".join(evaluation.report() for evaluation in self.tasks)


# -- playing -------------------------------------------------------------------------------------------------


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


def play(make: Callable[[int, int], Any], policy: Policy, episodes: int, max_steps: int) -> Games:
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
            _round(group, policy, shares, max_steps, games)
        finally:
            group.close()
        shares = [left for left in shares if left]
        if games.faults > FAULTS and shares:
            raise RuntimeError(f"{games.faults} environments broke during the evaluation; see `sfactory check-env`")
    return games


def _round(group: Any, policy: Policy, shares: list[int], max_steps: int, games: Games) -> None:
    """Step one group until nobody has anything left to play; counts `shares` down."""
    count = len(shares)
    playing = np.array([left > 0 for left in shares])
    returns, lengths = np.zeros(count), np.zeros(count, np.int64)  # of the games under way
    obs, first = group.reset(), np.ones(count, bool)
    while playing.any():
        step = group.step(policy(obs, first))
        obs, first = step.obs, step.first
        returns += np.where(step.valid, step.reward, 0.0)
        lengths += step.valid
        for fault in step.faults:
            if playing[fault.env]:
                games.faults += 1
                playing[fault.env] = False
        for env, episodic_return, length in step.episodes:
            returns[env], lengths[env] = 0.0, 0
            if playing[env]:
                games.returns.append(episodic_return)
                games.lengths.append(length)
                shares[env] -= 1
                playing[env] = shares[env] > 0
        for env in np.flatnonzero(playing & (lengths >= max_steps)).tolist():
            games.returns.append(float(returns[env]))
            games.lengths.append(int(lengths[env]))
            games.capped += 1
            shares[env] -= 1
            playing[env] = False


def torch_policy(model: Any, greedy: bool, seed: int) -> Policy:
    """The network as a policy; recurrent state is kept here, sampling noise comes from `seed`."""
    import torch

    draws = np.random.default_rng([seed, SEED_STREAM])
    state: Any = None

    @torch.inference_mode()
    def act(obs: Mapping[str, np.ndarray], first: np.ndarray) -> dict[str, np.ndarray]:
        nonlocal state
        if state is not None and len(state) != len(first):  # a new round of environments
            state = None
        out = model(
            {name: torch.from_numpy(np.ascontiguousarray(x)) for name, x in obs.items()},
            state,
            torch.from_numpy(first),
        )
        state = out.state
        if greedy:
            actions = model.distribution.mode(out.params)
        else:
            noise = draws.random((len(first), model.distribution.num_noise), dtype=np.float32)
            actions = model.distribution.sample(out.params, torch.from_numpy(noise))
        return {name: action.numpy() for name, action in actions.items()}

    return act


def evaluate(
    run_dir: Path, episodes: int = 100, greedy: bool = False, max_steps: int = 0, seed: int = 0
) -> Evaluation | Evaluations:
    """Play `episodes` games (of every task) with the newest checkpoint of `run_dir`; nothing is written.

    max_steps: a game is cut there; 0 is the environment's own limit (27,000 for Atari), or STEPS where it has none.
    """
    import torch

    from sfactory.checkpoint import load_policy
    from sfactory.envs import bounded, make_group, make_spec
    from sfactory.settings_file import from_toml

    if episodes < 1 or max_steps < 0:
        raise ValueError(f"episodes is {episodes} and max-steps is {max_steps}; play one game of one step at least")
    run_dir = Path(run_dir)
    config = from_toml(run_dir / "config.toml")
    env = config.env
    torch.set_num_threads(config.run.inference_threads)  # more would spin on a busy machine: the batches are small
    model, state = load_policy(run_dir)

    def play_task(task: str) -> Evaluation:
        def make(num_envs: int, first_env: int) -> Any:
            seeds = [
                int(np.random.SeedSequence([seed, SEED_STREAM, first_env + i]).generate_state(1)[0]) >> 1
                for i in range(num_envs)
            ]
            return make_group(task, num_envs, seeds, env.arguments)

        spec, policy = make_spec(task, env.arguments), torch_policy(model, greedy, seed)
        limits = bounded(spec, config.model.squash)
        limit = max_steps or spec.max_episode_steps or STEPS
        games = play(make, lambda obs, first: limits(policy(obs, first)), episodes, limit)
        return Evaluation(
            env=task,
            protocol=spec.protocol,
            greedy=greedy,
            seed=seed,
            max_steps=limit,
            env_steps=int(state["env_steps"]),
            returns=tuple(games.returns),
            lengths=tuple(games.lengths),
            capped=games.capped,
            faults=games.faults,
            reference=spec.reference,
        )

    found = tuple(play_task(task) for task in env.tasks)
    return found[0] if len(found) == 1 else Evaluations(found)
