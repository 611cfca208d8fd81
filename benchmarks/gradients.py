"""Compare the policy gradient of every objective and correction, on stale data, with the on-policy gradient.

    python benchmarks/gradients.py [--steps 400000] [--batches 64] [--checkpoints 3]
                                   [--out DIR] [--only NAME] [--report]

A run of MinAtar Breakout (the preset, lockstep) is stopped. Its weights of 0, 1, 4, 8 and 16 updates ago then act,
without training, and every estimator computes the gradient of its first step from the same stale batches. The reference
is the gradient of uncorrected on-policy data of the same size from other seeds. The cosine measures the direction, the
ratio of norms the length; the row `on-policy again` shows the effect of noise alone.

Advantages are not normalized, value loss, entropy bonus and gradient clipping are off. Every objective has two rows:
"recompute", centered at the policy at the start of the update, where r is 1 in the first step, so that objectives whose
trust region is a function of r agree; and "behavior", centered at the data, as most were published. `bpo` takes the
value for the median, because the trained network has no median head.

Every cell (run, lag, row) is appended to DIR/.../cells.jsonl when it is finished, and skipped by the next call; the
trained weights are kept there too. Writes benchmarks/results/gradients_tables.md and gradients.svg / .png.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import tempfile
import time
from collections import deque
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from figures import save
from grid import SETTINGS_DIR
from torch import Tensor

from sfactory.algo.surrogates.options import USES, reads_proximal
from sfactory.algo.weight_rule import weight_conflict
from sfactory.config import Config, with_settings
from sfactory.config.parsing import build
from sfactory.config.presets import target_layers
from sfactory.envs import make_spec
from sfactory.learning.batch import Batch
from sfactory.learning.network import build_model
from sfactory.learning.update import Update
from sfactory.supervisor.lockstep import Lockstep
from sfactory.workers.shared import RunSpec

HERE = Path(__file__).parent
LAGS = (0, 1, 4, 8, 16)
BURN_IN = 12  # first batches of each policy, discarded: its state distribution needs a few episodes
AGAIN = "on-policy again"
Settings = dict[str, Any]
"""Setting -> value, of one estimator."""


def settings_of(
    objective: str = "decoupled",
    proximal: str = "recompute",
    weight: str = "surrogate",
    trace: str = "gae",
    **more: Any,
) -> Settings:
    return {
        "surrogate.objective": objective, "surrogate.behavior_weight": weight, "proximal.policy": proximal,
        "trace.estimator": trace, **{f"surrogate.{name}": value for name, value in more.items()},
    }  # fmt: skip


CORRECTIONS = {
    "no correction": settings_of("impala", weight="none"),
    "PPO around recent weights, no behavior weight": settings_of("ppo", weight="none"),
    "PPO around behavior": settings_of("ppo", "behavior"),
    "V-trace and IMPALA's policy gradient": settings_of("impala", weight="trace", trace="vtrace"),
    "decoupled PPO, recompute": settings_of(),
    "decoupled PPO, recompute, weight in the trace (V-trace)": settings_of(weight="trace", trace="vtrace"),
    "decoupled PPO, recompute, V-trace": settings_of(trace="vtrace"),
    "decoupled PPO, recompute, RBIS": settings_of(trace="rbis"),
    "decoupled PPO, recompute, truncated importance sampling": settings_of(trace="truncated_is"),
    "decoupled PPO, recompute, Recursive Retrace": settings_of(trace="recursive_retrace"),
    "decoupled PPO, recompute, weight twice": settings_of(weight="twice", trace="vtrace"),
    "decoupled PPO, EWMA": settings_of(proximal="ewma"),
    "decoupled PPO, A-3PO": settings_of(proximal="interpolate"),
    "CISPO": settings_of("cispo"),
}
"""Rows of the picture too."""


def objective_rows() -> dict[str, Settings]:
    """Two rows of every objective, where the weight rule accepts it and they differ, and rows of the masks."""
    rows: dict[str, Settings] = {}
    for objective in USES:
        for proximal in ("recompute", "behavior"):
            differs = proximal == "recompute" or reads_proximal(objective, "none", "surrogate")
            if differs and weight_conflict("gae", proximal, objective, "surrogate") is None:
                more = {"median_head": False} if objective == "bpo" else {}
                rows[f"{objective}, {proximal}"] = settings_of(objective, proximal, **more)
    rows["decoupled, recompute, mask m2po"] = settings_of(mask="m2po")
    rows["decoupled, behavior, mask erc"] = settings_of(proximal="behavior", mask="erc")
    return rows


ESTIMATORS = {**CORRECTIONS, **objective_rows()}


class Cell(NamedTuple):
    """One result: an estimator at one lag in one run."""

    run: int
    lag: int
    estimator: str


class Results:
    """Finished cells in a file, one line each: cosine and ratio of norms."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.path = folder, folder / "cells.jsonl"
        self.found: dict[Cell, tuple[float, float]] = {}
        if self.path.exists():
            complete, _, _ = self.path.read_text().rpartition("\n")  # the last line may be half written
            self.path.write_text(complete + "\n" if complete else "")
            for run, lag, estimator, *values in map(json.loads, complete.splitlines()):
                self.found[Cell(run, lag, estimator)] = (values[0], values[1])

    def add(self, cell: Cell, values: tuple[float, float]) -> None:
        self.found[cell] = values
        with self.path.open("a") as file:
            file.write(json.dumps([*cell, *values]) + "\n")


