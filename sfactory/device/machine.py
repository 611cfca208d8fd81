"""This machine: its cores, its processor, its control groups, and whether it shows a GPU."""

from __future__ import annotations

import contextlib
import math
import os
import platform
from collections.abc import Iterable
from pathlib import Path

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
