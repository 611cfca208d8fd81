"""Compare sfactory with other libraries on the same workloads, interleaved in one run.

    python benchmarks/peers.py setup                         a virtual environment per library (some GB)
    python benchmarks/peers.py speed                         steps per second of all workloads, interleaved
    python benchmarks/peers.py score                         seconds to a training return, from the command on
    python benchmarks/peers.py speed --only breakout --rounds 1 --seconds 8
    python benchmarks/peers.py speed --rounds 5 --write benchmarks/results/peers.md

The networks are the same (MinAtar: 16 filters of 3x3, then 128; Atari: Nature CNN; others: 64 x 64 tanh), and every
process has one thread. Two kinds of workloads:

- "one pass": one epoch and one minibatch, each program with the fastest settings found for it on two cores (peers/*.py,
  and below);
- "preset": sfactory's preset as typed, the others with the preset's environments, rollouts, epochs and minibatches.

Rounds are interleaved and medians reported, because a shared machine drifts by tens of percent within minutes; the
speed of one run is a median of its stretches. The reference "torch, best batch" is measured in between, in fp32.
`--write` puts every table into a page, under a heading with the processor: it replaces the table of the same workload
and processor and keeps all others.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import re
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from sfactory.tools.bench import BenchFailed, trial

HERE = Path(__file__).parent
sys.path.append(str(HERE / "peers"))
from preset import PRESETS  # noqa: E402  of the peers' scripts, which run without sfactory
from published import SETTINGS, SOURCES  # noqa: E402

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
AS_PRESET = ["--settings", "preset"]
CASES: dict[str, dict[str, list[str]]] = {  # workload -> name -> the command behind its Python
    "breakout, one pass": {
        "sfactory": ["minatar/breakout", *BREAKOUT],
        "sfactory, bf16": ["minatar/breakout", *BREAKOUT, *BF16],
        "sample-factory": ["sf", "breakout"],
        "sample-factory, batched env": ["sf", "breakout", "--door", "batched"],
        "sb3": ["sb3", "breakout"],
    },
    "pong, one pass": {
        "sfactory": ["atari/pong", *PONG, "--run.precision", "fp32"],
        "sfactory, bf16": ["atari/pong", *PONG, *BF16],
        "sample-factory": ["sf", "pong"],
        "sb3": ["sb3", "pong"],
    },
    "halfcheetah, one pass": {
        "sfactory": ["mujoco/halfcheetah", *CHEETAH],
        "sample-factory": ["sf", "halfcheetah"],
        "sb3": ["sb3", "halfcheetah"],
    },
    **{
        f"{name}, preset": {
            "sfactory": [target],
            "sample-factory": ["sf", name, *AS_PRESET],
            "sb3": ["sb3", name, *AS_PRESET],
        }
        for name, target in PRESETS.items()
    },
}
SCORES: dict[str, tuple[float, dict[str, list[str]]]] = {
    name: (
        score,
        {
            "sfactory": [PRESETS[name]],
            **{
                f"sb3, {text}": ["sb3", name, "--settings", source]
                for source, text in SOURCES.items()
                if (source, name) in SETTINGS
            },
            "sb3, settings of the preset": ["sb3", name, *AS_PRESET],
            "sample-factory, settings of the preset": ["sf", name, *AS_PRESET],
        },
    )
    for name, score in (("cartpole", 475.0), ("pendulum", -200.0), ("breakout", 9.0), ("hopper", 2000.0))
}
HEADER = """# Beside stable-baselines3 and Sample Factory

