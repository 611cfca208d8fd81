"""Evaluation: the newest policy of a run plays whole games in environments of its own.

How games are shared out and played: `sfactory.play.episodes`. Reported are mean, median and interquartile mean with
stratified-bootstrap intervals (Agarwal et al. 2021, arXiv 2108.13264).
"""

from __future__ import annotations

import contextlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sfactory.monitor.statistics import bootstrap, human_normalized, iqm
from sfactory.play.episodes import play_task, torch_policy
from sfactory.play.video import Filmed, Video, check_video, video_path


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
    videos: tuple[Filmed, ...] = ()
    """The first games of environment 0, if they were filmed."""

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
        lines += [f"video     {v.file}: {v.length:,} steps, return {v.episodic_return:g}" for v in self.videos]
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


def evaluate(
    run_dir: Path,
    episodes: int = 100,
    greedy: bool = False,
    max_steps: int = 0,
    seed: int = 0,
    video: Path | None = None,
    video_games: int = 1,
) -> Evaluation | Evaluations:
    """Play `episodes` games (of every task) with the newest checkpoint of `run_dir`; nothing else is written.

    max_steps: a game is cut there; 0 is the environment's own limit (27,000 for Atari), or STEPS where it has none.
    video: an .mp4 of the first `video_games` games of environment 0, a file each; the task's name goes into the file's
    where there are several. Raises ValueError or EnvError for what cannot be played or filmed.
    """
    import torch

    from sfactory.config.toml_file import from_toml
    from sfactory.run.checkpoint import load_policy

    if episodes < 1 or max_steps < 0:
        raise ValueError(f"episodes is {episodes} and max-steps is {max_steps}; play one game of one step at least")
    if video is not None:
        check_video(video, video_games, episodes)
    run_dir = Path(run_dir)
    config = from_toml(run_dir / "config.toml")
    env = config.env
    torch.set_num_threads(config.run.inference_threads)  # more would spin on a busy machine: the batches are small
    model, state = load_policy(run_dir)

    def evaluation(task: str) -> Evaluation:
        policy = torch_policy(model, greedy, seed)
        film = Video(video_path(video, task if len(env.tasks) > 1 else ""), video_games) if video else None
        with film or contextlib.nullcontext():
            spec, limit, games = play_task(
                task, env.arguments, policy, episodes, seed,
                squash=config.model.squash, max_steps=max_steps, film=film,
            )  # fmt: skip
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
            videos=tuple(film.filmed) if film else (),
        )

    found = tuple(evaluation(task) for task in env.tasks)
    return found[0] if len(found) == 1 else Evaluations(found)
