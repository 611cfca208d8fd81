"""Train every preset as it is typed, evaluate its last policy, and write the page of scores: `make scores`.

    python benchmarks/preset_scores.py                        # can be interrupted and continued; the cheapest first
    python benchmarks/preset_scores.py --only classic/        # presets whose name begins with this
    python benchmarks/preset_scores.py --seeds 1 --hours 1    # one seed each, no run that takes more than an hour
    python benchmarks/preset_scores.py --report               # start no run; write the pages of the finished ones

Steps, seeds, evaluation and published scores: preset_table.py. One run at a time, in async mode: nothing else may run.
What other programs used of the cores meanwhile is measured and kept beside the seconds. When a run has finished,
`sfactory eval` plays with its last checkpoint; only then is the run kept, in benchmarks/results/preset_scores.csv.
What is there is not run again, on any machine, unless the settings of the preset have changed since. The report writes
docs/scores.md with its pictures, the curves in docs/gallery.md, and configs/scores.toml, from which `sfactory presets`
takes the scores.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import preset_page
import psutil
from grid import RESULTS, Cell, Grid, Run, finished
from preset_page import Stale
from preset_table import TABLE, Row, by_cost
from scores import Curve, Scores

from sfactory.device.machine import cores
from sfactory.monitor.format import duration
from sfactory.population.commands import Command
from sfactory.population.side_by_side import STOPPED, Running
from sfactory.run.reader import read_status
from sfactory.supervisor.output_file import OutputFile

SCORES = RESULTS / "preset_scores.csv"
COLUMNS = (
    "cores",
    "others",
    "continued",
    "evaluation",
    "evaluated_steps",
    "episodes",
    "protocol",
    "score",
    "score_low",
    "score_high",
)
"""Columns of this file alone.

others: cores that other programs used during the run, on average; empty if not known.
continued: yes if the run was interrupted, so that its seconds are not those of one command; else no.
score: mean return of the episodes with its 95 % interval, or the score of a match.
"""
MEAN = ("mean", "mean_low", "mean_high")
MATCH = ("score", "score_low", "score_high")


class PresetScores(Scores):
    """The table of finished and evaluated runs."""

    def __init__(self, path: Path, table: Mapping[str, Row]) -> None:
        super().__init__(path, COLUMNS)
        self.table = table

    def metric(self, target: str) -> str:
        """The metric whose curve is kept for a preset."""
        return self.table[target].metric

    def find(self, cell: str, seed: int, target: str, steps: int, flags: Sequence[str]) -> Curve | None:
        """The curve of a run; None if it is not there, was run with other flags, or evaluated in another way."""
        found = super().find(cell, seed, target, steps, flags)
        same = found is not None and found.row["evaluation"] == " ".join(self.table[target].evaluation)
        return found if same else None


class OtherWork:
    """Measures how many cores other programs use, from now on."""

    def __init__(self) -> None:
        self._at, self._busy, self._own = time.monotonic(), _busy_seconds(), _own_seconds()

    def cores(self) -> float:
        """Mean number of cores since the beginning. Children count as ours from their end on."""
        others = _busy_seconds() - self._busy - (_own_seconds() - self._own)
        return max(others / (time.monotonic() - self._at), 0.0)


def _busy_seconds() -> float:
    """Processor time of the cores that this process may use, of all processes."""
    own = os.sched_getaffinity(0)
    times = [one for core, one in enumerate(psutil.cpu_times(percpu=True)) if core in own]
    return sum(one.user + one.nice + one.system + one.irq + one.softirq + one.steal for one in times)


def _own_seconds() -> float:
    """Processor time of this process and of the children that have ended, theirs included."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


