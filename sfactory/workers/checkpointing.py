"""Decide when the learner saves a checkpoint, save it and restore it."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from sfactory.errors import FileRefused
from sfactory.learning.replay import HeldSlots
from sfactory.learning.resumed_rate import resumed_rate, schedule_state
from sfactory.learning.update import Update
from sfactory.monitor.episodes import Episodes, stored_episodes
from sfactory.monitor.rows import rows_until
from sfactory.run import checkpoint
from sfactory.run.checkpoint_writer import CheckpointWriter
from sfactory.run.obs_reading import reading
from sfactory.run.recorded_spec import spec_entry
from sfactory.workers.counters import Counters
from sfactory.workers.opponent_pool import OpponentPool
from sfactory.workers.shared import LearnerOutcome, LearnerWords, RunSpec, SupervisorWords

OF_OBJECTIVE = ("weight", "dual.value")
"""Numbers in the checkpoint part of the proximal policy: the weight of its average, and r2vpo's dual variable."""


class Checkpointing:
    """Checkpoints of one learner, always between two updates and from the learner's own state."""

    def __init__(
        self,
        run_spec: RunSpec,
        update: Update,
        counters: Counters,
        episodes: Episodes,
        words: LearnerWords,
        supervisor: SupervisorWords,
        log: Callable[[str], None],
        policy: int,
    ) -> None:
        self.run_spec, self.config, self.update, self.counters = run_spec, run_spec.config, update, counters
        self.episodes, self.words, self.supervisor, self.log = episodes, words, supervisor, log
        self.lockstep = self.config.run.mode == "lockstep"
        settings = self.config.checkpoint
        self.saver = CheckpointWriter(
            run_spec.policy_dir(policy), settings.keep, settings.milestones, Path(run_spec.run_dir)
        )
        self.saved_at = time.monotonic()
        self.saved_steps = 0  # env_steps of the last save that was started, successful or not
        self.started_one = bool(run_spec.resume_from)
        self.requests_seen = 0
        self.agreed = False  # whether the learners have agreed on a checkpoint that was not started yet
        self.stall = 0.0  # seconds of the longest save since `take_stall`
        self.rows_until = 0  # env_steps of the last row of metrics
        self.pool: OpponentPool | None = None
        self.held: HeldSlots | None = None
        self.exact_state: Callable[[], dict[str, np.ndarray]] = dict  # lockstep: what an exact resume also needs

    # -- saving ------------------------------------------------------------------------------------------------

    @property
    def unsaved(self) -> bool:
        """Whether the newest checkpoint is older than the weights."""
        return self.counters.env_steps != self.words.checkpoint or not self.words.saved

    def save_if_due(self) -> bool:
        """Start a checkpoint if one is due or requested; True if it was started.

        Due: after checkpoint.every-seconds, at a multiple of checkpoint.milestones or eval.every, and at once in a new
        run, so that there always is a checkpoint.
        """
        self.finish_save(wait=False)
        if self.saver.busy:
            return False
        if self.run_spec.ranks.alone:  # there is no other learner to ask
            self.agreed = self.wanted()
        if not (self.agreed or not self.started_one):
            return False
        self.save()
        return self.update.learners.is_leader

    def wanted(self) -> bool:
        """Whether this learner wants a checkpoint after the next update."""
        return self._due() or self.supervisor.save_requests != self.requests_seen

    @property
    def last_is_due(self) -> bool:
        """Whether a checkpoint is written at the end.

        Of several learners in lockstep all take part or none, so that they must have ended together.
        """
        if self.lockstep and not self.run_spec.ranks.alone:
            return self.words.outcome != LearnerOutcome.RUNNING
        return self.unsaved

    def _due(self) -> bool:
        if not self.unsaved or not self.update.learners.is_leader:
            return False
        settings, env_steps = self.config.checkpoint, self.counters.env_steps
        # Compared with the last save that was started: on a full disk it is not tried again after every update.
        milestone = settings.milestones and env_steps // settings.milestones > self.saved_steps // settings.milestones
        # In lockstep the evaluation uses the learner's weights and needs no checkpoint.
        evaluation = not self.lockstep and self.run_spec.evaluation_due(self.saved_steps, env_steps)
        return bool(milestone or evaluation or time.monotonic() - self.saved_at >= settings.every_seconds)

    def save(self, last: bool = False) -> None:
        """Start a checkpoint. The last one of a run is waited for.

        The leader of several learners writes it; in lockstep it holds the environments of all of them.
        """
        started = time.monotonic()
        self.requests_seen, self.agreed = self.supervisor.save_requests, False
        self.counters.tick()
        self.saved_steps = self.counters.env_steps
        self.saved_at, self.started_one = started, True
        exact = self.update.learners.collect(self.exact_state())
        if not self.update.learners.is_leader:
            self.record_checkpoint(self.saved_steps)
            return
        state = {**self.state(), "rows_until": self.rows_until} if exact else self.state()
        if exact and self.held is not None:
            state["held_slots"] = self.held.num_held
        self.saver.start(checkpoint.Contents(state, self.update.state_dict(), lockstep=exact))
        if last or self.lockstep:  # nothing depends on a clock in lockstep
            self.finish_save(wait=True, last=last)
        self.stall = max(self.stall, time.monotonic() - started)

    def state(self) -> dict[str, object]:
        """Counters and other numbers of a checkpoint."""
        state = {
            **self.counters.state_dict(),
            "frames": self.counters.env_steps * self.run_spec.spec.frame_skip,
            "lr": self.update.lr,
            **schedule_state(self.config),
            "kl": self.update.kl,
            "ess": self.update.ess,
            "lag": self.update.lag,
            "launch": self.run_spec.launch,
            "world_size": self.run_spec.ranks.world_size,
            "precision": self.update.config.run.precision,
            "kernels": self.update.kernels,
            "env": self.config.env.name,
            "protocol": self.run_spec.spec.protocol,
            "episodes": self.episodes.state(),
            **reading(self.run_spec.spec, self.config),
            **spec_entry(self.run_spec.spec),
        }
        if self.episodes.training_return is not None:
            state["training_return"] = self.episodes.training_return
        if self.pool is not None:
            state["selfplay"] = self.pool.state_dict()
        if self.update.slow_fast is not None:
            state["sfpo"] = self.update.slow_fast.state()
        return state

    def finish_save(self, wait: bool, last: bool = False) -> None:
        """Record how a save ended. A storage error ends the run only if it is the last save's."""
        saved = self.saver.poll(wait)
        if saved is None:
            return
        if saved.error is None:
            self.record_checkpoint(saved.env_steps)
            if self.pool is not None:
                self.pool.delete_unused()
        elif isinstance(saved.error, OSError | checkpoint.CheckpointError | FileRefused):
            self.log(f"checkpoint at {saved.env_steps} failed: {saved.error}; the previous checkpoint is kept")
            if last:
                self.words.outcome = LearnerOutcome.STORAGE
        else:
            raise saved.error

    def record_checkpoint(self, env_steps: int) -> None:
        """Announce that there is a checkpoint of this many trained env_steps."""
        self.words.checkpoint = env_steps
        self.words.saved = True

    def take_stall(self) -> float:
        """Seconds of the longest save since the last call."""
        stall, self.stall = self.stall, 0.0
        return stall

    # -- restoring ---------------------------------------------------------------------------------------------

    def restore(self, path: Path) -> None:
        """Continue from a checkpoint of this run."""
        contents = checkpoint.read(path, checkpoint.PARTS)
        self._require_same_parts(contents)
        self.update.load_state_dict(contents.parts)
        self.counters.load_state_dict(contents.state)
        self.update.kl, self.update.ess = (float(contents.state[name]) for name in ("kl", "ess"))
        self.update.lag = float(contents.state.get("lag", 0.0))  # not in checkpoints of earlier versions
        self.update.lr, line = resumed_rate(self.config, contents.state, self.counters.env_steps)
        if line:
            self.log(line)
        if self.update.slow_fast is not None and "sfpo" in contents.state:  # without: it was off before
            self.update.slow_fast.set_state(contents.state["sfpo"])
        recorded = str(contents.state.get("kernels", self.update.kernels))
        if recorded != self.update.kernels and not self.lockstep:  # lockstep says more
            self.log(f"kernels: {self.update.kernels}, but {recorded} before: the last bits of results differ")
        if self.pool is not None and "selfplay" in contents.state:  # without: the run had no pool before
            self.pool.load_state_dict(contents.state["selfplay"])
        self.episodes.set_state(stored_episodes(contents.state, len(self.config.env.tasks)).state())
        self.rows_until = rows_until(contents.state)
        self.saved_steps = self.counters.env_steps
        self.record_checkpoint(self.saved_steps)

    def _require_same_parts(self, contents: checkpoint.Contents) -> None:
        """CheckpointError if a part of a checkpoint has other tensors than this learner."""
        update, source = self.update, str(contents.path)
        weights = dict(update.model.state_dict())
        checkpoint.require_same_network(contents.parts["model"], weights, source)
        checkpoint.require_same_network(
            contents.parts["normalizers"], update.normalizers.state_dict(), source, "set of normalizers"
        )
        moments = {f"{i}.{name}": x for name, all_of in update.optimizer.moments.items() for i, x in enumerate(all_of)}
        found = contents.parts["optimizer"]
        stepped = {name.partition(".")[0] for name in found}  # parameters without a step have no moments
        expected = {name: x for name, x in moments.items() if name.partition(".")[0] in stepped}
        checkpoint.require_same_network(found, expected, source, "optimizer")
        for name, tensor in contents.parts["proximal"].items():  # versions of the weights, by number or as `mean`
            own = tensor.new_zeros(()) if name in OF_OBJECTIVE else weights.get(name.partition(".")[2])
            if own is None or own.shape != tensor.shape:
                raise checkpoint.CheckpointError(f"{source}: another proximal policy: {name!r} is not of this network")

    def initialize_from(self, path: Path) -> None:
        """Take weights and their normalizer from another run. CheckpointError if its network differs."""
        contents = checkpoint.read_from(path, ("model", "normalizers"))
        weights = contents.parts["model"]
        checkpoint.require_same_network(weights, self.update.model.state_dict(), f"run.init-from {path}")
        normalized = "target.std" in contents.parts["normalizers"]
        if self.update.model.value_bins is not None and normalized != self.config.normalize.value_targets:
            raise checkpoint.CheckpointError(
                f"run.init-from {path}: bins in other units: its normalize.value-targets is {str(normalized).lower()}"
            )
        self.update.initialize_from(weights, contents.parts["normalizers"])
