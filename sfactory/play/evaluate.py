"""Evaluate a policy of a run on whole episodes in environments of its own.

How episodes are shared out and played: `sfactory.play.episodes`. Reported are mean, median and interquartile mean with
stratified-bootstrap intervals (Agarwal et al. 2021, arXiv 2108.13264).
"""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sfactory.config import Config, parsing, presets
from sfactory.config.parsing import ConfigLayer, flag_name
from sfactory.config.values import as_text
from sfactory.device.loading import loading_torch
from sfactory.envs import EnvSpec
from sfactory.errors import CommandError, Exit
from sfactory.monitor.format import percent
from sfactory.monitor.statistics import bootstrap, human_normalized, iqm
from sfactory.monitor.table import EPISODES_IN_MEAN
from sfactory.play.episodes import model_policy, num_play_envs, play_task
from sfactory.play.video import VideoFile, VideoRecorder, check_video, remove_unfinished, task_video_path
from sfactory.play.watched_group import NO_CLOCK, EnvClock, watched_spec
from sfactory.run import checkpoint
from sfactory.run.folder import require_run_or_checkpoint
from sfactory.run.reader import flat_settings
from sfactory.run.recorded_spec import check_same_spaces, recorded_spec

if TYPE_CHECKING:
    from sfactory.model.actor_critic import ActorCritic


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
    missing_infos: tuple[str, ...] = ()
    """Names that `env.info_keys` lists and that no episode had."""
    reference: tuple[float, float] | None = None
    """Returns of a random policy and of a human tester, where they are known."""
    videos: tuple[VideoFile, ...] = ()
    """The first episodes of environment 0, if they were recorded."""
    changes: tuple[str, ...] = ()
    """What differs from the settings of training, in words."""
    agents: tuple[str, ...] = ()
    """Names of the agents, where the environment has several. Lengths are steps of the environment."""

    @property
    def statistics(self) -> dict[str, float]:
        """Mean, median, IQM of the returns with 95 % intervals of mean and IQM, and the mean length.

        A single episode has no intervals: there is nothing to resample.
        """
        returns = np.asarray(self.returns)
        scale, intervals = {}, {}
        if len(returns) > 1:
            for name, statistic in (("mean", np.mean), ("iqm", iqm)):
                intervals[f"{name}_low"], intervals[f"{name}_high"] = bootstrap([returns], statistic)
        if self.reference is not None and not self.capped:  # the return of a cut episode is no score to compare
            scale["human_normalized"] = human_normalized(float(returns.mean()), self.reference)
        return {
            **scale,
            "mean": float(returns.mean()),
            "median": float(np.median(returns)),
            "std": float(returns.std()),
            "iqm": float(iqm(returns)),
            **intervals,
            "min": float(returns.min()),
            "max": float(returns.max()),
            "length": float(np.mean(self.lengths)),
        }

    @property
    def broken_share(self) -> float:
        """Fraction of the episodes that were cut because their environment failed."""
        return broken_share(len(self.returns), self.faults)

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
        s, (steps, others) = self.statistics, steps_in_words(self.agents)
        lines = [
            f"{len(self.returns)} episodes of {self.env}, {actions_in_words(self.greedy)}",
            f"policy    after {self.env_steps:,} {steps} of training; seed {self.seed}",
            f"protocol  {self.protocol or self.env}; at most {self.max_steps:,} {others} per episode",
            f"mean      {s['mean']:.2f}   {_interval(s, 'mean')}",
            f"IQM       {s['iqm']:.2f}   {_interval(s, 'iqm')}",
            f"median    {s['median']:.2f}   standard deviation {s['std']:.2f}, from {s['min']:.2f} to {s['max']:.2f}",
            f"length    {s['length']:.1f} {others}",
        ]
        if self.infos:
            lines.append(f"info      {', '.join(f'{name} {value:.4g}' for name, value in self.infos.items())}")
        if self.missing_infos:
            lines.append(f"info      {', '.join(self.missing_infos)}: no number of this name at the end of any episode")
        if "human_normalized" in s:
            lines.append(f"human     {s['human_normalized']:.3f} (0 is a random policy, 1 a human tester)")
        lines += cut_episodes(len(self.returns), self.capped, self.max_steps, self.faults)
        lines += [f"changed   {change}" for change in self.changes]
        lines += [f"video     {v.file}: {v.length:,} {others}, return {v.episodic_return:g}" for v in self.videos]
        return "\n".join(lines)

    __str__ = report


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

    __str__ = report


def _interval(statistics: Mapping[str, float], name: str) -> str:
    """The interval of a statistic in words."""
    if f"{name}_low" not in statistics:
        return "no interval: a single episode"
    return f"95% interval {statistics[f'{name}_low']:.2f} to {statistics[f'{name}_high']:.2f}"


