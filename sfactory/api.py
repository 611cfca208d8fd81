"""sfactory from Python: `sfactory.train`, `sfactory.resume`, `sfactory.make_config`.

Workers are processes that Python begins by importing the script that trains once more, under another name. A script
therefore says `if __name__ == "__main__":` before it trains, or every worker would train too:

    import sfactory

    if __name__ == "__main__":
        outcome = sfactory.train("minatar/breakout", stop={"env_steps": 100_000})
        policy = sfactory.load_policy(outcome.run_dir)

Notebooks, `python -` and `python -c` need no guard: there is no file to import. Samplers import what the script imports
at its top; what only the training side needs is better imported below the guard.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import re
import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sfactory.config import Config, parsing, presets, to_dict
from sfactory.config.resume_rules import refuse_changes
from sfactory.errors import UNGUARDED, CommandError
from sfactory.run.folder import need_checkpoint, new_folder, settings_of

if TYPE_CHECKING:
    from sfactory.run.recorder import Outcome

GUARD = (
    "this script was imported again by the workers it started, and would have trained once more in each of them; "
    'put what it does below  if __name__ == "__main__":'
)


def make_config(target: str | Config = "", **sections: Mapping[str, Any]) -> Config:
    """The checked settings of a preset, of FAMILY/ID, or of another `Config`, some of them changed.

    sections: one dict per section, as ``optim={"lr": 1e-3}, stop={"env_steps": 50_000}``. Raises ValueError, one line,
    as the command line would say it.
    """
    layers = [_layer(to_dict(target))] if isinstance(target, Config) else presets.target_layers(target)
    return parsing.build(*layers, _layer(sections))


def train(target: str | Config = "", **sections: Mapping[str, Any]) -> Outcome:
    """A new run, here and now; returns how it ended, and where (`outcome.run_dir`).

    Arguments as in `make_config`. Progress goes to stderr, unless ``log={"quiet": True}``. Ctrl-C saves and returns.
    Raises ValueError, EnvError (one too) or RunBusy for what was asked wrongly; a run that failed later is an outcome
    whose `code` is not 0. Needs the guard (see this module) in a script.
    """
    _refuse_worker()
    config = make_config(target, **sections)
    name = target if isinstance(target, str) and target else config.env.name
    run_dir = Path(config.run.dir) if config.run.dir else new_folder(name, config.run.seed)
    if run_dir.exists():
        hint = f"sfactory.resume({str(run_dir)!r}) goes on with a run" if (run_dir / "config.toml").is_file() else ""
        raise ValueError(f"{run_dir} exists already; choose another run.dir{'; ' + hint if hint else ''}")
    if config.sampling.auto:
        from sfactory.tools.tune import tuned

        config = tuned(config, lambda line: None if config.log.quiet else print(line, file=sys.stderr, flush=True))
    return _train(config, run_dir, resume=False)


def resume(run_dir: str | Path, **sections: Mapping[str, Any]) -> Outcome:
    """Go on from the newest checkpoint of a run, some settings changed; otherwise as `train`."""
    _refuse_worker()
    run_dir = Path(run_dir)
    try:
        before = parsing.build(presets.read_toml(settings_of(run_dir)))
        after = make_config(before, **sections)
        need_checkpoint(run_dir)
        refuse_changes(before, after, [])
    except CommandError as end:
        raise ValueError(end.sentence) from None
    return _train(after, run_dir, resume=True)


def _train(config: Config, run_dir: Path, *, resume: bool) -> Outcome:
    from sfactory.supervisor import supervisor

    with _main_without_ghost():
        outcome = supervisor.train(config, run_dir, resume=resume)
    if outcome.code == UNGUARDED:
        if not resume:
            shutil.rmtree(run_dir, ignore_errors=True)  # made a moment ago, and nothing was trained in it
        raise RuntimeError(GUARD)
    return outcome


@contextlib.contextmanager
def _main_without_ghost() -> Iterator[None]:
    """`python - < script` calls its main module `<stdin>`, and every worker would look for a file of that name."""
    main = sys.modules["__main__"]
    file = getattr(main, "__file__", None)
    if file is None or os.path.exists(file):
        yield
        return
    del main.__file__
    try:
        yield
    finally:
        main.__file__ = file


def _refuse_worker() -> None:
    """A worker that is about to be, and imports the script of its parent: the script has no guard."""
    process = multiprocessing.current_process()
    if getattr(process, "_inheriting", False):  # multiprocessing's own mark, for as long as that import lasts
        if re.fullmatch(r"learner|inference|sampler-\d+", process.name):
            os._exit(UNGUARDED)  # without a word: the parent sees the code and says it once
        raise RuntimeError(GUARD)


def _layer(sections: Mapping[str, Mapping[str, Any]]) -> parsing.ConfigLayer:
    """Nested values as a layer of settings. None means the default, as in a file that leaves the key out."""
    layer: parsing.ConfigLayer = {}
    for section, values in sections.items():
        if not isinstance(values, Mapping):
            raise ValueError(f"{section}: expected a dict of settings, as optim={{'lr': 1e-3}}, got {values!r}")
        for key, value in values.items():
            name = f"{section}.{key}"
            if name == parsing.SETTINGS and isinstance(value, Mapping):
                layer.update({f"{name}.{k}": parsing.RawValue(v) for k, v in value.items()})
            elif value is not None:
                layer[name] = parsing.RawValue(list(value) if isinstance(value, tuple) else value)
    return layer

