"""Measure which part of the gradients is signal along the reference run of invariance.py.

    python benchmarks/gradient_signal.py          # five minutes; prints a table for policy and value function

The rule of the learning rate, lr / sqrt(c) for a batch that is divided by c, holds where the gradient of a minibatch is
mostly noise: Adam divides by its root mean square, which then grows with sqrt(c). Where it is mostly signal the root
mean square stays, and c times as many steps of lr / sqrt(c) go sqrt(c) times as far. x = |mean|^2 / variance of the
gradients, summed over weights, says which of both it is. It is computed from the moments of Adam in the checkpoints:
for gradients of mean g and variance s^2, E m^2 = g^2 + s^2 (1 - beta1) / (1 + beta1) and E v = g^2 + s^2. The average
of v reaches back 1,000 steps, longer than the first interval, so early numbers are rough.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from grid import Run
from invariance import REFERENCE, cells

import sfactory
from sfactory.run.checkpoint import candidates
from sfactory.run.checkpoint_files import read

STEPS = 150_000
ENDS = (12_000, 25_000, 50_000, 72_000, STEPS)
"""Ends of the intervals of the table, in env steps."""
POLICY = ("trunk.", "policy_head.")
"""Names with which the weights of the policy begin; the rest is of the value function."""


def signal(moments: Sequence[tuple[np.ndarray, np.ndarray]], steps: int, betas: tuple[float, float]) -> float:
    """x of weights whose moments (m, v) Adam has after this many steps. Near 0, also below it: noise alone."""
    first, second = (1 - beta**steps for beta in betas)
    squares = sum(float((m.astype(float) ** 2).sum()) for m, _ in moments) / first**2
    mean_square = sum(float(v.astype(float).sum()) for _, v in moments) / second
    share, noise = squares / mean_square, (1 - betas[0]) / (1 + betas[0])
    return (share - noise) / (1 - share) if share < 1 else float("inf")


def of_checkpoint(names: Sequence[str], optimizer: Mapping[str, np.ndarray]) -> tuple[float, float] | None:
    """x of policy and value function; None before the first step. names: of the weights, in the optimizer's order."""
    if not optimizer:
        return None
    moments = [(optimizer[f"{i}.exp_avg"], optimizer[f"{i}.exp_avg_sq"]) for i in range(len(names))]
    steps, betas = int(optimizer["0.step"]), (REFERENCE["optim.beta1"], REFERENCE["optim.beta2"])
    both = ([x for x, name in zip(moments, names, strict=True) if name.startswith(POLICY) == policy]
            for policy in (True, False))  # fmt: skip
    policy, value = (signal(own, steps, betas) for own in both)
    return policy, value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    found: list[tuple[int, float, float]] = []
    with tempfile.TemporaryDirectory() as parent:
        run = Run(cells()["all rules", 1.0]._replace(steps=STEPS), 0, Path(parent) / "run")
        words = ["train", run.cell.target, *run.flags, "--run.seed", str(options.seed), "--run.dir", str(run.folder)]
        words += ["--checkpoint.every-seconds", "0.05", "--checkpoint.keep", "10000", "--quiet"]
        subprocess.run([sys.executable, "-m", "sfactory", *words], check=True, stderr=subprocess.DEVNULL)
        names = [name for name, _ in sfactory.load_policy(run.folder).model.named_parameters()]
        for path in candidates(run.folder):
            moments = read(path, ("optimizer",)).parts["optimizer"]
            both = of_checkpoint(names, {name: tensor.numpy() for name, tensor in moments.items()})
            if both is not None:
                found.append((int(path.name), *both))
    print("| env steps | checkpoints | policy: x | value function: x |", "|---" * 4 + "|", sep="\n")
    for start, end in zip((0, *ENDS), ENDS, strict=False):
        inside = [one[1:] for one in found if start < one[0] <= end]
        if inside:
            policy, value = np.median(inside, axis=0)
            print(f"| {start:,} to {end:,} | {len(inside)} | {policy:.2f} | {value:.2f} |")


if __name__ == "__main__":
    main()
