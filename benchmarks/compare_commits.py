"""Check that two commits learn the same: lockstep runs must agree in every byte of weights and in every metric.

    python benchmarks/compare_commits.py OLD NEW                      commits, tags, or folders; `.` is this checkout
    python benchmarks/compare_commits.py ba74152 . --runs breakout,pong --seeds 1 --updates 20
    python benchmarks/compare_commits.py ba74152 . --new-flags "--run.kernels autograd"    the reference of both

For every refactoring: it may change no bit. Each commit is installed into a temporary folder of its own (needs pip and
setuptools, no network), then each run is trained by both with the same command and compared:

- the bytes of model, proximal, optimizer and normalizers in the last checkpoint, and its counters;
- every row of metrics.jsonl, except the columns that measure time.

Exit 0: all runs are equal. Exit 1: the first difference of each run is printed. Runs are compared on one machine with
one version of torch: other machines may round differently.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from sfactory.tools.verify_resume import WALL_CLOCK

ROOT = Path(__file__).parent.parent
PARTS = ("model", "proximal", "optimizer", "normalizers")


class Run(NamedTuple):
    """One lockstep run: what is trained, with which settings, and the steps of one update."""

    target: str
    flags: tuple[str, ...]
    steps_per_update: int


RUNS = {
    "breakout": Run("minatar/breakout", (), 2048),
    "cartpole": Run("classic/cartpole", (), 512),
    "pendulum": Run("classic/pendulum", ("--normalize.value-targets", "true"), 2048),  # all three normalizers
    "tmaze": Run("memory/tmaze", (), 2048),  # GRU
    "hopper": Run("mujoco/hopper", (), 2048),
    "pong": Run(
        "atari/pong",
        ("--sampling.envs-per-group", "4", "--sampling.rollout-length", "32", "--learning.minibatches", "4"),
        256,
    ),
}


def install(source: str, folder: Path) -> Path:
    """Install a commit or a checkout into `folder`; returns it, ready for PYTHONPATH."""
    tree = folder.with_name(f"{folder.name}.tree")
    if Path(source).is_dir():
        ignore = shutil.ignore_patterns(".git", ".venv", "runs", "build", "*.egg-info", "__pycache__", ".*_cache")
        shutil.copytree(source, tree, ignore=ignore)
    else:
        tree.mkdir(parents=True)
        archive = subprocess.run(["git", "archive", source], cwd=ROOT, check=True, capture_output=True).stdout
        subprocess.run(["tar", "-x"], cwd=tree, input=archive, check=True)
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*pip, "--target", str(folder), str(tree)], check=True, stdout=subprocess.DEVNULL)
    return folder


def train(installed: Path, run: Run, seed: int, updates: int, run_dir: Path, flags: Sequence[str]) -> None:
    """Train one lockstep run with an installed commit; raises RuntimeError with its last lines if it fails."""
    command = [
        sys.executable,
        "-m",
        "sfactory",
        "train",
        run.target,
        "--run.dir",
        str(run_dir),
        "--run.mode",
        "lockstep",
    ]
    command += [
        "--run.seed",
        str(seed),
        "--log.every-updates",
        "1",
        "--stop.env-steps",
        str(updates * run.steps_per_update),
    ]
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    done = subprocess.run(
        [*command, *run.flags, *flags], cwd=run_dir.parent, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: exit {done.returncode}\n{done.stderr[-2000:]}")


def digest(run_dir: Path) -> dict[str, str]:
    """What is compared: name -> content or hash, in an order that makes the first difference the earliest one."""
    found = {}
    for number, line in enumerate((run_dir / "metrics.jsonl").read_text().splitlines()):
        for name, value in sorted(json.loads(line).items()):
            if not name.startswith(WALL_CLOCK):
                found[f"metrics row {number}, {name}"] = repr(value)
    checkpoint = max(
        (path for path in (run_dir / "checkpoints").iterdir() if path.name.isdigit()), key=lambda p: p.name
    )
    state = json.loads((checkpoint / "state.json").read_text())
    for name in ("env_steps", "updates", "frames", "lr", "kl", "ess", "training_return", "skipped_updates"):
        found[f"state {name}"] = repr(state.get(name))
    for part in PARTS:
        found[f"{part} bytes"] = hashlib.sha256((checkpoint / f"{part}.safetensors").read_bytes()).hexdigest()
    return found


def difference(old: dict[str, str], new: dict[str, str]) -> str:
    """The first difference in words; empty if there is none."""
    for name in [*old, *(name for name in new if name not in old)]:
        if old.get(name) != new.get(name):
            return f"{name}: {old.get(name, 'missing')} is not {new.get(name, 'missing')}"
    return ""


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("old")
    parser.add_argument("new")
    parser.add_argument("--runs", default=",".join(RUNS), help=f"of {', '.join(RUNS)}")
    parser.add_argument("--seeds", default="1,101")
    parser.add_argument("--updates", type=int, default=20)
    parser.add_argument("--new-flags", default="", help='of NEW alone, for settings that OLD lacks: "--a.b c"')
    parser.add_argument("--keep", type=Path, help="folder for the runs (a temporary one)")
    arguments = parser.parse_args()
    names = arguments.runs.split(",")
    seeds = [int(seed) for seed in arguments.seeds.split(",")]
    different = 0
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        runs = (arguments.keep or folder / "runs").resolve()
        runs.mkdir(parents=True, exist_ok=True)
        installed = {side: install(getattr(arguments, side), folder / side) for side in ("old", "new")}
        for name in names:
            for seed in seeds:
                begin, digests = time.monotonic(), []
                for side in ("old", "new"):
                    run_dir = runs / f"{name}_s{seed}_{side}"
                    flags = arguments.new_flags.split() if side == "new" else []
                    train(installed[side], RUNS[name], seed, arguments.updates, run_dir, flags)
                    digests.append(digest(run_dir))
                found = difference(*digests)
                different += bool(found)
                updates, took = digests[0]["state updates"], time.monotonic() - begin
                print(f"{name} seed {seed}, {updates} updates, {took:.0f} s: {found or 'equal'}", flush=True)
    print(f"{len(names) * len(seeds) - different} passed, {different} failed")
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
