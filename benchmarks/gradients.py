"""Compare the policy gradient of each correction, on stale data, with the on-policy gradient.

    python benchmarks/gradients.py [--steps 400000] [--batches 64] [--checkpoints 3]

A run of MinAtar Breakout (the preset, lockstep) is stopped. Its weights of 0, 1, 4, 8 and 16 updates ago then act,
without training, and every estimator computes the gradient of its first step from the same stale batches. The reference
is the gradient of uncorrected on-policy data of the same size from other seeds. The cosine measures the direction, the
ratio of norms the length; the row `on-policy again` shows the effect of noise alone.
Advantages are not normalized, value loss, entropy bonus and gradient clipping are off. Writes benchmarks/results/
gradients_tables.md and gradients.svg / .png.
"""

from __future__ import annotations

import argparse
import copy
import datetime
import os
import tempfile
import time
from collections import deque
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sfactory.config import Config, with_settings
from sfactory.config.parsing import build
from sfactory.config.presets import target_layers
from sfactory.envs import make_spec
from sfactory.learning.batch import Batch
from sfactory.learning.update import Update
from sfactory.supervisor.lockstep import Lockstep
from sfactory.workers.shared import RunSpec

HERE = Path(__file__).parent
LAGS = (0, 1, 4, 8, 16)
BURN_IN = 12  # first batches of each policy, discarded: its state distribution needs a few episodes

ESTIMATORS = {
    "no correction": dict(surrogate="impala", behavior_weight="none"),
    "PPO around recent weights, no behavior weight": dict(surrogate="ppo", behavior_weight="none"),
    "PPO around behavior": dict(surrogate="ppo", proximal="behavior"),
    "V-trace and IMPALA's policy gradient": dict(trace="vtrace", surrogate="impala", behavior_weight="trace"),
    "decoupled PPO, recompute": dict(),
    "decoupled PPO, recompute, weight in the trace (V-trace)": dict(trace="vtrace", behavior_weight="trace"),
    "decoupled PPO, recompute, V-trace": dict(trace="vtrace"),
    "decoupled PPO, recompute, RBIS": dict(trace="rbis"),
    "decoupled PPO, recompute, weight twice": dict(trace="vtrace", behavior_weight="twice"),
    "decoupled PPO, EWMA": dict(proximal="ewma"),
    "decoupled PPO, A-3PO": dict(proximal="interpolate"),
    "CISPO": dict(surrogate="cispo"),
}  # fmt: skip


class BatchRecorder:
    """Replacement of `Update.run` that keeps a copy of every batch and trains nothing."""

    def __init__(self) -> None:
        self.batches: list[Batch] = []

    def __call__(self, batch: Batch, updates: int, progress: float) -> dict[str, Tensor]:
        def copied(x: object) -> object:
            return {k: v.clone() for k, v in x.items()} if isinstance(x, dict) else x.clone() if x is not None else None

        self.batches.append(Batch(*map(copied, batch)))
        return {"skipped": torch.zeros(()), "losses/policy_loss": torch.zeros(())}


def make_run_spec(seed: int, steps: int, **learning: object) -> RunSpec:
    config = build(*target_layers("minatar/breakout"))
    config = replace(
        config,
        run=replace(config.run, mode="lockstep", seed=seed),
        stop=replace(config.stop, env_steps=steps),
    )
    config = with_settings(config, {f"learning.{name}": value for name, value in learning.items()})
    return RunSpec(config, make_spec(config.env.name, config.env.options), tempfile.mkdtemp(), 0)


def train(seed: int, steps: int) -> tuple[Lockstep, deque[Tensor]]:
    """A trained run and the weights of its last 17 versions, newest last. With proximal=ewma, to have its average."""
    run, kept = Lockstep(make_run_spec(seed, steps, proximal="ewma")), deque(maxlen=max(LAGS) + 1)
    while not run.learner.finished():
        if run.turn():
            weights = torch.empty(run.learner.model.flat_size())
            run.learner.model.write_flat(weights)
            kept.append(weights)
        run.sink.drain()
    return run, kept


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


