"""Train, resume, evaluate and load policies from Python; the command line calls the same functions.

Environments are built in other processes only, which start by importing the script that trains or evaluates under
another name. A script therefore guards the call with `if __name__ == "__main__":`, otherwise every one of them would
train as well:

    import sfactory

    if __name__ == "__main__":
        outcome = sfactory.train("minatar/breakout", stop={"env_steps": 100_000})
        policy = sfactory.load_policy(outcome.run_dir)

Notebooks, `python -` and `python -c` need no guard: there is no file to import. Samplers import what the script imports
at its top level; imports that only training needs are better placed below the guard.
"""

from __future__ import annotations

import contextlib
import functools
import glob
import os
import shlex
import shutil
import sys
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from sfactory.config import Config, known_names, parsing, presets, to_dict
from sfactory.config.python_values import (
    Code,
    checked_seed,
    label_of,
    layer_of,
    switches,
    target_name,
    whole_numbers,
    with_registered,
)
from sfactory.config.resume_rules import changed_settings, refuse_changes
from sfactory.device.ranks import Ranks
from sfactory.errors import (
    UNGUARDED,
    CommandError,
    EnvError,
    Exit,
    OnlyRegisteredHere,
    RunBusy,
    RunFailed,
    SettingError,
    SettingNote,
    did_you_mean,
)
from sfactory.run.callbacks import Callback, Callbacks, RunHandle, as_callbacks
from sfactory.run.folder import (
    FolderTaken,
    has_checkpoint,
    is_run,
    new_run_dir,
    refuse_existing,
    require_checkpoint,
    require_config_file,
    run_of,
)
from sfactory.run.job import check_job, wait_for_leader
from sfactory.run.trust import vouched_code, vouched_opponent
from sfactory.supervisor.main_script import GUARD, MISSING_MAIN_FILE, refuse_worker

if TYPE_CHECKING:
    from sfactory.play.evaluate import EvalResult, MultiTaskEvalResult
    from sfactory.play.export import Export
    from sfactory.play.match import MatchResult
    from sfactory.play.policy import Policy
    from sfactory.run.outcome import Outcome
    from sfactory.tools.check_env import EnvReport
    from sfactory.tools.comparison import Comparison


P = ParamSpec("P")
R = TypeVar("R")

RUNS = ("run_dir", "runs", "opponent")
"""Arguments that are folders of runs, and may be outcomes instead."""

FILM = ("capture_video", "play", "record", "render", "render_mode", "save_video", "watch")
POLICY_NAMES = {
    "best": 'checkpoint="best"',
    "deterministic": "greedy= of `act`, or deterministic= of `predict`",
    "device": "a policy acts on the CPU",
    "env": "a policy acts without an environment",
    "path": "run_dir=",
    "step": "checkpoint={value}",
    "steps": "checkpoint={value}",
}
"""Arguments that people try where a policy of a run is loaded -> what to write here, or why there is none."""
PLAY_NAMES = {
    **{name: answer for name, answer in POLICY_NAMES.items() if name not in ("deterministic", "env")},
    "max_ep_len": "max_steps=",
    "max_episode_steps": "max_steps=",
    "return_episode_rewards": "the result has `returns`, one of each episode",
    "run": "run_dir=",
}
EVALUATE_NAMES = {**PLAY_NAMES, **dict.fromkeys(FILM, 'video="FILE.mp4"')}
MATCH_NAMES = {
    **PLAY_NAMES,
    "against": "opponent=",
    "opponents": "opponent=",
    **dict.fromkeys((*FILM, "video"), "a match is not recorded"),
}
SAME_ENV = 'here the environment is that of training; change it by env={"settings": {...}}'

CallbackLike = Callback | Callable[[RunHandle, dict[str, float]], None]


