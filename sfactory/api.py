"""Train, resume, evaluate and load policies from Python; the command line calls the same functions.

Worker processes start by importing the script that trains under another name. A script therefore guards the call with
`if __name__ == "__main__":`, otherwise every worker would train as well:

    import sfactory

    if __name__ == "__main__":
        outcome = sfactory.train("minatar/breakout", stop={"env_steps": 100_000})
        policy = sfactory.load_policy(outcome.run_dir)

Notebooks, `python -` and `python -c` need no guard: there is no file to import. Samplers import what the script imports
at its top level; imports that only training needs are better placed below the guard.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sfactory.config import Config, parsing, presets, to_dict
from sfactory.config.resume_rules import changed_settings, refuse_changes
from sfactory.config.tables import PLACEHOLDERS
from sfactory.errors import UNGUARDED, CommandError, Exit, RunBusy
from sfactory.run.folder import (
    FolderTaken,
    has_checkpoint,
    is_run,
    new_run_dir,
    refuse_existing,
    require_checkpoint,
    require_config_file,
)
from sfactory.workers.names import EVALUATOR, LOCKSTEP, SPECS, parse_worker

if TYPE_CHECKING:
    from sfactory.play.evaluate import EvalResult, MultiTaskEvalResult
    from sfactory.play.policy import Policy
    from sfactory.run.outcome import Outcome

GUARD = (
    "this script was imported again by the workers it started, and would have trained once more in each of them; "
    'put what it does below  if __name__ == "__main__":'
)


def make_config(target: str | Config = "", **sections: Mapping[str, Any]) -> Config:
    """Build a checked configuration from a preset, FAMILY/ID or another `Config`, and changes.

    Args:
        target: preset, FAMILY/ID, or a configuration to change.
        sections: one dict per section, as ``optim={"lr": 1e-3}, stop={"env_steps": 50_000}``.

    Raises:
        ValueError: one line, the same as on the command line.
    """
    layers = [_layer(to_dict(target))] if isinstance(target, Config) else presets.target_layers(target)
    return parsing.build(*layers, _layer(sections))


def train(target: str | Config = "", **sections: Mapping[str, Any]) -> Outcome:
    """Start a new run in this process, and return how it ended and where (`outcome.run_dir`).

    Arguments as in `make_config`. Progress goes to stderr, unless ``log={"quiet": True}``. Ctrl-C saves and returns.
    A script needs a guard (see this module). With ``run={"requeue": True, "dir": ...}`` an existing run is continued,
    as on the command line.

    Raises:
        ValueError (EnvError, CommandError, SettingError), RunBusy: a wrong request; nothing was started. A run that
            fails later is returned as an outcome with a `code` other than 0.
    """
    _refuse_worker()
    return train_config(make_config(target, **sections), target if isinstance(target, str) else "")


def resume(run_dir: str | Path, *, allow: Sequence[str] = (), **sections: Mapping[str, Any]) -> Outcome:
    """Continue a run from its newest checkpoint, with some settings changed; otherwise as `train`.

    allow: settings that may change although a resume normally refuses it, as ``allow=["env.settings"]``.
    """
    _refuse_worker()
    run_dir = _path(run_dir)
    return resume_config(run_dir, make_config(_config_of(run_dir), **sections), allow)


def evaluate(
    run_dir: str | Path,
    episodes: int = 100,
    *,
    greedy: bool = False,
    max_steps: int = 0,
    seed: int = 0,
    video: str | Path | None = None,
    video_episodes: int = 1,
    num_envs: int = 0,
) -> EvalResult | MultiTaskEvalResult:
    """Play whole episodes with the newest checkpoint of a run; only videos are written.

    Args:
        run_dir: folder of the run.
        episodes: episodes to play, of every task.
        greedy: take the most probable action instead of a sampled one.
        max_steps: cut episodes here; 0 is the environment's own limit, or 10000 where it has none.
        seed: of environments and sampling.
        video: an .mp4 for the first `video_episodes` episodes of environment 0.
        num_envs: environments that play at the same time; 0: 32, but not more than the run has for training.

    Raises:
        ValueError, EnvError: no such run or checkpoint; nothing that can be played or recorded.
    """
    from sfactory.play.evaluate import evaluate as play  # imports torch

    run_dir = _path(run_dir)
    require_config_file(run_dir)
    require_checkpoint(run_dir)
    file = None if video is None else _path(video)
    return play(run_dir, episodes, greedy, max_steps, seed, file, video_episodes, num_envs)


def load_policy(run: str | Path, seed: int = 0) -> Policy:
    """Load the newest policy of a run, or the policy of one checkpoint's folder, to act on the CPU.

    Args:
        run: folder of a run, or of a checkpoint.
        seed: of sampled actions.

    Raises:
        ValueError: no usable checkpoint.
        EnvError: the environment, which defines observations and actions, is not installed.
    """
    from sfactory.play.policy import load_policy as load  # imports torch

    return load(_path(run), seed)


# -- the same with a complete configuration ------------------------------------------------------------------


def train_config(config: Config, label: str = "") -> Outcome:
    """Start the run of `config`; with run.requeue and an existing folder, continue it.

    label: name of the run's folder where run.dir is empty; the environment's name if it is empty too.
    """
    if config.run.requeue and not config.run.dir:
        raise CommandError(Exit.USAGE, "run.requeue needs run.dir: the same command must find the same run again")
    if (note := presets.fallback_note(label)) and not config.log.quiet:
        print(note, file=sys.stderr, flush=True)
    if config.run.dir:
        run_dir = Path(config.run.dir)
        if config.run.requeue and is_run(run_dir):
            return _requeued(config, run_dir)
        refuse_existing(run_dir)
    if config.sampling.auto:
        from sfactory.tools.tune import tuned

        config = tuned(config, lambda line: None if config.log.quiet else print(line, file=sys.stderr, flush=True))
    if config.run.dir:
        return _train(config, run_dir, resume=False)
    while True:
        run_dir = new_run_dir(label or config.env.name, config.run.seed)
        try:
            return _train(config, run_dir, resume=False)
        except (RunBusy, FolderTaken):
            if not run_dir.exists():
                raise
            # Another run of the same second took this name while this one was checked.


def resume_config(run_dir: Path, config: Config, allow: Sequence[str] = ()) -> Outcome:
    """Continue a run with the settings of `config`. Raises CommandError (exit 4) for changes a run cannot make."""
    require_checkpoint(run_dir)
    return _continue(_config_of(run_dir), config, run_dir, allow)


def _requeued(config: Config, run_dir: Path) -> Outcome:
    """Continue a run whose command the scheduler started again; from the beginning if it has no checkpoint yet."""
    before = _config_of(run_dir)
    if config.sampling.auto:  # keep the split that the first launch found
        names = ("learner_threads", "inference_threads", "inference_workers")
        found = {name: getattr(before.run, name) for name in names}
        config = replace(config, sampling=before.sampling, run=replace(config.run, **found))
    return _continue(before, config, run_dir, [])


def _continue(before: Config, config: Config, run_dir: Path, allow: Sequence[str]) -> Outcome:
    """Check the changes, say them, and train on if there is anything to train. before: the settings of the run."""
    from sfactory.device.machine import cores
    from sfactory.run.nothing_to_do import nothing_to_do
    from sfactory.supervisor.cores import by_cores, keep_processes

    config = by_cores(keep_processes(before, config), cores())
    if config.run.dir and Path(config.run.dir).resolve() == run_dir.resolve():  # another way to write the folder
        config = replace(config, run=replace(config.run, dir=before.run.dir))
    settled = by_cores(before, cores())
    refuse_changes(settled, config, allow)
    resume = has_checkpoint(run_dir)
    if resume and (outcome := nothing_to_do(before, config, run_dir)) is not None:
        return outcome
    for line in changed_settings(settled, config):
        print(line, file=sys.stderr)
    return _train(config, run_dir, resume=resume)


def _config_of(run_dir: Path) -> Config:
    """The settings a run was started with."""
    return parsing.build(presets.read_toml(require_config_file(run_dir)))


def _train(config: Config, run_dir: Path, *, resume: bool) -> Outcome:
    from sfactory.supervisor import train as supervisor

    with _MISSING_MAIN_FILE:
        outcome = supervisor.train(config, run_dir, resume=resume)
    outcome.run_dir = str(run_dir)
    if outcome.code == UNGUARDED:
        if not resume:
            shutil.rmtree(run_dir, ignore_errors=True)  # created a moment ago, and nothing was trained in it
        raise RuntimeError(GUARD)
    return outcome


class _MissingMainFile:
    """Hides the file name `<stdin>` of `python - < script`, which every worker would try to import.

    The name is back when the last of the runs in this process's threads has ended.
    """

    def __init__(self) -> None:
        self._lock, self._runs, self._file = threading.Lock(), 0, ""

    def __enter__(self) -> None:
        with self._lock:
            main = sys.modules["__main__"]
            file = getattr(main, "__file__", None)
            if not self._runs and file is not None and not os.path.exists(file):
                self._file = file
                del main.__file__
            self._runs += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._runs -= 1
            if not self._runs and self._file:
                sys.modules["__main__"].__file__, self._file = self._file, ""


_MISSING_MAIN_FILE = _MissingMainFile()


def _path(name: str | Path) -> Path:
    """A path in which `~` is the home folder."""
    return Path(os.path.expanduser(name))


def _refuse_worker() -> None:
    """Refuse to train in a worker that is importing the script of its parent: the script has no guard."""
    process = multiprocessing.current_process()
    if getattr(process, "_inheriting", False):  # set by multiprocessing for as long as that import lasts
        if _is_worker(process.name):
            os._exit(UNGUARDED)  # without a message: the parent reads the code and reports it once
        raise RuntimeError(GUARD)


def _is_worker(name: str) -> bool:
    """Whether a process is one of a run, and its exit code is looked at. By its name; not the evaluator."""
    try:
        return name in (SPECS, LOCKSTEP) or parse_worker(name).kind != EVALUATOR
    except ValueError:
        return False


def _layer(sections: Mapping[str, Mapping[str, Any]]) -> parsing.ConfigLayer:
    """Nested values as a layer of settings. None is the default, as in a file without the key."""
    layer: parsing.ConfigLayer = {}
    for section, values in sections.items():
        if not isinstance(values, Mapping):
            raise ValueError(f"{section}: expected a dict of settings, as optim={{'lr': 1e-3}}, got {values!r}")
        for key, value in values.items():
            name = f"{section}.{key}"
            if name in PLACEHOLDERS and isinstance(value, Mapping):
                layer.update(parsing.table_layer(name, value))
            elif value is not None:
                layer[name] = parsing.RawValue(list(value) if isinstance(value, tuple) else value)
    return layer
