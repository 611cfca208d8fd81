"""Compare sfactory with other libraries on the same workloads, interleaved in one run.

    python benchmarks/peers.py setup                         a virtual environment per library (some GB)
    python benchmarks/peers.py speed                         steps per second of all workloads, interleaved
    python benchmarks/peers.py score                         seconds to a training return, from the command on
    python benchmarks/peers.py speed --only breakout --rounds 1 --seconds 8

One thread per process, the same networks (MinAtar: 16 filters of 3x3, then 128; Atari: Nature CNN; HalfCheetah: 64 x 64
tanh), one pass over the data, each program with the fastest settings found for it on two cores (peers/*.py, and below).
Rounds are interleaved and medians reported, because a shared machine drifts by tens of percent within minutes. The
roofline is measured in between, with `sfactory bench`'s reference loops, in fp32.
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
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
PEERS = {
    "sb3": ["stable-baselines3==2.9.2", "gymnasium[mujoco]", "mujoco<4", "ale-py", "opencv-python-headless", "minatar"],
    "sf": ["sample-factory==2.1.1", "gymnasium[mujoco]", "ale-py", "opencv-python-headless", "minatar"],
}
ONE_PASS = ["--batch.epochs", "1", "--batch.minibatches", "1"]
BREAKOUT = [*ONE_PASS, "--sampling.envs-per-group", "128", "--sampling.rollout-length", "32"]
PONG = [*ONE_PASS, "--sampling.num-samplers", "2", "--sampling.groups-per-sampler", "1"]
PONG += ["--sampling.envs-per-group", "16", "--sampling.rollout-length", "64"]
CHEETAH = [*ONE_PASS, "--sampling.num-samplers", "2", "--sampling.envs-per-group", "128"]
CHEETAH += ["--sampling.rollout-length", "64"]
BF16 = ["--run.precision", "bf16"]
CASES: dict[str, dict[str, list[str]]] = {  # workload -> name -> the command behind its Python
    "breakout": {
        "sfactory": ["minatar/breakout", *BREAKOUT],
        "sfactory, bf16": ["minatar/breakout", *BREAKOUT, *BF16],
        "sample-factory": ["sf", "breakout"],
        "sample-factory, batched env": ["sf", "breakout", "--door", "batched"],
        "sb3": ["sb3", "breakout"],
    },
    "pong": {
        "sfactory": ["atari/pong", *PONG, "--run.precision", "fp32"],
        "sfactory, bf16": ["atari/pong", *PONG, *BF16],
        "sample-factory": ["sf", "pong"],
        "sb3": ["sb3", "pong"],
    },
    "halfcheetah": {
        "sfactory": ["mujoco/halfcheetah", *CHEETAH],
        "sample-factory": ["sf", "halfcheetah"],
        "sb3": ["sb3", "halfcheetah"],
    },
}
SCORES: dict[str, tuple[float, dict[str, list[str]]]] = {
    "breakout": (9.0, {"sfactory": ["minatar/breakout"], "sb3": ["sb3", "breakout"]}),
    "cartpole": (475.0, {"sfactory": ["classic/cartpole"], "sb3": ["sb3", "cartpole"]}),
}


def setup(folder: Path) -> None:
    """Create a virtual environment per peer; torch first and pinned, or gigabytes of CUDA packages are installed."""
    for name, packages in PEERS.items():
        place = folder / name
        subprocess.run([sys.executable, "-m", "venv", place], check=True)
        pip = [place / "bin" / "python", "-m", "pip", "install", "-q"]
        subprocess.run([*pip, "torch==2.13.0"], check=True)
        subprocess.run([*pip, *packages], check=True)
        print(f"{name}: {place}")


def speed_of(arguments: list[str], folder: Path, seconds: float) -> float:
    """Measure steps per second of one case once."""
    if arguments[0] in PEERS:
        return float(peer(arguments, folder, "--seconds", str(seconds))["steps_per_second"])
    from sfactory.config import parsing, presets
    from sfactory.config.flags import split_flags
    from sfactory.tools.bench import trial

    flags, _, (target,) = split_flags(arguments, {})
    return trial(parsing.build(*presets.target_layers(target), flags), seconds).steps_per_second


def peer(arguments: list[str], folder: Path, *more: str) -> dict[str, Any]:
    """Run a peer's script; returns the last line of its output."""
    name, *rest = arguments
    command = [str(folder / name / "bin" / "python"), str(HERE / "peers" / f"{name}.py"), *rest, *more]
    environ = {**os.environ, "PYTHONWARNINGS": "ignore", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, capture_output=True, text=True, env=environ, timeout=1800)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr[-2000:]}")
    return dict(json.loads(done.stdout.strip().splitlines()[-1]))


