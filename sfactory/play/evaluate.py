"""Evaluate the newest policy of a run on whole episodes in environments of its own.

How episodes are shared out and played: `sfactory.play.episodes`. Reported are mean, median and interquartile mean with
stratified-bootstrap intervals (Agarwal et al. 2021, arXiv 2108.13264).
"""

from __future__ import annotations

import contextlib
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from sfactory.monitor.format import percent
from sfactory.monitor.statistics import bootstrap, human_normalized, iqm
from sfactory.play.episodes import model_policy, num_play_envs, play_task
from sfactory.play.video import VideoFile, VideoRecorder, check_video, task_video_path


@dataclass(frozen=True)
class EvalResult:
    """Whole episodes of one policy in one task, and the conditions they were played under."""

    env: str
    protocol: str
    greedy: bool
    seed: int
    max_steps: int
    env_steps: int
    """Trained steps of the policy."""
    returns: tuple[float, ...]
    lengths: tuple[int, ...]
    capped: int
    """Episodes cut at `max_steps`; they count with their return so far."""
    faults: int
    """Episodes discarded because their environment failed; others were played instead."""
    infos: dict[str, float] = field(default_factory=dict)
    """Numbers that `info` had at the end of episodes, by name; means over the episodes that had them."""
    reference: tuple[float, float] | None = None
    """Returns of a random policy and of a human tester, where they are known."""
    videos: tuple[VideoFile, ...] = ()
    """The first episodes of environment 0, if they were recorded."""

    @property
    def statistics(self) -> dict[str, float]:
        """Mean, median, IQM of the returns with 95 % intervals of mean and IQM, and the mean length."""
        returns = np.asarray(self.returns)
        low, high = bootstrap([returns], np.mean)
        iqm_low, iqm_high = bootstrap([returns], iqm)
        scale = {}
        if self.reference is not None and not self.capped:  # the return of a cut episode is no score to compare
            scale["human_normalized"] = human_normalized(float(returns.mean()), self.reference)
        return {
            **scale,
            "mean": float(returns.mean()),
            "mean_low": low,
            "mean_high": high,
            "median": float(np.median(returns)),
            "std": float(returns.std()),
            "iqm": float(iqm(returns)),
            "iqm_low": iqm_low,
            "iqm_high": iqm_high,
            "min": float(returns.min()),
            "max": float(returns.max()),
            "length": float(np.mean(self.lengths)),
        }

    @property
    def broken_share(self) -> float:
        """Fraction of the episodes that were cut because their environment failed."""
        return self.faults / (self.faults + len(self.returns))

    @property
    def sentence(self) -> str:
        """The result in one sentence, for the last line on stderr."""
        return f"{len(self.returns)} episodes, mean return {self.statistics['mean']:.2f}"

    def as_dict(self) -> dict[str, Any]:
        """Return the fields and statistics, for --json."""
        return {
            **asdict(self),
            "episodes": len(self.returns),
            "broken_share": self.broken_share,
            **self.statistics,
        }

    def report(self) -> str:
        """Return the result as text."""
        s = self.statistics
        actions = "greedy actions (the most likely)" if self.greedy else "sampled actions (as in training)"
        lines = [
            f"{len(self.returns)} episodes of {self.env}, {actions}",
            f"policy    after {self.env_steps:,} steps of training; seed {self.seed}",
            f"protocol  {self.protocol or self.env}; at most {self.max_steps:,} steps per episode",
            f"mean      {s['mean']:.2f}   95% interval {s['mean_low']:.2f} to {s['mean_high']:.2f}",
            f"IQM       {s['iqm']:.2f}   95% interval {s['iqm_low']:.2f} to {s['iqm_high']:.2f}",
            f"median    {s['median']:.2f}   from {s['min']:.2f} to {s['max']:.2f}",
            f"length    {s['length']:.1f} steps",
        ]
        if self.infos:
            lines.append(f"info      {', '.join(f'{name} {value:.4g}' for name, value in self.infos.items())}")
        if "human_normalized" in s:
            lines.append(f"human     {s['human_normalized']:.3f} (0 is a random policy, 1 a human tester)")
        if self.capped:
            lines.append(f"capped    {self.capped} of {len(self.returns)} episodes reached {self.max_steps:,} steps")
        if self.faults:
            discarded = f"{self.faults} episodes were discarded after an environment failure and replaced"
            lines.append(f"faults    {discarded}: {percent(self.broken_share)} of all; no return includes them")
        lines += [f"video     {v.file}: {v.length:,} steps, return {v.episodic_return:g}" for v in self.videos]
        return "\n".join(lines)


