"""Does a quarter or a sixteenth of the batch learn the same? With all rules, and with each one left out.

    python benchmarks/invariance.py --seeds 5
    python benchmarks/invariance.py --report

After Hilton et al. 2021 (arXiv 2110.00641), figure 2: CartPole, decoupled PPO with an EWMA proximal policy, one
epoch, lockstep with a forced lag so that the trust region binds. The batch shrinks through the number of environments.
Writes benchmarks/results/invariance_tables.md and invariance.svg / .png.
"""

from __future__ import annotations

import datetime
import math
import os
from pathlib import Path

import numpy as np
from grid import POINTS, Cell, arguments, curve, run, score, show

HERE = Path(__file__).parent
TARGET, STEPS, FACTORS = "classic/cartpole", 102_400, (4, 16)
REFERENCE = {
    "sampling.envs_per_group": 16, "sampling.rollout_length": 32, "batch.epochs": 1, "batch.minibatches": 2,
    "trace.gamma": 0.99, "trace.trace_lambda": 0.95, "loss.entropy_coef": 0.01, "surrogate.clip": 0.2,
    "proximal.policy": "ewma", "proximal.center_of_mass": 2.0, "batch.forced_lag": 2,
    "optim.lr": 2.5e-3, "optim.eps": 1e-8, "optim.beta1": 0.9, "optim.beta2": 0.999, "optim.schedule": "constant",
    "normalize.advantage_span": 1.0, "env.reward_scale": 0.1,
}  # fmt: skip

# What stands against a rule beforehand, so that after the rule the setting is what it was: c -> value before.
LEFT_OUT = {
    "all rules": {},
    "without the learning rate": {"optim.lr": lambda x, c: x * math.sqrt(c)},
    "learning rate divided by c, not its root": {"optim.lr": lambda x, c: x / math.sqrt(c)},
    "without Adam's betas": {"optim.beta1": lambda x, c: x**c, "optim.beta2": lambda x, c: x**c},
    "without the proximal average": {"proximal.center_of_mass": lambda x, c: x / c},
    "without the advantage span": {"normalize.advantage_span": lambda x, c: x / c},
}
LEFT_OUT["no rule at all"] = {key: change for rules in list(LEFT_OUT.values()) for key, change in rules.items()}
LEFT_OUT["no rule at all"]["optim.lr"] = LEFT_OUT["without the learning rate"]["optim.lr"]


def cells() -> dict[tuple[str, int], Cell]:
    """(variant, factor) -> cell; the reference is ("all rules", 1)."""
    found = {}
    for factor in (1, *FACTORS):
        for number, (variant, changes) in enumerate(LEFT_OUT.items()):
            if factor == 1 and number:
                continue
            values = dict(REFERENCE) | {key: change(REFERENCE[key], factor) for key, change in changes.items()}
            words = [w for k, v in values.items() for w in (f"--{k.replace('_', '-')}", str(v))]
            words += ["--batch.factor", str(factor), "--log.every-updates", str(2 * factor)]
            found[variant, factor] = Cell(f"invariance/{factor}_{number}", TARGET, tuple(words), STEPS)
    return found


def picture(out: Path, seeds: int, scores: dict) -> None:
    """Learning curves: all rules against none, and every left-out rule."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(FACTORS), figsize=(12, 4.4), sharey=True)
    at = np.linspace(STEPS / POINTS, STEPS, POINTS)
    for axis, factor in zip(axes, FACTORS, strict=True):
        for number, variant in enumerate(["reference", *LEFT_OUT]):
            key = ("all rules", 1) if variant == "reference" else (variant, factor)
            if key not in scores:
                continue
            curves = np.stack([curve(out / cells()[key].name / str(seed), STEPS) for seed in range(seeds)])
            color = "black" if variant == "reference" else f"C{number}"
            axis.plot(at / 1000, curves.mean(0), label=variant, color=color, linewidth=2 if number < 2 else 1)
        axis.set(title=f"batch / {factor}", xlabel="thousand env steps")
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("training return")
    axes[-1].legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    figure.tight_layout()
    for kind in ("svg", "png"):
        figure.savefig(HERE / "results" / f"invariance.{kind}", dpi=110)


def main() -> None:
    options = arguments(__doc__.splitlines()[0])
    grid = cells()
    if not options.report:
        took = run([c for c in grid.values() if options.only in c.name], options.out, options.seeds, options.jobs)
        print(f"{took / 60:.1f} minutes with {options.jobs} jobs")
    found = {key: score(cell, options.out, options.seeds) for key, cell in grid.items()}
    scores = {key: value for key, value in found.items() if value is not None}
    flags = " ".join(f"--{k.replace('_', '-')} {v}" for k, v in REFERENCE.items())
    page = [
        "# Batch-size invariance", "",
        f"`python benchmarks/invariance.py --seeds {options.seeds}`, {datetime.date.today()}, {os.cpu_count()} cores, "
        f"{options.seeds} seeds, interquartile mean (95 % bootstrap interval), {STEPS:,} steps per run.", "",
        f"Reference, 1,024 rows per update: `{TARGET} {flags}`", "", "![learning curves](invariance.svg)", "",
        "| batch | rules | mean over the run | last tenth | clip fraction |", "|---|---|---|---|---|",
    ]  # fmt: skip
    for (variant, factor), s in scores.items():
        batch = "reference" if factor == 1 else f"/ {factor}"
        clipped = f"{100 * s.extra['losses/clipfrac']:.1f} %"
        page.append(f"| {batch} | {variant} | {show(s.interval(s.area))} | {show(s.interval(s.final))} | {clipped} |")
    (HERE / "results" / "invariance_tables.md").write_text("\n".join([*page, ""]))
    picture(options.out, options.seeds, scores)
    print("\n".join(page))


if __name__ == "__main__":
    main()
