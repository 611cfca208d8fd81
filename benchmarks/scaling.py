"""Steps per second against samplers, environments and batch, as a table and a picture.

    python benchmarks/scaling.py minatar/breakout --seconds 5 --rounds 2 -o benchmarks/results/scaling_breakout

One pass over the data, so that the samplers and not the epochs are what is measured. Rounds are interleaved; the
picture has the median and every single run.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path
from typing import Any

from sfactory.config import Config, parsing, presets, with_settings
from sfactory.tools.bench import BenchFailed, machine, trial

AXES: dict[str, list[dict[str, Any]]] = {
    "samplers (2 groups of 32 environments each)": [
        {"sampling.num_samplers": n, "sampling.envs_per_group": 32} for n in (1, 2, 3, 4)
    ],
    "environments per group (2 groups, rollouts of 32)": [
        {"sampling.envs_per_group": n} for n in (4, 16, 64, 256)
    ],
    "rows per update (2 groups of 64 environments)": [
        {"sampling.envs_per_group": 64, "sampling.rollout_length": n} for n in (4, 16, 64, 256)
    ],
}


def place(config: Config, axis: str) -> int:
    s = config.sampling
    return {"s": s.num_samplers, "e": s.envs_per_group, "r": config.batch_rows}[axis[0]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target")
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("-o", type=Path, default=Path("scaling"))
    args = parser.parse_args()
    once = {"batch.epochs": 1, "batch.minibatches": 1, "sampling.rollout_length": 32}
    base = with_settings(parsing.build(*presets.target_layers(args.target), {}), once)
    found: dict[str, dict[int, list[float]]] = {axis: {} for axis in AXES}
    for _ in range(args.rounds):
        for axis, points in AXES.items():
            for point in points:
                config = with_settings(base, point)
                try:
                    speed = trial(config, args.seconds).steps_per_second
                except BenchFailed as error:
                    print(f"{axis}, {point}: {error}")
                    continue
                found[axis].setdefault(place(config, axis), []).append(speed)
    for axis, points_ in found.items():
        print(f"\n| {axis} | steps/s, median (runs) |\n|---|---|")
        for x, speeds in points_.items():
            print(f"| {x} | {statistics.median(speeds):,.0f} ({', '.join(f'{y:,.0f}' for y in speeds)}) |")
    draw(args.target, found, args.o)


def draw(target: str, found: dict[str, dict[int, list[float]]], out: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, len(found), figsize=(12, 3.6), sharey=True, layout="constrained")
    for panel, (axis, points) in zip(panels, found.items(), strict=True):
        panel.plot(list(points), [statistics.median(y) / 1000 for y in points.values()], "-", color="#0072b2", lw=2)
        for x, speeds in points.items():
            panel.plot([x] * len(speeds), [y / 1000 for y in speeds], "o", color="#0072b2", ms=4, alpha=0.6)
        panel.set_xscale("log", base=2)
        panel.set_xticks(list(points), [f"{x:,}" for x in points])
        panel.minorticks_off()
        panel.set_xlabel(axis)
        panel.grid(axis="y", alpha=0.3)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("thousand steps/s")
    fastest = max(y for points in found.values() for speeds in points.values() for y in speeds)
    panels[0].set_ylim(0, 1.05 * fastest / 1000)
    m = machine()
    figure.suptitle(f"{target}: one pass over the data, {m['cores']} cores, {m['cpu']}", fontsize=10)
    for suffix in (".png", ".svg"):
        figure.savefig(out.with_suffix(suffix), dpi=130)
        print(out.with_suffix(suffix))


if __name__ == "__main__":
    main()
