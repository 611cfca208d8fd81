"""Checkpoints without waiting for the disk: copied between two updates, written by a thread.

A copy takes milliseconds, five files with an fsync each take a hundred. One save at a time; a process that dies in the
middle of one leaves a temporary folder that nobody takes for a checkpoint (`sfactory.run.checkpoint`).
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import NamedTuple

from sfactory.run import checkpoint


class Saved(NamedTuple):
    """How a save ended."""

    env_steps: int
    error: BaseException | None


class Saver:
    """Writes checkpoints of one run."""

    def __init__(self, run_dir: Path, keep: int, milestones: int = 0) -> None:
        self.run_dir, self.keep, self.milestones = run_dir, keep, milestones
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._env_steps = 0

    @property
    def busy(self) -> bool:
        """A save has begun whose end nobody has taken."""
        return self._thread is not None

    def begin(self, contents: checkpoint.Contents) -> None:
        """Copy everything and begin to write. Only when not busy."""
        assert not self.busy, "one save at a time"
        copies = {
            part: {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}
            for part, tensors in contents.parts.items()
        }
        copied = checkpoint.Contents(contents.state, copies, lockstep=contents.lockstep)
        self._env_steps, self._error = int(contents.state["env_steps"]), RuntimeError("the save ended without a word")
        thread = threading.Thread(target=self._write, args=(copied,), daemon=True)
        self._thread = thread
        try:
            thread.start()
        except RuntimeError:  # no thread to be had: then the update waits
            self._thread = threading.Thread()
            self._write(copied)

    def take(self, wait: bool) -> Saved | None:
        """The end of the save that was begun, once; None if there is none, or none yet."""
        if self._thread is None or (self._thread.is_alive() and not wait):
            return None
        if self._thread.ident is not None:
            self._thread.join()
        self._thread = None
        return Saved(self._env_steps, self._error)

    def _write(self, contents: checkpoint.Contents) -> None:
        try:
            checkpoint.save(self.run_dir, contents, self.keep, self.milestones)
            self._error = None
        except BaseException as error:  # told by whoever takes the end
            self._error = error
