"""Train the members of a population round after round, and let bad ones take over the policies of good ones.

Everything is in files. A process of a member trains one round; between two rounds this process publishes what the
member has reached, decides, and prepares the next round. Any process may be killed: the same command goes on.

    D/m0/, D/m1/, ...              run folders, as `train` makes them
    D/pbt.json                     the history: publications and decisions (`sfactory.run.history`)
    D/staged/m3-r7/                a checkpoint that m3 takes over after round 7, until it is in its folder
    D/{configs,logs,aside}/        settings and output of every member; folders without anything to resume

The order of a takeover is: stage the checkpoint, record the decision, install the checkpoint. After a crash, what was
staged and recorded is installed; what was not recorded is decided again.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sfactory.config import Config
from sfactory.config.values import same
from sfactory.errors import CheckpointError, CommandError, Exit
from sfactory.files import FileRefused, folder_entries, open_to_append
from sfactory.monitor.format import duration
from sfactory.population.commands import Launcher, Resources
from sfactory.population.exchange import leader_of, taken_over, winner_of
from sfactory.population.plan import Plan, name_of
from sfactory.population.publication import publication
from sfactory.population.runner import as_exit, is_free, move_aside, run_command
from sfactory.population.side_by_side import STOPPED, LostJobs, Running, SideBySide, log
from sfactory.run import checkpoint
from sfactory.run.history import History, Record, read_history, write_history
from sfactory.run.reader import format_setting, read_status
from sfactory.run.takeover import OWN, counters_of, install, stage
from sfactory.supervisor.cores import by_cores
from sfactory.supervisor.output_file import OutputFile

RUN_AGAIN = {*STOPPED, Exit.BUSY, Exit.FINISHED}
"""Exit codes of a round that was not trained to its end, but can be; less than 0 where the process was killed."""
MOST_LOST = 5
"""Times in a row that a member is started again after it was killed before it got anywhere."""


class Segment(NamedTuple):
    """One round of one member."""

    member: int
    round: int


class Population:
    """The members of one command, at most `max_running` at a time.

    Consumes: the plan, run folders, pbt.json. Produces: commands, settings files, checkpoints that are taken over,
    pbt.json, one line per round and takeover on stderr. Waits for: what `SideBySide` waits for.
    """

    def __init__(self, plan: Plan, max_running: int, launcher: Launcher, resources: Resources, frame_skip: int) -> None:
        """frame_skip: frames of a step of the environment."""
        self.plan, self.launcher, self.resources, self.frame_skip = plan, launcher, resources, frame_skip
        self.history = read_history(plan.folder) or History(plan.identity(), list(plan.first))
        self.processes = SideBySide[Segment](max_running, self._start, self._ended, self._ready)
        self.published: dict[int, Record] = {}
        """In rounds: what members have published, that wait for the others."""
        self.waiting: dict[int, Record] = {}
        """Members whose losses were not finite, while no other member has published a score. In rounds: in the last
        one only, and if there is no other member; before, such a member takes part in the next exchange."""
        self.failures: dict[int, tuple[int, str]] = {}
        """Member -> exit code and last line of those that cannot go on."""
        self.lost = LostJobs(MOST_LOST)
        """Members that were killed."""

    def run(self) -> tuple[Exit, str]:
        """Train until all members have finished; returns the exit code and one sentence."""
        self._finish_takeovers()
        write_history(self.plan.folder, self.history)
        reached = f"; {len(self.history.records)} rounds of members are done" if self.history.records else ""
        log(f"{len(self.plan.members)} members in {self.plan.folder}{reached}")
        for member in self.plan.members:
            self._continue(member)
        self.processes.run()
        return self._result()

    def _result(self) -> tuple[Exit, str]:
        if self.processes.num_signals:
            return self.processes.stop_code, "repeat the command to continue"
        for member in self.waiting:
            self._give_up(member, Exit.NON_FINITE, "losses were not finite, and no other member can be taken over")
        if self.failures:
            member, (code, line) = next(iter(self.failures.items()))
            output = self.plan.folder / "logs" / f"{name_of(member)}.txt"
            return as_exit(code), f"{name_of(member)}: {line or _how(code)}; output in {output}"
        winner = winner_of([self.history.of(member)[-1] for member in self.plan.members])
        self.history = History(self.history.options, self.history.initial, self.history.records, winner, True)
        write_history(self.plan.folder, self.history)
        return Exit.FINISHED, result_of(self.plan.folder, self.history)

    # -- processes -------------------------------------------------------------------------------------------

    def _continue(self, member: int) -> None:
        """Queue the round that a member is in, unless it has ended it already."""
        done = len(self.history.of(member))
        if self._is_done(member) or member in self.failures or member in self.waiting:
            return
        round = done + 1
        if done and self._has_no_policy(self.history.of(member)[-1]):
            self._publish(member, round, failed=True)
            return
        if self._has_ended(member, round):
            self._publish(member, round, failed=False)
            return
        self.processes.queue.append(Segment(member, round))
        self.processes.queue.sort(key=lambda segment: (segment.round, segment.member))

    def _has_no_policy(self, newest: Record) -> bool:
        """Whether a member's losses were not finite and there was no policy that it could take over."""
        return newest.failed and newest.source is None

    def _is_done(self, member: int) -> bool:
        return len(self.history.of(member)) >= self.plan.num_rounds

    def _has_ended(self, member: int, round: int) -> bool:
        """Whether a member has trained to the end of a round, by its status and its newest checkpoint."""
        run_dir = self.plan.run_dir(member)
        found = next(iter(checkpoint.candidates(run_dir)), None)
        finished = read_status(run_dir).get("state") == Exit.FINISHED.outcome
        return finished and found is not None and int(found.name) >= self.plan.end_of(round)

    def _ready(self, segment: Segment) -> bool:
        return is_free(self.plan.run_dir(segment.member))

    def _start(self, segment: Segment) -> Running[Segment]:
        """Submit a round. Members that run side by side share the cores; each keeps its number of processes."""
        member, run_dir = segment.member, self.plan.run_dir(segment.member)
        settings = self.history.settings(member)
        config = self.plan.config_of(member, segment.round, settings, self.frame_skip, self.launcher.reruns)
        resumed = bool(checkpoint.candidates(run_dir)) and (run_dir / "config.toml").is_file()
        if not resumed:
            config = by_cores(config, self.resources.cores)
            if run_dir.exists():
                move_aside(run_dir)
        command = run_command(self.plan.folder, name_of(member), run_dir if resumed else None, config)
        output = OutputFile(command.output)
        return Running(segment, self.launcher.submit(command, self.resources), time.monotonic(), output)

    def _ended(self, ended: Running[Segment], code: int) -> None:
        """Publish a round that was trained, start one again that was cut short, or note that a member cannot go on."""
        member, round = ended.job
        saved = self._saved_steps(member)
        # The status of a member that was stopped after its last checkpoint stays: a resume finds nothing to do.
        if code == Exit.FINISHED and saved >= self.plan.end_of(round):
            self._publish(member, round, failed=False, seconds=ended.seconds)
        elif self.processes.num_signals:
            log(f"{name_of(member)}  stopped at {saved:,} steps")
        elif code == Exit.NON_FINITE:
            self._publish(member, round, failed=True)
        elif (code < 0 or code in RUN_AGAIN) and self.lost.starts_again(member, code, saved):
            log(f"{name_of(member)}  {_how(code)} at {saved:,} steps; it is started again")
            self.processes.queue.insert(0, ended.job)
        else:
            self._give_up(member, code, ended.last_line())

    def _give_up(self, member: int, code: int, line: str) -> None:
        """Note that a member cannot go on. The others do, as far as they can."""
        log(f"{name_of(member)}  FAILED  {line or _how(code)}")
        self.failures[member] = (code or Exit.WORKER_LOST, line)

    def _saved_steps(self, member: int) -> int:
        found = checkpoint.last_saved(self.plan.run_dir(member), time.time())
        return found[0] if found else 0

    # -- exchange --------------------------------------------------------------------------------------------

    def _publish(self, member: int, round: int, failed: bool, seconds: float = 0.0) -> None:
        """Publish what a member has reached, and exchange policies if it is time."""
        record = publication(self.plan, self.history, member, round, failed)
        score = "unknown" if record.score is None else f"{record.score:.4g}"
        what = "FAILED (losses were not finite)" if failed else f"score {score}"
        took = f" in {duration(seconds)}" if seconds else ""
        log(f"{name_of(member)}  round {round}/{self.plan.num_rounds}: {record.env_steps:,} steps{took}, {what}")
        if not self.plan.in_rounds:
            for one, own in {member: record, **self.waiting}.items():
                self._exchange({**self.history.newest(), one: own}, [one])
                self._continue(one)
            return
        self.published[member] = record
        if all(one in self.published or self._is_done(one) for one in self.plan.members):
            published, self.published = self.published, {}
            self._exchange({**self.history.newest(), **published}, sorted(published))
            for one in self.plan.members:
                self._continue(one)

    def _exchange(self, published: Mapping[int, Record], members: Sequence[int]) -> None:
        """Decide for some members, stage what they take over, record everything, install.

        published: the newest records of all members that have one, with those of `members`.
        """
        plan, options = self.plan, self.plan.options
        records, staged = list[Record](), list[tuple[Path, Record]]()
        for member in members:
            own = published[member]
            leader = None
            if plan.exchanges(own.round) or own.failed:
                leader = leader_of(member, published, options.members, options.replace, options.gap, plan.seed)
            if leader is not None:
                folder = self._staged(own)
                steps = self._stage(leader, folder, member)
                rate = options.mutation_rate
                own = taken_over(own, published[leader], steps, plan.mutated, plan.config, rate, plan.seed)
                staged.append((folder, own))
            elif own.failed and not (plan.in_rounds and own.round < plan.num_rounds and _some_go_on(published)):
                self.waiting[member] = own
                continue
            self.waiting.pop(member, None)
            records.append(own)
        self.history = self.history.extended(records)
        write_history(plan.folder, self.history)
        for folder, record in staged:
            self._install(folder, record)

    def _staged(self, record: Record) -> Path:
        return self.plan.folder / "staged" / f"{name_of(record.member)}-r{record.round}"

    def _stage(self, leader: int, folder: Path, member: int) -> int:
        """Copy the newest checkpoint of a leader for a member; returns the leader's steps."""
        own: dict[str, Any] = dict.fromkeys(OWN, 0)
        with contextlib.suppress(CheckpointError):
            found = checkpoint.read_newest(self.plan.run_dir(member))
            if found is not None:
                own = {**counters_of(found.state), "episodes": found.state.get("episodes", {"count": 0})}
        with checkpoint.held(lambda: checkpoint.resolve(self.plan.run_dir(leader))) as source:
            stage(source, folder, own)
            return int(source.name)

    def _install(self, staged: Path, record: Record) -> None:
        """Give a member the checkpoint that was staged for it."""
        assert record.source is not None
        run_dir = self.plan.run_dir(record.member)
        install(staged, run_dir)
        changes = [
            format_setting(name, value)
            for name, value in record.next_settings.items()
            if not same(value, record.settings[name])
        ]
        line = (
            f"{name_of(record.member)} takes over {name_of(record.source)} ({record.source_steps:,} steps) "
            f"after round {record.round}" + "".join(f", {change}" for change in changes)
        )
        log(line)
        with contextlib.suppress(OSError, FileRefused), open_to_append(run_dir / "log.txt") as file:
            file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}\n")

    def _finish_takeovers(self) -> None:
        """After a crash: install what was staged and recorded, delete what was not recorded."""
        recorded = {self._staged(record): record for record in self.history.records if record.source is not None}
        for folder in folder_entries(self.plan.folder / "staged"):
            if folder in recorded:
                self._install(folder, recorded[folder])
            else:
                shutil.rmtree(folder)