class Clock:
    """Tells the remaining time from the mean time of the cells so far."""

    def __init__(self, cells: int) -> None:
        self.left, self.done, self.started = cells, 0, time.monotonic()

    def tick(self, cell: Cell) -> None:
        self.left, self.done = self.left - 1, self.done + 1
        minutes = (time.monotonic() - self.started) / self.done * self.left / 60
        print(f"run {cell.run}, lag {cell.lag}, {cell.estimator}: {self.left} left, {minutes:.0f} min", flush=True)


class BatchRecorder:
    """Replacement of `Update.run` that keeps a copy of every batch and trains nothing."""

    def __init__(self) -> None:
        self.batches: list[Batch] = []

    def __call__(self, batch: Batch, updates: int, progress: float) -> dict[str, Tensor]:
        def copied(x: object) -> object:
            return {k: v.clone() for k, v in x.items()} if isinstance(x, dict) else x.clone() if x is not None else None

        self.batches.append(Batch(*map(copied, batch)))
        return {"skipped": torch.zeros(()), "losses/policy_loss": torch.zeros(())}


def make_run_spec(seed: int, steps: int, **settings: object) -> RunSpec:
    config = build(*target_layers("minatar/breakout", [SETTINGS_DIR / "breakout.toml"]))
    config = with_settings(config, {"run.mode": "lockstep", "run.seed": seed, "stop.env_steps": steps, **settings})
    return RunSpec(config, make_spec(config.env.name, config.env.options), tempfile.mkdtemp(), 0)


class Frozen(NamedTuple):
    """A trained run."""

    kept: Tensor
    """[17, P] flat weights of the last versions, the newest last."""
    average: dict[str, Tensor]
    """State of the averaged policy."""


def train(seed: int, steps: int, folder: Path) -> Frozen:
    """A trained run, kept in the folder. With proximal.policy ewma, to have its average."""
    path = folder / f"run_{seed}.pt"
    if path.exists():
        return Frozen(**torch.load(path, weights_only=True))
    run = Lockstep(make_run_spec(seed, steps, **{"proximal.policy": "ewma"}))
    kept: deque[Tensor] = deque(maxlen=max(LAGS) + 1)
    while not run.learner.finished():
        if run.turn():
            weights = torch.empty(run.learner.model.flat_size())
            run.learner.model.write_flat(weights)
            kept.append(weights)
        run.sink.drain()
    average = {name: x.clone() for name, x in run.learner.update.objective.state_dict().items()}
    run.close()
    if len(kept) <= max(LAGS):
        raise SystemExit(f"--steps {steps} are {len(kept)} updates; {max(LAGS) + 1} or more are needed")
    frozen = Frozen(torch.stack(list(kept)), average)
    torch.save(frozen._asdict(), path)
    return frozen


def play(weights: Tensor, seed: int, batches: int) -> list[Batch]:
    """Batches of the environment under fixed weights, without the first BURN_IN."""
    run, recorder = Lockstep(make_run_spec(seed, 10**12)), BatchRecorder()
    run.learner.update.run = recorder  # type: ignore[method-assign]
    run.learner.model.read_flat(weights)
    while len(recorder.batches) < batches + BURN_IN:
        run.turn()
        run.sink.drain()
    run.close()
    return recorder.batches[BURN_IN:]


def gradient(config: Config, frozen: Frozen, batches: list[Batch], lag: int, settings: Settings) -> Tensor:
    """Mean gradient of the policy objective in all weights, at the trained weights."""
    config = replace(
        config,
        batch=replace(config.batch, epochs=1, minibatches=1),
        loss=replace(config.loss, value_coef=0.0, entropy_coef=0.0),
        optim=replace(config.optim, lr=1e-30, max_grad_norm=0.0),
        normalize=replace(config.normalize, advantage=False),
    )
    config = with_settings(config, settings)
    model = build_model(config, make_spec(config.env.name, config.env.options))
    model.read_flat(frozen.kept[-1])
    update, total = Update(config, model, torch.device("cpu")), torch.zeros(())
    parameters = list(model.parameters())
    for batch in batches:
        if config.proximal.policy == "ewma":
            update.objective.load_state_dict(frozen.average)
        update.run(batch._replace(lag=torch.full_like(batch.lag, lag)), 0, 0.0)
        total = total + torch.cat([torch.zeros(p.numel()) if p.grad is None else p.grad.flatten() for p in parameters])
    return total / len(batches)


def compare(one: Tensor, reference: Tensor) -> tuple[float, float]:
    """Cosine and ratio of norms."""
    cosine = float(torch.nn.functional.cosine_similarity(one, reference, dim=0))
    return cosine, float(one.norm() / reference.norm())