class PresetGrid(Grid):
    """The runs of the presets, one at a time; each is evaluated when it has finished, and then kept."""

    def __init__(self, runs: Sequence[Run], scores: PresetScores) -> None:
        self.table = scores.table
        self._work: OtherWork | None = None
        self._continued = False
        super().__init__(runs, scores, 1)

    def _start(self, run: Run) -> Running[Run]:
        self._clear_outdated(run)
        if not finished(run.folder):
            self._work, self._continued = OtherWork(), self._goes_on(run)
            return super()._start(run)
        output = _beside(run, "evaluation.txt")
        output.unlink(missing_ok=True)
        words = [sys.executable, "-m", "sfactory", "eval", str(run.folder), *self._row(run).evaluation, "--json"]
        command = Command(f"evaluation of {run.name}", words, output)
        return Running(run, self.launcher.submit(command, self.resources), time.monotonic(), OutputFile(output))

    def _record(self, ended: Running[Run], code: int) -> None:
        if ended.output.path == _beside(ended.job, "evaluation.txt"):
            self._record_evaluation(ended, code)
        elif finished(ended.job.folder):
            assert self._work is not None
            trained = {"seconds": ended.seconds, "others": self._work.cores(), "continued": self._continued}
            _beside(ended.job, "trained.json").write_text(json.dumps(trained))
            self._keep(ended.job)
        else:
            super()._record(ended, code)

    def _keep(self, run: Run, wall_s: float = 0.0) -> None:
        """A finished run is kept with its evaluation, which comes next."""
        self.processes.queue.insert(0, run)

    def _record_evaluation(self, ended: Running[Run], code: int) -> None:
        run = ended.job
        if code == 0:
            self._keep_evaluated(ended)
        elif code in STOPPED or self.processes.num_signals:
            print(f"{run.name} is finished; its evaluation was stopped", flush=True)
        else:
            self._fail(f"evaluation of {run.name}: {ended.last_line() or f'exit {code}'}")

    def _keep_evaluated(self, ended: Running[Run]) -> None:
        """Keep a run with the evaluation that has ended; one of another checkpoint counts as failed."""
        run, (trained, seconds) = ended.job, _trained(ended.job)
        try:
            columns = {**trained, **evaluation_columns(ended.output.path, run, self._row(run))}
        except ValueError as error:
            self._fail(f"evaluation of {run.name}: {error}")
            return
        run.keep(self.scores, seconds, columns)
        self._count(run, seconds)
        print(f"[{self.total - self.left}/{self.total}] {run.name}  {duration(seconds)}, score {columns['score']}"
              f"{self._time_left()}", flush=True)  # fmt: skip

    def _fail(self, text: str) -> None:
        self.failed.append(text)
        print(f"FAILED {text}", flush=True)

    def _row(self, run: Run) -> Row:
        return self.table[run.cell.target]

    def _expected(self, run: Run) -> float:
        """By runs of the same preset, else by its rough cost and how much other presets differed from theirs."""
        if same := self.seconds.get((run.cell.target, run.cell.steps)):
            return sum(same) / len(same)
        rough = sum(60 * self.table[target].minutes * len(values) for (target, _), values in self.seconds.items())
        slower = sum(map(sum, self.seconds.values())) / rough if rough else 1.0
        return 60 * self._row(run).minutes * slower


def _beside(run: Run, name: str) -> Path:
    """A file beside the folder of a run."""
    return run.folder.with_name(f"{run.seed}.{name}")


def _trained(run: Run) -> tuple[dict[str, str], float]:
    """What the machine was while a run was trained, as columns, and the seconds of the run."""
    path = _beside(run, "trained.json")
    trained = json.loads(path.read_text()) if path.is_file() else {}
    # If the run was interrupted, the process that finished it made only the rest. Without the file it was killed then.
    seconds = max(trained.get("seconds", 0.0), float(read_status(run.folder).get("seconds", 0.0)))
    others = f"{trained['others']:.2f}" if trained else ""
    continued = "yes" if trained.get("continued", True) else "no"
    return {"cores": str(cores()), "others": others, "continued": continued}, seconds