def make_config(
    target: str | Config | Code = "",
    *,
    wrappers: str | Code | Sequence[str | Code] | None = None,
    **sections: Mapping[str, Any],
) -> Config:
    """Build a checked configuration from a preset, FAMILY/ID, code or another `Config`, and changes.

    Args:
        target: preset, FAMILY/ID, a configuration to change, or an environment of your own: its class, or a function
            that returns a gymnasium.Env (or a ParallelEnv or AECEnv of PettingZoo). It is called in other processes,
            once for every copy, with `env.settings` as arguments. A lambda, a closure or what a notebook defines is
            pickled (`sfactory.pickled`); what a module defines is named `module:Class`, as on the command line.
        wrappers: `env.wrappers`, the innermost first: classes or functions that take the environment, or names; one of
            them needs no list.
        sections: one dict per section, as ``optim={"lr": 1e-3}, stop={"env_steps": 50_000}``. Classes may stand where
            the command line takes `module:Class`, as ``model={"encoder": MyEncoder}``.

    Raises:
        ValueError: one line, the same as on the command line; code that cannot be pickled.
    """
    if wrappers is not None:
        env = dict(sections.get("env", {}))
        if "wrappers" in env:
            raise SettingError("env.wrappers is given twice, as wrappers= and in env=; leave one out")
        if not isinstance(wrappers, list | tuple):
            if not isinstance(wrappers, str) and not callable(wrappers):
                raise SettingError(f"wrappers: expected classes, functions or names, got {wrappers!r}")
            wrappers = [wrappers]
        sections["env"] = {**env, "wrappers": list(wrappers)}
    if isinstance(target, Config):
        return parsing.build(layer_of(to_dict(target)), layer_of(sections))
    return parsing.build(*presets.target_layers(target_name(target)), layer_of(sections))


def train(
    target: str | Config | Code = "",
    *,
    wrappers: str | Code | Sequence[str | Code] | None = None,
    callbacks: CallbackLike | Iterable[CallbackLike] | None = (),
    check: bool = True,
    **sections: Mapping[str, Any],
) -> Outcome:
    """Start a new run in this process, and return how it ended and where (`outcome.run_dir`).

    target, wrappers and sections as in `make_config`. Progress goes to stderr, unless ``log={"quiet": True}``. A script
    needs a guard (see this module). With ``run={"requeue": True, "dir": ...}`` an existing run is continued, as on the
    command line.

    Ctrl-C, SIGTERM and SIGHUP end the run: it is saved and its outcome is returned, with `outcome.stopped`. A second
    one does not wait for the checkpoint; if training is lost by it, RunFailed is raised. In another thread than the
    main one Python has no signal handlers: there only a stop rule or a callback ends a run.

    Args:
        callbacks: `sfactory.Callback`, or a function of (run, row), or several of them; None: none.
        check: raise RunFailed if the run fails; False returns the outcome of a failed run too.

    Raises:
        ValueError (EnvError, CommandError, SettingError), RunBusy: a wrong request; nothing was started.
        RunFailed: the run failed later. It has the outcome, the sentence, and the path of log.txt.
    """
    refuse_worker()
    found, check = as_callbacks(callbacks), switches(check=check)["check"]
    config = make_config(target, wrappers=wrappers, **sections)
    label = label_of(target)
    while True:
        try:
            return _checked(train_config(config, label, found), check, found)
        except OnlyRegisteredHere as error:  # before anything was started: read specs first
            config, label = with_registered(config, error), label or config.env.name


def resume(
    run_dir: str | Path | Outcome,
    *,
    allow: str | Sequence[str] = (),
    trust: bool = False,
    callbacks: CallbackLike | Iterable[CallbackLike] | None = (),
    check: bool = True,
    **sections: Mapping[str, Any],
) -> Outcome:
    """Continue a run from its newest checkpoint, with some settings changed; otherwise as `train`.

    allow: settings that may change although a resume normally refuses it, as ``allow=["env.settings"]``.
    trust: run the code that its settings name, also if it was trained by somebody else (`sfactory.run.trust`).
    """
    refuse_worker()
    run_dir, found = _path(run_dir), as_callbacks(callbacks)
    check, trust = switches(check=check, trust=trust).values()
    allow = _names(allow)
    config = parsing.build(presets.recorded_layer(require_config_file(run_dir)), layer_of(sections))
    return _checked(resume_config(run_dir, config, allow, trust, found), check, found)


