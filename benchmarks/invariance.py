"""Test batch-size invariance: smaller and larger batches, with all rules and with each left out.

    python benchmarks/invariance.py --seeds 5
    python benchmarks/invariance.py --report

After Hilton et al. 2021 (arXiv 2110.00641), figure 2: CartPole, decoupled PPO with an EWMA proximal policy, one
epoch, lockstep with a forced lag so that the trust region binds. The theory assumes many small steps: the reference
takes 2,000 updates with a small learning rate, and gradients are not limited in their norm, because the norm depends on
the batch. The batch changes through the number of environments. Writes benchmarks/results/invariance_tables.md and
invariance.svg / .png, and the curves of finished runs to invariance_scores.csv there.
"""

from __future__ import annotations

import datetime
import math
import os
from collections.abc import Callable

import numpy as np
from figures import save
from grid import Cell, Score, finished_seeds, measure, score, show
from scores import BLOCKS, Scores

from sfactory.device.machine import processor
from sfactory.monitor.statistics import bootstrap, iqm

TARGET, STEPS = "classic/cartpole", 512_000
SMALLER, LARGER = (4, 16), 0.25
REFERENCE = {
    "sampling.num_samplers": 1, "sampling.groups_per_sampler": 1, "sampling.envs_per_group": 32,
    "sampling.rollout_length": 8, "batch.epochs": 1, "batch.minibatches": 2, "batch.shuffle": "rows",
    "batch.forced_lag": 4, "trace.gamma": 0.99, "trace.trace_lambda": 0.95, "loss.entropy_coef": 0.01,
    "surrogate.clip": 0.05, "proximal.policy": "ewma", "proximal.center_of_mass": 16.0, "optim.lr": 4e-4,
    "optim.eps": 1e-8, "optim.beta1": 0.9, "optim.beta2": 0.999, "optim.schedule": "constant", "optim.max_grad_norm": 0,
    "normalize.advantage_span": 16.0, "env.reward_scale": 0.1,
}  # fmt: skip
Change = Callable[[float, float], float]

# What stands against a rule beforehand, so that after the rule the setting is what it was: c -> value before.
LEFT_OUT: dict[str, dict[str, Change]] = {
    "without the learning rate": {"optim.lr": lambda x, c: x * math.sqrt(c)},
    "learning rate divided by c, not its root": {"optim.lr": lambda x, c: x / math.sqrt(c)},
    "without Adam's betas": {"optim.beta1": lambda x, c: x**c, "optim.beta2": lambda x, c: x**c},
    "without the proximal average": {"proximal.center_of_mass": lambda x, c: x / c},
    "without the advantage span": {"normalize.advantage_span": lambda x, c: x / c},
}


def cells() -> dict[tuple[str, float], Cell]:
    """Return (variant, factor) -> cell; the reference is ("all rules", 1)."""
    found = {("all rules", 1.0): _cell("reference", REFERENCE, 1, "hilton")}
    for factor in (*SMALLER, LARGER):
        found["all rules", factor] = _cell("all", REFERENCE, factor, "hilton")
        found["no rule at all", factor] = _cell("none", REFERENCE, factor, "none")
    found["more minibatches", LARGER] = _cell("minibatches", REFERENCE, LARGER, "more_minibatches")
    smallest = max(SMALLER)  # the batch / 16
    for number, (variant, changes) in enumerate(LEFT_OUT.items()):
        values = {key: change(REFERENCE[key], smallest) for key, change in changes.items()}
        found[variant, smallest] = _cell(f"without_{number}", {**REFERENCE, **values}, smallest, "hilton")
    return found


def _cell(name: str, values: dict, factor: float, rule: str) -> Cell:
    flags = [word for key, value in values.items() for word in (f"--{key.replace('_', '-')}", str(value))]
    flags += ["--batch.factor", f"{factor:g}", "--batch.rule", rule]
    flags += ["--log.every-updates", str(round(20 * factor))]
    return Cell(f"invariance/{factor:g}_{name}", TARGET, tuple(flags), STEPS)


