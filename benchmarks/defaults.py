"""Compare candidates for the defaults with the presets as they are, over a suite of tasks.

    python benchmarks/defaults.py --seeds 3                    # hours; can be interrupted and continued
    python benchmarks/defaults.py --only adam_rel --seeds 3    # one candidate on all tasks; the presets must be there
    python benchmarks/defaults.py --only _default --seeds 3    # the presets
    python benchmarks/defaults.py --only asterix_default,asterix_adam_rel --seeds 3
    python benchmarks/defaults.py --report                     # tables of the finished runs

Every run is lockstep with a forced lag of one update, the least that data of an async run have: the result does not
depend on the load of the machine. A candidate is the preset with one thing changed, with the same seeds. It becomes the
default if it is better on the suite (the probability that a run with it scores higher than one without has an interval
above one half) and worse on no task (intervals below one half). Seconds are those of a run beside others on the same
machine: candidates that cost time are read at the seconds of the preset as well. HL-Gauss has normalized value targets
too, the units of its bins: compare it with their row. Average pooling is missing: no task here has the encoder impala.
Writes benchmarks/results/defaults_tables.md, and the curves of finished runs to defaults_scores.csv there.
"""

from __future__ import annotations

import datetime
import os
from typing import NamedTuple

import numpy as np
from grid import RESULTS, Cell, Run, finished_seeds, measure
from scores import Curve, Scores

from sfactory.config import Config
from sfactory.config.flags import split_flags
from sfactory.config.parsing import build
from sfactory.config.presets import target_layers
from sfactory.device.machine import processor
from sfactory.monitor.statistics import improvement_interval, iqm, probability_of_improvement

TASKS = {  # target -> steps
    "minatar/breakout": 1_000_000,
    "minatar/asterix": 1_000_000,
    "minatar/space_invaders": 1_000_000,
    "minatar/freeway": 1_000_000,
    "minatar/seaquest": 1_000_000,
    "classic/cartpole": 150_000,
    "mujoco/hopper": 1_000_000,
    "mujoco/walker2d": 1_000_000,
    "mujoco/halfcheetah": 1_000_000,
    "mujoco/inverted_double_pendulum": 1_000_000,
    "mujoco/swimmer": 1_000_000,
    "mujoco/ant": 1_000_000,
}
DEFAULT = "default"
CANDIDATES = {
    DEFAULT: ("the presets", ""),
    "adam_rel": ("Adam-Rel", "--optim.adam-rel true"),
    "layer_norm": ("LayerNorm", "--model.layer-norm true"),
    "lambda_65": ("lambda 0.65", "--trace.trace-lambda 0.65"),
    "lambda_80": ("lambda 0.8", "--trace.trace-lambda 0.8"),
    "lambda_90": ("lambda 0.9", "--trace.trace-lambda 0.9"),
    "lambda_95": ("lambda 0.95", "--trace.trace-lambda 0.95"),
    "lambda_98": ("lambda 0.98", "--trace.trace-lambda 0.98"),
    "short": ("gamma 0.98, lambda 0.9", "--trace.gamma 0.98 --trace.trace-lambda 0.9"),
    "ewma": ("EWMA", "--proximal.policy ewma"),
    "vtrace_ewma": ("V-trace with EWMA", "--trace.estimator vtrace --proximal.policy ewma"),
    "value_targets": ("normalized value targets", "--normalize.value-targets true"),
    "hl_gauss": ("HL-Gauss", "--model.value-head hl_gauss --normalize.value-targets true"),
    "entropy_stays": ("entropy bonus stays", "--loss.entropy-final none"),
    "entropy": ("entropy bonus to 0", "--loss.entropy-final 0"),
    "wide": ("twice as wide", ""),
    "half_decay": ("rate to 0 in the second half", "--optim.schedule linear --optim.decay-share 0.5"),
    "late_decay": ("rate to 0 in the last tenth", "--optim.schedule linear --optim.decay-share 0.1"),
    "decay": ("rate to 0 over the run", "--optim.schedule linear --optim.decay-share 1"),
    "constant": ("constant rate", "--optim.schedule constant"),
    "long": ("rollouts of 256, 8 environments", "--sampling.rollout-length 256 --sampling.envs-per-group 4"),
}
ENOUGH_SEEDS = 3
"""With fewer seeds of a task an interval over seeds says nothing: that of one seed has no width."""
SHARED = "--batch.forced-lag 1 --log.every-updates 4"


class Pair(NamedTuple):
    """The runs of a candidate and of the preset on one task, with the same seeds."""

    candidate: list[Curve]
    default: list[Curve]