def _with_old_names(**old: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Accept arguments under their old names too, with a note. old: old name -> name of today."""

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(function)
        def renamed(*args: P.args, **kwargs: P.kwargs) -> R:
            for name in old.keys() & kwargs.keys():
                if old[name] in kwargs:
                    raise TypeError(f"{function.__name__}() got {name} and {old[name]}, two names of one argument")
                warnings.warn(f"{name} is now {old[name]} (the old name still works)", SettingNote, stacklevel=2)
                kwargs[old[name]] = kwargs.pop(name)
            return function(*args, **kwargs)

        return renamed

    return decorate


def _with_answers(answers: Mapping[str, str]) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Raise SettingError for arguments that the function does not have. answers: their names -> what is here.

    A dict is the settings of a section, whatever its name is.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(function)
        def answered(*args: P.args, **kwargs: P.kwargs) -> R:
            for name, value in kwargs.items():
                if name in answers and not isinstance(value, Mapping):
                    answer = answers[name].replace("{value}", parsing.shown(value))
                    raise SettingError(f"{name}: no such argument; here {answer}")
            return function(*args, **kwargs)

        return answered

    return decorate


def _with_one_list(function: Callable[P, R]) -> Callable[P, R]:
    """Raise TypeError for several runs that are not in one list."""

    @functools.wraps(function)
    def checked(*args: P.args, **kwargs: P.kwargs) -> R:
        if len(args) > 1:
            name = function.__name__
            raise TypeError(f"{name}() takes one list of runs: {name}([a, b])")
        return function(*args, **kwargs)

    return checked


@_with_answers(EVALUATE_NAMES)
def evaluate(
    run_dir: str | Path | Outcome,
    episodes: int = 100,
    *,
    checkpoint: str | int = "newest",
    greedy: bool = False,
    max_steps: int = 0,
    seed: int = 0,
    video: str | Path | None = None,
    video_episodes: int = 1,
    num_envs: int = 0,
    trust: bool = False,
    **sections: Mapping[str, Any],
) -> EvalResult | MultiTaskEvalResult:
    """Play whole episodes with a policy of a run, in a process of its own; only videos are written.

    A script needs a guard (see this module).

    Args:
        run_dir: folder of the run, or of one of its checkpoints.
        episodes: episodes to play, of every task.
        checkpoint: "newest", "best" (the highest training return), or the trained steps of one.
        greedy: take the most probable action instead of a sampled one.
        max_steps: cut episodes here; 0 is the environment's own limit, or 10000 where it has none.
        seed: of environments and sampling.
        video: an .mp4 for the first `video_episodes` episodes of environment 0.
        num_envs: environments that play at the same time; 0: 32, but not more than the run has for training.
        trust: run the code that its settings name, also if it was trained by somebody else (`sfactory.run.trust`).
        sections: another environment than that of training, as ``env={"settings": {"gravity": 20.0}}``.

    Raises:
        ValueError, EnvError: no such run or checkpoint; nothing that can be played or recorded.
    """
    counts = whole_numbers(
        episodes=episodes, max_steps=max_steps, seed=seed, video_episodes=video_episodes, num_envs=num_envs
    )
    film = None if video is None else _path(video, "video")
    greedy, trust = switches(greedy=greedy, trust=trust).values()
    changes = _play_layer(sections, ("episodes", "checkpoint", "greedy", "max_steps", "seed", "video", "num_envs"))
    return evaluate_layer(run_dir, changes, str(checkpoint), trust, greedy=greedy, video=film, **counts)


@_with_answers(MATCH_NAMES)
def play_match(
    run_dir: str | Path | Outcome,
    opponent: str | Path | Outcome,
    episodes: int = 500,
    *,
    checkpoint: str | int = "newest",
    greedy: bool = False,
    max_steps: int = 0,
    seed: int = 0,
    num_envs: int = 0,
    trust: bool = False,
    **sections: Mapping[str, Any],
) -> MatchResult:
    """Play a policy of a run against an opponent, in an environment with several agents and a process of its own.

    The policy has one seat, which alternates, and the opponent all others. A script needs a guard (see this module).

    Args:
        opponent: folder of a run, of a checkpoint, or of a member of a pool (RUN/pool/NAME); "random" plays any legal
            action. It reads observations as in its own run; the environment is that of `run_dir`.
        episodes: episodes to play, in all seats together.
        greedy: both take the most probable action instead of a sampled one.
        trust: run the code that the settings of either run name, also if it was trained by somebody else.
        checkpoint, max_steps, seed, num_envs, sections: as in `evaluate`.

    Raises:
        ValueError, EnvError: no such run or checkpoint; an environment with one agent, or other spaces than those that
            either policy was trained with.
    """
    counts = whole_numbers(episodes=episodes, max_steps=max_steps, seed=seed, num_envs=num_envs)
    greedy, trust = switches(greedy=greedy, trust=trust).values()
    changes = _play_layer(sections, ("episodes", "checkpoint", "greedy", "max_steps", "seed", "num_envs"))
    return match_layer(run_dir, opponent, changes, str(checkpoint), trust, greedy=greedy, **counts)


@_with_old_names(run="run_dir")
@_with_answers(POLICY_NAMES)
def load_policy(
    run_dir: str | Path | Outcome, seed: int = 0, trust: bool = False, *, checkpoint: str | int = "newest"
) -> Policy:
    """Load a policy of a run, by default the newest one, or the policy of one checkpoint's folder, to act on the CPU.

    No environment is built, unless an earlier version, which did not record its spaces, wrote the checkpoint; then a
    process of its own builds one.

    Args:
        run_dir: folder of a run, or of a checkpoint.
        seed: of sampled actions.
        trust: run the code that its settings name, also if it was trained by somebody else (`sfactory.run.trust`).
        checkpoint: as in `evaluate`: "newest", "best" (the highest training return), or the trained steps of one.

    Raises:
        ValueError: no such run or usable checkpoint, or code that is not trusted.
    """
    found, trust = checked_seed(seed), switches(trust=trust)["trust"]
    return _load_policy(_path(run_dir), str(checkpoint), found, trust, "sfactory eval")


def _load_policy(run: Path, which: str, seed: int, trust: bool, command: str) -> Policy:
    """The policy of a run or a checkpoint. which: as `checkpoint` of `evaluate`. command: what needs `--trust`."""
    from sfactory.play.evaluate import chosen_checkpoint
    from sfactory.play.policy import load_policy as load
    from sfactory.run.checkpoint import held, read_state
    from sfactory.run.recorded_spec import recorded_spec
    from sfactory.supervisor.specs import spec_of_policy

    with held(lambda: chosen_checkpoint(run, which)) as path:
        config = _config_of(run_of(path))
        builds = recorded_spec(read_state(path)) is None
        with vouched_code(run_of(path), config, trust, command, environments=builds):
            return load(path, config, spec_of_policy(path, config), seed)


@_with_old_names(run="run_dir", out="output")
def export(run_dir: str | Path | Outcome, output: str | Path, trust: bool = False) -> Export:
    """Write the policy of a run or of a checkpoint as one .onnx or .pt2 file, and compare the file with it.

    trust: as in `load_policy`.

    Raises:
        ValueError: no usable checkpoint, or code that is not trusted; an invalid path; a missing package.
        ExportMismatch: what was exported computes something else than the policy; no file is written.
    """
    from sfactory.play.export import check_file  # imports torch
    from sfactory.play.export import export as write

    check_file(_path(output, "output"))
    trust = switches(trust=trust)["trust"]
    return write(_load_policy(_path(run_dir), "newest", 0, trust, "sfactory export"), _path(output, "output"))


@_with_one_list
def compare(
    runs: str | Path | Outcome | Sequence[str | Path | Outcome],
    *,
    by: str = "",
    output: str | Path | None = None,
    metric: str = "",
    labels: str | Sequence[str] = (),
) -> Comparison:
    """Compare runs, as `sfactory compare`: groups of seeds, interquartile mean, intervals, improvement.

    `print` shows the table, `as_dict()` is what `--json` prints.

    Args:
        runs: folders of runs or of sweeps, or patterns such as "runs/a*".
        by: "env_steps" or "seconds", where runs are compared; empty: env_steps, and the picture has both axes.
        output: a picture to write too: .png, .svg or .pdf, which need matplotlib; or a page: .html.
        metric: what is compared, as "eval/iqm"; empty: the training return.
        labels: names of the groups, in the order of the table: a list, or one text with commas.

    Raises:
        ValueError: no such run, or runs that cannot be compared.
    """
    from sfactory.tools import compare_plot
    from sfactory.tools.comparison import AXES, RETURN
    from sfactory.tools.comparison import compare as compare_runs
    from sfactory.tools.shown_comparison import shown

    if by not in ("", *AXES):
        raise ValueError(f"by: expected one of {', '.join(AXES)}, got {by!r}")
    if not isinstance(metric, str):
        raise ValueError(f"metric: expected the name of one metric, got {metric!r}")
    labels = labels if isinstance(labels, str) else list(labels) if isinstance(labels, Iterable) else [labels]
    if not all(isinstance(label, str) for label in labels):
        raise ValueError(f"labels: expected texts, got {labels!r}")
    pictures = [] if output is None else compare_plot.targets(_path(output, "output"))  # refused before the work
    names = [name.strip() for name in labels.split(",")] if isinstance(labels, str) and labels else labels
    found = shown(compare_runs(_folders(runs), by or AXES[0], metric or RETURN, names))
    if pictures:
        compare_plot.save(found, pictures, (by,) if by else AXES)
    return found


def report(run_dir: str | Path | Outcome, output: str | Path | None = None) -> Path:
    """Write a run as one HTML page, as `sfactory report`; return its path, by default RUN/report.html.

    Raises:
        ValueError: no such run; a file that cannot be written.
    """
    from sfactory.files import replace_text, require_writable
    from sfactory.run.reader import read_run
    from sfactory.tools.report import page

    folder = read_run(_path(run_dir))
    target = folder.path / "report.html" if output is None else _path(output, "output")
    require_writable(target)
    text = page(folder, target.parent)
    if output is None:
        replace_text(target, text)
    else:  # the user's own file, or link to one
        target.write_text(text, encoding="utf-8", errors="xmlcharrefreplace")
    return target


# -- the same with a complete configuration ------------------------------------------------------------------


def train_config(config: Config, label: str = "", callbacks: Callbacks | None = None) -> Outcome:
    """Start the run of `config`; with run.requeue and an existing folder, continue it. Returns failures too.

    label: name of the run's folder where run.dir is empty; the environment's name if it is empty too.
    """
    callbacks = callbacks or Callbacks()
    ranks = Ranks.from_env(os.environ)
    check_job(config, ranks)
    if config.run.requeue and not config.run.dir:
        raise CommandError(Exit.USAGE, "run.requeue needs run.dir: the same command must find the same run again")
    notes = [note] if (note := presets.fallback_note(label)) else []
    if config.run.dir:
        run_dir = Path(config.run.dir)
        if config.run.requeue and is_run(run_dir):
            return _requeued(config, run_dir, ranks, callbacks)
        if ranks.is_leader:
            refuse_existing(run_dir)
    if config.sampling.auto:
        from sfactory.tools.tune import tuned

        config = tuned(config, lambda line: None if config.log.quiet else print(line, file=sys.stderr, flush=True))
    if config.run.dir:
        wait_for_leader(run_dir, ranks)
        return _train(config, run_dir, ranks, callbacks, resume=False, notes=notes)
    while True:
        run_dir = new_run_dir(label or config.env.name, config.run.seed)
        try:
            return _train(config, run_dir, ranks, callbacks, resume=False, notes=notes)
        except (RunBusy, FolderTaken):
            if not run_dir.exists():
                raise
            # Another run of the same second took this name while this one was checked.


def evaluate_layer(
    run_dir: str | Path | Outcome,
    changes: parsing.ConfigLayer,
    which: str = "newest",
    trust: bool = False,
    **options: Any,
) -> EvalResult | MultiTaskEvalResult:
    """Evaluate with the settings of a run and some of its environment changed. options: see `Evaluation`.

    Code that `changes` name and the run did not comes from this user, who is trusted.
    """
    from sfactory.play.evaluate import chosen_checkpoint, evaluation
    from sfactory.run.checkpoint import held
    from sfactory.supervisor.env_task import run_env_task

    run = _path(run_dir)
    with held(lambda: chosen_checkpoint(run, which)) as path:
        job = evaluation(path, changes, video_folder=Path.cwd(), **options)
        with vouched_code(run_of(path), _config_of(run_of(path)), trust, "sfactory eval"):
            try:
                result: EvalResult | MultiTaskEvalResult = run_env_task(job, job.config.env)
                return result
            finally:
                job.remove_unfinished()


def match_layer(
    run_dir: str | Path | Outcome,
    opponent: str | Path | Outcome,
    changes: parsing.ConfigLayer,
    which: str = "newest",
    trust: bool = False,
    **options: Any,
) -> MatchResult:
    """Play a match with the settings of a run and some of its environment changed. options: see `Match`."""
    from sfactory.play.evaluate import NEWEST, chosen_checkpoint
    from sfactory.play.match import RANDOM, match
    from sfactory.run.checkpoint import held
    from sfactory.supervisor.env_task import run_env_task

    run, rival = _path(run_dir), None if str(opponent) == RANDOM else _path(opponent, "opponent")
    with contextlib.ExitStack() as stack:
        path = stack.enter_context(held(lambda: chosen_checkpoint(run, which)))
        theirs = None
        if rival is not None:
            theirs = stack.enter_context(held(lambda: chosen_checkpoint(rival, NEWEST)))
        job = match(path, theirs, str(opponent if rival is None else rival), changes, **options)
        stack.enter_context(vouched_code(run_of(path), _config_of(run_of(path)), trust, "sfactory eval"))
        if theirs is not None and job.opponent.config is not None:
            command = f"sfactory eval {shlex.quote(str(run))} --against"
            stack.enter_context(vouched_opponent(run_of(theirs), job.opponent.config, trust, command))
        result: MatchResult = run_env_task(job, job.config.env)
        return result


def check_envs(config: Config, **options: Any) -> list[EnvReport]:
    """Check every task of a configuration with random actions, in a process of its own. options: see `Check`.

    Whether a task that can train draws pictures is found out in another process: render() may end its process.
    """
    from sfactory.supervisor.env_task import run_env_task
    from sfactory.supervisor.specs import RenderJob
    from sfactory.tools.check_env import Check, no_pictures, pictures

    reports: list[EnvReport] = run_env_task(Check(config.env, **options), config.env)
    for number, (task, report) in enumerate(zip(config.env.tasks, reports, strict=True)):
        if report.bad:
            continue
        env = replace(config.env, name=task)
        try:
            (size,) = run_env_task(RenderJob((task,), env.options, 0), env)
            found = pictures(*size)
        except EnvError as error:
            found = no_pictures(task, error)
        reports[number] = replace(report, findings=(*report.findings, found))
    return reports


def resume_config(
    run_dir: Path,
    config: Config,
    allow: Sequence[str] = (),
    trust: bool = False,
    callbacks: Callbacks | None = None,
) -> Outcome:
    """Continue a run with the settings of `config`. Raises CommandError (exit 4) for changes a run cannot make.

    Code that `config` names and the run did not comes from this user, who is trusted.
    """
    ranks = Ranks.from_env(os.environ)
    check_job(config, ranks)
    require_checkpoint(run_dir)
    return _continue(_config_of(run_dir), config, run_dir, ranks, allow, trust, callbacks or Callbacks())


def _requeued(config: Config, run_dir: Path, ranks: Ranks, callbacks: Callbacks) -> Outcome:
    """Continue a run whose command the scheduler started again; from the beginning if it has no checkpoint yet."""
    before = _config_of(run_dir)
    if config.sampling.auto:  # keep the split that the first launch found
        names = ("learner_threads", "inference_threads", "inference_workers")
        found = {name: getattr(before.run, name) for name in names}
        config = replace(config, sampling=before.sampling, run=replace(config.run, **found))
    return _continue(before, config, run_dir, ranks, [], True, callbacks)  # the command names the code itself


def _continue(
    before: Config,
    config: Config,
    run_dir: Path,
    ranks: Ranks,
    allow: Sequence[str],
    trust: bool,
    callbacks: Callbacks,
) -> Outcome:
    """Check the changes, say them, and train on if there is anything to train. before: the settings of the run."""
    from sfactory.device.machine import cores
    from sfactory.monitor.format import printable
    from sfactory.run.nothing_to_do import nothing_to_do
    from sfactory.supervisor.cores import by_cores, keep_processes

    num_cores = ranks.share(cores())
    config = by_cores(keep_processes(before, config), num_cores)
    if config.run.dir and Path(config.run.dir).resolve() == run_dir.resolve():  # another way to write the folder
        config = replace(config, run=replace(config.run, dir=before.run.dir))
    settled = by_cores(before, num_cores)
    refuse_changes(settled, config, allow)
    resume = has_checkpoint(run_dir)
    if resume and (outcome := nothing_to_do(before, config, run_dir, ranks)) is not None:
        return outcome
    for line in changed_settings(settled, config) if ranks.is_leader else []:
        print(printable(line), file=sys.stderr)
    with vouched_code(run_dir, before, trust, "sfactory resume"):
        return _train(config, run_dir, ranks, callbacks, resume=resume)


def _config_of(run_dir: Path) -> Config:
    """The settings a run was started with."""
    return parsing.build(presets.recorded_layer(require_config_file(run_dir)))


def _train(
    config: Config, run_dir: Path, ranks: Ranks, callbacks: Callbacks, *, resume: bool, notes: Sequence[str] = ()
) -> Outcome:
    from sfactory.supervisor import train as supervisor

    with MISSING_MAIN_FILE:
        outcome = supervisor.train(config, run_dir, resume, ranks, callbacks, notes)
    outcome.run_dir = str(run_dir)
    if outcome.code == UNGUARDED:
        if not resume:
            shutil.rmtree(run_dir, ignore_errors=True)  # created a moment ago, and nothing was trained in it
        raise RuntimeError(GUARD)
    return outcome


def _checked(outcome: Outcome, check: bool, callbacks: Callbacks) -> Outcome:
    """The outcome; RunFailed if the run failed and `check` is set. SystemExit of a callback is raised again."""
    if callbacks.error is not None and not isinstance(callbacks.error, Exception):
        raise callbacks.error
    if check and outcome.failed:
        raise RunFailed(outcome) from callbacks.error
    return outcome


def _folders(runs: str | Path | Outcome | Iterable[str | Path | Outcome]) -> list[Path]:
    """Folders of runs; patterns are replaced by the folders that they fit, in order."""
    found: list[Path] = []
    for name in runs if isinstance(runs, Iterable) and not isinstance(runs, str | bytes) else [runs]:
        path = _path(name, "runs")
        fitting = [] if path.exists() else sorted(glob.glob(str(path)))
        found += map(Path, fitting) if fitting else [path]
    return found


def _names(allow: Any) -> list[str]:
    """The settings that a resume may change. SettingError for what is no name of one."""
    names = [allow] if isinstance(allow, str) or not isinstance(allow, Iterable) else list(allow)
    for name in names:
        if not isinstance(name, str):
            raise SettingError(f"allow: expected names of settings, as env.settings, got {parsing.shown(name)}")
    return names


def _play_layer(sections: Mapping[str, Any], arguments: Sequence[str]) -> parsing.ConfigLayer:
    """The settings of an evaluation. SettingError for an argument under its name in another program.

    arguments: those that the function has.
    """
    for name, value in sections.items():
        if not isinstance(value, Mapping):
            if known_names.names_target(name):
                wrong = "expected a dict of settings" if name == "env" else "no such argument"
                raise SettingError(f"{name}: {wrong}; {SAME_ENV}")
            key = known_names.setting_of(name).removeprefix("eval.").replace("-", "_")
            if key in arguments:
                raise SettingError(f"{name}: no such argument; here {key}=")
            if hint := did_you_mean(name, arguments, 0.8, 0.85):
                raise SettingError(f"{name}: no such argument{hint}")
    return layer_of(sections)


def _path(name: str | Path | Outcome, argument: str = "run_dir") -> Path:
    """A path in which `~` is the home folder; of an outcome, the folder of its run. SettingError for anything else."""
    if argument in RUNS and isinstance(folder := getattr(name, "run_dir", None), str | Path):
        return Path(folder)
    if not isinstance(name, str | os.PathLike) or not isinstance(os.fspath(name), str):
        raise SettingError(f"{argument}: expected a path, got {parsing.shown(name)}")
    return Path(os.path.expanduser(name))
