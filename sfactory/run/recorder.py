"""Write the run folder during training: lock, settings, rows of metrics, log, status. Free of torch."""

from __future__ import annotations

import contextlib
import os
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from sfactory.config import Config
from sfactory.config.resume_rules import changed_settings
from sfactory.config.toml_file import from_toml, to_toml
from sfactory.device.ranks import ALONE, Ranks
from sfactory.envs import EnvSpec
from sfactory.errors import CheckpointError, CommandError, EnvError, Exit, FileRefused, NoCheckpointError, RunBusy
from sfactory.files import replace_text, replace_text_in, require
from sfactory.monitor import messages
from sfactory.monitor.board import Board
from sfactory.monitor.episode_file import EpisodeLine
from sfactory.monitor.episodes import stored_episodes
from sfactory.monitor.known_rooflines import known_roofline
from sfactory.monitor.messages import Message
from sfactory.monitor.panel import ReturnHistory, Snapshot, keep_stage_times
from sfactory.monitor.rows import read_rows, rows_until
from sfactory.monitor.table import EPISODES_IN_MEAN
from sfactory.monitor.writers import Writers, last_evaluated
from sfactory.run import checkpoint, provenance
from sfactory.run.callbacks import Callbacks
from sfactory.run.checkpoint_files import Contents, require_resumable
from sfactory.run.env_faults import EnvFaults, is_env_fault, with_traceback
from sfactory.run.folder import clear_folder, is_run, make_folder, refuse_links, refuse_run, remove_empty
from sfactory.run.lock import lock_folder
from sfactory.run.network_size import check_network_size
from sfactory.run.obs_reading import check_reading
from sfactory.run.outcome import Outcome
from sfactory.run.presence import FolderPresence
from sfactory.run.recorded_spec import check_same_spaces, recorded_spec
from sfactory.run.saved_counters import environment_steps_of
from sfactory.run.stop_rules import Progress, raised_settings, reached_rules, sentence_of
from sfactory.run.trust import record_run
from sfactory.shm.slots import RowCounts

PRESENCE_S = 0.5  # between two looks whether the folder is still there


def _require_resumable(contents: Contents, config: Config) -> None:
    """CheckpointError if a run with these settings cannot continue from the checkpoint."""
    require_resumable(contents)
    check_network_size(config, contents.headers["model"])