Written by `benchmarks/peers.py --write`, whose first lines say what is compared. Every table has its processor, date
and command; tables of different processors, or of different days, are not comparable. "Times the fastest peer" compares
medians. The share is that of plain torch at its best batch, in fp32 ([docs](../../docs/performance.md)).
"""


class PeerFailed(RuntimeError):
    """A program that is compared did not run."""


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

    flags, _, (target,) = split_flags(arguments, {})
    return trial(parsing.build(*presets.target_layers(target), flags), seconds).steps_per_second


def peer(arguments: list[str], folder: Path, *more: str) -> dict[str, Any]:
    """Run a peer's script; returns the last line of its output. Raises PeerFailed with the last line of its errors."""
    name, *rest = arguments
    command = [str(folder / name / "bin" / "python"), str(HERE / "peers" / f"{name}.py"), *rest, *more]
    environ = {**os.environ, "PYTHONWARNINGS": "ignore", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    try:
        done = subprocess.run(command, capture_output=True, text=True, env=environ, timeout=1800)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise PeerFailed(f"{error}; `peers.py setup` builds the environments") from error
    lines = done.stdout.strip().splitlines()
    if done.returncode != 0 or not lines:
        raise PeerFailed((done.stderr.strip().splitlines() or ["no output"])[-1])
    return dict(json.loads(lines[-1]))


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
    return roofline(config, make_spec(config.env.name, config.env.options), cores()).best_batch.steps_per_second


def seconds_to(score: float, arguments: list[str], folder: Path, seed: int, limit: float) -> float:
    """Return seconds from the command to the score; infinite if it was not reached within `limit` seconds."""
    if arguments[0] in PEERS:
        more = ("--target", str(score), "--seed", str(seed), "--limit", str(limit))
        found = peer(arguments, folder, *more)["seconds"]
        return float(found) if found else float("inf")
    with tempfile.TemporaryDirectory() as place:
        command = [sys.executable, "-m", "sfactory", "train", *arguments, "--quiet", "--json", "--run.seed", str(seed)]
        command += ["--run.dir", f"{place}/run", "--stop.target-return", str(score), "--stop.seconds", str(limit)]
        began = time.monotonic()
        done = subprocess.run(command, capture_output=True, text=True)
        spent = time.monotonic() - began
    if done.returncode != 0:
        raise PeerFailed((done.stderr.strip().splitlines() or ["no output"])[-1])
    return spent if "target" in json.loads(done.stdout)["sentence"] else float("inf")


def in_turn(names: Iterable[str], rounds: int, measure: Callable[[str, int], float]) -> dict[str, list[float]]:
    """Measure every program once per round: values by name. A failure is printed, and its value left out.

    Every value is printed at once, so that hours of measuring leave something when they are interrupted.
    """
    found: dict[str, list[float]] = {name: [] for name in names}
    for number, name in itertools.product(range(rounds), found):
        try:
            value = measure(name, number)
        except (PeerFailed, BenchFailed) as error:
            print(f"{name}, round {number + 1}: {error}", file=sys.stderr, flush=True)
        else:
            found[name].append(value)
            print(f"{name}, round {number + 1}: {value:,.1f}", file=sys.stderr, flush=True)
    return {name: values for name, values in found.items() if values}


ROOFLINE = "torch, best batch, fp32"


def speed_table(cases: dict[str, list[str]], folder: Path, rounds: int, seconds: float) -> list[str]:
    """Measure one workload; returns its table."""

    def measure(name: str, number: int) -> float:
        return roofline_of(cases["sfactory"]) if name == ROOFLINE else speed_of(cases[name], folder, seconds)

    return speed_rows(in_turn([ROOFLINE, *cases], rounds, measure))


def speed_rows(found: dict[str, list[float]]) -> list[str]:
    """The table of measured steps per second, by program."""
    medians = {name: statistics.median(values) for name, values in found.items()}
    fastest = max((v for name, v in medians.items() if not is_ours(name) and name != ROOFLINE), default=None)
    lines = [
        "| program | steps/s, median (rounds) | times the fastest peer | of torch, best batch |",
        "|---|---|---|---|",
    ]
    for name, values in found.items():
        times = f"{medians[name] / fastest:.1f}" if is_ours(name) and fastest else ""
        share = f"{100 * medians[name] / medians[ROOFLINE]:.0f} %" if is_ours(name) and ROOFLINE in medians else ""
        each = ", ".join(f"{value:,.0f}" for value in values)
        lines.append(f"| {name} | {medians[name]:,.0f} ({each}) | {times} | {share} |")
    return lines


def is_ours(name: str) -> bool:
    """Whether a row is one of sfactory."""
    return name.startswith("sfactory")


def score_table(
    score: float, players: dict[str, list[str]], folder: Path, seeds: Sequence[int], limit: float
) -> list[str]:
    """Measure the time to one score; returns its table."""
    found = in_turn(players, len(seeds), lambda name, n: seconds_to(score, players[name], folder, seeds[n], limit))
    lines = [f"| program | seconds from the command to a training return of {score:g}, median (seeds) |", "|---|---|"]
    for name, values in found.items():
        each = ", ".join(score_text(value, limit) for value in values)
        lines.append(f"| {name} | {score_text(statistics.median(values), limit)} ({each}) |")
    return lines


def score_text(seconds: float, limit: float) -> str:
    """Seconds, or that the score was not reached."""
    return f"over {limit:.0f}" if seconds == float("inf") else f"{seconds:.1f}"


def this_machine() -> str:
    """Processor, the instructions that matter for matrix products, and the number of cores."""
    import torch

    from sfactory.device.machine import cores, processor, read_text

    flags = set(read_text(Path("/proc/cpuinfo")).split())
    bf16 = "AMX" if "amx_bf16" in flags else "with bf16" if "avx512_bf16" in flags else "no bf16"
    return f"{processor()} ({torch.backends.cpu.get_cpu_capability()}, {bf16}), {cores()} cores"


def with_section(page: str, heading: str, body: str) -> str:
    """Return the page with the section under `## heading` replaced, or added at its end."""
    first, *sections = re.split(r"^(?=## )", page, flags=re.MULTILINE)
    new = f"## {heading}\n\n{body.strip()}\n"
    same = [number for number, section in enumerate(sections) if section.partition("\n")[0] == f"## {heading}"]
    for number in same:
        sections[number] = new
    return "\n".join(part.strip() + "\n" for part in (first, *sections, *([] if same else [new])))


def publish(what: str, workload: str, table: list[str], page: Path | None) -> None:
    """Print a table with its machine, date and command, and put it into the page."""
    import torch

    heading = f"{what}, {workload}: {this_machine()}"
    command = shlex.join(["python", "benchmarks/peers.py", *_without_folders(sys.argv[1:])])
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, cwd=HERE).stdout
    source = f"{time.strftime('%Y-%m-%d')}, commit {commit.strip()}, torch {torch.__version__}: `{command}`"
    body = "\n".join([source, "", *table])
    print(f"## {heading}\n\n{body}\n", flush=True)
    if page is not None:
        page.write_text(with_section(page.read_text() if page.exists() else HEADER, heading, body))


