"""Measure recovery times: restart of a killed worker, stall by a checkpoint, first update after `resume`.

    python benchmarks/fault_times.py            90 seconds, on an otherwise idle machine

Prints medians and maxima. Bounds: a sampler is restarted within 2 s and inference within 4 s, a checkpoint delays an
update by at most 50 ms at the 99th percentile, a resumed run makes its first update within 5 s on a CPU.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import psutil

from sfactory.monitor.rows import read_rows

TARGET, BATCH = "minatar/breakout", 2048
OFTEN = ["--log.every-seconds", "0.1", "--quiet"]


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "sfactory", *map(str, arguments)]


@contextmanager
def running(*arguments: object) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(command(*arguments), stderr=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.terminate()
        process.wait()


def rows(run: Path) -> list[dict[str, float]]:
    return read_rows(run)


def until(condition: Callable[[], bool], limit_s: float = 60.0) -> float:
    """Wait for a condition; returns the seconds it took."""
    began = time.perf_counter()
    while not condition():
        if time.perf_counter() - began > limit_s:
            raise TimeoutError("it did not happen in time")
        time.sleep(0.005)
    return time.perf_counter() - began


def worker(process: subprocess.Popen[bytes], kind: str) -> psutil.Process | None:
    """Find a worker by the file its stderr goes to."""
    for child in psutil.Process(process.pid).children(recursive=True):
        try:
            if Path(os.readlink(f"/proc/{child.pid}/fd/2")).stem.startswith(kind):
                return child
        except OSError:
            continue
    return None


def back_at_work(run: Path, kind: str, times: int) -> list[float]:
    """Return seconds from SIGKILL to the first metrics row trained after all data from before the kill was used."""
    found = []
    with running("train", TARGET, "--run.dir", run, *OFTEN, "--sampling.groups-per-sampler", 2) as process:
        until(lambda: len(rows(run)) > 3)
        for _ in range(times):
            victim = worker(process, kind)
            assert victim is not None
            victim.kill()
            began = time.perf_counter()
            until(lambda victim=victim: (w := worker(process, kind)) is not None and w.pid != victim.pid)
            restarted = worker(process, kind)
            assert restarted is not None
            busy = sum(restarted.cpu_times()[:2])
            # At work: three batches, more than was in flight, have been trained since it was restarted.
            before = rows(run)[-1]["env_steps"]
            until(lambda before=before: rows(run)[-1]["env_steps"] >= before + 3 * BATCH)
            assert sum(restarted.cpu_times()[:2]) > busy
            found.append(time.perf_counter() - began)
            time.sleep(1.0)
    return found


def stalls(run: Path, seconds: float) -> list[float]:
    """Return milliseconds by which each checkpoint of a constantly saving run delayed an update."""
    arguments = ("--run.dir", run, *OFTEN, "--checkpoint.every-seconds", 0.3, "--stop.seconds", seconds)
    subprocess.run(
        command("train", TARGET, *arguments), check=True, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    )
    return [row["system/save_stall_ms"] for row in rows(run)[1:] if row["system/save_stall_ms"] > 0]


def resumed(run: Path, times: int) -> list[float]:
    """Return seconds from the command `resume` to the first metrics row with more steps."""
    found = []
    for _ in range(times):
        before = rows(run)[-1]["env_steps"]
        with running("resume", run, "--stop.seconds", 3600, *OFTEN):
            found.append(until(lambda before=before: bool(rows(run)) and rows(run)[-1]["env_steps"] > before))
            time.sleep(1.0)
    return found


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        table = {
            "sampler killed: training on new data again, s": back_at_work(root / "a", "sampler", 8),
            "inference killed: training on new data again, s": back_at_work(root / "b", "inference", 5),
            "an update's wait for a checkpoint, ms": stalls(root / "c", 20.0),
            "`resume` to the first update, s": resumed(root / "c", 5),
        }
    for name, values in table.items():
        worst, p99 = max(values), float(np.percentile(values, 99))
        print(f"{name:50} median {np.median(values):6.2f}   p99 {p99:6.2f}   worst {worst:6.2f}   n {len(values)}")


if __name__ == "__main__":
    main()