class RunRecorder:
    """Writes everything in the run folder but checkpoints. One per launch; holds the folder's lock until it exits."""

    def __init__(
        self,
        config: Config,
        run_dir: Path,
        specs: Sequence[EnvSpec],
        lock: int,
        launch: int,
        resume_from: str,
        state: dict[str, Any],
        ranks: Ranks = ALONE,
    ) -> None:
        """run_dir: the folder that is written into. ranks: all but rank 0 have one in that of the run."""
        self.config, self.run_dir, self.spec = config, run_dir, specs[0]
        self.launch, self.resume_from, self._lock = launch, resume_from, lock
        self.ranks, self.checkpoints = ranks, run_dir if ranks.is_leader else run_dir.parent
        self.env_steps, self.updates = int(state.get("env_steps", 0)), int(state.get("updates", 0))
        self.environment_steps = environment_steps_of(state) if specs[0].agents else None
        self.seconds, self.episodes = float(state.get("seconds", 0.0)), stored_episodes(state, len(specs))
        self.created: list[Path] | None = None  # folder and parents, if a failed start must remove what is in it
        self._presence, self._presence_due = FolderPresence(run_dir), 0.0
        self._taken = False  # another run is in the folder's place: nothing more is written there
        self.row_counts: RowCounts | None = None
        self.rows_by_task: dict[str, int] = {}
        self.callbacks = Callbacks()
        self.env_faults = EnvFaults(config.env.fault_budget, config.sampling.num_envs)  # of this launch
        tasks = {task: spec.reference for task, spec in zip(config.env.tasks, specs, strict=True)}
        episodes = self.episodes.of_rank(ranks)
        self.board = Board(self.env_steps, self.seconds, tasks, episodes, self.environment_steps)
        self.writers = Writers(run_dir, config, rows_until(state) if resume_from else None, ranks.is_leader)
        self._row: dict[str, float] = {}
        self.trained_steps: Callable[[], int] = lambda: self.env_steps
        """Trained steps at the moment; the process that trains replaces it, because rows come every few seconds."""
        self._anchor: tuple[float, float] | None = None  # seconds of training, and the clock at the same moment
        self._num_episodes, self._looking_for_infos = 0, True  # of this launch
        self._history = ReturnHistory()
        self._roofline = known_roofline(config)  # read once: it stays the same during a run
        if resume_from:
            self._history.add_rows(read_rows(run_dir))
        self._faults: deque[str] = deque(maxlen=3)
        self._update_console()
        self._write_status("running", pid=os.getpid())
        if resume_from:  # after the rows were cut: an evaluation whose row was dropped is repeated
            self.board.evaluated = last_evaluated(run_dir)

    @classmethod
    def open(
        cls, config: Config, run_dir: Path, resume: bool, specs: Sequence[EnvSpec], ranks: Ranks = ALONE
    ) -> RunRecorder:
        """Create or reopen the folder and lock it. RunBusy if another trainer holds the lock.

        A folder that was new or empty is so again if this fails. ranks: those besides rank 0 write into a folder of
        their own, and read the checkpoints of `run_dir`.
        """
        run_dir = ranks.folder(run_dir)
        if not ranks.is_leader:
            require(run_dir, "a folder")  # in a run that was downloaded it may be a link
        created, warnings = make_folder(run_dir), list[str]()
        empty = not any(run_dir.iterdir())
        try:
            lock = lock_folder(run_dir, warnings.append)
            try:
                recorder = cls._open_locked(config, run_dir, resume, specs, lock, warnings, ranks)
                recorder.created = created if empty else None
                return recorder
            except BaseException:
                if empty:  # nothing was trained in it
                    clear_folder(run_dir)
                os.close(lock)
                raise
        except BaseException:
            remove_empty(created)
            raise

    @classmethod
    def _open_locked(
        cls,
        config: Config,
        run_dir: Path,
        resume: bool,
        specs: Sequence[EnvSpec],
        lock: int,
        warnings: list[str],
        ranks: Ranks,
    ) -> RunRecorder:
        checkpoints = run_dir if ranks.is_leader else run_dir.parent
        if not resume and not config.run.requeue:
            refuse_run(run_dir, locked=True)
        refuse_links(run_dir)
        launch, resume_from, state, changes = 0, "", {}, list[str]()
        if resume:
            found = checkpoint.read_newest(
                checkpoints,
                (),
                warnings,
                move_damaged=ranks.is_leader,
                check=lambda contents: _require_resumable(contents, config),
            )
            if found is None:
                raise NoCheckpointError(f"{checkpoints} holds no checkpoint to resume from")
            state = found.state
            launch, resume_from = state["launch"] + 1, str(found.path)
            try:
                check_reading(state, specs[0], config)
            except CheckpointError as error:
                raise CommandError(Exit.RESUME_REFUSED, str(error)) from error
            if (trained := recorded_spec(state)) is not None:
                try:
                    check_same_spaces(trained, specs[0])
                except EnvError as error:
                    raise CommandError(Exit.RESUME_REFUSED, f"{error}; a resume needs the same spaces") from error
            changes = changed_settings(from_toml(checkpoints / "config.toml"), config)
        replace_text(run_dir / "config.toml", to_toml(config))
        provenance.record(run_dir, launch, resume_from)
        recorder = cls(config, run_dir, specs, lock, launch, resume_from, state, ranks)
        for warning in warnings:
            recorder.writers.log(warning)
        for change in changes:
            recorder.writers.log(change, echo=False)  # the console has it from the command
        return recorder

    def handle(self, message: Message) -> None:
        """Record one telemetry message. A message of the learner completes a row of metrics."""
        kind, worker, payload = message
        if kind == messages.LOG:
            self.writers.log(f"{worker}: {payload}")
        elif kind == messages.LEARNER:
            self._keep_episodes()
            self._write_row(worker, payload)
            self._anchor = self.seconds, time.monotonic()
        elif kind == messages.END:
            self._take_counters(dict(payload))
        else:
            if kind == messages.FAULT:
                self._log_fault(str(payload))
            elif kind == messages.EVALUATION:
                self._log_evaluation(payload)
            elif kind == messages.NO_EVALUATION:
                self.writers.log(f"no evaluation at {payload[0]:,} steps: {payload[1]}")
            elif kind == messages.EPISODES:
                self.env_faults.add_episodes(len(payload))
                self._write_episodes(payload)
            elif kind == messages.STEPS:
                self.env_faults.add_steps(*payload)
                if warning := self.env_faults.warning():
                    self.writers.log(warning)
            self.board.handle(message)
            if kind == messages.EPISODES and self._looking_for_infos:
                self._num_episodes += len(payload)
                self._tell_missing_infos()

    def _keep_episodes(self) -> None:
        """Open episodes.csv, once the board has the episodes that this launch goes on from.

        Ranks of a job count their own episodes: of their files the steps of the checkpoint are the measure.
        """
        count = self.board.episodes.count if self.ranks.alone else None
        self.writers.keep_episodes(count, self.env_steps if self.resume_from else -1)

    def _write_episodes(self, episodes: Sequence[tuple[Any, ...]]) -> None:
        """Write a line for every episode; the learner hears of them afterwards."""
        self._keep_episodes()
        if not self.config.log.episodes:
            return
        self._anchor = self._anchor or (self.seconds, time.monotonic())
        seconds, since = self._anchor
        when = max(self.env_steps, self.trained_steps()), seconds + time.monotonic() - since
        tasks = self.config.env.tasks
        self.writers.episodes(
            [
                EpisodeLine(*when, tasks[task], value, length, *(infos or ({},)))
                for value, length, task, *infos in episodes
            ]
        )

    def _tell_missing_infos(self) -> None:
        """Warn once, after a hundred episodes, of listed numbers that none of them had: a typing error, perhaps."""
        keys = self.config.env.options.info_keys
        if not keys or self._num_episodes >= EPISODES_IN_MEAN:
            self._looking_for_infos = False
            if missing := [key for key in keys if key not in self.board.infos]:
                self.writers.log(
                    f"warning: env.info-keys: {', '.join(missing)}: no number of this name was in info at the end of "
                    f"{self._num_episodes:,} episodes; without the setting all plain numbers of info are recorded"
                )

    def _log_fault(self, text: str) -> None:
        self._faults.append(text.partition("\n")[0])
        logged, shown = self.env_faults.lines(text) if is_env_fault(text) else (text, with_traceback(text))
        if logged:
            self.writers.log(logged, echo=False)
        if shown:
            self.writers.echo(shown)

    def _log_evaluation(self, scores: dict[str, float]) -> None:
        mean, iqm, seconds = (scores[f"eval/{name}"] for name in ("episodic_return", "iqm", "seconds"))
        at = f"evaluation at {scores['eval/env_steps']:,.0f} steps"
        capped = scores.get("eval/capped", 0.0)
        cut = f"; {capped:.0f} of its episodes did not end and were cut" if capped else ""
        self.writers.log(f"{at}: mean return {mean:.2f}, IQM {iqm:.2f} ({seconds:.1f} s){cut}")

    def _write_row(self, worker: str, payload: dict[str, float]) -> None:
        metrics = self._take_counters(dict(payload))
        if self.environment_steps is not None:
            metrics["charts/environment_steps"] = float(self.environment_steps)
        self._write_evaluations(self.board.take_evaluations(keep=1), self.env_steps - 1)
        self.board.handle((messages.LEARNER, worker, metrics))
        frames = self.env_steps * self.spec.frame_skip
        row = self.board.snapshot(self.env_steps, frames, self.updates, self.seconds, self.episodes)
        self._row = keep_stage_times(self._row, self._to_writers(self.env_steps, row))
        self._history.add(self.env_steps, self.seconds, row)
        self._update_console()
        self._write_status("running", pid=os.getpid())

    def _take_counters(self, payload: dict[str, Any]) -> dict[str, Any]:
        """Take the counters and the episodes out of a message of the learner; return the rest."""
        self.env_steps, self.updates = int(payload.pop("env_steps")), int(payload.pop("updates"))
        self.seconds = float(payload.pop("seconds"))
        if self.environment_steps is not None:
            self.environment_steps = int(payload.pop("environment_steps"))
        self.episodes.set_state(payload.pop("episodes"))
        return payload

    def _write_status(self, state: str, **fields: Any) -> None:
        """Replace status.json; what a run has reached is in it whatever the state."""
        if self._taken or self._presence.loss():
            return
        reached = {"env_steps": self.env_steps, "updates": self.updates, "seconds": self.seconds}
        if self.environment_steps is not None:
            reached["environment_steps"] = self.environment_steps
        returns = {"training_return": self.episodes.training_return, "episodes": self.episodes.in_mean}
        job = {} if self.ranks.alone else {"rank": self.ranks.rank, "world_size": self.ranks.world_size}
        self.writers.status({"state": state, **fields, **job, **reached, **returns}, self._presence.folder)

    def _write_evaluations(self, evaluations: Sequence[Mapping[str, float]], end: int) -> None:
        """Write a row for each evaluation that shares the time between two rows with another one.

        Rows are at the steps of the evaluated policies if possible, else after the last row; end: the last step.
        """
        for waiting, scores in zip(range(len(evaluations) - 1, -1, -1), evaluations, strict=True):
            env_steps = max(self.writers.last_step + 1, min(int(scores["eval/env_steps"]), end - waiting))
            self._to_writers(env_steps, scores)

    def _to_writers(self, env_steps: int, row: Mapping[str, float]) -> dict[str, float]:
        """Write a row and report it to the callbacks; returns it with the load of the machine added."""
        is_new = env_steps > self.writers.last_step
        values = self.writers.row(env_steps, self.seconds, row)
        if is_new:
            self.callbacks.row({"env_steps": env_steps, "seconds": self.seconds, **values})
        return values

    def _update_console(self, state: str = "running") -> None:
        """Pass the newest numbers to the panel or the progress line."""
        sampling, run = self.config.sampling, self.config.run
        snapshot = Snapshot(
            row=self._row,
            env_steps=self.env_steps,
            seconds=self.seconds,
            stop=self.config.stop,
            name=self.run_dir.resolve().name,
            env=self.config.env.name,
            protocol=self.spec.protocol,
            mode=run.mode if self.ranks.alone else f"{run.mode}, {self.ranks.world_size} ranks",
            device="" if run.device == "auto" else run.device,
            history=tuple(self._history.points),
            checkpoint=checkpoint.last_saved(self.run_dir, time.time()),
            faults=tuple(self._faults),
            slots=sampling.num_groups * sampling.slots_per_group,
            state=state,
            roofline=self._roofline,
        )
        self.writers.console(snapshot)

    def outcome_from_messages(self) -> Outcome | None:
        """Outcome if the messages end the run: more environment failures than allowed, or no folder to write to."""
        if problem := self.env_faults.problem():
            return Outcome.of(Exit.ENVIRONMENT, problem)
        if time.monotonic() >= self._presence_due and (problem := self.keep_folder()):
            return Outcome.of(Exit.STORAGE, problem)
        return None

    def keep_folder(self) -> str:
        """Make the run's folder again if it was removed or moved; why that is impossible, or an empty string.

        Checkpoints that are saved from then on can be resumed, because the new folder has the settings too.
        """
        self._presence_due = time.monotonic() + PRESENCE_S
        loss = self._presence.loss()
        if not loss or self._taken:
            return ""
        with contextlib.ExitStack() as undo:
            try:
                if is_run(self.run_dir):
                    raise RunBusy
                make_folder(self.run_dir)
                lock = lock_folder(self.run_dir, self.writers.log)
                undo.callback(os.close, lock)
                presence = FolderPresence(self.run_dir)
                undo.callback(presence.close)
                provenance.record(self.run_dir, self.launch, self.resume_from)
                if self.ranks.is_leader:
                    record_run(self.run_dir, self.config)
                (self.run_dir / "debug").mkdir(exist_ok=True)
                # Last: it makes the folder that of a run, and what an attempt that failed has left must be none.
                replace_text_in(presence.folder, "config.toml", to_toml(self.config))
            except RunBusy:
                self._taken = True
                return f"{self.run_dir} {loss}, and another run is in its place"
            except OSError:  # tried again soon
                return ""
            undo.pop_all()
        os.close(self._lock)
        self._presence.close()
        self._lock, self._presence = lock, presence
        self.writers.reopen()
        self.writers.log(f"{self.run_dir} {loss}; training continues in a new folder of this name")
        return ""

    @property
    def progress(self) -> Progress:
        """How far the run is, by the newest message of the learner."""
        frames = self.env_steps * self.spec.frame_skip
        return Progress(self.env_steps, frames, self.seconds, self.episodes.settled_return)

    def record_row_counts(self, counts: RowCounts, rows_by_task: dict[str, int]) -> None:
        """Log the row counts of this launch, after all workers have stopped. They must account for every row.

        rows_by_task: sampled rows of each of several tasks; empty for one task.
        """
        self.row_counts, self.rows_by_task = counts, rows_by_task
        parts = f"{counts.trained} trained + {counts.skipped} skipped + {counts.discarded} discarded"
        problem = "" if counts.consistent else "; NOT consistent: rows were lost or counted twice"
        line = f"row counts: {counts.sampled} sampled = {parts} + {counts.in_flight} in flight{problem}"
        self.writers.log(line, echo=False)

    def finish(self, outcome: Outcome) -> Outcome:
        """Add the newest checkpoint and what was reached to the outcome, log it, and write the final status."""
        rules = reached_rules(self.config.stop, self.progress)
        outcome.begin(sentence_of(rules) or "a stop rule was reached")
        self._keep_episodes()
        self._write_evaluations(self.board.take_evaluations(keep=0), self.env_steps)  # rows come every few updates
        outcome.env_steps, outcome.environment_steps = self.env_steps, self.environment_steps
        outcome.training_return, outcome.episodes = self.episodes.training_return, self.episodes.in_mean
        self.keep_folder()
        newest = None
        with contextlib.suppress(FileRefused, OSError):  # the folder may have been replaced
            newest = next(iter(checkpoint.candidates(self.checkpoints)), None)
        if newest is not None and not self._taken:
            outcome.checkpoint = str(newest)
            if int(newest.name) == self.env_steps:  # else a resume trains on from an older one
                outcome.resume_settings = raised_settings(rules)
        self._update_console(outcome.name)
        self.writers.log(f"{outcome.name} (exit {outcome.code}): {outcome.sentence}", echo=False)
        ledger = self.row_counts._asdict() if self.row_counts else None
        ended = {"exit": outcome.code, "sentence": outcome.sentence, "checkpoint": outcome.checkpoint, "ledger": ledger}
        tasks = {"rows_by_task": self.rows_by_task} if self.rows_by_task else {}
        self._write_status(outcome.name, **ended, **tasks)
        return outcome

    def _may_be_trained(self) -> bool:
        """Whether there is a checkpoint, or something else in the place of their folder."""
        try:
            return bool(checkpoint.candidates(self.run_dir))
        except (FileRefused, OSError):
            return True

    def __enter__(self) -> RunRecorder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:  # `finish` was not called: a preflight check or a bug
            sentence = str(error).partition("\n")[0] or type(error).__name__
            self._write_status("failed", sentence=sentence)
        self.writers.close()
        refused = hasattr(error, "exit_code") or isinstance(error, OSError | MemoryError)  # a bug leaves its traces
        if refused and self.created is not None and not self._presence.loss() and not self._may_be_trained():
            clear_folder(self.run_dir)
            remove_empty(self.created)
        self._presence.close()
        os.close(self._lock)