def gradient(config: Config, trained: Lockstep, batches: list[Batch], lag: int, **learning: object) -> Tensor:
    """Mean gradient of the policy objective in all weights, at the trained weights."""
    config = replace(
        config,
        batch=replace(config.batch, epochs=1, minibatches=1),
        loss=replace(config.loss, value_coef=0.0, entropy_coef=0.0),
        optim=replace(config.optim, lr=1e-30, max_grad_norm=0.0),
        normalize=replace(config.normalize, advantage=False),
    )
    config = with_settings(config, {f"learning.{name}": value for name, value in learning.items()})
    model = copy.deepcopy(trained.learner.model)
    update, total = Update(config, model, torch.device("cpu")), 0.0
    parameters = list(model.parameters())
    average = trained.learner.update.objective.state_dict()
    for batch in batches:
        if config.proximal.policy == "ewma":
            update.objective.load_state_dict(average)
        update.run(batch._replace(lag=torch.full_like(batch.lag, lag)), 0, 0.0)
        total = total + torch.cat([torch.zeros(p.numel()) if p.grad is None else p.grad.flatten() for p in parameters])
    return total / len(batches)


def cosine(a: Tensor, b: Tensor) -> float:
    return float(torch.nn.functional.cosine_similarity(a, b, dim=0))


def measure(seed: int, steps: int, batches: int) -> dict[tuple[str, int], tuple[float, float]]:
    """(estimator, lag) -> cosine and ratio of norms, at the end of one run."""
    trained, kept = train(seed, steps)
    config, found = make_run_spec(seed, steps).config, {}
    on_policy = dict(surrogate="impala", behavior_weight="none")
    reference = gradient(config, trained, play(kept[-1], 77_000 + seed, 2 * batches), 0, **on_policy)
    for lag in LAGS:
        data = play(kept[-1 - lag], 99_000 + 31 * lag + seed, batches)
        for name, learning in ESTIMATORS.items():
            g = gradient(config, trained, data, lag, **learning)
            found[name, lag] = cosine(g, reference), float(g.norm() / reference.norm())
    again = gradient(config, trained, play(kept[-1], 55_000 + seed, batches), 0, **on_policy)
    for lag in LAGS:
        found["on-policy again", lag] = cosine(again, reference), float(again.norm() / reference.norm())
    trained.close()
    return found


def plot(found: list[dict[tuple[str, int], tuple[float, float]]]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(12, 4.6))
    for what, axis in enumerate(axes):
        for number, name in enumerate([*ESTIMATORS, "on-policy again"]):
            values = np.array([[one[name, lag][what] for lag in LAGS] for one in found])
            style = "--" if name == "on-policy again" else "-"
            color = "black" if name == "on-policy again" else plt.get_cmap("tab20")(number)
            axis.plot(range(len(LAGS)), values.mean(0), style, marker="o", label=name, color=color)
        axis.set_xticks(range(len(LAGS)), [str(lag) for lag in LAGS])
        title = ("cosine with the on-policy gradient", "norm over the on-policy norm")[what]
        axis.set(xlabel="lag (updates)", title=title)
        axis.grid(alpha=0.3)
    axes[1].legend(fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    figure.tight_layout()
    for kind in ("svg", "png"):
        figure.savefig(HERE / "results" / f"gradients.{kind}", dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=400_000, help="env steps before the run is stopped")
    parser.add_argument("--batches", type=int, default=64, help="stale batches of 2,048 rows per estimator")
    parser.add_argument("--checkpoints", type=int, default=3, help="number of runs (seeds)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    started = time.monotonic()
    found = [measure(1 + 1000 * seed, options.steps, options.batches) for seed in range(options.checkpoints)]
    took = time.monotonic() - started
    page = [
        "# Gradient quality on stale data", "",
        f"`python benchmarks/gradients.py --steps {options.steps} --batches {options.batches} --checkpoints "
        f"{options.checkpoints}`, {datetime.date.today()}, {os.cpu_count()} cores, {took / 60:.0f} minutes.", "",
        "![cosine and norm against lag](gradients.svg)", "",
    ]  # fmt: skip
    for what, title in enumerate(("Cosine with the on-policy gradient", "Norm over the on-policy norm")):
        page += [f"{title}: mean over {len(found)} frozen runs (lowest to highest)", ""]
        page += ["| estimator | " + " | ".join(f"lag {lag}" for lag in LAGS) + " |", "|---|" + "---|" * len(LAGS)]
        for name in [*ESTIMATORS, "on-policy again"]:
            values = np.array([[one[name, lag][what] for lag in LAGS] for one in found])
            row = [f"{v.mean():.2f} ({v.min():.2f} to {v.max():.2f})" for v in values.T]
            page.append(f"| {name} | " + " | ".join(row) + " |")
        page.append("")
    (HERE / "results" / "gradients_tables.md").write_text("\n".join(page))
    plot(found)
    print("\n".join(page))


if __name__ == "__main__":
    main()
