"""The settings that staleness.py compares: tasks, corrections, objectives with their knobs, options, rates.

To add an objective, add one line to `OBJECTIVES`: its name in `surrogate.objective`, its label, its flags, its knob and
three values of it. tests/benchmarks/test_staleness.py checks that every objective has a line and every flag is known.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from grid import Cell


class Task(NamedTuple):
    target: str
    steps: int
    lags: tuple[int, ...]
    """Of the corrections."""
    short_lags: tuple[int, ...]
    """Of the objectives, which have three settings each."""
    lr: float
    flags: str
    tuning_steps: int = 0
    tuning_seeds: int = 0
    """Length and number of the runs that choose the setting of an objective; 0: objectives are not compared."""
    tuning_lags: tuple[int, ...] = ()
    """Where they choose; another lag takes the setting of the nearest of these."""
    base: str = ""
    """As in `Cell`."""

    def cell(self, name: str, flags: str | Sequence[str], steps: int = 0, first_seed: int = 0) -> Cell:
        """A cell of this task; steps: if they are not those of the task."""
        words = flags.split() if isinstance(flags, str) else flags
        return Cell(name, self.target, tuple(words), steps or self.steps, first_seed, base=self.base)


TASKS = {
    # The set-up of the batch size-invariance pilot: 1,024 rows per update, 8 minibatches, one epoch.
    "cartpole": Task("classic/cartpole", 102_400, (0, 1, 2, 4, 8, 16), (0, 4, 16), 2.5e-3, """
        --sampling.envs-per-group 8 --sampling.rollout-length 64 --batch.epochs 1 --batch.minibatches 8
        --trace.gamma 0.99 --trace.trace-lambda 0.95 --loss.entropy-coef 0.01 --surrogate.clip 0.2
        --optim.lr 2.5e-3 --env.reward-scale 0.1 --log.every-updates 2
    """, tuning_steps=102_400, tuning_seeds=2, tuning_lags=(0, 4, 16)),
    # 4 epochs, as the preset: with one epoch it does not leave the plateau near 6 within 1.5M steps.
    "breakout": Task("minatar/breakout", 500_000, (0, 2, 8), (0, 2, 8), 2e-3, "--log.every-updates 4",
                     tuning_steps=250_000, tuning_seeds=1, tuning_lags=(0, 8), base="breakout.toml"),
    # What the bar at lag 8 is about.
    "long_breakout": Task("minatar/breakout", 1_500_000, (0, 8), (), 2e-3, "--log.every-updates 10",
                          base="breakout.toml"),
}  # fmt: skip
ONLY = {  # the rest learns nothing of Breakout in 500k steps
    "breakout": ("none", "recent", "behavior", "impala", "decoupled", "ewma", "a3po"),
    "long_breakout": ("behavior", "decoupled", "ewma"),
}

METHODS = {
    "none": ("no correction", "--surrogate.objective impala --surrogate.behavior-weight none"),
    "recent": ("PPO around recent weights, no behavior weight",
               "--surrogate.objective ppo --proximal.policy recompute --surrogate.behavior-weight none"),
    "behavior": ("PPO around behavior", "--surrogate.objective ppo --proximal.policy behavior"),
    "impala": ("V-trace and IMPALA's policy gradient",
               "--trace.estimator vtrace --surrogate.objective impala --surrogate.behavior-weight trace"),
    "impala_once": ("the same, one step per update",
                    "--trace.estimator vtrace --surrogate.objective impala --surrogate.behavior-weight trace "
                    "--batch.minibatches 1 --optim.lr 5e-3"),
    "decoupled": ("decoupled PPO, recompute", "--surrogate.objective decoupled --proximal.policy recompute"),
    "ewma": ("decoupled PPO, EWMA", "--surrogate.objective decoupled --proximal.policy ewma"),
    "a3po": ("decoupled PPO, A-3PO", "--surrogate.objective decoupled --proximal.policy interpolate"),
}  # fmt: skip
SAME_ON_POLICY = ("recent", "behavior", "a3po")  # at lag 0 they are decoupled PPO with recompute: run once


class Row(NamedTuple):
    """An objective, tuned by three values of its own knob."""

    label: str
    flags: str
    knob: str
    """Flag of a setting; `lr`: a factor on the task's learning rate, for those without a knob of their own."""
    values: tuple[float, float, float]
    objective: str = ""
    """Its name in `surrogate.objective`, if the name of the row is another one."""


