"""The learner: collects full slots, makes an update of them, publishes the weights.

consumes    READY slots
produces    weights (mailbox), FREE slots, checkpoints, metrics
waits for   batch_slots READY slots
unblocked by the samplers

Holds everything that must not be lost. It alone trains, counts what was trained, and says that the run is finished.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sfactory.device.accelerator import accelerator_of, register
from sfactory.device.selection import pick_device
from sfactory.learning import nonfinite_dump
from sfactory.learning.network import build_model
from sfactory.learning.staging import Staging
from sfactory.learning.update import Update
from sfactory.monitor.metrics import lag_row
from sfactory.run import checkpoint
from sfactory.run.checkpoint_writer import Saver
from sfactory.shm import atomics
from sfactory.shm.mailbox import Mailbox
from sfactory.shm.slots import FREE, LEARNING, READY
from sfactory.workers.shared import (
    CHECKPOINT,
    ENV_STEPS,
    NON_FINITE,
    NOW,
    OUTCOME,
    RUN_ON,
    RUNNING,
    SAVE,
    SAVED,
    SCORE,
    STOP,
    STOPPED,
    STORAGE,
    TARGET_REACHED,
    UPDATES,
    SharedState,
)
from sfactory.workers.worker import TelemetrySink, Worker


class Learner(Worker):
    """See the top of this file."""

    def __init__(self, shared: SharedState, sink: TelemetrySink) -> None:
        super().__init__("learner", shared, sink)
        self.device = pick_device(self.config.run.device)
        self.model = build_model(self.config, self.run_spec.spec).to(self.device)
        self.accelerator = accelerator_of(self.device, exact=self.config.run.mode == "lockstep")
        self.update = Update(self.config, self.model, self.device, self.accelerator, self.log)
        self.mailbox = Mailbox(shared.arena, shared.mailbox_memory(self.model.flat_size()))
        self.updates = self.env_steps = self.saved_steps = 0
        self.seconds = 0.0  # of training, over all launches
        self.skipped_in_a_row = self.skipped_updates = 0
        self.held_back: deque[tuple[int, torch.Tensor]] = deque(maxlen=self.config.batch.forced_lag + 1)
        self.staging = Staging(self.run_spec.schema, self.config.lanes, self.accelerator, register(self.accelerator, shared.arena, self.log))
        self.flat = None if self.accelerator is None else self.accelerator.pinned(torch.empty(self.model.flat_size()))
        self.saver = Saver(Path(self.run_spec.run_dir), self.config.checkpoint.keep, self.config.checkpoint.milestones)
        if self.run_spec.resume_from:
            self._restore(Path(self.run_spec.resume_from))
        elif self.config.run.init_from:
            self._begin_with(Path(self.config.run.init_from))
        self.metrics: list[dict[str, torch.Tensor]] = []
        self.lags: dict[str, list[np.ndarray]] = {}  # sampler -> lag of every valid step since the last row
        self.clock = self.saved_at = self.logged_at = time.monotonic()
        self.saves_asked, self.stall = 0, 0.0  # stall: the longest since the last row, in seconds
        self.tried_to_save = bool(self.run_spec.resume_from)
        self.exact: Callable[[], dict[str, np.ndarray]] = dict  # lockstep: what a resume bit for bit needs besides
        self._count()
        self._publish()
        if self.run_spec.resume_from:
            self._end_if_due()
        self.stages.drain()

    # -- the loop ----------------------------------------------------------------------------------------------

    def step(self) -> bool:
        """One update, if enough slots are READY."""
        slots = self._collect()
        if slots is None:
            return False
        self.stages.mark("wait")
        self.staging.copy(slots, self.shared.trajectories, self.updates)
        for (group, _), lag in zip(slots, self.staging.lags(self.updates), strict=True):
            self.lags.setdefault(f"sampler-{self.run_spec.sampler_of(group)}", []).append(lag)
        synchronous = self.config.sampling.slots_per_group == 1
        rows = self.config.batch_rows
        if not synchronous:  # nothing reads these slots any more, but their rows are still in flight
            atomics.store(self.slot_table.trained, 2, rows)
            self._release(slots)
        self.stages.mark("batch")
        stats = self.update.run(self.staging.batch, self.updates, self._progress())
        if self.accelerator is not None:
            self.accelerator.wait()  # asleep; asking for a value would wait too, but on a core of its own
        skipped = bool(stats.pop("skipped") > 0)  # the one synchronisation of an update: the weights leave anyway
        self.updates += 1
        if skipped:
            self.skipped_in_a_row, self.skipped_updates = self.skipped_in_a_row + 1, self.skipped_updates + 1
            atomics.store(self.slot_table.trained, 1, int(self.slot_table.trained[1]) + rows)
            if self.skipped_in_a_row == self.config.loss.nonfinite_budget:
                self._dump_nonfinite(stats)
        else:
            self.skipped_in_a_row = 0
            self.env_steps += self.staging.valid_rows
            self.metrics.append(stats)
            atomics.store(self.slot_table.trained, 0, int(self.slot_table.trained[0]) + rows)
        atomics.store(self.slot_table.trained, 2, 0)
        self.stages.mark("update")
        self._publish()
        if synchronous:  # on-policy: the next slot begins with the new weights, never before
            self._release(slots)
        self._count()
        self.stages.mark("publish")
        self._end_if_due()
        if not self.finished():  # the last row is `leave`'s: a second one of the same step would be left out
            self._log_if_due()
        return True

    def report(self, now: Callable[[], float] = time.monotonic) -> None:
        """Once per turn of the process's loop, work or none: a save may be asked for while nothing is READY."""
        super().report(now)
        self.save_if_due()

    def finished(self) -> bool:
        return int(self.shared.progress[OUTCOME]) != RUNNING

    def leave(self) -> None:
        """Last act of the process: save, unless told to stop at once."""
        self._end_of_save(wait=True)
        progress = self.shared.progress
        unsaved = self.env_steps != int(progress[CHECKPOINT]) or not progress[SAVED]
        if unsaved and self.shared.stop != NOW and int(progress[OUTCOME]) != NON_FINITE:
            self._save(last=True)
        if self.config.run.mode != "lockstep" or self.finished():  # else a resume would have a row more than others
            self._log()
        if int(self.shared.progress[OUTCOME]) == RUNNING:
            atomics.store(self.shared.progress, OUTCOME, STOPPED)

    def close(self) -> None:
        self.update.network.pool.close()
        if self.accelerator is not None:
            self.accelerator.release()

    def _dump_nonfinite(self, stats: dict[str, torch.Tensor]) -> None:
        """Batch and statistics of the update that ends the run."""
        try:
            path = nonfinite_dump.write(self.run_spec.debug_dir, self.staging.whole(), self.model, stats)
            self.log(f"the batch that was not finite and its statistics: {path}")
        except (OSError, MemoryError) as error:
            self.log(f"the batch that was not finite could not be kept: {error}")

    # -- slots -------------------------------------------------------------------------------------------------

    def _collect(self) -> list[tuple[int, int]] | None:
        """The READY slots of the next batch: oldest weights first, then hand-overs, then group; no clock decides."""
        ready = self.slot_table.in_state(READY)
        if len(ready) < self.config.batch_slots:
            return None
        acted = self.shared.trajectories["policy_version"]
        ready.sort(key=lambda s: (int(acted[s[0], s[1], 0]), self.slot_table.handover_count(*s), s[0]))
        slots = ready[: self.config.batch_slots]
        for slot in slots:
            self.slot_table.transition(*slot, READY, LEARNING)
        return slots

    def _release(self, slots: list[tuple[int, int]]) -> None:
        """Give the slots back to their groups and wake the samplers."""
        for slot in slots:
            if self.config.run.debug:
                self.shared.trajectories.poison(*slot)
            self.slot_table.transition(*slot, LEARNING, FREE)
        for sampler in sorted({self.run_spec.sampler_of(group) for group, _ in slots}):
            self.shared.sampler_bells[sampler].ring()

    # -- weights -----------------------------------------------------------------------------------------------

    def _publish(self) -> None:
        """TelemetrySink the weights, or those of `forced_lag` updates ago: weights are held back, never slots."""
        lag = self.config.batch.forced_lag
        version = max(0, self.updates - lag)
        if lag:
            weights = torch.empty(self.model.flat_size())
            self._write(weights)
            self.held_back.append((self.updates, weights))
            if version not in dict(self.held_back):  # after an async resume: old weights are gone
                version = self.held_back[0][0]
            if self.mailbox.version() == version:
                return
            weights = dict(self.held_back)[version]
            self.mailbox.begin(version)[:] = weights.numpy()
        else:
            self._write(torch.from_numpy(self.mailbox.begin(version)))
        self.mailbox.finish(version)
        self.shared.bells["inference"].ring()

    def _write(self, weights: torch.Tensor) -> None:
        """The weights into host memory [P]; a GPU writes into memory of this process alone, never into the arena."""
        if self.flat is None:
            self.model.write_flat(weights)
        else:
            self.model.write_flat(self.flat)
            weights.copy_(self.flat)

    # -- counters, metrics, ends -------------------------------------------------------------------------------

    def _progress(self) -> float:
        total = self.config.stop.env_steps
        return min(self.env_steps / total, 1.0) if total else 0.0

    def _count(self) -> None:
        atomics.store(self.shared.progress, UPDATES, self.updates)
        atomics.store(self.shared.progress, ENV_STEPS, self.env_steps)

    def _tick(self) -> None:
        now = time.monotonic()
        self.seconds, self.clock = self.seconds + now - self.clock, now

    def _log_if_due(self) -> None:
        if self.config.run.mode == "lockstep":
            due = self.updates % self.config.log.every_updates == 0
        else:
            due = time.monotonic() - self.logged_at >= self.config.log.every_seconds
        if due:
            self._log()

    def _log(self) -> None:
        """Mean of every metric since the last time: the one synchronisation per log interval."""
        self.logged_at = time.monotonic()
        self._tick()
        row: dict[str, float] = {}
        if self.metrics:
            names = list(self.metrics[0])
            table = torch.stack([torch.stack([m[name].float() for name in names]) for m in self.metrics])
            row = dict(zip(names, table.mean(0).tolist(), strict=True))
            if "offpolicy/max_abs_log_rho" in row:
                row["offpolicy/max_abs_log_rho"] = float(table[:, names.index("offpolicy/max_abs_log_rho")].max())
        row |= lag_row(self.lags)
        if self.update.decay is not None:
            row["proximal/decay"] = self.update.decay
        ledger = self.slot_table.row_counts()
        row |= {
            "charts/learning_rate": self.update.lr,
            "faults/skipped_updates": float(self.skipped_updates),
            "system/save_stall_ms": 1000.0 * self.stall,
            "queue/ready": float(len(self.slot_table.in_state(READY))),
            "queue/free": float(len(self.slot_table.in_state(FREE))),
            "ledger/discarded": float(ledger.discarded),
        }
        self.metrics, self.lags, self.stall = [], {}, 0.0
        counters: dict[str, Any] = {"env_steps": self.env_steps, "updates": self.updates, "seconds": self.seconds}
        self.sink.put(("learner", self.name, {**row, **counters}))

    def _end_if_due(self) -> None:
        stop, outcome = self.config.stop, RUNNING
        self._tick()
        frames = self.env_steps * self.run_spec.spec.frame_skip
        if self.skipped_in_a_row >= self.config.loss.nonfinite_budget:
            outcome = NON_FINITE
        elif (
            (stop.env_steps and self.env_steps >= stop.env_steps)
            or (stop.frames and frames >= stop.frames)
            or (stop.seconds and self.seconds >= stop.seconds)
        ):
            outcome = TARGET_REACHED
        if outcome != RUNNING:
            atomics.store(self.shared.progress, OUTCOME, outcome)

    # -- disk --------------------------------------------------------------------------------------------------

    def save_if_due(self) -> None:
        """A checkpoint if it is time for one, for itself or for the evaluator, or if one was asked for; always between
        two updates."""
        asked = int(self.shared.orders[SAVE])
        progress, waited = self.shared.progress, time.monotonic() - self.saved_at
        stale = self.env_steps != int(progress[CHECKPOINT]) or not progress[SAVED]
        evaluate = self.run_spec.evaluation_due(self.saved_steps, self.env_steps)  # tried: a full disk is not tried again
        evaluate &= self.config.run.mode != "lockstep"  # which plays with the weights at hand
        due = stale and (waited >= self.config.checkpoint.every_seconds or evaluate or self._past_milestone())
        self._end_of_save(wait=False)
        if self.saver.busy:
            return
        if due or asked != self.saves_asked or not self.tried_to_save:  # at once when new: there is always a checkpoint
            self.saves_asked = asked
            self._save()

    def _past_milestone(self) -> bool:
        """Another multiple of `checkpoint.milestones` env_steps lies behind than at the last save that was begun."""
        every = self.config.checkpoint.milestones
        return bool(every) and self.env_steps // every > self.saved_steps // every

    def _save(self, last: bool = False) -> None:
        """Begin a checkpoint, between two updates, from the learner's own state; the last one is waited for."""
        begun = time.monotonic()
        self._tick()
        state = {
            "env_steps": self.env_steps,
            "updates": self.updates,
            "seconds": self.seconds,
            "frames": self.env_steps * self.run_spec.spec.frame_skip,
            "lr": self.update.lr,
            "kl": self.update.kl,
            "ess": self.update.ess,
            "launch": self.run_spec.launch,
            "env": self.config.env.name,
            "protocol": self.run_spec.spec.protocol,
            "skipped_updates": self.skipped_updates,
        }
        score = atomics.from_bits(int(self.shared.orders[SCORE]))
        if math.isfinite(score):
            state["training_return"] = score
        self.saved_steps = self.env_steps
        self.saved_at, self.tried_to_save = begun, True
        self.saver.begin(checkpoint.Contents(state, self.update.state_dict(), lockstep=self.exact()))
        if last or self.config.run.mode == "lockstep":  # no clock decides anything there
            self._end_of_save(wait=True, last=last)
        self.stall = max(self.stall, time.monotonic() - begun)
        self.stages.mark("save")

    def _end_of_save(self, wait: bool, last: bool = False) -> None:
        """SlotTable a save that has ended. Trouble with the disk stops nothing, unless it is the last save of a run."""
        saved = self.saver.take(wait)
        if saved is None:
            return
        if saved.error is None:
            self._saved(saved.env_steps)
        elif isinstance(saved.error, OSError | checkpoint.CheckpointError):
            self.log(f"checkpoint at {saved.env_steps} failed: {saved.error}; the one before stands")
            if last:
                atomics.store(self.shared.progress, OUTCOME, STORAGE)
        else:
            raise saved.error

    def _restore(self, path: Path) -> None:
        contents = checkpoint.load(path)
        self.update.load_state_dict(contents.parts)
        state = contents.state
        self.updates, self.env_steps = int(state["updates"]), int(state["env_steps"])
        self.seconds = float(state["seconds"])
        self.update.lr, self.update.kl, self.update.ess = (float(state[name]) for name in ("lr", "kl", "ess"))
        self.skipped_updates = int(state["skipped_updates"])
        self.saved_steps = self.env_steps
        self._saved(self.env_steps)

    def _begin_with(self, path: Path) -> None:
        """Weights and their normaliser from another run; everything else begins anew."""
        contents = checkpoint.load(checkpoint.source(path), ("model", "normalizers"))
        theirs, ours = contents.parts["model"], self.model.state_dict()
        apart = [
            f"{name} {list(theirs[name].shape) if name in theirs else 'missing'} for {list(ours[name].shape)}"
            if name in ours
            else f"{name} is not ours"
            for name in sorted({*theirs, *ours})
            if name not in ours or name not in theirs or theirs[name].shape != ours[name].shape
        ]
        if apart:
            raise checkpoint.CheckpointError(f"run.init-from {path}: another network: {', '.join(apart[:4])}")
        self.update.begin_with(theirs, contents.parts["normalizers"])

    def _saved(self, env_steps: int) -> None:
        atomics.store(self.shared.progress, CHECKPOINT, env_steps)
        atomics.store(self.shared.progress, SAVED, 1)

    # -- what lockstep saves besides -----------------------------------------------------------------------------

    def windows(self) -> dict[str, Any]:
        """What is half collected between two updates: metrics and lags since the last row, weights held back."""
        return {
            "metrics": [{name: float(value) for name, value in row.items()} for row in self.metrics],
            "lags": self.lags,
            "held_back": [(version, weights.numpy()) for version, weights in self.held_back],
            "skipped_in_a_row": self.skipped_in_a_row,
            "mail": self.mailbox.buffers,
        }

    def set_windows(self, windows: dict[str, Any]) -> None:
        """The inverse, with the arena already as it was."""
        on = self.device
        self.metrics = [{name: torch.tensor(x, device=on) for name, x in row.items()} for row in windows["metrics"]]
        self.lags, self.skipped_in_a_row = windows["lags"], windows["skipped_in_a_row"]
        self.held_back.clear()
        self.held_back.extend((version, torch.from_numpy(weights)) for version, weights in windows["held_back"])
        self.mailbox.buffers[...] = windows["mail"]
        atomics.store(self.shared.orders, STOP, RUN_ON)
        atomics.store(self.shared.progress, OUTCOME, RUNNING)
        self._end_if_due()  # saved at its very end, and killed before it could say so
        self.saves_asked = int(self.shared.orders[SAVE])
        self._saved(self.env_steps)
