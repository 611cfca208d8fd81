"""Measure the return against the reuse of stale data (`replay.ratio`), with and without a correction for its age.

    python benchmarks/replay.py                            # all tasks; can be interrupted and continued
    python benchmarks/replay.py --only short_breakout --seeds 1
    python benchmarks/replay.py --report                   # table of the finished runs

Every run is lockstep: fresh data have lag 0, and the lag of replayed data is their age. All runs of a task have equally
many *fresh* env steps. With ratio r every row is trained on 1 + r times in the mean. "larger steps": the preset's
number of optimizer steps, 1 + r times as large; "more steps": 1 + r times as many, of the preset's size. Writes
benchmarks/results/replay_tables.md, and the curves of finished runs to replay_scores.csv beside it.
"""

from __future__ import annotations

import datetime
import os
from pathlib import Path

from grid import Cell, Score, arguments, chosen_cells, finished_seeds, run, score, show
from scores import Scores

HERE = Path(__file__).parent
RATIOS = (0, 1, 3)
MAX_AGE = 4
BASES = {"minatar/breakout": "breakout.toml"}
TASKS = {  # preset, its minibatches, fresh env steps, further flags
    "short_breakout": ("minatar/breakout", 8, 200_000, "--log.every-updates 4"),
    "breakout": ("minatar/breakout", 8, 500_000, "--log.every-updates 4"),
    "hopper": ("mujoco/hopper", 8, 500_000, "--log.every-updates 4"),
}
CORRECTIONS = {
    "decoupled": ("decoupled PPO, behavior weight", ""),
    "none": ("PPO around recent weights, no behavior weight",
             "--surrogate.objective ppo --proximal.policy recompute --surrogate.behavior-weight none"),
}  # fmt: skip
STEPS = {"larger": "larger steps", "more": "more steps"}


def cells() -> dict[tuple[str, str, str, int], Cell]:
    """Return (task, correction, steps, ratio) -> cell. Without replay all of them agree: the data have lag 0."""
    found = {}
    for task, (target, minibatches, length, shared) in TASKS.items():
        for correction, (_, words) in CORRECTIONS.items():
            for kind in STEPS:
                for ratio in RATIOS:
                    if not ratio:
                        cell = Cell(
                            f"replay/{task}_0", target, tuple(shared.split()), length, base=BASES.get(target, "")
                        )
                    else:
                        count = minibatches * (1 + ratio) if kind == "more" else minibatches
                        replay = ("--replay.ratio", str(ratio), "--replay.max-age", str(MAX_AGE))
                        flags = (*shared.split(), *words.split(), *replay, "--batch.minibatches", str(count))
                        cell = Cell(f"replay/{task}_{correction}_{kind}_{ratio}", target, flags, length,
                                    base=BASES.get(target, ""))  # fmt: skip
                    found[task, correction, kind, ratio] = cell
    return found


def table(task: str, scores: dict[tuple[str, str, str, int], Score], what: str, digits: int) -> list[str]:
    """Return a Markdown table: a row per correction and kind of steps, a column per reuse."""
    head = ["correction", "optimizer steps", *(f"reuse {1 + ratio}" for ratio in RATIOS)]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for correction, (label, _) in CORRECTIONS.items():
        for kind, name in STEPS.items():
            row = [scores.get((task, correction, kind, ratio)) for ratio in RATIOS]
            shown = [show(s.interval(getattr(s, what)), digits) if s else "not run" for s in row]
            lines.append("| " + " | ".join([label, name, *shown]) + " |")
    return lines


def main() -> None:
    options = arguments(__doc__.splitlines()[0], "replay_scores.csv")
    grid, kept = cells(), Scores(options.scores)
    if not options.report:
        took = run(chosen_cells(grid.values(), options.only), kept, options.out, options.seeds, options.jobs)
        print(f"{took / 60:.1f} minutes with {options.jobs} jobs")
    page = [
        f"`python benchmarks/replay.py`, {datetime.date.today()}, {os.cpu_count()} cores; interquartile mean over "
        "seeds (95 % bootstrap interval).", "",
    ]  # fmt: skip
    for task, (target, _, length, flags) in TASKS.items():
        of_task = {key: cell for key, cell in grid.items() if key[0] == task}
        there = {key: finished_seeds(cell, kept, options.seeds) for key, cell in of_task.items()}
        seeds = min((count for count in there.values() if count), default=0)
        if not seeds:
            continue
        found = {key: score(of_task[key], kept, seeds) for key, count in there.items() if count}
        scores = {key: value for key, value in found.items() if value is not None}
        digits = 0 if task == "hopper" else 1
        page += [f"## {target}, {length:,} fresh steps per run, seeds: {seeds}", "", f"`{flags}`", ""]
        page += ["Training return, mean over the whole run:", "", *table(task, scores, "area", digits), ""]
        page += ["Last tenth of the run:", "", *table(task, scores, "final", digits), ""]
    (HERE / "results" / "replay_tables.md").write_text("\n".join(page))
    print("\n".join(page))


if __name__ == "__main__":
    main()
