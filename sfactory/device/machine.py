"""Properties of this machine: cores, processor name, presence of a GPU."""

from __future__ import annotations

import contextlib
import math
import os
import platform
from collections.abc import Iterable
from pathlib import Path

from sfactory.shm.control_groups import control_groups, read_text, read_words, smallest, version_1_groups

BF16_FLAGS = ("avx512_bf16", "amx_bf16", "bf16")  # x86-64, x86-64, ARM
NUMA = Path("/sys/devices/system/node")
GPUS = ("/dev/nvidiactl", "/dev/nvidia0", "/dev/dxg", "/dev/kfd", "/proc/driver/nvidia", "/dev/nvhost-ctrl")


def user_cache() -> Path | None:
    """The user's folder for caches; None for a user without a home folder."""
    try:
        found = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:  # HOME is not set, and the user has no account
        return None
    return found if found.is_absolute() else None


def affinity() -> int:
    """Number of cores in the affinity mask of this process."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def numa_nodes(root: Path = NUMA, allowed: Iterable[int] | None = None) -> list[frozenset[int]]:
    """Cores of each NUMA node that this process may use, in the order of the nodes, without nodes that have none.

    allowed: the affinity of a process, by default of this one. Empty where the system does not describe its nodes.
    """
    if allowed is None:
        allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else ()
    usable = frozenset(allowed)
    nodes = sorted(root.glob("node[0-9]*"), key=lambda node: int(node.name.removeprefix("node")))
    return [own for node in nodes if (own := usable & core_list(read_text(node / "cpulist")))]


def core_list(text: str) -> frozenset[int]:
    """`0-3,8` -> {0, 1, 2, 3, 8}: the kernel's format of a set of cores."""
    spans = [part.partition("-") for part in text.strip().split(",") if part]
    return frozenset(core for first, _, last in spans for core in range(int(first), int(last or first) + 1))


def cores() -> int:
    """Number of cores this process may use: its affinity, or fewer if a container has a quota."""
    quota = smallest(cpu_quota(group) for group in [*control_groups(), *version_1_groups("cpu")])
    return affinity() if quota is None else max(1, min(affinity(), math.ceil(quota)))


def cpu_quota(cgroup: Path) -> float | None:
    """Average number of cores the control group may use (version 2, then 1); None if unlimited."""
    quota, period = (read_words(cgroup / "cpu.max") + ["", ""])[:2]
    for folder in (cgroup / "cpu", cgroup):
        if not quota:
            quota = " ".join(read_words(folder / "cpu.cfs_quota_us"))
            period = " ".join(read_words(folder / "cpu.cfs_period_us"))
    try:
        return float(quota) / float(period) if float(quota) > 0 else None
    except (ValueError, ZeroDivisionError):  # "max", or no such file
        return None


def cpu_flags(cpuinfo: Path = Path("/proc/cpuinfo")) -> set[str]:
    """Instruction sets that the system lists for the CPU; empty if it lists none."""
    lines = read_text(cpuinfo).splitlines()
    return {word for line in lines if line.startswith(("flags", "Features")) for word in line.split()[2:]}


def lacks_bf16(flags: set[str]) -> bool:
    """Whether a CPU with these flags certainly has no bf16 instructions; without them bf16 is slower than fp32."""
    return bool(flags) and not flags.intersection(BF16_FLAGS)


def processor() -> str:
    """Model name of the CPU."""
    with contextlib.suppress(OSError), open("/proc/cpuinfo") as file:
        for line in file:
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def shows_gpu(paths: Iterable[str] | None = None) -> bool:
    """Whether a device file of a GPU (`GPUS`) exists; torch may still be unable to use it."""
    return any(os.path.exists(path) for path in (GPUS if paths is None else paths))