OBJECTIVES = {
    "decoupled": Row("decoupled PPO", "", "surrogate.clip", (0.1, 0.2, 0.4)),
    "ewma": Row("decoupled PPO, EWMA", "--proximal.policy ewma", "surrogate.clip", (0.1, 0.2, 0.4), "decoupled"),
    "a3po": Row("decoupled PPO, A-3PO", "--proximal.policy interpolate", "surrogate.clip", (0.1, 0.2, 0.4),
                "decoupled"),
    "ppo": Row("PPO around behavior", "--proximal.policy behavior", "surrogate.clip", (0.1, 0.2, 0.4)),
    "impala": Row("IMPALA", "--trace.estimator vtrace --surrogate.behavior-weight trace", "trace.pg-rho-bar",
                  (1, 2, 4)),
    "decoupled_kl": Row("decoupled KL penalty", "", "surrogate.kl-coef", (0.3, 1, 3)),
    "mdpo": Row("MDPO", "", "surrogate.kl-coef", (0.3, 1, 3)),
    "is_pg": Row("importance-sampled policy gradient", "", "surrogate.weight-cap", (2, 10, 100)),
    "cispo": Row("CISPO", "", "surrogate.clip", (0.28, 1, 4)),
    "topr": Row("TOPR", "", "lr", (0.5, 1, 2)),
    "dppo_tv": Row("DPPO-TV", "", "surrogate.clip", (0.05, 0.15, 0.3)),
    "dppo_kl": Row("DPPO-KL", "", "surrogate.clip", (0.01, 0.05, 0.2)),
    "sapo": Row("SAPO", "", "surrogate.gate-temperature", (0.5, 1, 2)),
    "mhpo": Row("MHPO", "", "surrogate.ratio-bound", (0.75, 1.5, 3)),
    "dispo": Row("DISPO", "", "surrogate.weight-high", (2, 11, 100)),
    "rec_one_side": Row("REC, one side", "", "surrogate.clip", (0.1, 0.2, 0.4)),
    "rec_wide": Row("REC, wide", "", "surrogate.outer-high", (1, 2, 4)),
    "rec_ring": Row("REC, ring", "", "surrogate.outer-high", (1, 2, 4)),
    "opmd": Row("OPMD", "", "surrogate.log-ratio-coef", (0.1, 1, 10)),
    "asymre": Row("AsymRE", "", "surrogate.baseline-shift", (0.03, 0.1, 0.3)),
    "geppo": Row("GePPO", "", "surrogate.clip", (0.1, 0.2, 0.4)),
    "minpro": Row("MinPRO", "", "surrogate.weight-cap", (2, 10, 100)),
    "bapo": Row("BAPO", "", "surrogate.balance", (0.7, 1, 1.5)),
    "r2vpo": Row("R2VPO", "", "surrogate.variance-target", (0.005, 0.02, 0.08)),
    "bpo": Row("BPO", "", "surrogate.clip", (0.1, 0.2, 0.3)),
    "bpo_value": Row("BPO without median head", "--surrogate.median-head false", "surrogate.clip", (0.1, 0.2, 0.3),
                     "bpo"),
    "m2po": Row("decoupled PPO, M2PO mask", "--surrogate.mask m2po", "surrogate.second-moment", (0.01, 0.04, 0.16),
                "decoupled"),
    "erc": Row("decoupled PPO, ERC mask", "--surrogate.mask erc", "surrogate.entropy-ratio-high", (1.02, 1.05, 1.2),
               "decoupled"),
}  # fmt: skip

