"""Measure the cost of evaluation during training: pairs of runs with and without `--eval.every`.

    python benchmarks/evaluation_cost.py --target minatar/breakout --every 100000 --seconds 30 --pairs 3

Bound: less than 5 % of the training speed. Speed is steps per second of training after the first row (imports and the
first update are before it). Run it on an otherwise idle machine and check the spread of the pairs.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from sfactory.monitor.rows import read_rows

BOUND = 0.05


def speed(target: str, seconds: float, seed: int, flags: list[str], folder: Path) -> tuple[float, int]:
    """Return (steps per second, number of evaluations) of one run."""
    stop = ["--stop.seconds", str(seconds), "--stop.env-steps", "1000000000"]
    run = [*stop, "--log.every-seconds", "1", "--run.seed", str(seed)]
    command = [sys.executable, "-m", "sfactory", "train", target, *run, "--run.dir", str(folder), "--quiet", *flags]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    rows = read_rows(folder)
    first, last = rows[0], rows[-1]
    steps, time = last["env_steps"] - first["env_steps"], last["seconds"] - first["seconds"]
    return steps / time, sum("eval/env_steps" in row for row in rows)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--target", default="minatar/breakout")
    parser.add_argument("--every", type=int, default=100_000)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--pairs", type=int, default=3)
    args = parser.parse_args()
    load = os.getloadavg()[0]
    print(f"{os.cpu_count()} cores, load {load:.1f} at the start; {args.target}, {args.seconds:g} s per run")
    costs = []
    with tempfile.TemporaryDirectory() as root:
        for pair in range(args.pairs):
            without, _ = speed(args.target, args.seconds, pair, [], Path(root) / f"without-{pair}")
            flags = ["--eval.every", str(args.every)]
            with_, count = speed(args.target, args.seconds, pair, flags, Path(root) / f"with-{pair}")
            costs.append(1.0 - with_ / without)
            print(f"without {without:9,.0f} steps/s   with {with_:9,.0f}   {count} evaluations   cost {costs[-1]:+.1%}")
    print(f"median cost {np.median(costs):+.1%}, bound {BOUND:.0%}")


if __name__ == "__main__":
    main()
