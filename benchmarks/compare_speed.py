"""Compare the speed of two commits: whole runs from the command line, interleaved, as ratios of medians.

    python benchmarks/compare_speed.py OLD NEW                        the five presets; commits or folders
    python benchmarks/compare_speed.py ba74152 . --cases breakout --rounds 5 --seconds 10
    python benchmarks/compare_speed.py ba74152 . --cases "" --score   seconds to a return of 9 on Breakout

Every run gives three figures: steps per second (median of its stretches, without the first seconds), seconds from the
command to the first update, and the proportional set size of all its processes. The two commits take turns within one
round, in changing order, because a shared machine drifts by tens of percent within an hour: only the ratio is
meaningful. Beside the ratio of the medians stand the smallest and the largest ratio of a round. `.` is this checkout.
A commit may need packages that this checkout does not (ba74152: tyro, pydantic).
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil
from compare_commits import install
from peers import this_machine

from sfactory.errors import Exit
from sfactory.monitor.rows import read_rows
from sfactory.tools.bench import BenchFailed, measured_rows, median_speed, memory_of

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
    "pong_fp32": ("atari/pong", "--learning.precision", "fp32"),  # the name that both commits know
}  # fmt: skip
PRESETS = "breakout,hopper,cartpole,asterix,pong"
COMMANDS = {"help": ("--help",), "print_config": ("train", "minatar/breakout", "--print-config")}
SCORE, SCORE_LIMIT_S = 9.0, 900.0
Figures = dict[str, float]
"""What one measurement gives: name and unit -> value."""


def environment(installed: Path) -> dict[str, str]:
    """Environment variables of a command of an installed commit."""
    return {**os.environ, "PYTHONPATH": str(installed)}


def train_command(words: Sequence[str], run_dir: Path) -> list[str]:
    """The command that trains quietly in `run_dir`."""
    return [sys.executable, "-m", "sfactory", "train", *words, "--run.dir", str(run_dir), "--quiet"]


def run_figures(installed: Path, words: Sequence[str], seconds: float, folder: Path) -> Figures:
    """Train for `seconds`, longer if updates are rare. Raises BenchFailed if the run does not train."""
    run_dir = folder / f"run_{time.monotonic_ns()}"
    command = [*train_command(words, run_dir), "--stop.env-steps", "1G", "--log.every-seconds", "0.2"]
    began = time.monotonic()
    process = subprocess.Popen(
        command, cwd=folder, env=environment(installed), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    try:
        rows, first_update = measured_rows(process, run_dir, began, seconds)
        memory = sum(memory_of(process.pid).values())
    finally:
        process.terminate()
        _, err = process.communicate(timeout=120)
    if process.returncode != Exit.TERMINATED:
        raise BenchFailed(f"{' '.join(command)}: exit {process.returncode}: {err[-500:]}")
    return {"steps/s": median_speed(rows), "first update, s": first_update, "memory, MB": memory}


def score_figures(installed: Path, seed: int, folder: Path) -> Figures:
    """Seconds from the command until it has ended at a return of SCORE; infinite after SCORE_LIMIT_S of training."""
    run_dir = folder / f"score_{time.monotonic_ns()}"
    command = [*train_command(("minatar/breakout",), run_dir), "--run.seed", str(seed)]
    command += ["--stop.target-return", str(SCORE), "--stop.seconds", str(SCORE_LIMIT_S)]
    began = time.monotonic()
    subprocess.run(command, cwd=folder, env=environment(installed), check=True, capture_output=True)
    spent = time.monotonic() - began
    last = read_rows(run_dir)[-1]
    reached = last["seconds"] < SCORE_LIMIT_S
    return {f"seconds to {SCORE:g}": spent if reached else float("inf"), "steps": last["env_steps"]}


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


def in_turn(
    rounds: int, measure: Callable[[Path, int], Figures], installed: dict[str, Path]
) -> dict[str, list[tuple[float, float]]]:
    """Measure both commits once per round; figure -> (old, new) of every round."""
    found: dict[str, list[tuple[float, float]]] = {}
    for number in range(rounds):
        sides = ("old", "new") if number % 2 == 0 else ("new", "old")
        figures = {side: measure(installed[side], number) for side in sides}
        for name, old in figures["old"].items():
            found.setdefault(name, []).append((old, figures["new"][name]))
    return found


def table_row(case: str, figure: str, pairs: Sequence[tuple[float, float]]) -> str:
    """A line of the table. The ratio is new over old."""
    old, new = (statistics.median(values) for values in zip(*pairs, strict=True))
    ratios = [b / a for a, b in pairs]
    each = "; ".join(" ".join(f"{value:.4g}" for value in values) for values in zip(*pairs, strict=True))
    spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
    return f"| {case} | {figure} | {old:.4g} | {new:.4g} | {new / old:.2f} ({spread}) | {each} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("old")
    parser.add_argument("new")
    parser.add_argument("--cases", default=PRESETS, help=f"of {', '.join(CASES)}; empty: none")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument(
        "--score", action="store_true", help=f"seconds to a return of {SCORE:g} on Breakout, a seed a round"
    )
    parser.add_argument("--light", action="store_true", help="light commands and the sampler's memory too")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        installed = {side: install(getattr(args, side), folder / side) for side in ("old", "new")}
        print(f"{this_machine()}, {time.strftime('%Y-%m-%d')}: {args.old} (old) and {args.new} (new)\n")
        print(
            "| case | figure | old, median | new, median | new / old (least and most of a round) | rounds: old; new |"
        )
        print("|---|---|---|---|---|---|", flush=True)

        def compare(case: str, measure: Callable[[Path, int], Figures], rounds: int = args.rounds) -> None:
            for figure, pairs in in_turn(rounds, measure, installed).items():
                print(table_row(case, figure, pairs), flush=True)

        for case in args.cases.split(",") if args.cases else ():
            compare(case, lambda at, _, words=CASES[case]: run_figures(at, words, args.seconds, folder))
        if args.score:
            compare("breakout", lambda at, number: score_figures(at, 1 + 100 * number, folder))
        if args.light:
            for name, words in COMMANDS.items():
                compare(name, lambda at, _, w=words: {"s": command_seconds(at, w, folder)}, 2 * args.rounds)
            compare("sampler", lambda at, _: {"USS, MB": sampler_megabytes(at, folder)})


if __name__ == "__main__":
    try:
        main()
    except BenchFailed as error:
        sys.exit(str(error))
