"""Measure jobs of two ranks: a slow rank, one rank under torchrun, and Breakout to a return of 9.

    python benchmarks/learners.py -o benchmarks/results/learners.md      30 minutes, on an otherwise idle machine
    python benchmarks/learners.py --only torchrun --rounds 1 --seconds 3 --out /tmp/learners     to try it out

Finished measurements are kept in OUT and not repeated, so that the command can be interrupted and continued. Each part
writes a section of its own; `allreduce.py` writes another section of the same page. Runs of one comparison take turns,
because a shared machine drifts by tens of percent within an hour.

*A slow rank.* The environment of the two ranks sleeps, so that they do not compete for the cores. The expectation is
additive: all ranks take every update together, so an update takes as long as the slower rank needs for its own batch,
on average over updates, plus the all-reduce, which is under a hundredth here. The job trains the batches of both in
that time, so it has twice the speed of the slower rank alone. What one rank is faster in some updates must not be lost:
samplers run ahead of the learner. Where both ranks are slow in turns, the expectation is twice the speed of one such
rank alone; with one slot per group samplers cannot run ahead, and every update waits for the rank that is slow now.
Async, because lockstep has no samplers that run ahead.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from peers import this_machine, with_section

from sfactory.monitor.rows import read_rows
from sfactory.tools.bench import WARM_UP_S, median_speed

TITLE = "# Several learners: what they cost\n"
Figures = dict[str, float]
"""What one measurement gives: name -> value. `load` is the load average before it."""

ENVIRONMENT = """
import os, time
import gymnasium, numpy as np
from gymnasium import spaces

RANK = int(os.environ.get("RANK", os.environ["ALONE_AS"]))
FAST_S, SLOW, ROLLOUT = 0.5e-3, 5.0, 16
ALWAYS = os.environ["SLOW_RANK"] == "always"

class Env(gymnasium.Env):
    observation_space, action_space = spaces.Box(-1, 1, (3,), np.float32), spaces.Discrete(2)
    steps = 0
    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return np.zeros(3, np.float32), {}
    def step(self, action):
        is_slow = RANK == 1 if ALWAYS else self.steps // ROLLOUT % 2 == RANK
        time.sleep(FAST_S * (SLOW if is_slow else 1.0))
        self.steps += 1
        self.t += 1
        return np.zeros(3, np.float32), 1.0, False, self.t >= 100, {}