def actions_in_words(greedy: bool) -> str:
    """How actions were chosen."""
    return "greedy actions (the most likely)" if greedy else "sampled actions (as in training)"


def steps_in_words(agents: Sequence[str]) -> tuple[str, str]:
    """Names of the steps of training and of the steps of an episode."""
    return ("agent steps", "env steps") if agents else ("steps", "steps")


def broken_share(complete: int, faults: int) -> float:
    """Fraction of the episodes that were cut because their environment failed."""
    return faults / (faults + complete)


def cut_episodes(complete: int, capped: int, max_steps: int, faults: int) -> list[str]:
    """Lines about episodes that were cut, for a result as text."""
    lines = []
    if capped:
        lines.append(f"capped    {capped} of {complete} episodes reached {max_steps:,} steps")
    if faults:
        discarded = f"{faults} episodes were discarded after an environment failure and replaced"
        share = percent(broken_share(complete, faults))
        lines.append(f"faults    {discarded}: {share} of all; no return includes them")
    return lines


def check_counts(episodes: int, max_steps: int, num_envs: int, seed: int) -> None:
    """Raise ValueError for numbers that cannot be played."""
    if seed < 0:
        raise ValueError(f"seed must be >= 0, got {seed}")
    if episodes < 1 or max_steps < 0 or num_envs < 0:
        got = f"got episodes {episodes}, max_steps {max_steps} and num_envs {num_envs}"
        raise ValueError(f"episodes must be >= 1, max_steps and num_envs >= 0; {got}")


NEWEST, BEST = "newest", "best"
EVAL_SETTINGS = ("env.settings", "env.wrappers", "env.wrapper_settings", "env.protocol", "env.step_timeout",
                 "env.build_timeout", "env.info_keys")  # fmt: skip
"""Settings that an evaluation may change."""


@dataclass(frozen=True)
class Evaluation:
    """What is played, as a job for a process of its own (`sfactory.supervisor.env_child.Job`)."""

    config: Config
    """Of the run, with the settings of this evaluation."""
    path: Path
    """Folder of a verified checkpoint."""
    episodes: int = 100
    """Of every task."""
    greedy: bool = False
    max_steps: int = 0
    """Limit of an episode; 0 is the environment's own (27,000 for Atari), or DEFAULT_MAX_STEPS."""
    seed: int = 0
    video: Path | None = None
    """File .mp4 of the first episode of environment 0; with several tasks, their names are inserted."""
    video_episodes: int = 1
    """Episodes to record, a file each."""
    num_envs: int = 0
    """Environments that play at the same time, at most; 0: as `eval.num_envs` of the run says."""
    changes: tuple[str, ...] = ()
    """What differs from the settings of the run, in words."""
    video_folder: Path = Path()
    """What a relative `video` is relative to: an environment may change the working directory."""
    mark: str = field(default_factory=lambda: secrets.token_hex(8))
    """End of the names of videos that are not complete."""

    def __post_init__(self) -> None:
        """Raise ValueError for what cannot be played or recorded."""
        check_counts(self.episodes, self.max_steps, self.num_envs, self.seed)
        if self.video is not None:
            num_envs = self.num_envs or num_play_envs(self.config)
            check_video(self.video_folder / self.video, self.video_episodes, self.episodes, num_envs)

    def remove_unfinished(self) -> None:
        """Delete what is left of a video when the process that played was ended."""
        if self.video is not None:
            remove_unfinished((self.video_folder / self.video).parent, self.mark)

    def run(self, clock: EnvClock = NO_CLOCK) -> EvalResult | MultiTaskEvalResult:
        """Play. Writes nothing but videos. Raises ValueError or EnvError for what cannot be played or recorded."""
        with loading_torch():
            import torch

        torch.set_num_threads(self.config.run.inference_threads)  # batches are small: more threads would only spin
        spec = recorded_spec(checkpoint.read_state(self.path)) or watched_spec(  # earlier versions recorded none
            self.config.env.tasks[0], self.config.env.options, checkpoint.index_beside(self.path, self.config), clock
        )
        model, state = checkpoint.restore_policy(self.path, self.config, spec)
        results = tuple(self._play(task, spec, model, int(state["env_steps"]), clock) for task in self.config.env.tasks)
        return results[0] if len(results) == 1 else MultiTaskEvalResult(results)

    def _play(self, task: str, trained: EnvSpec, model: ActorCritic, env_steps: int, clock: EnvClock) -> EvalResult:
        config, recorder = self.config, None
        if self.video is not None:
            path = task_video_path(self.video_folder / self.video, task if len(config.env.tasks) > 1 else "")
            recorder = VideoRecorder(path, self.video_episodes, self.mark)
        with recorder or contextlib.nullcontext():
            spec, limit, results = play_task(
                task,
                config.env.options,
                model_policy(model, self.greedy, self.seed),
                self.episodes,
                self.seed,
                squash=config.model.squash,
                max_steps=self.max_steps,
                num_envs=self.num_envs or num_play_envs(config),
                recorder=recorder,
                clock=clock,
                env_index=checkpoint.index_beside(self.path, config),
                check=lambda spec: check_same_spaces(trained, spec),
            )
        return EvalResult(
            env=task,
            protocol=spec.protocol,
            greedy=self.greedy,
            seed=self.seed,
            max_steps=limit,
            env_steps=env_steps,
            returns=tuple(results.returns),
            lengths=tuple(results.lengths),
            capped=results.capped,
            faults=results.faults,
            infos={name: float(np.mean(values)) for name, values in results.infos.items()},
            missing_infos=tuple(key for key in config.env.options.info_keys if key not in results.infos),
            reference=spec.reference,
            videos=tuple(replace(v, file=str(self._as_given(v.file))) for v in recorder.videos) if recorder else (),
            changes=self.changes,
            agents=spec.agents,
        )

    def _as_given(self, file: str) -> Path:
        """The name of a video, relative if a relative one was asked for."""
        assert self.video is not None
        return self.video.parent / Path(file).name