def _without_folders(words: Sequence[str]) -> list[str]:
    """The command line without --into and --write, which say nothing of the measurement."""
    return [
        word for before, word in itertools.pairwise(["", *words])
        if not {before, word} & {"--into", "--write"} and not word.startswith(("--into=", "--write="))
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("setup", "speed", "score"))
    parser.add_argument("--into", type=Path, default=Path("runs/peers"), help="where the virtual environments lie")
    parser.add_argument(
        "--only", default="", help='workloads whose name contains this, as "preset" or "pong, one pass"'
    )
    parser.add_argument("--rounds", type=int, default=3, help="of speed")
    parser.add_argument("--seeds", type=int, default=5, help="of score")
    parser.add_argument("--seconds", type=float, default=15.0, help="of one speed run")
    parser.add_argument("--limit", type=float, default=900.0, help="seconds after which a score counts as not reached")
    parser.add_argument("--write", type=Path, metavar="PAGE", help="put the tables into this page")
    args = parser.parse_args()
    folder = args.into.resolve()
    if args.what == "setup":
        setup(folder)
        return
    os.environ["OMP_NUM_THREADS"] = "1"
    if args.what == "speed":
        for workload, cases in CASES.items():
            if args.only in workload:
                publish("Speed", workload, speed_table(cases, folder, args.rounds, args.seconds), args.write)
        return
    for workload, (score, players) in SCORES.items():
        if args.only in workload:
            seeds = range(1, 100 * args.seeds, 100)
            publish("Score", workload, score_table(score, players, folder, seeds, args.limit), args.write)


if __name__ == "__main__":
    main()