def picture(scores: dict[tuple[str, float], Score]) -> None:
    """Plot learning curves: the reference and all rules at every batch; each rule left out at the smallest."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(12, 4.4), sharey=True)
    at = (np.arange(BLOCKS) + 0.5) * STEPS / BLOCKS / 1000
    first = [key for key in scores if key[0] in ("all rules", "more minibatches")]
    second = [("all rules", 1), *(key for key in scores if key[1] == max(SMALLER))]
    for axis, keys, title in zip(axes, (first, second), ("all rules", f"batch / {max(SMALLER)}"), strict=True):
        for number, (variant, factor) in enumerate(keys):
            if (variant, factor) not in scores:
                continue
            label = "reference" if factor == 1 else f"{batch_of(factor)}, {variant}" if axis is axes[0] else variant
            color = "black" if factor == 1 else f"C{number}"
            axis.plot(at, scores[variant, factor].curves.mean(0), label=label, color=color)
        axis.set(title=title, xlabel="thousand env steps")
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8, frameon=False)
    axes[0].set_ylabel("training return")
    save(figure, "invariance")


def batch_of(factor: float) -> str:
    """The batch against that of the reference."""
    return "reference" if factor == 1 else f"/ {factor:g}" if factor > 1 else f"x {1 / factor:g}"


def share(values: np.ndarray, reference: np.ndarray) -> tuple[float, float, float]:
    """IQM of some runs over that of others, and its 95 % bootstrap interval: both are resampled."""

    def ratio(scores: np.ndarray, axis: int | None = None) -> np.ndarray:
        first, second = scores[..., : len(values)], scores[..., len(values) :]
        return np.asarray(iqm(first, axis) / iqm(second, axis))

    return float(iqm(values) / iqm(reference)), *bootstrap([values, reference], ratio)


def report(kept: Scores, seeds: int) -> list[str]:
    """The page; writes the picture. seeds: at most so many of each cell."""
    there = {key: finished_seeds(cell, kept, seeds) for key, cell in cells().items()}
    found = {key: score(cell, kept, there[key]) for key, cell in cells().items() if there[key]}
    scores = {key: value for key, value in found.items() if value is not None}
    flags = " ".join(f"--{k.replace('_', '-')} {v}" for k, v in REFERENCE.items())
    rows = REFERENCE["sampling.envs_per_group"] * REFERENCE["sampling.rollout_length"]
    page = [
        "# Batch-size invariance", "",
        f"`python benchmarks/invariance.py --seeds {seeds}`, {datetime.date.today()}, {processor()}, {os.cpu_count()} "
        f"cores; interquartile mean over seeds (95 % bootstrap interval), {STEPS:,} steps per run.", "",
        f"Reference, {rows} rows per update, {STEPS // rows:,} updates: `{TARGET} {flags}`", "",
        "![learning curves](invariance.svg)", "",
        "| batch | rules | seeds | mean over the run | of the reference | last tenth | clip fraction | seconds |",
        "|---" * 8 + "|",
    ]  # fmt: skip
    reference = scores.get(("all rules", 1))
    for (variant, factor), s in scores.items():
        clipped = f"{100 * s.extra['losses/clipfrac']:.1f} %"
        of_reference = show(share(s.area, reference.area), 2) if reference and factor != 1 else ""
        page.append(f"| {batch_of(factor)} | {variant} | {there[variant, factor]} | {show(s.interval(s.area))} | "
                    f"{of_reference} | {show(s.interval(s.final))} | {clipped} | {s.seconds:.0f} |")  # fmt: skip
    page += ["", "Seconds: median over seeds, one thread, beside another run and other programs."]
    if scores:
        picture(scores)
    return [*page, ""]


def main() -> None:
    measure(__doc__.splitlines()[0], "invariance", cells().values(), report)


if __name__ == "__main__":
    main()