def measure(seed: int, steps: int, batches: int, results: Results, rows: dict[str, Settings], clock: Clock) -> None:
    """All cells of one run that are not there yet."""
    missing = [cell for cell in cells_of(seed, rows) if cell not in results.found]
    if not missing:
        return
    frozen, config = train(seed, steps, results.folder), make_run_spec(seed, steps).config
    on_policy, path = settings_of("impala", weight="none"), results.folder / f"reference_{seed}.pt"
    if not path.exists():
        newest = play(frozen.kept[-1], 77_000 + seed, 2 * batches)
        torch.save(gradient(config, frozen, newest, 0, on_policy), path)
    reference = torch.load(path, weights_only=True)
    for lag in LAGS:
        of_lag = [cell for cell in missing if cell.lag == lag]
        if not of_lag:
            continue
        data = play(frozen.kept[-1 - lag], 99_000 + 31 * lag + seed, batches)
        for cell in of_lag:
            if cell.estimator == AGAIN:  # other data of the newest policy
                again = play(frozen.kept[-1], 55_000 + seed, batches)
                found = gradient(config, frozen, again, 0, on_policy)
            else:
                found = gradient(config, frozen, data, lag, rows[cell.estimator])
            results.add(cell, compare(found, reference))
            clock.tick(cell)


def cells_of(seed: int, rows: dict[str, Settings]) -> list[Cell]:
    """Cells of one run: every row at every lag, and the noise ceiling at lag 0, which is the same at all lags."""
    return [Cell(seed, lag, row) for lag in LAGS for row in rows] + [Cell(seed, 0, AGAIN)]


def table(results: Results, seeds: list[int], rows: list[str], what: int) -> list[str]:
    """Lines of a table with mean, lowest and highest value over the runs."""
    lines = ["| estimator | " + " | ".join(f"lag {lag}" for lag in LAGS) + " |", "|---|" + "---|" * len(LAGS)]
    for row in [*rows, AGAIN]:
        texts = []
        for lag in LAGS:
            cells = [Cell(seed, 0 if row == AGAIN else lag, row) for seed in seeds]
            v = np.array([results.found[cell][what] for cell in cells])
            texts.append(f"{v.mean():.2f} ({v.min():.2f} to {v.max():.2f})")
        lines.append(f"| {row} | " + " | ".join(texts) + " |")
    return lines


def plot(results: Results, seeds: list[int]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(12, 4.6))
    for what, axis in enumerate(axes):
        for number, name in enumerate([*CORRECTIONS, AGAIN]):
            cells = [[Cell(seed, 0 if name == AGAIN else lag, name) for lag in LAGS] for seed in seeds]
            values = np.array([[results.found[cell][what] for cell in row] for row in cells])
            style, color = ("--", "black") if name == AGAIN else ("-", plt.get_cmap("tab20")(number))
            axis.plot(range(len(LAGS)), values.mean(0), style, marker="o", label=name, color=color)
        axis.set_xticks(range(len(LAGS)), [str(lag) for lag in LAGS])
        title = ("cosine with the on-policy gradient", "norm over the on-policy norm")[what]
        axis.set(xlabel="lag (updates)", title=title)
        axis.grid(alpha=0.3)
    axes[1].legend(fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    save(figure, "gradients")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=400_000, help="env steps before the run is stopped")
    parser.add_argument("--batches", type=int, default=64, help="stale batches of 2,048 rows per estimator")
    parser.add_argument("--checkpoints", type=int, default=3, help="number of runs (seeds)")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks"), help="folder of the results")
    parser.add_argument("--only", default="", help="rows whose name contains this; writes no page")
    parser.add_argument("--report", action="store_true", help="compute nothing; page and picture of what is there")
    options = parser.parse_args()
    torch.set_num_threads(1)
    results = Results(options.out / f"gradients_{options.steps}_{options.batches}")
    seeds = [1 + 1000 * number for number in range(options.checkpoints)]
    rows = {name: settings for name, settings in ESTIMATORS.items() if options.only in name}
    if not options.report:
        missing = sum(cell not in results.found for seed in seeds for cell in cells_of(seed, rows))
        print(f"{missing} cells to compute, {len(results.found)} are in {results.path}", flush=True)
        clock = Clock(missing)
        for seed in seeds:
            measure(seed, options.steps, options.batches, results, rows, clock)
    if options.only:
        return
    page = [
        "# Gradient quality on stale data", "",
        f"`python benchmarks/gradients.py --steps {options.steps} --batches {options.batches} --checkpoints "
        f"{options.checkpoints}`, {datetime.date.today()}, {os.cpu_count()} cores.", "",
        "![cosine and norm against lag](gradients.svg)", "",
    ]  # fmt: skip
    for heading, names in (("Corrections", list(CORRECTIONS)), ("Objectives", list(objective_rows()))):
        page += [f"## {heading}", ""]
        for what, title in enumerate(("Cosine with the on-policy gradient", "Norm over the on-policy norm")):
            page += [f"{title}: mean over {len(seeds)} frozen runs (lowest to highest)", ""]
            page += [*table(results, seeds, names, what), ""]
    (HERE / "results" / "gradients_tables.md").write_text("\n".join(page))
    plot(results, seeds)
    print("\n".join(page))


if __name__ == "__main__":
    main()