"""
SLOW_FLAGS = (
    "slow_rank:Env", "--sampling.num-samplers", "1", "--sampling.groups-per-sampler", "2", "--sampling.envs-per-group",
    "4", "--sampling.rollout-length", "16", "--batch.minibatches", "1", "--batch.epochs", "1", "--batch.rule", "none",
    "--run.device", "cpu",
)  # fmt: skip
NO_RUN_AHEAD = ("--sampling.slots-per-group", "1")


class Case(NamedTuple):
    """Runs of the slow environment whose speeds are compared."""

    what: str
    slow: str
    """`always`: rank 1 is; `in turns`: rank 0 in even rollouts, rank 1 in odd ones."""
    flags: tuple[str, ...]
    alone_as: int
    """Rank whose environment the run without others has: the slower one."""


CASES = {
    "constant": Case("rank 1 always five times slower", "always", (), 1),
    "turns": Case("each rank five times slower in turns", "in turns", (), 0),
    "turns_no_run_ahead": Case("the same, one slot per group", "in turns", NO_RUN_AHEAD, 0),
}
BREAKOUT = ("minatar/breakout", "--sampling.num-samplers", "1")
JOBS = {
    "one": ("one rank, one sampler", 1, ()),
    "two": ("two ranks, a batch of 2,048 each (`hilton`)", 2, ()),
    "two_half": ("two ranks, a batch of 1,024 each", 2, ("--batch.rule", "none", "--sampling.envs-per-group", "8")),
}
"""Name -> in words, ranks, flags."""
SCORE, SCORE_LIMIT_S, SEEDS = 9.0, 900.0, (1, 101, 201)
BAR = 0.97


# -- runs ------------------------------------------------------------------------------------------------------------


def train(
    ranks: int, words: Sequence[str], run_dir: Path, torchrun: bool = True, cwd: Path | None = None, **variables: str
) -> float:
    """Train with so many ranks until a stop rule; seconds from the command to its end. RuntimeError if it fails."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    beginning = [*launch, "-m", "sfactory"] if torchrun else [sys.executable, "-m", "sfactory"]
    shutil.rmtree(run_dir, ignore_errors=True)  # of a measurement that was interrupted
    command = [*beginning, "train", *words, "--run.dir", str(run_dir), "--quiet", "--log.every-seconds", "0.2"]
    began = time.monotonic()
    done = subprocess.run(command, cwd=cwd, env={**os.environ, **variables}, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: exit {done.returncode}: {done.stderr[-1000:]}")
    return time.monotonic() - began


def speed(run_dir: Path) -> Figures:
    """Steps per second of a run, without its start."""
    return {"steps/s": median_speed([row for row in read_rows(run_dir) if row["seconds"] >= WARM_UP_S])}


class Kept:
    """Measurements in files, so that a command which was interrupted goes on."""

    def __init__(self, out: Path) -> None:
        self.out = out.resolve()
        self.out.mkdir(parents=True, exist_ok=True)

    def get(self, name: str, measure: Callable[[Path], Figures]) -> Figures:
        """The figures of this name; measured if there are none. measure: gets a folder for the run."""
        path = self.out / f"{name}.json"
        if not path.exists():
            load, run_dir = os.getloadavg()[0], self.out / name
            figures = {**measure(run_dir), "load": load}
            shutil.rmtree(run_dir, ignore_errors=True)
            path.write_text(json.dumps({"machine": this_machine(), "date": time.strftime("%Y-%m-%d"), **figures}))
            print(f"{name}: {figures}", flush=True)
        return json.loads(path.read_text())


# -- sections --------------------------------------------------------------------------------------------------------


def slow_rank(kept: Kept, rounds: int, seconds: float) -> tuple[str, list[str]]:
    """Heading and lines of the section on a slow rank."""
    (kept.out / "slow_rank.py").write_text(ENVIRONMENT)
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in CASES}
    every = []
    for number in range(rounds):
        for name, case in CASES.items():
            words = (*SLOW_FLAGS, *case.flags, "--stop.env-steps", "1G", "--stop.seconds", str(WARM_UP_S + seconds))
            speeds = []
            for ranks in (1, 2):

                def measure(run_dir: Path, ranks: int = ranks, case: Case = case, words: tuple = words) -> Figures:
                    variables = {"SLOW_RANK": case.slow, "ALONE_AS": str(case.alone_as)}
                    train(ranks, words, run_dir, torchrun=ranks > 1, cwd=kept.out, **variables)
                    return speed(run_dir)

                figures = kept.get(f"slow_{name}_{ranks}_{seconds:g}s_{number}", measure)
                every.append(figures)
                speeds.append(figures["steps/s"])
            found[name].append((speeds[0], speeds[1]))
    lines = [
        *source(every, f"{rounds} rounds of {seconds:g} s; medians, and the ratio of each round"),
        *paragraph("*A slow rank.*"),
        "",
        "| environment | one rank alone, steps/s | expected of two | measured | measured / expected |",
        "|---|---|---|---|---|",
    ]
    for name, case in CASES.items():
        alone, two = (statistics.median(values) for values in zip(*found[name], strict=True))
        ratios = ", ".join(f"{b / (2 * a):.2f}" for a, b in found[name])
        lines.append(
            f"| {case.what} | {alone:.0f} | {2 * alone:.0f} | {two:.0f} | {two / (2 * alone):.2f} ({ratios}) |"
        )
    lines += [
        "",
        "In the last row the expectation does not hold: what is lost there is what running ahead is worth.",
    ]
    return "A rank with a slow environment", lines


def torchrun(kept: Kept, rounds: int, seconds: float) -> tuple[str, list[str]]:
    """Heading and lines of the section on one rank under torchrun."""
    words, every = ("minatar/breakout", "--stop.env-steps", "1G", "--stop.seconds", str(WARM_UP_S + seconds)), []
    pairs = []
    for number in range(rounds):
        speeds = {}
        for under in (True, False) if number % 2 else (False, True):

            def measure(run_dir: Path, under: bool = under) -> Figures:
                train(1, words, run_dir, torchrun=under)
                return speed(run_dir)

            figures = kept.get(f"torchrun_{'with' if under else 'without'}_{seconds:g}s_{number}", measure)
            every.append(figures)
            speeds[under] = figures["steps/s"]
        pairs.append((speeds[False], speeds[True]))
    without, under = (statistics.median(values) for values in zip(*pairs, strict=True))
    ratios = [b / a for a, b in pairs]
    ratio = statistics.median(ratios)
    return "One rank under torchrun", [
        *source(every, f"{rounds} pairs of runs of {seconds:g} s, in changing order"),
        "`minatar/breakout`. With `--nproc-per-node 1` the group of processes is not formed.",
        "",
        "| without torchrun, steps/s | with | ratio, median of the pairs (each) |",
        "|---|---|---|",
        f"| {without:.0f} | {under:.0f} | {ratio:.3f} ({', '.join(f'{r:.3f}' for r in ratios)}) |",
        "",
        f"The bar is {BAR}: {'reached' if ratio >= BAR else 'MISSED'}.",
    ]