def evaluation(path: Path, changes: ConfigLayer, **options: Any) -> Evaluation:
    """Say what is played: the policy of a checkpoint.

    changes: settings of this evaluation alone. options: the other fields of `Evaluation`. Raises ValueError
    (CommandError) for what is wrong.
    """
    trained, config = changed_config(path, changes)
    return Evaluation(config, path.absolute(), changes=differences(trained, config), **options)


def changed_config(path: Path, changes: ConfigLayer) -> tuple[Config, Config]:
    """The settings of a checkpoint's run, without and with changes. CommandError for what cannot be changed."""
    _refuse_other_settings(changes)
    layer = presets.recorded_layer(path.parent.parent / "config.toml")
    return parsing.build(layer), parsing.build(layer, changes)


def _refuse_other_settings(changes: ConfigLayer) -> None:
    """Raise CommandError for a setting that an evaluation cannot change."""
    known = ", ".join(map(flag_name, EVAL_SETTINGS))
    for name in changes:
        if not name.startswith(EVAL_SETTINGS):
            text = f"{flag_name(name)}: eval plays with the settings of the run; it can change {known}"
            raise CommandError(Exit.USAGE, text)


def chosen_checkpoint(run: Path, which: str) -> Path:
    """The verified checkpoint of a run: newest, best, or its trained steps. `run` may be a checkpoint itself.

    Raises CommandError for one that does not exist, CheckpointError for a damaged one.
    """
    require_run_or_checkpoint(run)
    if which == NEWEST:
        return checkpoint.resolve(run)
    if (run / checkpoint.MANIFEST).is_file():
        raise CommandError(Exit.USAGE, f"checkpoint {which}: {run} is a checkpoint already; give the folder of its run")
    if which == BEST:
        best = checkpoint.best(run)
        if best is None:
            raise CommandError(
                Exit.USAGE, f"checkpoint best: no checkpoint of {run} has a return of {EPISODES_IN_MEAN} episodes yet"
            )
        return best
    found = {int(path.name): path for path in checkpoint.candidates(run)}
    if not which.isdecimal() or int(which) not in found:
        steps = ", ".join(map(str, sorted(found)))
        raise CommandError(Exit.USAGE, f"checkpoint {which}: no such checkpoint; there are newest, best, {steps}")
    return checkpoint.resolve(found[int(which)])


def differences(trained: Config, config: Config, who: str = "") -> tuple[str, ...]:
    """What differs between the environments of two configurations, as `env.settings.gravity 20, trained with 9.8`.

    who: written before `trained`, where several policies play: `NAME was `.
    """
    found = []
    before, after = flat_settings(trained), flat_settings(config)
    for name in sorted(name for name in {*before, *after} if name.startswith("env.") and name not in NOT_PLAYED):
        old, new = (as_text(values[name]) if name in values else "its default" for values in (before, after))
        if old != new:
            found.append(f"{flag_name(name)} {new or 'empty'}, {who}trained with {old or 'empty'}")
    return tuple(found)


NOT_PLAYED = ("env.step_timeout", "env.build_timeout", "env.info_keys")
"""Settings that may change and do not alter what is played."""
