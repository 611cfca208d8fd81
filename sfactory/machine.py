"""This machine: its cores, its processor, and the rooflines that `sfactory bench` measured on it.

A roofline takes seconds of all cores to measure, so training does not: it looks up what `sfactory bench` remembered of
the same workload, in a file of the user's cache folder.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import platform
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

from sfactory.config import Config

CGROUP = Path("/sys/fs/cgroup")
GPUS = ("/dev/nvidiactl", "/dev/nvidia0", "/dev/dxg", "/dev/kfd", "/proc/driver/nvidia", "/dev/nvhost-ctrl")


def affinity() -> int:
    """Cores this process may be put on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cores() -> int:
    """Cores this process may use: its affinity, or less where a container has a quota."""
    quota = smallest(cpu_quota(group) for group in control_groups())
    return affinity() if quota is None else max(1, min(affinity(), math.ceil(quota)))


def control_groups(root: Path = CGROUP, membership: Path = Path("/proc/self/cgroup")) -> list[Path]:
    """The folders whose limits hold for this process: its own group of version 2 and all above, up to the root."""
    found = [root]
    for line in read_text(membership).splitlines():
        if line.startswith("0::/"):
            for part in line.removeprefix("0::/").split("/"):
                if part and part != "..":
                    found.append(found[-1] / part)
    return found


def smallest(limits: Iterable[float | None]) -> float | None:
    """The limit that holds where several do."""
    return min((x for x in limits if x is not None), default=None)


def cpu_quota(cgroup: Path) -> float | None:
    """Cores the control group may use on average (version 2, then 1); None: no limit."""
    quota, period = (read_words(cgroup / "cpu.max") + ["", ""])[:2]
    if not quota:
        quota = " ".join(read_words(cgroup / "cpu" / "cpu.cfs_quota_us"))
        period = " ".join(read_words(cgroup / "cpu" / "cpu.cfs_period_us"))
    try:
        return float(quota) / float(period) if float(quota) > 0 else None
    except (ValueError, ZeroDivisionError):  # "max", or no such file
        return None


def read_text(path: Path) -> str:
    """Empty where there is no such file, or it cannot be read."""
    try:
        return path.read_text()
    except OSError:
        return ""


def read_words(path: Path) -> list[str]:
    """As `read_text`."""
    return read_text(path).split()


def processor() -> str:
    """What the CPU calls itself."""
    with contextlib.suppress(OSError), open("/proc/cpuinfo") as file:
        for line in file:
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def shows_gpu(signs: Iterable[str] | None = None) -> bool:
    """A sign of a GPU (`GPUS`); what torch makes of it, it says itself."""
    return any(os.path.exists(sign) for sign in (GPUS if signs is None else signs))


def rooflines_file() -> Path:
    """Where rooflines are remembered."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "sfactory" / "rooflines.json"


def workload(config: Config) -> str:
    """What the cost of a step depends on, as one line: another line, another roofline."""
    learning, run = config.learning, config.run
    depends = {
        "env": [config.env.name, config.env.arguments, config.sampling.envs_per_group],
        "model": asdict(config.model),
        "learning": [learning.epochs, config.optimizer_steps_per_update > 1, learning.precision],
        "machine": [processor(), cores(), run.device, shows_gpu()],
    }
    return json.dumps(depends, sort_keys=True, default=str)


def remember_roofline(config: Config, steps_per_second: float) -> None:
    """Keep what was measured. A cache that cannot be written is no reason to fail."""
    file = rooflines_file()
    known = _read(file) | {workload(config): round(steps_per_second, 1)}
    with contextlib.suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary = file.with_name(f".{file.name}.{os.getpid()}")
        temporary.write_text(json.dumps(known, indent=1) + "\n")
        temporary.replace(file)


def known_roofline(config: Config) -> float | None:
    """Steps per second that this machine could do at the most, if `sfactory bench` has measured it."""
    found = _read(rooflines_file()).get(workload(config))
    return float(found) if isinstance(found, int | float) and found > 0 else None


def _read(file: Path) -> dict[str, object]:
    with contextlib.suppress(OSError, ValueError):
        found = json.loads(file.read_text())
        if isinstance(found, dict):
            return found
    return {}
