"""Learner: collects full slots, trains on them, publishes the weights.

consumes    READY slots
produces    weights (mailbox), FREE slots, checkpoints, metrics
waits for   batch_slots READY slots
unblocked by the samplers

Holds all state that must not be lost. Only the learner trains and counts what was trained. It ends the run at a stop
rule, or if updates are not finite; the supervisor decides every other end.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sfactory.config import Config, to_dict, with_settings
from sfactory.device.accelerator import accelerator_of, register
from sfactory.device.selection import pick_device
from sfactory.learning import nonfinite_dump
from sfactory.learning.distributed import Learners, Vote
from sfactory.learning.join import join
from sfactory.learning.network import build_model
from sfactory.learning.precision import choose_precision
from sfactory.learning.replay import HeldSlots
from sfactory.learning.staging import Staging
from sfactory.learning.update import Update
from sfactory.monitor.episodes import Episodes
from sfactory.monitor.job_numbers import JobNumbers
from sfactory.monitor.messages import END, LEARNER
from sfactory.run.checkpoint import Contents, recorded_precision
from sfactory.run.job import settings_of_follower
from sfactory.run.stop_rules import Progress, reached_rules
from sfactory.shm.slots import FREE, LEARNING, READY
from sfactory.workers.checkpointing import Checkpointing
from sfactory.workers.counters import Counters
from sfactory.workers.first_wait import FirstWait
from sfactory.workers.learner_metrics import LearnerMetrics
from sfactory.workers.names import POLICY, learner_name, sampler_name
from sfactory.workers.opponent_pool import OpponentPool
from sfactory.workers.publisher import Publisher
from sfactory.workers.shared import LearnerOutcome, Precision, SharedState, StopOrder
from sfactory.workers.worker import TelemetrySink, Worker

NO_NUMBERS = np.zeros(0)
Slot = tuple[int, int]
"""(group, slot)"""
MACHINE_SETTINGS = ("run.learner_threads", "run.inference_threads", "run.inference_workers")
"""Settings that may differ among the learners of a job, because they change no result."""
LAST_PUBLICATIONS, LAST_EPISODES_S = 4, 1.0
"""Publications of episodes that a learner waits for at the end of a run, and the most seconds it does."""


class Learner(Worker):
    """See the top of this file."""

    def __init__(self, shared: SharedState, sink: TelemetrySink, policy: int = POLICY) -> None:
        super().__init__(learner_name(policy), shared, sink)
        self.policy = policy
        self.words, self.supervisor = shared.learner[policy], shared.supervisor
        self.row_counts = shared.slot_table.learner_rows[policy]
        ranks = self.run_spec.ranks
        self.device = pick_device(self.config.run.device, ranks.local_rank)
        self.model = build_model(self.config, self.run_spec.spec).to(self.device)
        self.run_spec.check_model(self.model)
        self.accelerator = accelerator_of(self.device, exact=self.config.run.mode == "lockstep")
        self.first_wait = FirstWait(ranks, Path(self.run_spec.run_dir))
        self.learners: Learners = join(ranks, self.device, self.config.run.stall_timeout, self._show_life, self.log)
        self.config = self._with_precision()
        self.update = Update(self.config, self.model, self.device, self.accelerator, self.log, self.learners)
        self.update.on_optimizer_step = self._count_optimizer_step
        self.log(self.update.kernels_line)
        num_tasks = len(self.config.env.tasks)
        self.counters, self.episodes = Counters(), Episodes(num_tasks)
        self.job = None if ranks.alone else JobNumbers(ranks, num_tasks)
        self.own_episodes = Episodes(num_tasks)  # of this rank; `episodes` are those of the job
        self.batch_lags = Counter[int]()  # of the newest batch, where there are several ranks
        self.metrics = LearnerMetrics(self.update.objective.largest_metrics)
        direct = register(self.accelerator, shared.arena, self.log)
        self.staging = Staging(
            self.run_spec.schema, self.run_spec.batch_lanes, self.accelerator, direct, self.run_spec.spec.acting,
            self.run_spec.spec.rows,
        )  # fmt: skip
        self.batch = self.staging.batch  # of the newest update
        self.held = HeldSlots(self.config, self.staging, self.accelerator) if self.config.replay.ratio else None
        mailbox = shared.mailbox(self.model.flat_size(), policy)
        ring = partial(shared.ring_inference, policy)
        self.publisher = Publisher(self.model, mailbox, ring, self.accelerator, self.config.batch.forced_lag)
        self.checkpointing = Checkpointing(
            self.run_spec, self.update, self.counters, self.episodes, self.words, self.supervisor, self.log, policy
        )
        self.checkpointing.held = self.held
        self.pool = None if shared.pool is None else OpponentPool(self.run_spec, shared.pool, self.log)
        if self.pool is not None:
            self.checkpointing.pool = self.pool
        self.synchronous = self.config.sampling.slots_per_group == 1
        if self.run_spec.resume_from:
            self.checkpointing.restore(Path(self.run_spec.resume_from))
        elif self.config.run.init_from:
            self.checkpointing.initialize_from(Path(self.config.run.init_from))
        if self.run_spec.resume_from and self.config.batch.forced_lag and self.config.run.mode != "lockstep":
            self.log(
                f"batch.forced-lag {self.config.batch.forced_lag}: less in as many updates from here on, as at the "
                "start of a run: only lockstep saves older weights"
            )
        self._start_together()
        self.counters.start_clock()
        self.logged_at, self.logged_updates = time.monotonic(), -1
        self._announce_counters()
        self.publisher.publish(self.counters.updates)
        if self.pool is not None:
            self.pool.announce()
            if self.config.selfplay.initial and not self.run_spec.resume_from:
                self._admit(self.pool)
        if self.run_spec.resume_from:
            self._end_if_due()
        self.stages.drain()

    def _with_precision(self) -> Config:
        """The settings with the precision of this run in place of auto; announces it to inference."""
        source = self.run_spec.resume_from
        recorded = recorded_precision(Path(source)) if source else ""
        choice = choose_precision(self.config, self.run_spec.spec, self.model, self.accelerator, recorded)
        choice = choice._replace(name=self.learners.leaders("precision", choice.name))
        if choice.line:
            self.log(choice.line)
        self.words.precision = Precision[choice.name.upper()]
        return with_settings(self.config, {"run.precision": choice.name})

    def _start_together(self) -> None:
        """Make sure that all learners of the job train the same, and give them the leader's weights and statistics."""
        settings = to_dict(with_settings(self.run_spec.config, settings_of_follower()))
        facts = {f"{section}.{name}": repr(value) for section in settings for name, value in settings[section].items()}
        facts = {name: value for name, value in facts.items() if name not in MACHINE_SETTINGS}
        facts |= {"the launch": str(self.run_spec.launch), "the checkpoint": Path(self.run_spec.resume_from).name}
        self.learners.require_same({**facts, "the kernels": self.update.kernels})
        state = self.update.state_dict()
        if self.learners.copy_from_leader(state):
            self.update.load_state_dict(state)

    @property
    def updates(self) -> int:
        return self.counters.updates

    @property
    def env_steps(self) -> int:
        """Valid rows trained."""
        return self.counters.env_steps

    @property
    def seconds(self) -> float:
        """Seconds of training, over all launches."""
        return self.counters.seconds

    # -- the loop ----------------------------------------------------------------------------------------------

    def step(self) -> bool:
        """One update, if enough slots are READY."""
        slots = self._collect()
        if slots is None:
            return False
        self.stages.mark("wait")
        self._stage(slots)
        if not self.synchronous:  # nothing reads these slots any more, but their rows are still in flight
            self.row_counts.in_update = self.run_spec.batch_rows
            self._release(slots)
        self.stages.mark("batch")
        metrics = self._update()
        self._count(metrics)
        self.stages.mark("update")
        self.publisher.publish(self.counters.updates)
        if self.synchronous:  # on-policy: the next slot starts with the new weights
            self._release(slots)
        self._announce_counters()
        self.stages.mark("publish")
        if self.held is not None and not self.counters.skipped_in_a_row:
            self.held.hold(self.counters.updates - 1)
            self.stages.mark("batch")
        if self.pool is not None and self.pool.due(self.env_steps):
            self._admit(self.pool)
            self.stages.mark("save")
        self._end_if_due()
        self._log_if_due()
        return True

    def report(self, now: Callable[[], float] = time.monotonic) -> None:
        """Once per turn of the loop, with or without an update: a save may be requested while nothing is READY."""
        super().report(now)
        self.save_if_due()

    def finished(self) -> bool:
        return self.words.outcome != LearnerOutcome.RUNNING

    def leave(self) -> None:
        """Save, unless ordered to stop at once, and send the last metrics row. Called before the process exits."""
        self.checkpointing.finish_save(wait=True)
        stop_now = self.supervisor.stop == StopOrder.NOW
        if self.checkpointing.last_is_due and not stop_now and self.words.outcome != LearnerOutcome.NON_FINITE:
            self.checkpointing.save(last=True)
            self.stages.mark("save")
        if self.logged_updates != self.updates and (self.config.run.mode != "lockstep" or self.finished()):
            self._log()  # a lockstep run that was interrupted goes on with this row
        self.sink.put((END, self.name, self._counts()))
        if self.words.outcome == LearnerOutcome.RUNNING:
            self.words.outcome = LearnerOutcome.STOPPED

    def close(self) -> None:
        self.learners.close()
        self.update.network.pool.close()
        if self.accelerator is not None:
            self.accelerator.release()

    # -- parts of a step ---------------------------------------------------------------------------------------

    def _collect(self) -> list[Slot] | None:
        """READY slots of the next batch: oldest weights first, then hand-overs, then group; no clock decides."""
        ready = self.slot_table.in_state(READY)
        if len(ready) < self.config.batch_slots:
            return None
        versions = self.shared.trajectories["policy_version"]
        ready.sort(key=lambda s: (int(versions[s[0], s[1], 0]), self.slot_table.handover_count(*s), s[0]))
        slots = ready[: self.config.batch_slots]
        for slot in slots:
            self.slot_table.transition(*slot, READY, LEARNING)
        return slots

    def _stage(self, slots: list[Slot]) -> None:
        """Copy the slots into the batch and record their lag."""
        self.staging.copy(slots, self.shared.trajectories, self.counters.updates)
        if self.pool is not None:
            self.pool.count(slots, self.shared.trajectories)
        lags = self.staging.lag_counts(self.counters.updates)
        for (group, _), counts in zip(slots, lags, strict=True):
            self.metrics.add_lag(sampler_name(self.run_spec.sampler_of(group)), counts)
        if self.held is not None:
            self.batch, replayed = self.held.mix(self.counters.updates)
            for one in replayed:
                self.metrics.add_replayed(one.age, one.lags)
            lags += [one.lags for one in replayed]
        if self.job is not None:
            self.batch_lags = sum(lags, Counter())

    def _update(self) -> dict[str, torch.Tensor]:
        """Train on the batch; returns metrics on the device."""
        total = self.config.stop.env_steps
        progress = min(self.counters.env_steps / total, 1.0) if total else 0.0
        self.learners.propose(self._vote(), self.staging.counts(), self._numbers())
        metrics = self.update.run(self.batch, self.counters.updates, progress)
        if self.accelerator is not None:
            self.accelerator.wait()  # sleeping; reading a value would wait too, but keep a core busy
        if self.config.run.debug:
            self.learners.check_same(self.update.digest, self.updates + 1)
        return metrics

    def _count_optimizer_step(self) -> None:
        self.words.optimizer_steps += 1

    def _show_life(self, ranks: Sequence[int]) -> None:
        """Learners of other ranks live and this one waits for them: that is no stall of this one."""
        self.words.waits += 1
        if line := self.first_wait.line(ranks):
            self.log(line)

    def _count(self, metrics: dict[str, torch.Tensor]) -> None:
        """Count the update, and each of its fresh rows as trained or as skipped."""
        rows = trained = self.run_spec.batch_rows
        self.first_wait.done = True
        skipped = bool(metrics.pop("skipped") > 0)  # the only synchronization of an update
        mask = None
        if skipped:
            mask = self.update.trained()[:, : self.staging.lanes].cpu().numpy()
            trained = int(mask.sum())
        self.counters.count(self.learners.total_counts(self.staging.counts(mask), skipped), skipped)
        self.row_counts.trained += trained
        self.row_counts.skipped += rows - trained
        if self.counters.skipped_in_a_row == self.config.loss.nonfinite_budget:
            self._dump_nonfinite(metrics)
        if not skipped or _all_finite(metrics):
            self.metrics.add_update(metrics)
        self._take_numbers(self.learners.numbers)  # once: its row and its checkpoint have the same
        self.row_counts.in_update = 0

    def _numbers(self) -> np.ndarray:
        """What the other learners of the job have to know of this one."""
        if self.job is None:
            return NO_NUMBERS
        self.own_episodes.set_numbers(self.shared.episodes.read())
        return self.job.own(self.own_episodes, self.batch_lags)

    def _take_numbers(self, numbers: Callable[[], np.ndarray]) -> None:
        """Take the episodes of the job, and of several learners their lags. numbers: those of all learners."""
        if self.job is None:
            self.episodes.set_numbers(self.shared.episodes.read())
        else:
            found = self.job.read(numbers())
            self.episodes.set_state(found.episodes)
            self.metrics.add_lag_of_job(found.lags)

    def _admit(self, pool: OpponentPool) -> None:
        """Put the policy as it is now into the pool of opponents."""
        state = self.checkpointing.state()
        pool.admit(Contents(state, {"model": self.update.model.state_dict()}))

    def _release(self, slots: list[Slot]) -> None:
        """Return the slots to their groups and wake the samplers."""
        for slot in slots:
            if self.config.run.debug:
                self.shared.trajectories.poison(*slot)
            self.slot_table.transition(*slot, LEARNING, FREE)
        for sampler in sorted({self.run_spec.sampler_of(group) for group, _ in slots}):
            self.shared.sampler_bells[sampler].ring()

    def _announce_counters(self) -> None:
        self.words.updates = self.counters.updates
        self.words.env_steps = self.counters.env_steps

    def _dump_nonfinite(self, metrics: dict[str, torch.Tensor]) -> None:
        """Write the batch and metrics of the update that ends the run."""
        try:
            held = self.held
            leaves = self.staging.to_host() if held is None or self.batch.fresh is None else held.to_host()
            path = nonfinite_dump.write(self.run_spec.debug_dir, leaves, self.model, metrics)
            self.log(f"the batch that was not finite and its statistics: {path}")
        except (OSError, MemoryError) as error:
            self.log(f"the batch that was not finite could not be written: {error}")

    def _end_if_due(self) -> None:
        """Set the outcome if a stop rule is reached, too many updates in a row were skipped, or a learner voted so."""
        self.counters.tick()
        agreed = self.learners.agree(self._vote())
        self.checkpointing.agreed |= agreed.save
        outcome = max(self._common_outcome(), LearnerOutcome(agreed.outcome))
        if outcome != LearnerOutcome.RUNNING:
            self._wait_for_episodes()
            self.words.outcome = outcome

    def _vote(self) -> Vote:
        """What this learner wants of all of them, because of things that only it knows."""
        outcome = self.supervisor.proposal
        if outcome == LearnerOutcome.RUNNING and self.learners.is_leader:
            outcome = self._reached(self.counters.seconds)
        return Vote(outcome, self.checkpointing.wanted())

    def _wait_for_episodes(self) -> None:
        """Before a run ends: take the episodes of steps that were trained and not counted yet.

        Samplers and supervisor pass episodes on ten times a second. All updates of a short run may be finished before.
        """
        if self.config.run.mode == "lockstep" or self.episodes.settled or not self.updates:
            return
        last = self.shared.episodes.publications + LAST_PUBLICATIONS
        deadline = time.monotonic() + LAST_EPISODES_S
        while self.shared.episodes.publications < last and time.monotonic() < deadline:
            time.sleep(0.01)
        self.batch_lags = Counter()  # counted already
        self._take_numbers(lambda: self.learners.exchange(self._numbers()))
        self.counters.start_clock()  # this time was not spent training

    def _common_outcome(self) -> LearnerOutcome:
        """The outcome by what is the same on all learners."""
        if self.counters.skipped_in_a_row >= self.config.loss.nonfinite_budget:
            return LearnerOutcome.NON_FINITE
        return self._reached(0.0)

    def _reached(self, seconds: float) -> LearnerOutcome:
        """Whether a stop rule is reached, with this time."""
        frames = self.counters.env_steps * self.run_spec.spec.frame_skip
        progress = Progress(self.counters.env_steps, frames, seconds, self.episodes.settled_return)
        return LearnerOutcome.STOP_RULE if reached_rules(self.config.stop, progress) else LearnerOutcome.RUNNING

    # -- metrics and checkpoints -------------------------------------------------------------------------------

    def _log_if_due(self) -> None:
        if self.config.run.mode == "lockstep":
            due = self.counters.updates % self.config.log.every_updates == 0
        else:
            due = time.monotonic() - self.logged_at >= self.config.log.every_seconds
        if due:
            self._log()

    def _log(self) -> None:
        """Send a metrics row."""
        self.logged_at, self.logged_updates = time.monotonic(), self.updates
        self.checkpointing.rows_until = self.env_steps
        self.counters.tick()
        replay = {} if self.held is None else {**self.metrics.replay_row(), **self.held.row()}
        row = {
            **self.metrics.row(),
            **replay,
            **self.update.objective.row(),
            "charts/learning_rate": self.update.lr,
            "faults/skipped_updates": float(self.counters.skipped_updates),
            "system/save_stall_ms": 1000.0 * self.checkpointing.take_stall(),
            "queue/ready": float(len(self.slot_table.in_state(READY))),
            "queue/free": float(len(self.slot_table.in_state(FREE))),
            "ledger/discarded": float(self.slot_table.row_counts().discarded),
        }
        if self.pool is not None:
            row |= self.pool.row()
            self.pool.write_ratings()
        self.sink.put((LEARNER, self.name, {**row, **self._counts()}))

    def _counts(self) -> dict[str, Any]:
        """The part of a message that is no metric."""
        counts = {"env_steps": self.env_steps, "updates": self.updates, "seconds": self.seconds}
        if self.run_spec.spec.agents and self.counters.environment_steps is not None:
            counts["environment_steps"] = self.counters.environment_steps
        return {**counts, "episodes": self.episodes.state()}

    def save_if_due(self) -> None:
        """Start a checkpoint if one is due or requested; always between two updates."""
        if self.checkpointing.save_if_due():
            self.stages.mark("save")

    # -- exact resume of lockstep --------------------------------------------------------------------------------

    @property
    def exact(self) -> Callable[[], dict[str, np.ndarray]]:
        """Arrays that a lockstep checkpoint stores besides the learner's."""
        return self.checkpointing.exact_state

    @exact.setter
    def exact(self, state: Callable[[], dict[str, np.ndarray]]) -> None:
        self.checkpointing.exact_state = state

    def windows(self) -> dict[str, Any]:
        """State between two updates that a checkpoint alone does not hold: metrics since the last row, held weights."""
        publisher = self.publisher.state_dict()
        return {
            **self.metrics.state_dict(),
            "held_back": publisher["held_back"],
            "skipped_in_a_row": self.counters.skipped_in_a_row,
            "mail": publisher["mail"],
            "replay": None if self.held is None else self.held.state_dict(),
            "objective": self.update.objective.cycle_state(),
        }

    def held_slots(self) -> dict[str, np.ndarray]:
        """The contents of the slots that are held for replay, as an array of a lockstep checkpoint; empty: none is."""
        return {"held": self.held.dump()} if self.held is not None and self.held.births else {}

    def set_windows(self, windows: dict[str, Any], held: np.ndarray | None = None) -> None:
        """Restore what `windows` and `held_slots` returned; the arena is restored already."""
        if self.held is not None and not self.held.load(windows.get("replay"), held, self.counters.updates):
            self.log("replay: the checkpoint holds slots of another size; nothing is held at first")
        self.metrics.load_state_dict(windows, self.device)
        self.publisher.load_state_dict(windows)
        self.update.objective.load_cycle_state(windows.get("objective", {}))
        self.counters.skipped_in_a_row = windows["skipped_in_a_row"]
        orders = self.supervisor  # those of the process that saved
        orders.stop, orders.proposal, orders.save_requests = StopOrder.RUN, LearnerOutcome.RUNNING, 0
        self.words.outcome = LearnerOutcome.RUNNING
        self._end_if_due()  # the run was saved at its end and killed before the outcome was announced
        self.checkpointing.requests_seen = 0
        self.checkpointing.record_checkpoint(self.counters.env_steps)


def _all_finite(metrics: dict[str, torch.Tensor]) -> bool:
    """Whether they are those of an optimizer step that was taken."""
    return bool(torch.isfinite(torch.stack([x.float() for x in metrics.values()])).all())
