"""Call Python code of the user's own while a run trains: with each row of metrics and each checkpoint."""

from __future__ import annotations

import contextlib
import inspect
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from sfactory.config import Config
from sfactory.config.parsing import shown
from sfactory.errors import Exit, FileRefused
from sfactory.run.checkpoint import candidates
from sfactory.run.outcome import STOPPED, Outcome

EXPECTED = "expected a sfactory.Callback or a function of (run, row)"
FAILED = "callback failed"
"""Outcome of a run that an exception in a callback has ended."""
METHODS = {"on_row": "row", "on_checkpoint": "path"}
"""Method of a callback -> its argument beside the run."""


class RunHandle:
    """The run, as a callback sees it."""

    def __init__(self, run_dir: Path, config: Config, request_save: Callable[[], None]) -> None:
        self.run_dir, self.config = run_dir, config
        self.env_steps = 0
        """Trained steps of the newest row; before the first one, of the checkpoint that the run continues from."""
        self.stop_reason: str | None = None
        """Why a callback has asked to stop; None if none has."""
        self._request_save = request_save

    def stop(self, reason: str = "") -> None:
        """End the run after the update that is under way: saved, evaluated and finished, as by a stop rule.

        reason: of the outcome's sentence; that of the first call counts.
        """
        if self.stop_reason is None:
            self.stop_reason = " ".join(str(reason or "").split())

    def save(self) -> None:
        """Write a checkpoint after the update that is under way."""
        self._request_save()

    def __repr__(self) -> str:
        return f"<RunHandle of {str(self.run_dir)!r} at {self.env_steps:,} steps>"


class Callback:
    """Base class of callbacks; override one method or both.

    They run in the process and thread of `sfactory.train`, between two looks at the workers: training goes on meanwhile
    (in lockstep it waits), restarts of workers and the panel wait. An exception ends the run: it is saved, then
    `sfactory.train` raises RunFailed with the exception as its cause. SystemExit and KeyboardInterrupt, which are to
    end more than the run, are raised again themselves.
    """

    def on_row(self, run: RunHandle, row: dict[str, float]) -> None:
        """Called with each row of metrics.jsonl: metric -> value, with `env_steps` and `seconds`.

        A row has no metrics whose value is not known yet: no `charts/episodic_return` before the first episode ends.
        """

    def on_checkpoint(self, run: RunHandle, path: Path) -> None:
        """Called with the folder of each new checkpoint. `checkpoint.keep` says when it is deleted."""


class CheckpointWords(Protocol):
    """What the learner says about its checkpoints (`workers.shared`)."""

    checkpoint: int
    saved: bool