def evaluation_columns(output: Path, run: Run, row: Row) -> dict[str, str]:
    """Columns of an evaluation, from what `sfactory eval --json` printed.

    ValueError for one of another checkpoint than the last, which happens when the last one is damaged.
    """
    result = json.loads(next((line for line in output.read_text().splitlines() if line.startswith("{")), "{}"))
    steps, last = result.get("env_steps"), read_status(run.folder)["env_steps"]
    if steps != last:
        again = f"delete {run.folder} to train it again"
        raise ValueError(f"the checkpoint is of {steps} steps, the run has {last}; {again}")
    names = MATCH if "opponent" in result else MEAN
    score, low, high = (f"{result[name]:.5g}" for name in names)
    return {
        "evaluation": " ".join(row.evaluation), "evaluated_steps": str(result["env_steps"]),
        "episodes": str(result["episodes"]), "protocol": result["protocol"], "score": score, "score_low": low,
        "score_high": high,
    }  # fmt: skip


def cell_of(name: str, row: Row) -> Cell:
    """The cell of a preset: what is typed to train it."""
    return Cell(f"scores/{name}", name, row.flags + row.changes, row.steps, mode="async")


def runs_of(table: Mapping[str, Row], names: Sequence[str], out: Path, seeds: int | None = None) -> list[Run]:
    """Runs of these presets in this order, all seeds of one before the next. seeds: at most so many of each."""
    cells = [(cell_of(name, table[name]), table[name].seeds) for name in names]
    return [
        Run(cell, seed, out / cell.name / str(seed))
        for cell, number in cells
        for seed in range(min(number, seeds or number))
    ]


def measured(table: Mapping[str, Row], scores: Scores) -> dict[str, list[Curve]]:
    """Preset -> the curves of its finished runs; presets without one are left out."""
    found: dict[str, list[Curve]] = {}
    for name in table:
        for run in runs_of(table, [name], Path()):
            if (curve := run.curve(scores)) is not None:
                found.setdefault(name, []).append(curve)
    return found


def stale(table: Mapping[str, Row], scores: Scores) -> dict[str, Stale]:
    """Preset -> its runs of other settings than those of today; only of presets without a run of today's."""
    found: dict[str, Stale] = {}
    for name in table:
        runs = runs_of(table, [name], Path())
        if any(run.curve(scores) is not None for run in runs):
            continue
        if old := [one for run in runs if (one := run.stale(scores)) is not None]:
            changed = dict.fromkeys(setting for _, settings in old for setting in settings)
            found[name] = Stale([kept for kept, _ in old], list(changed))
    return found


def files(path: Path = SCORES, table: Mapping[str, Row] = TABLE) -> dict[str, str]:
    """What the report writes from a file of finished runs: file below the repository -> its text."""
    scores = PresetScores(path, table)
    return preset_page.outputs(table, measured(table, scores), stale=stale(table, scores))


def main(typed: Sequence[str] | None = None, table: Mapping[str, Row] = TABLE, root: Path = preset_page.ROOT) -> None:
    """root: of the repository in which the pages are written."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--only", default="", help="presets whose name begins with this, or one of these: classic/,mujoco/"
    )
    parser.add_argument("--seeds", type=int, help="at most so many seeds of each preset (those of the table)")
    parser.add_argument("--hours", type=float, default=12, help="leave out presets of which one run takes longer (12)")
    parser.add_argument("--report", action="store_true", help="start no run; write the pages of the finished ones")
    parser.add_argument("--scores", type=Path, default=SCORES, help="file of the finished runs")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks"), help="folder of the runs")
    options = parser.parse_args(typed)
    scores = PresetScores(options.scores, table)
    names = [name for name in by_cost(table) if name.startswith(tuple(options.only.split(",")))]
    if not names:
        parser.error(f"--only {options.only}: no preset begins with this; sfactory presets lists them")
    try:
        if not options.report:
            long = [name for name in names if table[name].minutes > 60 * options.hours]
            if long:
                print(f"left out, one run takes more than {options.hours:g} hours: {', '.join(long)}", flush=True)
            chosen = [name for name in names if name not in long]
            PresetGrid(runs_of(table, chosen, options.out, options.seeds), scores).run()
    finally:  # also after Ctrl-C
        preset_page.write(table, measured(table, scores), root, stale(table, scores))
        print(f"written: {preset_page.PAGE}, {preset_page.GALLERY}, {preset_page.DATA}")


if __name__ == "__main__":
    main()
