"""Control groups of this process: their limits, and the memory that they leave. Standard library only.

A container or a job of a cluster has a group of its own, often below groups with limits; every limit on the way counts.
"""

from __future__ import annotations

import math
import os
import resource
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

CGROUP = Path("/sys/fs/cgroup")
COUNTED_BELOW = 10_000  # a limit of processes above it is not compared with their number, which takes time to count


def control_groups(root: Path = CGROUP, membership: Path = Path("/proc/self/cgroup")) -> list[Path]:
    """Control groups (version 2) whose limits apply to this process: the root, and all groups down to its own."""
    own = next((path for number, _, path in _memberships(membership) if number == "0"), "")
    return _down_to(root, own)


def version_1_groups(controller: str, root: Path = CGROUP, membership: Path = Path("/proc/self/cgroup")) -> list[Path]:
    """Control groups of version 1 whose limits apply to this process, for cpu or memory, from the root down."""
    paths = [path for _, controllers, path in _memberships(membership) if controller in controllers.split(",")]
    return [group for path in paths for group in _down_to(root / controller, path)]


def _memberships(file: Path) -> list[tuple[str, str, str]]:
    """Number, controllers and path of each hierarchy in /proc/self/cgroup; version 2 is number 0."""
    lines = [line.split(":", 2) for line in read_text(file).splitlines()]
    return [(line[0], line[1], line[2]) for line in lines if len(line) == 3]


def _down_to(root: Path, path: str) -> list[Path]:
    found = [root]
    for part in path.split("/"):
        if part and part != "..":
            found.append(found[-1] / part)
    return found


def memory_limit(group: Path) -> int | None:
    """The memory limit of a control group in bytes; None if there is none."""
    for name in ("memory.max", "memory.limit_in_bytes", "memory/memory.limit_in_bytes"):
        for word in read_words(group / name):
            if word.isdigit() and int(word) < 2**60:  # version 1 stores "no limit" as a huge number
                return int(word)
    return None


def memory_used(group: Path) -> int:
    """Bytes in use by a control group, without those that the kernel frees on demand (cached files)."""
    names = ("memory.current", "memory.usage_in_bytes")
    used = next((int(word) for name in names for word in read_words(group / name) if word.isdigit()), 0)
    stat = dict(pair for line in read_text(group / "memory.stat").splitlines() if len(pair := line.split()) == 2)
    cached = stat.get("total_inactive_file", stat.get("inactive_file", "0"))  # version 1 counts children in the former
    return max(0, used - (int(cached) if cached.isdigit() else 0))


class FreeMemory(NamedTuple):
    """Memory that this process can still allocate, and where that number comes from."""

    bytes: float
    text: str


def free_memory(
    root: Path = CGROUP, membership: Path = Path("/proc/self/cgroup"), meminfo: Path = Path("/proc/meminfo")
) -> FreeMemory:
    """The smallest of what the machine and every control group of this process have left."""
    rows = [line.split() for line in read_text(meminfo).splitlines()]
    machine = next((1024.0 * int(row[1]) for row in rows if row[:1] == ["MemAvailable:"]), math.inf)
    found = [FreeMemory(machine, f"{machine / 2**20:.0f} MiB are free on this machine")]
    for group in [*control_groups(root, membership), *version_1_groups("memory", root, membership)]:
        if (limit := memory_limit(group)) is not None:
            used = memory_used(group)
            left = max(0, limit - used)
            text = f"{left / 2**20:.0f} MiB are free: the control group {group} allows {limit / 2**20:.0f} MiB"
            found.append(FreeMemory(left, f"{text}, {used / 2**20:.0f} MiB of them are in use"))
    return min(found, key=lambda one: one.bytes)


class FreeProcesses(NamedTuple):
    """Processes and threads that this process can still start, and where that number comes from."""

    number: float
    text: str


def free_processes(root: Path = CGROUP, membership: Path = Path("/proc/self/cgroup")) -> FreeProcesses:
    """The smallest of what every control group and the limit of this user have left."""
    found = [FreeProcesses(math.inf, "no limit of processes is known")]
    for group in [*control_groups(root, membership), *version_1_groups("pids", root, membership)]:
        limit, used = (next(iter(read_words(group / name)), "") for name in ("pids.max", "pids.current"))
        if limit.isdigit() and used.isdigit():
            text = f"the control group {group} allows {limit} and has {used}"
            found.append(FreeProcesses(max(0, int(limit) - int(used)), text))
    limit_of_user = resource.getrlimit(resource.RLIMIT_NPROC)[0]
    if os.getuid() != 0 and limit_of_user < COUNTED_BELOW:  # the system does not apply it to root
        count = tasks_of_user(os.getuid())
        text = f"the limit of this user is {limit_of_user} (ulimit -u) and {count} exist"
        found.append(FreeProcesses(max(0, limit_of_user - count), text))
    return min(found, key=lambda one: one.number)


def tasks_of_user(uid: int, proc: Path = Path("/proc")) -> int:
    """Number of processes and threads of a user."""
    count = 0
    for file in proc.glob("[0-9]*/status"):
        status = dict(line.split(":", 1) for line in read_text(file).splitlines() if ":" in line)
        if status.get("Uid", "").split()[:1] == [str(uid)]:
            count += int(status.get("Threads", "1"))
    return count


def smallest(limits: Iterable[float | None]) -> float | None:
    """The smallest limit, ignoring None; None if there is none."""
    return min((x for x in limits if x is not None), default=None)


def read_text(path: Path) -> str:
    """Contents of a file; empty if it does not exist or cannot be read."""
    try:
        return path.read_text()
    except OSError:
        return ""


def read_words(path: Path) -> list[str]:
    """Words of a file; empty if it does not exist or cannot be read."""
    return read_text(path).split()