class Callbacks:
    """Calls the callbacks of one run, and keeps what they ask for. After an exception none is called any more."""

    def __init__(self, callbacks: Sequence[Callback] = ()) -> None:
        self._callbacks = list(callbacks)
        self.error: BaseException | None = None
        self._sentence = ""
        self._run: RunHandle | None = None
        self._checkpoint = -1  # trained steps of the last checkpoint that was reported
        self._log: Callable[[str], None] = lambda line: None

    def __bool__(self) -> bool:
        return bool(self._callbacks)

    def begin(
        self, run_dir: Path, config: Config, request_save: Callable[[], None], log: Callable[[str], None], resume: str
    ) -> None:
        """Called before the first row. resume: the checkpoint that the run continues from, or empty."""
        self._run, self._log = RunHandle(run_dir, config, request_save), log
        self._checkpoint = int(Path(resume).name) if resume else -1
        self._run.env_steps = max(0, self._checkpoint)

    def row(self, row: dict[str, float]) -> None:
        """Report a row of metrics."""
        if self._callbacks and self._run is not None:
            self._run.env_steps = int(row["env_steps"])
            for callback in self._callbacks:
                self._call(callback, "on_row", dict(row))

    def look(self, words: CheckpointWords) -> None:
        """Report the newest checkpoint, if it is a new one."""
        if self._callbacks and words.saved and words.checkpoint != self._checkpoint:
            self._report_newest()

    def end(self) -> None:
        """Report the last checkpoint. Called when the workers have exited."""
        if self._callbacks:
            self._report_newest()

    def outcome(self) -> Outcome | None:
        """The outcome of the run if a callback ends it."""
        if self.error is not None:
            return Outcome(FAILED, int(Exit.BUG), self._sentence)
        if self._run is None or self._run.stop_reason is None:
            return None
        reason = self._run.stop_reason
        return Outcome.of(Exit.FINISHED, f"stopped by a callback{reason and ': '}{reason}")

    def amend(self, outcome: Outcome) -> bool:
        """Turn an outcome into that of a failed callback, if one has failed since; return whether it was changed."""
        if self.error is None or outcome.name == FAILED or outcome.code not in (Exit.FINISHED, *STOPPED):
            return False
        outcome.name, outcome.code, outcome.sentence = FAILED, int(Exit.BUG), self._sentence
        return True

    def _report_newest(self) -> None:
        assert self._run is not None
        newest: list[Path] = []
        with contextlib.suppress(FileRefused, OSError):  # the folder may have been replaced
            newest = candidates(self._run.run_dir)[:1]
        for path in newest:
            if int(path.name) != self._checkpoint:
                self._checkpoint = int(path.name)
                for callback in self._callbacks:
                    self._call(callback, "on_checkpoint", path)

    def _call(self, callback: Callback, method: str, argument: object) -> None:
        if self.error is not None:
            return
        try:
            getattr(callback, method)(self._run, argument)
        except BaseException as error:  # sys.exit() too: what was trained is saved first
            text = " ".join(f"{type(error).__name__}: {error}".split()).removesuffix(":")
            name = callback.name if isinstance(callback, _FunctionCallback) else f"{type(callback).__name__}.{method}"
            self.error, self._sentence = error, f"{name} raised {text}"
            self._log(f"{self._sentence}\n{''.join(traceback.format_exception(error)).rstrip()}")


class _FunctionCallback(Callback):
    """A function in the place of `on_row`."""

    def __init__(self, function: Callable[[RunHandle, dict[str, float]], None]) -> None:
        self.on_row = function  # type: ignore[assignment,method-assign]
        self.name = getattr(function, "__qualname__", type(function).__name__)


def as_callbacks(given: Any) -> Callbacks:
    """The callbacks of one run, None for none; a function stands for `on_row`. ValueError for what cannot be called."""
    one = (
        given is None
        or callable(given)
        or isinstance(given, Callback | str | Mapping)
        or not hasattr(given, "__iter__")
    )
    several = ([] if given is None else [given]) if one else list(given)
    found: list[Callback] = []
    for callback in several:
        if isinstance(callback, type) and issubclass(callback, Callback):
            what = f"got the class {callback.__name__}; write {callback.__name__}(...)"
            raise ValueError(f"callbacks: {EXPECTED}, {what}")
        if isinstance(callback, Callback):
            found.append(callback)
        elif callable(callback) and not isinstance(callback, type):
            found.append(_FunctionCallback(callback))
        else:
            raise ValueError(f"callbacks: {EXPECTED}, got {shown(callback)}")
        _check_methods(found[-1])
    return Callbacks(found)


def _check_methods(callback: Callback) -> None:
    """ValueError for a callback that would never do anything, or that would fail at the first row."""
    base, kind = vars(Callback), type(callback)
    methods = {name: getattr(callback, name) for name in METHODS}
    if kind is not Callback and all(getattr(own, "__func__", own) is base[name] for name, own in methods.items()):
        raise ValueError(f"callbacks: {kind.__name__} has neither {' nor '.join(METHODS)}, so it is never called")
    for name, method in methods.items():
        what = callback.name if isinstance(callback, _FunctionCallback) else f"{kind.__name__}.{name}"
        code = method if inspect.isroutine(method) else type(method).__call__  # an object that is called
        if any(waits(code) for waits in (inspect.iscoroutinefunction, inspect.isgeneratorfunction)):
            raise ValueError(
                f"callbacks: {what} is a coroutine or a generator, which would never run; write a function"
            )
        try:
            inspect.signature(method).bind(None, None)
        except TypeError:
            raise ValueError(f"callbacks: {what} must take two arguments, (run, {METHODS[name]})") from None
        except ValueError:  # of C code, which may not tell
            continue
