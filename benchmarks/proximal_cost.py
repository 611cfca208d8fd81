"""Measure the cost of each proximal policy: milliseconds per update, interleaved, medians.

    python benchmarks/proximal_cost.py

Trains repeatedly on one batch of MinAtar Breakout (the preset: 2,048 rows), collected in lockstep with a forced lag of
2: one update of every proximal policy after the other, on one thread as in the preset. Prints Markdown and writes
benchmarks/results/proximal_cost_table.md.
"""

from __future__ import annotations

import datetime
import os
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from sfactory.config import Config, with_settings
from sfactory.config.parsing import build
from sfactory.config.presets import target_layers
from sfactory.envs import make_spec
from sfactory.learning.batch import Batch
from sfactory.learning.network import build_model
from sfactory.learning.update import Update
from sfactory.supervisor.lockstep import Lockstep
from sfactory.workers.shared import RunSpec

ROUNDS = 25
SHAPES = {"4 epochs x 8 minibatches": (4, 8), "1 epoch x 8 minibatches": (1, 8), "1 epoch x 1 minibatch": (1, 1)}
PROXIMALS = {
    "behavior": dict(proximal="behavior", surrogate="ppo"),
    "recompute": dict(proximal="recompute"),
    "interpolate (A-3PO)": dict(proximal="interpolate"),
    "ewma": dict(proximal="ewma"),
    "snapshot of 2 updates ago": dict(proximal="snapshot", snapshot_age=2),
    "snapshot of the acting version": dict(proximal="snapshot", snapshot_age=0),
}


def make_batch(config: Config) -> tuple[RunSpec, Batch]:
    """The batch of the learner's fourth update."""
    config = replace(config, run=replace(config.run, mode="lockstep"), batch=replace(config.batch, forced_lag=2))
    run_spec = RunSpec(config, make_spec(config.env.name, config.env.options), tempfile.mkdtemp(), 0)
    run, seen = Lockstep(run_spec), []
    update = run.learner.update.run

    def spy(batch: Batch, updates: int, progress: float) -> dict[str, torch.Tensor]:
        seen.append(batch)
        return update(batch, updates, progress)

    run.learner.update.run = spy  # type: ignore[method-assign]
    while len(seen) < 4:
        run.turn()
    run.close()
    return run_spec, seen[-1]


def main() -> None:
    torch.set_num_threads(1)
    base = build(*target_layers("minatar/breakout"))
    run_spec, batch = make_batch(base)
    page = [
        f"`python benchmarks/proximal_cost.py`, {datetime.date.today()}, one thread of {os.cpu_count()} cores, "
        f"MinAtar Breakout, {base.batch_rows:,} rows per update, median of {ROUNDS} interleaved updates.", "",
        "| proximal policy | " + " | ".join(f"{name}: ms | over recompute" for name in SHAPES) + " |",
        "|---|" + "---|---|" * len(SHAPES),
    ]  # fmt: skip
    times: dict[tuple[str, str], float] = {}
    for shape, (epochs, minibatches) in SHAPES.items():
        updates = {}
        for name, learning in PROXIMALS.items():
            settings = {"epochs": epochs, "minibatches": minibatches, **learning}
            config = with_settings(base, {f"learning.{name}": value for name, value in settings.items()})
            config = replace(config, optim=replace(base.optim, lr=1e-5))
            updates[name] = Update(config, build_model(run_spec.config, run_spec.spec), torch.device("cpu"))
        taken: dict[str, list[float]] = {name: [] for name in updates}
        for number in range(ROUNDS + 4):  # the first four are warm-up: they fill rings and caches
            for name, update in updates.items():
                started = time.perf_counter()
                update.run(batch, number, 0.0)
                taken[name].append(time.perf_counter() - started)
        times |= {(name, shape): 1000 * float(np.median(found[4:])) for name, found in taken.items()}
    for name in PROXIMALS:
        cells = []
        for shape in SHAPES:
            ratio = times[name, shape] / times["recompute", shape] - 1
            cells.append(f"{times[name, shape]:.1f} | {100 * ratio:+.0f} %")
        page.append(f"| {name} | " + " | ".join(cells) + " |")
    (Path(__file__).parent / "results" / "proximal_cost_table.md").write_text("\n".join([*page, ""]))
    print("\n".join(page))


if __name__ == "__main__":
    main()