@dataclass(frozen=True)
class MultiTaskEvalResult:
    """Results of one policy in each of its tasks."""

    tasks: tuple[EvalResult, ...]

    @property
    def sentence(self) -> str:
        """The result in one sentence. Across tasks only human-normalized scores are combined, by their median."""
        episodes = f"{sum(len(e.returns) for e in self.tasks)} episodes of {len(self.tasks)} tasks"
        relative = [e.statistics.get("human_normalized", np.nan) for e in self.tasks if e.reference is not None]
        relative = [score for score in relative if np.isfinite(score)]
        if len(relative) == len(self.tasks):
            return f"{episodes}, median human-normalized score {np.median(relative):.3f}"
        return f"{episodes}, mean returns {', '.join(f'{np.mean(e.returns):.2f}' for e in self.tasks)}"

    def as_dict(self) -> dict[str, Any]:
        """Return the results of all tasks, for --json."""
        return {"tasks": [result.as_dict() for result in self.tasks]}

    def report(self) -> str:
        """Return the results as text, one paragraph per task."""
        return "\n\n".join(result.report() for result in self.tasks)


def evaluate(
    run_dir: Path,
    episodes: int = 100,
    greedy: bool = False,
    max_steps: int = 0,
    seed: int = 0,
    video: Path | None = None,
    video_games: int = 1,
    num_envs: int = 0,
) -> EvalResult | MultiTaskEvalResult:
    """Play `episodes` episodes (of every task) with the newest checkpoint of `run_dir`. Writes nothing but videos.

    Args:
        max_steps: limit of an episode; 0 is the environment's own (27,000 for Atari), or DEFAULT_MAX_STEPS.
        video: .mp4 file of the first episode of environment 0; with several tasks, their names are inserted.
        video_games: number of episodes to record, a file each.
        num_envs: environments that play at the same time, at most; 0: as `eval.num_envs` of the run says.
    Raises ValueError or EnvError for what cannot be played or recorded.
    """
    import torch

    from sfactory.config.toml_file import from_toml
    from sfactory.run.checkpoint import load_policy

    if episodes < 1 or max_steps < 0 or num_envs < 0:
        got = f"got {episodes}, {max_steps} and {num_envs}"
        raise ValueError(f"episodes must be >= 1, max-steps and envs >= 0 ({got})")
    if video is not None:
        check_video(video, video_games, episodes)
    run_dir = Path(run_dir)
    config = from_toml(run_dir / "config.toml")
    env = config.env
    torch.set_num_threads(config.run.inference_threads)  # batches are small: more threads would only spin
    model, state = load_policy(run_dir)

    def evaluate_task(task: str) -> EvalResult:
        recorder = None
        if video is not None:
            recorder = VideoRecorder(task_video_path(video, task if len(env.tasks) > 1 else ""), video_games)
        with recorder or contextlib.nullcontext():
            spec, limit, results = play_task(
                task,
                env.options,
                model_policy(model, greedy, seed),
                episodes,
                seed,
                squash=config.model.squash,
                max_steps=max_steps,
                num_envs=num_envs or num_play_envs(config),
                recorder=recorder,
                env_index=config.index_beside,
            )
        return EvalResult(
            env=task,
            protocol=spec.protocol,
            greedy=greedy,
            seed=seed,
            max_steps=limit,
            env_steps=int(state["env_steps"]),
            returns=tuple(results.returns),
            lengths=tuple(results.lengths),
            capped=results.capped,
            faults=results.faults,
            infos={name: float(np.mean(values)) for name, values in results.infos.items()},
            reference=spec.reference,
            videos=tuple(recorder.videos) if recorder else (),
        )

    results = tuple(evaluate_task(task) for task in env.tasks)
    return results[0] if len(results) == 1 else MultiTaskEvalResult(results)
