"""Measure return against forced lag for every correction for stale data (Hilton et al. 2021, figure 1).

    python benchmarks/staleness.py                     # both tasks; can be interrupted and continued
    python benchmarks/staleness.py --only cartpole --seeds 10
    python benchmarks/staleness.py --report            # table and plot of the finished runs

Every run is lockstep, so that update u trains on data made by version max(0, u - lag) exactly. All methods share the
network, the optimizer, the seeds and the number of environment steps; only the correction differs. Writes
benchmarks/results/staleness_tables.md and staleness_TASK.svg / .png.
"""

from __future__ import annotations

import datetime
import os
from pathlib import Path

from grid import Cell, Score, arguments, finished_seeds, run, score, show

HERE = Path(__file__).parent
LAGS = {"cartpole": (0, 1, 2, 4, 8, 16), "breakout": (0, 2, 8), "long_breakout": (0, 8)}
STEPS = {"cartpole": 102_400, "breakout": 500_000, "long_breakout": 1_500_000}
ONLY = {  # the long one is what the bar at lag 8 is about; one step per update learns nothing of Breakout in 500k
    "breakout": ("none", "recent", "behavior", "impala", "decoupled", "ewma", "a3po"),
    "long_breakout": ("behavior", "decoupled", "ewma"),
}

TASKS = {
    # The set-up of the batch size-invariance pilot: 1,024 rows per update, 8 minibatches, one epoch.
    "cartpole": ("classic/cartpole", """
        --sampling.envs-per-group 8 --sampling.rollout-length 64 --batch.epochs 1 --batch.minibatches 8
        --trace.gamma 0.99 --trace.trace-lambda 0.95 --loss.entropy-coef 0.01 --surrogate.clip 0.2
        --optim.lr 2.5e-3 --env.reward-scale 0.1 --log.every-updates 2
    """),
    # The preset as it is, 4 epochs: with one epoch it does not leave the plateau near 6 within 1.5M steps.
    "breakout": ("minatar/breakout", "--log.every-updates 4"),
    "long_breakout": ("minatar/breakout", "--log.every-updates 10"),
}  # fmt: skip

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


def cells() -> dict[tuple[str, str, int], Cell]:
    """Return (task, method, lag) -> cell."""
    found = {}
    for task, (target, shared) in TASKS.items():
        for lag in LAGS[task]:
            for method, (_, words) in METHODS.items():
                if method not in ONLY.get(task, METHODS):
                    continue
                if lag == 0 and method in SAME_ON_POLICY:
                    continue
                flags = (*shared.split(), *words.split(), "--batch.forced-lag", str(lag))
                found[task, method, lag] = Cell(f"staleness/{task}_{method}_lag{lag}", target, flags, STEPS[task])
        for method in SAME_ON_POLICY:
            if method in ONLY.get(task, METHODS):
                found[task, method, 0] = found[task, "decoupled", 0]
    return found


def table(task: str, scores: dict[tuple[str, str, int], Score], what: str, digits: int) -> list[str]:
    """Return a Markdown table: a row per method, a column per lag."""
    lags = LAGS[task]
    lines = ["| correction | " + " | ".join(f"lag {lag}" for lag in lags) + " |", "|---|" + "---|" * len(lags)]
    for method, (label, _) in METHODS.items():
        if method not in ONLY.get(task, METHODS):
            continue
        row = [scores.get((task, method, lag)) for lag in lags]
        shown = [show(s.interval(getattr(s, what)), digits) if s else "not run" for s in row]
        lines.append(f"| {label} | " + " | ".join(shown) + " |")
    return lines


def picture(task: str, scores: dict[tuple[str, str, int], Score]) -> None:
    """Plot area under the curve and final return against lag, with intervals."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(11, 4.2), sharex=True)
    for axis, what, title in zip(axes, ("area", "final"), ("mean over the run", "last tenth of the run"), strict=True):
        for number, (method, (label, _)) in enumerate(METHODS.items()):
            lags = [lag for lag in LAGS[task] if (task, method, lag) in scores]
            values = [scores[task, method, lag].interval(getattr(scores[task, method, lag], what)) for lag in lags]
            if not values:
                continue
            middle = [value[0] for value in values]
            at = [LAGS[task].index(lag) + 0.04 * (number - 3) for lag in lags]
            reach = [[m - lo for m, lo, _ in values], [hi - m for m, _, hi in values]]
            axis.errorbar(at, middle, yerr=reach, label=label, marker="o", capsize=2, linewidth=1.5, color=f"C{number}")
        axis.set_xticks(range(len(LAGS[task])), [str(lag) for lag in LAGS[task]])
        axis.set(xlabel="forced lag (updates)", title=f"training return, {title}")
        axis.grid(alpha=0.3)
    axes[1].legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    figure.suptitle(f"{TASKS[task][0]}, {STEPS[task]:,} steps: interquartile mean over seeds, 95 % intervals")
    figure.tight_layout()
    for kind in ("svg", "png"):
        figure.savefig(HERE / "results" / f"staleness_{task}.{kind}", dpi=110)
    plt.close(figure)


def main() -> None:
    options = arguments(__doc__.splitlines()[0])
    grid = {key: cell for key, cell in cells().items() if options.only in cell.name}
    if not options.report:
        took = run(list({cell.name: cell for cell in grid.values()}.values()), options.out, options.seeds, options.jobs)
        print(f"{took / 60:.1f} minutes with {options.jobs} jobs")
    seeds, scores = {}, {}
    for task in TASKS:  # the seeds that every cell of a task has: methods are compared on the same ones
        of_task = {key: cell for key, cell in cells().items() if key[0] == task}
        there = {key: finished_seeds(cell, options.out, options.seeds) for key, cell in of_task.items()}
        seeds[task] = min((count for count in there.values() if count), default=0)
        found = {key: score(of_task[key], options.out, seeds[task]) for key, count in there.items() if count}
        scores |= {key: value for key, value in found.items() if value is not None}
    page = [
        f"`python benchmarks/staleness.py`, {datetime.date.today()}, {os.cpu_count()} cores; interquartile mean over "
        "seeds (95 % bootstrap interval).", "",
    ]  # fmt: skip
    for task, (target, flags) in TASKS.items():
        if not any(key[0] == task for key in scores):
            continue
        picture(task, scores)
        digits = 0 if task == "cartpole" else 1
        page += [f"## {target}, {STEPS[task]:,} steps per run, {seeds[task]} seeds", ""]
        page += [f"`{' '.join(flags.split())}`", ""]
        page += [f"![return against lag](staleness_{task}.svg)", ""]
        page += ["Training return, mean over the whole run (area under the curve):", ""]
        page += [*table(task, scores, "area", digits), "", "Last tenth of the run:", ""]
        page += [*table(task, scores, "final", digits), ""]
        page += ["Effective sample size of the weights, second half of the run:", ""]
        lags = LAGS[task]
        page += ["| correction | " + " | ".join(f"lag {lag}" for lag in lags) + " |", "|---|" + "---|" * len(lags)]
        for method, (label, _) in METHODS.items():
            if method not in ONLY.get(task, METHODS):
                continue
            row = [scores.get((task, method, lag)) for lag in lags]
            sizes = [f"{s.extra['offpolicy/ess']:.2f}" if s else "not run" for s in row]
            page.append(f"| {label} | " + " | ".join(sizes) + " |")
        page.append("")
    (HERE / "results" / "staleness_tables.md").write_text("\n".join(page))
    print("\n".join(page))


if __name__ == "__main__":
    main()
