"""The record of a run: its folder, its lock, its rows of metrics, its last word. Free of torch."""

from __future__ import annotations

import contextlib
import json
import math
import os
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from sfactory.config import Config
from sfactory.config.toml_file import to_toml
from sfactory.envs import EnvSpec
from sfactory.errors import NoCheckpointError
from sfactory.monitor.known_rooflines import known_roofline
from sfactory.monitor.messages import Message
from sfactory.monitor.metrics import Board
from sfactory.monitor.panel import History, Snapshot, carried
from sfactory.monitor.writers import METRICS_FILE, Writers, last_evaluated, write_atomically
from sfactory.run import checkpoint
from sfactory.run.lock import lock_folder
from sfactory.shm.slots import RowCounts


@dataclass
class Outcome:
    """How a run ended: one word, the exit code, one sentence, and what can be resumed."""

    name: str
    code: int
    sentence: str
    checkpoint: str = ""
    env_steps: int = 0
    training_return: float | None = None
    run_dir: str = ""


class RunRecorder:
    """Everything that is written while a run lives. One per launch."""

    def __init__(
        self,
        config: Config,
        run_dir: Path,
        specs: Sequence[EnvSpec],
        lock: int,
        launch: int,
        resume_from: str,
        state: dict[str, Any],
    ) -> None:
        self.config, self.run_dir, self.spec = config, run_dir, specs[0]
        self.launch, self.resume_from, self._lock = launch, resume_from, lock
        self.env_steps, self.seconds = int(state.get("env_steps", 0)), float(state.get("seconds", 0.0))
        self.ledger: RowCounts | None = None
        self.env_faults, self._last_fault = 0, ""  # of this launch
        tasks = {task: spec.reference for task, spec in zip(config.env.tasks, specs, strict=True)}
        self.board = Board(self.env_steps, self.seconds, tasks)
        self.writers = Writers(run_dir, config, self.env_steps if resume_from else None)
        self._row: dict[str, float] = {}
        self._history = History()
        self._roofline = known_roofline(config)  # once: a run goes by what was known when it began
        if resume_from:
            with contextlib.suppress(OSError), (run_dir / METRICS_FILE).open() as rows:
                self._history.read(rows)
        self._faults: deque[str] = deque(maxlen=3)
        self._show()
        self._running(0)
        if resume_from:  # rows are cut back by now: an evaluation whose row is gone is played again
            self.board.evaluated = last_evaluated(run_dir / METRICS_FILE)

    @classmethod
    def open(cls, config: Config, run_dir: Path, resume: bool, specs: Sequence[EnvSpec]) -> RunRecorder:
        """Make or reopen the folder, alone: a second trainer in it raises RunBusy."""
        run_dir.mkdir(parents=True, exist_ok=True)
        lock = lock_folder(run_dir)
        try:
            return cls._opened(config, run_dir, resume, specs, lock)
        except BaseException:
            os.close(lock)
            raise

    @classmethod
    def _opened(cls, config: Config, run_dir: Path, resume: bool, specs: Sequence[EnvSpec], lock: int) -> RunRecorder:
        launch, resume_from, state = 0, "", {}
        warnings: list[str] = []
        if resume:
            path = checkpoint.newest(run_dir, warnings)
            if path is None:
                raise NoCheckpointError(f"{run_dir} holds no checkpoint to resume from")
            state = json.loads((path / "state.json").read_text())
            launch, resume_from = int(state["launch"]) + 1, str(path)
        write_atomically(run_dir / "config.toml", to_toml(config))
        recorder = cls(config, run_dir, specs, lock, launch, resume_from, state)
        for warning in warnings:
            recorder.writers.log(warning)
        return recorder

    _lock: int = -1

    def handle(self, message: Message) -> None:
        """One message of telemetry; a learner's message closes a row."""
        kind, worker, payload = message
        if kind == "log":
            self.writers.log(f"{worker}: {payload}")
            return
        if kind == "fault":
            self.writers.log(str(payload))
            self._faults.append(str(payload).partition("\n")[0])
            if str(payload).startswith("environment "):
                self.env_faults += 1
                self._last_fault = str(payload).partition("\n")[0]
        if kind == "eval":
            mean, iqm, seconds = (payload[f"eval/{name}"] for name in ("episodic_return", "iqm", "seconds"))
            told = f"mean return {mean:.2f}, IQM {iqm:.2f} ({seconds:.1f} s)"
            self.writers.log(f"evaluation at {payload['eval/env_steps']:,.0f} steps: {told}")
        if kind != "learner":
            self.board.handle(message)
            return
        counters = dict(payload)
        self.env_steps, updates = int(counters.pop("env_steps")), int(counters.pop("updates"))
        self.seconds = float(counters.pop("seconds"))
        self.board.handle((kind, worker, counters))
        frames = self.env_steps * self.spec.frame_skip
        row = self.board.snapshot(self.env_steps, frames, updates, self.seconds)
        self._row = carried(self._row, self.writers.row(self.env_steps, self.seconds, row))
        self._history.add(self.env_steps, self.seconds, row)
        self._show()
        self._running(updates)

    def _running(self, updates: int) -> None:
        self.writers.status({"state": "running", "pid": os.getpid(), "env_steps": self.env_steps, "updates": updates})

    def _show(self, state: str = "running") -> None:
        """The newest numbers, for whoever watches."""
        sampling, run = self.config.sampling, self.config.run
        self.writers.console(Snapshot(
            row=self._row, env_steps=self.env_steps, seconds=self.seconds, stop=self.config.stop,
            name=self.run_dir.resolve().name, env=self.config.env.name, protocol=self.spec.protocol, mode=run.mode,
            device="" if run.device == "auto" else run.device, history=tuple(self._history.points),
            checkpoint=checkpoint.last(self.run_dir, time.time()), faults=tuple(self._faults),
            slots=sampling.num_groups * sampling.slots_per_group, state=state,
            roofline=self._roofline,
        ))  # fmt: skip

    def reached(self) -> Outcome | None:
        """What only the messages tell: the training return is there, or environments fail too often."""
        budget = self.config.env.fault_budget
        if self.env_faults > budget:
            said = f"environments failed more than {budget} times (env.fault-budget); the last: {self._last_fault}"
            return Outcome("environment fault", 6, said)
        target = self.config.stop.target_return
        if target is None or not self.board.settled:
            return None
        now = self.board.training_return
        if now is None or now < target:
            return None
        return Outcome("finished", 0, f"training return {now:.1f} reached the target of {target:g}")

    @property
    def training_return(self) -> float:
        """Mean return of the last 100 whole episodes; NaN before there are that many."""
        known = self.board.training_return if self.board.settled else None
        return math.nan if known is None else known

    def record_row_counts(self, ledger: RowCounts) -> None:
        """The ledger of this launch, once all workers stand still: every row that was asked for is accounted for."""
        self.ledger = ledger
        left = f"{ledger.trained} trained + {ledger.skipped} skipped + {ledger.discarded} discarded"
        verdict = "" if ledger.consistent else "; it does NOT balance: rows were lost or counted twice"
        self.writers.log(
            f"ledger: {ledger.sampled} rows sampled = {left} + {ledger.in_flight} in flight{verdict}", echo=False
        )

    def finish(self, outcome: Outcome) -> Outcome:
        """Complete the outcome with what is on disk, and write the status."""
        outcome.env_steps = self.env_steps
        outcome.training_return = self.board.training_return
        newest = next(iter(checkpoint.candidates(self.run_dir)), None)
        if newest is not None:
            outcome.checkpoint = str(newest)
        self._show(outcome.name)
        self.writers.log(f"{outcome.name} (exit {outcome.code}): {outcome.sentence}", echo=False)
        ledger = self.ledger._asdict() if self.ledger else None
        self.writers.status({
            "state": outcome.name, "exit": outcome.code, "sentence": outcome.sentence, "env_steps": outcome.env_steps,
            "seconds": self.seconds, "checkpoint": outcome.checkpoint, "training_return": outcome.training_return,
            "ledger": ledger,
        })  # fmt: skip
        return outcome

    def __enter__(self) -> RunRecorder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:  # refused, or a bug: nobody called `finish`
            said = str(error).partition("\n")[0] or type(error).__name__
            self.writers.status({"state": "failed", "sentence": said, "env_steps": self.env_steps})
        self.writers.close()
        os.close(self._lock)