RATES = {
    "constant": ("constant", "--optim.schedule constant"),
    "ess": ("by effective sample size", "--optim.schedule ess"),
    "staleness": ("divided by the lag", "--optim.schedule staleness"),
    "adam_rel": ("constant, Adam-Rel", "--optim.schedule constant --optim.adam-rel true"),
}
OPTIONS = {
    "default": ("the default", ""),
    "vtrace": ("V-trace", "--trace.estimator vtrace"),
    "leaky": ("leaky V-trace", "--trace.estimator leaky_vtrace --surrogate.behavior-weight trace"),
    "retrace": ("Retrace", "--trace.estimator retrace"),
    "truncated_is": ("truncated importance sampling", "--trace.estimator truncated_is"),
    "recursive_retrace": ("recursive Retrace", "--trace.estimator recursive_retrace"),
    "rbis": ("RBIS", "--trace.estimator rbis"),
    "baseline": ("optimal baseline", "--trace.baseline optimal"),
    "snapshot": ("proximal policy of who acted", "--proximal.policy snapshot --proximal.snapshot-age 0"),
    "snapshot_2": ("proximal policy of 2 updates ago", "--proximal.policy snapshot --proximal.snapshot-age 2"),
    "dual_clip": ("dual clip 3", "--surrogate.dual-clip 3"),
    "ess": ("rate by effective sample size", "--optim.schedule ess"),
    "staleness": ("rate divided by the lag", "--optim.schedule staleness"),
    "kl_adaptive": ("rate by KL", "--optim.schedule kl_adaptive"),
    "adam_rel": ("Adam-Rel", "--optim.adam-rel true"),
    "sfpo": ("SFPO, 3 fast passes", "--optim.sfpo-steps 3 --batch.epochs 1"),
}
"""The default (decoupled PPO, recompute, GAE) with one thing changed."""
TUNING_SEED = 100
FACTORS = (0.25, 0.5, 1, 2, 4)
RATE_LAG = 8


def corrections() -> dict[tuple[str, str, int], Cell]:
    """(task, method, lag) -> cell."""
    found = {}
    for name, task in TASKS.items():
        for lag in task.lags:
            for method, (_, words) in METHODS.items():
                if method not in ONLY.get(name, METHODS) or (lag == 0 and method in SAME_ON_POLICY):
                    continue
                flags = (*task.flags.split(), *words.split(), "--batch.forced-lag", str(lag))
                found[name, method, lag] = task.cell(f"staleness/{name}_{method}_lag{lag}", flags)
        for method in SAME_ON_POLICY:
            if method in ONLY.get(name, METHODS):
                found[name, method, 0] = found[name, "decoupled", 0]
    return found


def tuning(all_lags: bool = False) -> dict[tuple[str, str, int, float], Cell]:
    """(task, row, lag, value of its knob) -> cell, on seeds that the comparison does not use.

    all_lags: those of the corrections.
    """
    found = {}
    for name, task in TASKS.items():
        for lag in task.lags if all_lags and task.tuning_seeds else task.tuning_lags:
            for row, line in OBJECTIVES.items():
                for number, value in enumerate(line.values):
                    found[name, row, lag, value] = task.cell(
                        f"tuning/{name}_{row}_{number}_lag{lag}", _flags(task, row, value, lag), task.tuning_steps,
                        TUNING_SEED,
                    )  # fmt: skip
    return found


def objectives(chosen: Mapping[tuple[str, str, int], float]) -> dict[tuple[str, str, int], Cell]:
    """(task, row, lag) -> cell with the setting that was chosen for it."""
    found = {}
    for (name, row, lag), value in chosen.items():
        task, number = TASKS[name], OBJECTIVES[row].values.index(value)
        found[name, row, lag] = task.cell(f"objectives/{name}_{row}_{number}_lag{lag}", _flags(task, row, value, lag))
    return found


def _flags(task: Task, row: str, value: float, lag: int) -> str:
    _, words, knob, _, objective = OBJECTIVES[row]
    setting = f"--optim.lr {value * task.lr:g}" if knob == "lr" else f"--{knob} {value:g}"
    return f"{task.flags} --surrogate.objective {objective or row} {words} {setting} --batch.forced-lag {lag}"


def options() -> dict[tuple[str, str, int], Cell]:
    """(task, option, lag) -> cell: the default with one thing changed."""
    found = {}
    for name in ("cartpole", "breakout"):
        task = TASKS[name]
        for lag in task.short_lags:
            for option, (_, words) in OPTIONS.items():
                flags = f"{task.flags} {words} --batch.forced-lag {lag}"
                found[name, option, lag] = task.cell(f"options/{name}_{option}_lag{lag}", flags)
    return found


def rates(tasks: Iterable[str] = ("cartpole", "breakout")) -> dict[tuple[str, str, float], Cell]:
    """(task, rule, factor on the learning rate) -> cell, at one lag."""
    found = {}
    for name in tasks:
        task = TASKS[name]
        for rule, (_, words) in RATES.items():
            for factor in FACTORS:
                flags = f"{task.flags} {words} --optim.lr {factor * task.lr:g} --batch.forced-lag {RATE_LAG}"
                found[name, rule, factor] = task.cell(f"rates/{name}_{rule}_{factor:g}", flags)
    return found