def roofline_of(arguments: list[str]) -> float:
    """Measure the fp32 roofline of one case in steps per second."""
    from dataclasses import replace

    from sfactory.config import parsing, presets
    from sfactory.config.flags import split_flags
    from sfactory.device.machine import cores
    from sfactory.envs import make_spec
    from sfactory.tools.roofline import roofline

    flags, _, (target,) = split_flags(arguments, {})
    config = parsing.build(*presets.target_layers(target), flags)
    config = replace(config, run=replace(config.run, precision="fp32"))
    return roofline(config, make_spec(config.env.name, config.env.arguments), cores()).best_batch.steps_per_second


def seconds_to(score: float, arguments: list[str], folder: Path, seed: int) -> float:
    """Return seconds from the command to the score; infinite if it was not reached."""
    if arguments[0] in PEERS:
        found = peer(arguments, folder, "--target", str(score), "--seed", str(seed))["seconds"]
        return float(found) if found else float("inf")
    with tempfile.TemporaryDirectory() as place:
        command = [sys.executable, "-m", "sfactory", "train", *arguments, "--quiet", "--json", "--run.seed", str(seed)]
        command += ["--run.dir", f"{place}/run", "--stop.target-return", str(score)]
        began = time.monotonic()
        done = subprocess.run(command, capture_output=True, text=True)
        spent = time.monotonic() - began
    return spent if "target" in json.loads(done.stdout)["sentence"] else float("inf")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("setup", "speed", "score"))
    parser.add_argument("--into", type=Path, default=Path("runs/peers"), help="where the virtual environments lie")
    parser.add_argument("--only", default="", help="workloads whose name contains this")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=15.0)
    args = parser.parse_args()
    folder = args.into.resolve()
    if args.what == "setup":
        setup(folder)
        return
    os.environ["OMP_NUM_THREADS"] = "1"
    if args.what == "speed":
        print("| workload | program | steps/s, median (rounds) | times the fastest peer | of the fp32 roofline |")
        print("|---|---|---|---|---|")
        for workload, cases in CASES.items():
            if args.only in workload:
                speed(workload, cases, folder, args.rounds, args.seconds)
        return
    print("| to a training return of | program | seconds from the command, median (seeds) |")
    print("|---|---|---|")
    for workload, (score, players) in SCORES.items():
        if args.only in workload:
            found: dict[str, list[float]] = {name: [] for name in players}
            for seed in range(1, 100 * args.seeds, 100):
                for name, arguments in players.items():
                    found[name].append(seconds_to(score, arguments, folder, seed))
            for name, each in found.items():
                values = ", ".join(f"{x:.1f}" for x in each)
                print(f"| {workload} {score:g} | {name} | {statistics.median(each):.1f} ({values}) |", flush=True)


def speed(workload: str, cases: dict[str, list[str]], folder: Path, rounds: int, seconds: float) -> None:
    found: dict[str, list[float]] = {name: [] for name in cases}
    roofs = []
    for _ in range(rounds):
        roofs.append(roofline_of(cases["sfactory"]))
        for name, arguments in cases.items():
            found[name].append(speed_of(arguments, folder, seconds))
    medians = {name: statistics.median(each) for name, each in found.items()}
    fastest = max(value for name, value in medians.items() if not name.startswith("sfactory"))
    roof = statistics.median(roofs)  # each is the best of its loops; the machine itself drifts between rounds
    for name, each in found.items():
        ours = name.startswith("sfactory")
        times, share = (f"{medians[name] / fastest:.1f}", f"{100 * medians[name] / roof:.0f} %") if ours else ("", "")
        values = ", ".join(f"{x:,.0f}" for x in each)
        print(f"| {workload} | {name} | {medians[name]:,.0f} ({values}) | {times} | {share} |", flush=True)
    print(f"| {workload} | roofline, fp32 | {roof:,.0f} ({', '.join(f'{x:,.0f}' for x in roofs)}) | | |", flush=True)


if __name__ == "__main__":
    main()