def breakout(kept: Kept, rounds: int, seconds: float) -> tuple[str, list[str]]:
    """Heading and lines of the section on Breakout; `rounds` seeds, at most `seconds` of training each."""
    every, table = [], []
    runs: dict[str, list[Figures]] = {name: [] for name in JOBS}
    for seed in SEEDS[:rounds]:
        for name, (_, ranks, flags) in JOBS.items():

            def measure(run_dir: Path, seed: int = seed, ranks: int = ranks, flags: tuple = flags) -> Figures:
                stop = ("--stop.target-return", str(SCORE), "--stop.seconds", str(seconds), "--run.seed", str(seed))
                spent = train(ranks, (*BREAKOUT, *flags, *stop), run_dir, torchrun=ranks > 1)
                rows = read_rows(run_dir)
                last = rows[-1]
                rate = median_speed([row for row in rows if row["seconds"] >= WARM_UP_S])
                reached = (last.get("charts/episodic_return") or 0.0) >= SCORE
                return {"reached": reached, "seconds": spent, "steps": last["env_steps"], "steps/s": rate}

            figures = kept.get(f"breakout_{name}_{seconds:g}s_{seed}", measure)
            every.append(figures)
            runs[name].append(figures)
    for name, (what, _, _) in JOBS.items():
        middle = {key: statistics.median(run[key] for run in runs[name]) for key in ("seconds", "steps", "steps/s")}
        each = "; ".join(
            f"{run['steps'] / 1e3:.0f}k, {run['seconds']:.0f} s{'' if run['reached'] else ' NOT REACHED'}"
            for run in runs[name]
        )
        table.append(
            f"| {what} | {middle['steps'] / 1e3:.0f}k | {middle['seconds']:.0f} | {middle['steps/s']:.0f} | {each} |"
        )
    return f"Breakout to a return of {SCORE:g}", [
        *source(every, f"seeds {', '.join(map(str, SEEDS[:rounds]))}; medians; seconds from the command to its end"),
        "`minatar/breakout`. Steps are those of both ranks. On a machine with as many cores as one rank uses, two are "
        "not expected to be faster: each has half of the cores. What the larger batch costs in steps is what "
        "[the rules of the batch size](../../docs/distributed.md#batch-size) leave of it.",
        "",
        "| job | steps | seconds | steps/s | each seed |",
        "|---|---|---|---|---|",
        *table,
    ]


def source(every: Sequence[Figures], what: str) -> list[str]:
    """Lines on where the figures are from."""
    machines, dates = (" and ".join(sorted({str(one[key]) for one in every})) for key in ("machine", "date"))
    highest = max(one["load"] for one in every)
    busy = "; on a busy machine speeds are too low" if highest > 1 else ""
    load = f"Highest load average before a run: {highest:.1f}{busy}."
    return [f"`python benchmarks/learners.py`, {machines}, {dates}; {what}. {load}", ""]


def paragraph(beginning: str) -> list[str]:
    """The paragraph of this file's docstring that begins so, without its title."""
    (found,) = (text for text in (__doc__ or "").split("\n\n") if text.startswith(beginning))
    text = " ".join(found.removeprefix(beginning).split())
    return [text[:1].upper() + text[1:]]


PARTS = {
    "slow": (slow_rank, 3, 10.0),
    "torchrun": (torchrun, 5, 10.0),
    "breakout": (breakout, len(SEEDS), SCORE_LIMIT_S),
}
"""Name -> how it is measured, rounds or seeds, and seconds."""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("-o", "--output", type=Path, metavar="PAGE", help="put the sections into this page")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks/learners"), help="folder of the measurements")
    parser.add_argument("--only", default=",".join(PARTS), help=f"of {', '.join(PARTS)}")
    parser.add_argument("--rounds", type=int, default=0, help="rounds or seeds; 0: as many as each part has")
    parser.add_argument("--seconds", type=float, default=0.0, help="of a run, or at most to the score; 0: of each part")
    args = parser.parse_args()
    kept = Kept(args.out)
    print(this_machine(), flush=True)
    for name in args.only.split(","):
        part, rounds, seconds = PARTS[name]
        heading, lines = part(kept, args.rounds or rounds, args.seconds or seconds)
        body = "\n".join(lines)
        print(f"\n## {heading}\n\n{body}\n", flush=True)
        if args.output:
            page = args.output.read_text() if args.output.exists() else TITLE
            args.output.write_text(with_section(page, heading, body))


if __name__ == "__main__":
    try:
        main()
    except RuntimeError as error:
        sys.exit(str(error))