def cells() -> dict[tuple[str, str], Cell]:
    """(target, candidate) -> cell; without candidates that change nothing of a preset, or what another one changes."""
    found = {}
    for target, steps in TASKS.items():
        preset = settings(target, "")
        seen: list[Config] = []
        for name, (_, words) in CANDIDATES.items():
            if name == "wide":
                words = f"--model.hidden {','.join(str(2 * width) for width in preset.model.hidden)}"
            if (changed := settings(target, words)) in seen:
                continue
            seen.append(changed)
            label = f"defaults/{target.replace('/', '_')}_{name}"
            found[target, name] = Cell(label, target, tuple(f"{words} {SHARED}".split()), steps)
    return found


def settings(target: str, words: str) -> Config:
    """The settings of a preset with some flags."""
    return build(*target_layers(target), split_flags(words.split())[0])


def pairs(name: str, kept: Scores, seeds: int) -> dict[str, Pair]:
    """Target -> the runs of a candidate and of the preset, of the seeds that both have."""
    found, grid = {}, cells()
    for target in TASKS:
        if (target, name) not in grid:
            continue
        both = grid[target, name], grid[target, DEFAULT]
        common = min(finished_seeds(cell, kept, seeds) for cell in both)
        curves = [[Run(cell, seed, RESULTS).curve(kept) for seed in range(common)] for cell in both]
        if common:
            found[target] = Pair(*([one for one in own if one is not None] for own in curves))
    return found


def finals(pair: Pair, equal_time: bool) -> tuple[np.ndarray, np.ndarray]:
    """The last tenth of every run; equal_time: of the candidate's at the seconds at which the preset's were over."""
    limit = float(np.median([one.seconds for one in pair.default]))
    first = [one.at_seconds(limit) if equal_time else one.final for one in pair.candidate]
    return np.array(first), np.array([one.final for one in pair.default])


def verdict(low: float, high: float) -> str:
    """What an interval of the probability of improvement says."""
    return "better" if low > 0.5 else "worse" if high < 0.5 else "not distinguishable"


def row(name: str, found: dict[str, Pair], equal_time: bool) -> str:
    """The line of a candidate: its score by that of the preset on every task, and the verdict on the suite."""
    cells_of_row, both = [], {target: finals(pair, equal_time) for target, pair in found.items()}
    for target in TASKS:
        if target not in both:
            cells_of_row.append("")
            continue
        own, preset = both[target]
        word = verdict(*improvement_interval([own], [preset])) if len(own) >= ENOUGH_SEEDS else ""
        mark = {"better": " +", "worse": " -"}.get(word, "")
        cells_of_row.append(f"{iqm(own):.4g} / {iqm(preset):.4g}{mark}")
    own, preset = zip(*both.values(), strict=True)
    low, high = improvement_interval(own, preset)
    seconds = np.median([np.median([x.seconds for x in p.candidate]) / np.median([x.seconds for x in p.default])
                         for p in found.values()])  # fmt: skip
    higher, fewest = f"{probability_of_improvement(own, preset):.2f}", min(map(len, own))
    if fewest >= ENOUGH_SEEDS:
        cells_of_row += [f"{higher} ({low:.2f} to {high:.2f})", verdict(low, high)]
    else:
        cells_of_row += [higher, f"too few seeds: {fewest}"]
    return "| " + " | ".join([CANDIDATES[name][0], *cells_of_row, f"{seconds:.2f}"]) + " |"


def report(kept: Scores, seeds: int) -> list[str]:
    """The page."""
    head = ["candidate / preset", *TASKS, "runs that score higher", "on the suite", "seconds"]
    page = [
        "# Candidates for the defaults", "",
        f"`python benchmarks/defaults.py`, {datetime.date.today()}, {processor()}, {os.cpu_count()} cores. Lockstep, "
        "forced lag 1. Training return of the candidate / of the preset, interquartile mean over seeds. + and -: the "
        "probability that a run with the candidate scores higher than one without has a 95 % interval above or below "
        f"one half; tasks with fewer than {ENOUGH_SEEDS} seeds have no mark.", "",
    ]  # fmt: skip
    for equal_time, words in ((False, "last tenth of the run"), (True, "last tenth, at the seconds of the preset")):
        page += [f"## {words.capitalize()}", "", "| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
        for name in CANDIDATES:
            if name != DEFAULT and (found := pairs(name, kept, seeds)):
                page.append(row(name, found, equal_time))
        page.append("")
    return page


def main() -> None:
    measure(__doc__.splitlines()[0], "defaults", cells().values(), report)


if __name__ == "__main__":
    main()
