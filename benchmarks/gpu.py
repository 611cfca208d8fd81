"""Measure a machine with a GPU: share of the environment ceiling on all cores, and seconds to Pong 18.

    python benchmarks/gpu.py                            both workloads and Pong, about 15 minutes (`make gpu`)
    python benchmarks/gpu.py --only breakout --smoke    a minute, also without a GPU: checks that the script runs
    python benchmarks/gpu.py --write benchmarks/results/gpu.md

The ceiling is measured in the same call: one process per core steps the environment's own library in a plain loop, all
at the same time. Then a few splits of samplers and environments are measured for some seconds each, with one pass over
the data in bf16, and the fastest is run for longer.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

from sfactory.config import Config, parsing, presets, with_settings
from sfactory.device.machine import cores
from sfactory.monitor.bottleneck import busy_shares
from sfactory.monitor.rows import read_rows
from sfactory.tools.bench import BenchFailed, Trial, machine, trial

SCORE, LIMIT_S = 18.0, 900.0


class Workload(NamedTuple):
    """A workload and the required share of the ceiling."""

    target: str
    asked: float
    envs_per_group: tuple[int, ...]
    rollout: int


WORKLOADS = {
    "pong": Workload("atari/pong", 0.90, (16, 32, 64), 64),
    "breakout": Workload("minatar/breakout", 0.75, (256, 1024, 4096), 32),
}


def _step_alone(name: str, options: Any, size: int, seed: int, seconds: float, start: Any, answers: Any) -> None:
    from sfactory.envs import raw_loop

    step = raw_loop(name, size, seed, options)
    assert step is not None, f"{name} has no plain loop"
    step()
    start.wait()
    count, began = 0, time.perf_counter()
    while (passed := time.perf_counter() - began) < seconds:
        count += step()
    answers.put(count / passed)


def ceiling(name: str, options: Any, size: int, seconds: float) -> float:
    """Return steps per second of the environment's own library, one process per core at the same time."""
    context = multiprocessing.get_context("spawn")
    n = cores()
    start, answers = context.Barrier(n), context.Queue()
    for k in range(n):
        args = (name, options, size, 1000 * k, seconds, start, answers)
        context.Process(target=_step_alone, args=args, daemon=True).start()
    return sum(answers.get(timeout=120 + seconds) for _ in range(n))


def splits(workload: Workload) -> list[dict[str, Any]]:
    """Return splits with samplers on nearly all cores: inference and learner need one each."""
    samplers = sorted({max(1, cores() - 2), max(1, cores() - 1), cores()})
    return [
        {
            "sampling.num_samplers": n, "sampling.groups_per_sampler": groups, "sampling.envs_per_group": envs,
            "sampling.rollout_length": workload.rollout, "batch.epochs": 1, "batch.minibatches": 1,
            "batch.slots": 0, "run.precision": "bf16",
        }
        for n, groups, envs in itertools.product(samplers, (2, 3), workload.envs_per_group)
    ]  # fmt: skip


def fastest(config: Config, tries: list[dict[str, Any]], seconds: float) -> tuple[dict[str, Any], Trial]:
    """Run the fastest of several short runs again for longer."""
    speeds: list[tuple[float, int]] = []
    for number, chosen in enumerate(tries):
        try:
            speed = trial(with_settings(config, chosen), seconds / 4).steps_per_second
        except (BenchFailed, ValueError) as error:
            print(f"  {split(chosen)}: {error}", flush=True)
            continue
        print(f"  {split(chosen)}: {speed:,.0f} steps/s", flush=True)
        speeds.append((speed, number))
    if not speeds:
        raise SystemExit("no split ran: its reasons are above")
    chosen = tries[max(speeds)[1]]
    return chosen, trial(with_settings(config, chosen), seconds)


def split(chosen: dict[str, Any]) -> str:
    names = ("num_samplers", "groups_per_sampler", "envs_per_group")
    return " x ".join(str(chosen[f"sampling.{name}"]) for name in names)


def row(name: str, seconds: float, tries: int | None) -> str:
    """Return a line of the table."""
    workload = WORKLOADS[name]
    config = parsing.build(*presets.target_layers(workload.target), {})
    sizes = sorted({8, workload.envs_per_group[0]})
    top = max(ceiling(config.env.name, config.env.options, size, max(2.0, seconds / 4)) for size in sizes)
    print(f"{workload.target}: the environment alone on {cores()} cores: {top:,.0f} steps/s", flush=True)
    chosen, found = fastest(config, splits(workload)[:tries], seconds)
    busy = ", ".join(f"{who} {100 * share:.0f} %" for who, share in busy_shares(found.row).items())
    memory = sum(found.memory_mb.values()) / 1000
    return (
        f"| {workload.target} | {top:,.0f} | {found.steps_per_second:,.0f} | {found.steps_per_second / top:.0%} | "
        f"{workload.asked:.0%} | {split(chosen)} | {busy} | {found.start_s:.1f} | {memory:.1f} |"
    )


def seconds_to_score(score: float, limit: float) -> str:
    """Train Pong to a training return; returns the time from the command as a sentence."""
    n = max(1, cores() - 2)
    command = [
        sys.executable, "-m", "sfactory", "train", "atari/pong", "--log.quiet", "true",
        "--sampling.num-samplers", str(n), "--sampling.envs-per-group", "8",
        "--batch.minibatches", str(8 * n), "--optim.lr", "5e-4",
        "--stop.target-return", str(score), "--stop.seconds", str(limit), "--stop.env-steps", "100M",
    ]  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        began = time.monotonic()
        done = subprocess.run([*command, "--run.dir", f"{folder}/run"], capture_output=True, text=True)
        passed = time.monotonic() - began
        if done.returncode:
            return f"Pong ended with exit {done.returncode}: {(done.stderr.strip().splitlines() or ['no output'])[-1]}"
        last = read_rows(Path(folder) / "run")[-1]
    reached, arguments = last.get("charts/episodic_return", float("nan")), " ".join(command[3:])
    steps = f"{last['env_steps']:,.0f} steps"
    return f"Pong: training return {reached:.1f} after {passed:.0f} s and {steps} (`sfactory {arguments}`)"


def commit() -> str:
    version = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True).stdout
    return version.strip() or "unknown"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=WORKLOADS)
    parser.add_argument("--seconds", type=float, default=20.0, help="of the final run of a workload")
    parser.add_argument("--smoke", action="store_true", help="one split, few seconds, no Pong")
    parser.add_argument("--write", type=Path, help="also write the page there")
    args = parser.parse_args()
    seconds, tries = (4.0, 1) if args.smoke else (args.seconds, None)
    m = machine()
    lines = [
        "# On a GPU", "",
        f"Last run: commit {commit()}, {m['date']}, {m['gpu'] or 'no GPU'}, {m['cores']} cores of {m['cpu']}, torch "
        f"{m['torch']}, Python {m['python']}.", "",
        "| workload | environment alone, all cores | steps/s | share | asked | samplers x groups x envs | busy "
        "| start-up, s | memory, GB |", "|---|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    lines += [row(name, seconds, tries) for name in ([args.only] if args.only else WORKLOADS)]
    if not args.smoke and args.only in (None, "pong"):
        lines += ["", seconds_to_score(SCORE, LIMIT_S)]
    page = "\n".join(lines) + "\n"
    print(f"\n{page}")
    if args.write:
        args.write.write_text(page)


if __name__ == "__main__":
    main()
