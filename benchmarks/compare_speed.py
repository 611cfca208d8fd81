"""Compare the speed of two commits: steps per second of whole runs, interleaved, as a ratio of medians.

    python benchmarks/compare_speed.py OLD NEW                        commits or folders; `.` is this checkout
    python benchmarks/compare_speed.py ba74152 . --cases breakout --rounds 5 --seconds 10

The two commits take turns within one round, in changing order, because a shared machine drifts by tens of percent
within an hour: only the ratio is meaningful. Rows of the first third of a run are left out (start-up, first updates).
Besides whole runs, `--light` compares the time of two light commands and the memory of a sampler process.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import psutil
from compare_commits import install

ONE_PASS = ("--learning.epochs", "1", "--learning.minibatches", "1")
CASES: dict[str, tuple[str, ...]] = {
    "breakout": ("minatar/breakout",),
    "breakout_one_pass": (
        "minatar/breakout", *ONE_PASS, "--sampling.envs-per-group", "128", "--sampling.rollout-length", "32",
    ),
    "halfcheetah_one_pass": (
        "mujoco/halfcheetah", *ONE_PASS, "--sampling.num-samplers", "2", "--sampling.envs-per-group", "128",
        "--sampling.rollout-length", "64",
    ),
    "hopper": ("mujoco/hopper",),
    "cartpole": ("classic/cartpole",),
    "asterix": ("minatar/asterix",),
    "pong": ("atari/pong",),
}  # fmt: skip
DEFAULT = "breakout,breakout_one_pass,halfcheetah_one_pass"
COMMANDS = {"help": ("--help",), "print_config": ("train", "minatar/breakout", "--print-config")}


def environment(installed: Path) -> dict[str, str]:
    """Environment variables of a command of an installed commit."""
    return {**os.environ, "PYTHONPATH": str(installed)}


def steps_per_second(installed: Path, words: tuple[str, ...], seconds: float, folder: Path) -> float:
    """Train for `seconds` and return env steps per second after the first third of the run."""
    run_dir = folder / f"run_{time.monotonic_ns()}"
    command = [sys.executable, "-m", "sfactory", "train", *words, "--run.dir", str(run_dir), "--quiet"]
    command += ["--stop.seconds", str(seconds), "--stop.env-steps", "1G", "--log.every-seconds", "0.5"]
    subprocess.run(command, cwd=folder, env=environment(installed), check=True, capture_output=True, timeout=600)
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    rows = [row for row in rows if row["seconds"] >= seconds / 3]
    if len(rows) < 2:
        raise RuntimeError(f"only {len(rows)} metrics rows after the first third of {seconds:g} s; increase --seconds")
    return float((rows[-1]["env_steps"] - rows[0]["env_steps"]) / (rows[-1]["seconds"] - rows[0]["seconds"]))


def command_seconds(installed: Path, words: tuple[str, ...], folder: Path) -> float:
    """Wall-clock seconds of one light command."""
    begin = time.monotonic()
    subprocess.run(
        [sys.executable, "-m", "sfactory", *words], cwd=folder, env=environment(installed), check=True,
        stdout=subprocess.DEVNULL,
    )  # fmt: skip
    return time.monotonic() - begin


def sampler_megabytes(installed: Path, folder: Path) -> float:
    """Unique memory (USS) of the sampler of a Breakout preset, a few seconds into the run."""
    run_dir = folder / f"memory_{time.monotonic_ns()}"
    command = [sys.executable, "-m", "sfactory", "train", "minatar/breakout", "--run.dir", str(run_dir), "--quiet"]
    process = subprocess.Popen(
        [*command, "--stop.seconds", "30", "--log.every-seconds", "1"],
        cwd=folder,
        env=environment(installed),
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            time.sleep(0.5)
            rows = run_dir / "metrics.jsonl"
            if not rows.exists() or not rows.stat().st_size:  # the first row: all workers have started
                continue
            workers = psutil.Process(process.pid).children(recursive=True)
            light = [w for w in workers if not any("torch" in m.path for m in w.memory_maps()) and "python" in w.name()]
            spawned = [w for w in light if "spawn_main" in " ".join(w.cmdline())]
            return min(w.memory_full_info().uss for w in spawned) / 1e6
        raise RuntimeError("no metrics within 60 s")
    finally:
        process.terminate()
        process.wait(60)


def compare(name: str, rounds: int, measure: Callable[[Path], float], installed: dict[str, Path], unit: str) -> None:
    """Measure both commits in turn and print medians and their ratio."""
    found: dict[str, list[float]] = {"old": [], "new": []}
    for number in range(rounds):
        for side in ("old", "new") if number % 2 == 0 else ("new", "old"):
            found[side].append(measure(installed[side]))
    old, new = (statistics.median(found[side]) for side in ("old", "new"))
    each = "; ".join(f"{side} {' '.join(f'{value:.4g}' for value in found[side])}" for side in found)
    print(f"{name}: old {old:.4g}, new {new:.4g} {unit}, ratio {new / old:.3f}   ({each})", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("old")
    parser.add_argument("new")
    parser.add_argument("--cases", default=DEFAULT, help=f"of {', '.join(CASES)}")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--light", action="store_true", help="light commands and the sampler's memory too")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        installed = {side: install(getattr(arguments, side), folder / side) for side in ("old", "new")}
        if arguments.light:
            for name, words in COMMANDS.items():
                compare(name, 2 * arguments.rounds, lambda at, w=words: command_seconds(at, w, folder), installed, "s")
            compare("sampler", arguments.rounds, lambda at: sampler_megabytes(at, folder), installed, "MB")
        for name in arguments.cases.split(",") if arguments.cases else ():
            words = CASES[name]
            compare(
                name, arguments.rounds,
                lambda at, w=words: steps_per_second(at, w, arguments.seconds, folder), installed, "steps/s",
            )  # fmt: skip


if __name__ == "__main__":
    main()