def _some_go_on(published: Mapping[int, Record]) -> bool:
    """Whether not all members have failed: the others may have a score after the next round."""
    return not all(record.failed for record in published.values())


def _how(code: int) -> str:
    """How a process ended."""
    if code == Exit.REQUEUE:
        return "stopped by the scheduler"
    return f"killed by signal {-code}" if code < 0 else f"exit {code}"


def finished_before(plan: Plan) -> History | None:
    """The history of a population in the plan's folder if it is finished; None if there is something to train.

    Raises CommandError (exit 2) if the folder holds another population, or something else.
    """
    history = read_history(plan.folder)
    if history is None:
        others = [path.name for path in folder_entries(plan.folder) if path.name not in (".lock", "configs", "logs")]
        if others:
            raise CommandError(Exit.USAGE, f"{plan.folder} holds {others[0]}, but no population; choose another --dir")
        return None
    planned = json.loads(json.dumps(plan.identity()))
    if (other := _difference(planned, history.options)) or json.loads(json.dumps(plan.first)) != history.initial:
        raise CommandError(
            Exit.USAGE, f"{plan.folder} holds a population with another {other or '--sample'}; choose another --dir"
        )
    return history if history.finished else None


def _difference(planned: dict[str, Any], found: dict[str, Any]) -> str:
    """Name of the first option or setting that differs; empty if there is none."""
    settings, before = dict(planned.get("settings", {})), dict(found.get("settings", {}))
    for name in dict.fromkeys([*settings, *before]):
        if not same(settings.get(name), before.get(name)):
            return str(name)
    flags = {"env_steps": "stop.env-steps", "seed": "run.seed", "rounds": "--exchange"}
    for name in dict.fromkeys([*planned, *found]):
        if name != "settings" and not same(planned.get(name), found.get(name)):
            return flags.get(name, f"--{name.replace('_', '-')}")
    return ""


def result_of(folder: Path, history: History) -> str:
    """The result of a finished population in one sentence."""
    taken = sum(record.source is not None for record in history.records)
    members = f"{len(history.initial)} members, {taken} takeovers"
    if history.winner is None:
        return f"{members}; no score is known, so there is no winner"
    best = history.of(history.winner)[-1]
    settings = ", ".join(format_setting(name, value) for name, value in best.settings.items())
    return f"{members}; the winner is {folder / name_of(history.winner)} with score {best.score:.4g} ({settings})"


def shared_config(plan: Plan) -> Config:
    """The settings of the first member in its first round, for checks of the environment before any run."""
    return plan.config_of(0, 1, plan.first[0], 1, requeue=False)
