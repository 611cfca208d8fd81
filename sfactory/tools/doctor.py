"""Check whether this machine can train, and suggest what to change.

Every check is a pure function of values that were read before, so that tests can pass those of other machines. Levels
of a `MachineFinding`: ok; warn (slower, or an optional part is missing); bad (training cannot work).
"""

from __future__ import annotations

import ctypes
import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sfactory.device.machine import BF16_FLAGS, affinity, cpu_flags, cpu_quota
from sfactory.device.ranks import Ranks
from sfactory.errors import SettingError
from sfactory.native.library import NoKernels
from sfactory.native.library import build as build_kernels
from sfactory.native.library import load as load_kernels
from sfactory.shm.control_groups import control_groups, free_memory, memory_limit, smallest, version_1_groups
from sfactory.supervisor.blas_threads import VARIABLES
from sfactory.supervisor.limits import FDS_OF_OUR_OWN, FDS_PER_WORKER

GIB = 2**30
OLDEST_PYTHON = (3, 11)
WORKERS = 16  # whose file descriptors should be available
PR_GET_PDEATHSIG, PR_GET_CHILD_SUBREAPER = 2, 37
FDS = FDS_OF_OUR_OWN + FDS_PER_WORKER * WORKERS


@dataclass(frozen=True)
class MachineFinding:
    """The result of one check: its level (ok, warn, bad), the topic, what was found, and advice if not ok."""

    level: str
    topic: str
    found: str
    advice: str = ""


NOT_CHECKED = {"all", "classic", "dev", "docs"}  # extras: of extras, of an option of a package, of developers (2)


def extras() -> dict[str, list[str]]:
    """Return extra -> packages it requires, from the metadata of the installed sfactory (setup.cfg)."""
    found: dict[str, list[str]] = {}
    try:
        requirements = importlib.metadata.requires("sfactory") or []
    except importlib.metadata.PackageNotFoundError:  # run from a checkout that is not installed
        return found
    for requirement in requirements:
        match = re.match(r"""([\w.-]+)[^;]*;.*\bextra == ['"]([\w-]+)['"]""", requirement)
        if match and match[2] not in NOT_CHECKED:
            found.setdefault(match[2], []).append(match[1])
    return found


def _not_installed(packages: list[str]) -> list[str]:
    missing = []
    for package in packages:
        try:
            importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            missing.append(package)
    return missing


def check_python(version: tuple[int, ...], torch: str | None, problem: str = "") -> MachineFinding:
    """Check the versions of Python and torch. problem: why an installed torch has no version; else empty."""
    text = f"Python {'.'.join(map(str, version[:3]))}, torch {torch or problem or 'missing'}"
    if version < OLDEST_PYTHON:
        return MachineFinding("bad", "python", text, "sfactory needs Python 3.11 or newer")
    if torch is None:
        again = "--force-reinstall " if problem else ""
        return MachineFinding("bad", "python", text, f"pip install {again}torch")
    return MachineFinding("ok", "python", text)


def check_cores(cores: int, allowed: int, quota: float | None) -> MachineFinding:
    """Check the cores of the machine, of the process's affinity and of the control group's quota."""
    text = f"{cores} of the machine, {allowed} allowed, quota {'none' if quota is None else f'{quota:g}'}"
    usable = min(float(allowed), quota if quota is not None else float(allowed))
    if usable < 2:
        return MachineFinding("warn", "cores", text, "samplers, inference and learner share one core; use two or more")
    if quota is not None and quota < allowed - 0.5:
        best = max(1, int(quota) - 1)
        advice = f"more than {quota:g} processes wait for each other; use at most --sampling.num-samplers {best}"
        return MachineFinding("warn", "cores", text, advice)
    return MachineFinding("ok", "cores", text)


def check_threads(environ: Mapping[str, str], usable: int) -> MachineFinding:
    """Check environment variables that make the BLAS of every sampler start several threads. Without any it has one."""
    values = {name: environ[name] for name in VARIABLES if name in environ}
    text = ", ".join(f"{name}={value}" for name, value in values.items())
    text = text or "no variable set: samplers and evaluator get one thread each"
    wrong = [name for name, value in values.items() if not value.isdigit() or not 1 <= int(value) <= max(usable, 1)]
    if wrong:
        advice = f"{wrong[0]} should be a number from 1 to {usable}; export {wrong[0]}=1"
        return MachineFinding("warn", "threads", text, advice)
    many = [name for name, value in values.items() if int(value) > 1]
    if many:
        advice = f"BLAS uses {values[many[0]]} threads in every sampler; export {many[0]}=1"
        return MachineFinding("warn", "threads", text, advice)
    return MachineFinding("ok", "threads", text)


def check_memory(total: int, available: int, limit: int | None) -> MachineFinding:
    """Check main memory and the limit of the control group."""
    size = min(total, limit or total)
    text = f"{size / GIB:.1f} GiB" + (f" (limit; the machine has {total / GIB:.1f})" if size < total else "")
    text += f", {min(available, size) / GIB:.1f} free"
    if min(available, size) < GIB:
        return MachineFinding("warn", "memory", text, "a small run needs about 0.6 GiB; stop other processes")
    return MachineFinding("ok", "memory", text)


def check_shared_memory(size: int | None, has_memfd: bool) -> MachineFinding:
    """Check shared memory. sfactory uses anonymous files, not /dev/shm; environments may use /dev/shm."""
    text = f"{'anonymous files' if has_memfd else 'no memfd_create'}, /dev/shm " + (
        "missing" if size is None else f"{size / GIB:.2f} GiB"
    )
    if not has_memfd:
        advice = "unlinked temporary files are used instead; put TMPDIR on a file system in memory"
        return MachineFinding("warn", "shared memory", text, advice)
    return MachineFinding("ok", "shared memory", text)


def check_descriptors(soft: int, hard: int) -> MachineFinding:
    """Check the limits of file descriptors. The soft limit is raised automatically, the hard limit cannot be."""
    text = f"{_limit(soft)}, at most {_limit(hard)}"
    if hard != resource.RLIM_INFINITY and hard < FDS:
        level = "bad" if hard < 64 + 16 * 3 else "warn"
        return MachineFinding(
            level, "descriptors", text, f"{WORKERS} workers need {FDS}: ulimit -Hn {FDS}, or use fewer samplers"
        )
    return MachineFinding("ok", "descriptors", text)


def check_process_exit(pdeathsig: bool, pidfd: bool, subreaper: bool = True) -> MachineFinding:
    """Check how workers and what they started are ended, and how fast their exit is detected."""
    has = {"death signal": pdeathsig, "pidfd": pidfd, "subreaper": subreaper}
    text = ", ".join(f"{name} {'yes' if there else 'no'}" for name, there in has.items())
    if not subreaper:
        advice = "training works, but simulators that an environment starts in a session of their own may be left over"
        return MachineFinding("warn", "processes", text, advice)
    if pdeathsig and pidfd:
        return MachineFinding("ok", "processes", text)
    advice = (
        "training works, but exits are detected with a delay, and orphaned processes are ended by the watchdog only"
    )
    return MachineFinding("warn", "processes", text, advice)


def check_cuda(devices: list[str], driver: bool, torch: str | None) -> MachineFinding:
    """Check CUDA devices and driver; neither is required."""
    if devices:
        return MachineFinding("ok", "cuda", ", ".join(devices))
    if driver:
        advice = f"torch {torch} sees no device; install a build for CUDA (https://pytorch.org/get-started)"
        return MachineFinding("warn", "cuda", "driver installed", advice)
    return MachineFinding("ok", "cuda", "none: inference and learner run on the CPU")


def check_learners(backends: Sequence[str], environ: Mapping[str, str], gpus: int) -> MachineFinding:
    """Check what several learners need, and whether this process is one of several ranks."""
    try:
        ranks = Ranks.from_env(environ)
    except SettingError as error:
        return MachineFinding("bad", "learners", str(error), "start with torchrun (docs/distributed.md)")
    own = "one" if ranks.alone else ranks.name
    if not backends:
        advice = "" if ranks.alone else "install a build of torch with torch.distributed"
        level = "ok" if ranks.alone else "bad"
        return MachineFinding(level, "learners", f"{own}; torch is built without torch.distributed", advice)
    text = f"{own}; several can talk over {' or '.join(backends)}"
    if gpus > 1 and "nccl" not in backends:
        return MachineFinding("warn", "learners", text, "without NCCL several GPUs average gradients through the CPU")
    return MachineFinding("ok", "learners", text)


def check_bf16(flags: set[str]) -> MachineFinding:
    """Check CPU instructions that can make bf16 faster than fp32."""
    fast = [name for name in BF16_FLAGS if name in flags]
    if fast:
        return MachineFinding("ok", "bf16", f"{', '.join(fast)}: run.precision auto measures bf16 for image encoders")
    return MachineFinding("ok", "bf16", "not supported by this CPU: run.precision auto is fp32")


def check_kernels(library: str, problem: str = "") -> MachineFinding:
    """Check the kernels for small networks on a CPU. library: the compiled file; problem: why there is none."""
    if not problem:
        return MachineFinding("ok", "kernels", library)
    advice = "training works, but torch computes small networks, which takes longer"
    return MachineFinding("warn", "kernels", problem, advice)


def check_rendering(environ: Mapping[str, str], mujoco: bool, libraries: Mapping[str, bool]) -> MachineFinding:
    """Check whether MuJoCo can render, which only videos need."""
    if not mujoco:
        return MachineFinding("ok", "rendering", "MuJoCo is not installed")
    backend = environ.get("MUJOCO_GL", "")
    if backend:
        library = {"egl": "EGL", "osmesa": "OSMesa"}.get(backend.lower(), "GL")
        if libraries.get(library):
            return MachineFinding("ok", "rendering", f"MUJOCO_GL={backend}, lib{library} is installed")
        advice = f"lib{library} is missing: apt-get install {_PACKAGES[library]}, or unset MUJOCO_GL"
        return MachineFinding("warn", "rendering", f"MUJOCO_GL={backend}", advice)
    for display in ("DISPLAY", "WAYLAND_DISPLAY"):
        if environ.get(display):
            return MachineFinding("ok", "rendering", f"{display}={environ[display]}")
    if libraries.get("EGL"):  # what `envs/rendering.py` chooses without a display
        return MachineFinding(
            "ok", "rendering", "no display; videos of MuJoCo use libEGL (if they fail: apt-get install libgl1-mesa-dri)"
        )
    if libraries.get("OSMesa"):
        advice = "for videos of MuJoCo: export MUJOCO_GL=osmesa"
        return MachineFinding("warn", "rendering", "no display; libOSMesa is installed", advice)
    advice = "for videos of MuJoCo: apt-get install libegl1 libgl1-mesa-dri"
    return MachineFinding("warn", "rendering", "no display, no libEGL, no libOSMesa", advice)


_PACKAGES = {"EGL": "libegl1", "OSMesa": "libosmesa6", "GL": "libgl1"}


def check_folder(folder: Path, free: int | None, writable: bool) -> MachineFinding:
    """Check that the folder of runs is writable and has free space."""
    if not writable:
        return MachineFinding(
            "bad", "runs folder", f"{folder} cannot be written", "change the working directory, or use --run.dir"
        )
    text = f"{folder} can be written" + ("" if free is None else f", {free / GIB:.1f} GiB free")
    if free is not None and free < GIB:
        return MachineFinding("warn", "runs folder", text, "checkpoints need disk space: free some, or use --run.dir")
    return MachineFinding("ok", "runs folder", text)


def check_extras(missing: Mapping[str, list[str]]) -> Iterator[MachineFinding]:
    """Check the packages of the extras. missing: extra -> packages that are not installed."""
    for extra, names in missing.items():
        if names:
            yield MachineFinding("warn", f"extra {extra}", f"no {', '.join(names)}", f"pip install 'sfactory[{extra}]'")
        else:
            yield MachineFinding("ok", f"extra {extra}", "installed")


# -- this machine --------------------------------------------------------------------------------------------


def examine(folder: Path | None = None) -> list[MachineFinding]:
    """Run all checks on this machine. folder: where runs would be written; ./runs if None."""
    import psutil

    torch = _torch()
    groups, memory = control_groups(), psutil.virtual_memory()
    limit = smallest(memory_limit(group) for group in [*groups, *version_1_groups("memory")])
    available = int(min(memory.available, free_memory().bytes))
    driver = Path("/proc/driver/nvidia/version").exists() or shutil.which("nvidia-smi") is not None
    shm = Path("/dev/shm")
    libraries = {name: _library(name) for name in _PACKAGES}
    run_folder = folder or Path("runs")
    allowed = affinity()
    return [
        check_python(tuple(sys.version_info[:3]), torch.get("version"), torch.get("problem", "")),
        check_cores(
            os.cpu_count() or 1, allowed, smallest(cpu_quota(group) for group in [*groups, *version_1_groups("cpu")])
        ),
        check_threads(os.environ, allowed),
        check_memory(memory.total, available, None if limit is None else int(limit)),
        check_shared_memory(shutil.disk_usage(shm).total if shm.is_dir() else None, hasattr(os, "memfd_create")),
        check_descriptors(*resource.getrlimit(resource.RLIMIT_NOFILE)),
        check_process_exit(_death_signal(), hasattr(os, "pidfd_open"), _prctl_int(PR_GET_CHILD_SUBREAPER) is not None),
        check_cuda(torch.get("devices", []), driver, torch.get("version")),
        check_learners(torch.get("backends", []), os.environ, len(torch.get("devices", []))),
        check_bf16(cpu_flags()),
        check_kernels(*_kernels()),
        check_rendering(os.environ, importlib.util.find_spec("mujoco") is not None, libraries),
        check_folder(run_folder, *_free_space(run_folder)),
        *check_extras({extra: _not_installed(packages) for extra, packages in extras().items()}),
    ]


def _torch() -> dict[str, Any]:
    """Return version, CUDA devices and backends of torch, read in another process because a broken torch can crash.

    Nothing if it is not installed; `problem` if it is, and cannot be imported.
    """
    code = (
        "import json, torch\n"
        "import torch.distributed as d\n"
        "known = ('gloo', 'nccl') if d.is_available() else ()\n"
        "backends = [name for name in known if getattr(d, f'is_{name}_available')()]\n"
        "names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]\n"
        "print(json.dumps({'version': torch.__version__, 'devices': names, 'backends': backends}))"
    )
    try:
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
        if done.returncode == 0:
            return dict(json.loads(done.stdout.splitlines()[-1]))
        reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
    except (OSError, subprocess.TimeoutExpired, ValueError, IndexError) as error:
        reason = "its import took 120 s" if isinstance(error, subprocess.TimeoutExpired) else str(error)
    if _not_installed(["torch"]):
        return {}
    return {"problem": f"{importlib.metadata.version('torch')} cannot be imported: {reason}"}


def _kernels() -> tuple[str, str]:
    """The file of the kernels, built if it is not there yet, and why there is none; one of them is empty."""
    try:
        path = build_kernels()
        load_kernels()
        return str(path), ""
    except NoKernels as error:
        return "", str(error)


def _death_signal() -> bool:
    """Return whether prctl(PR_SET_PDEATHSIG) is available; reads it without setting it."""
    return _prctl_int(PR_GET_PDEATHSIG) in (0, *map(int, signal.Signals))


def _prctl_int(option: int) -> int | None:
    """Return what one of prctl's options reads; None where there is no such option."""
    value = ctypes.c_int()
    there = sys.platform == "linux" and ctypes.CDLL(None).prctl(option, ctypes.byref(value), 0, 0, 0) == 0
    return value.value if there else None


def _library(name: str) -> bool:
    from ctypes.util import find_library

    return find_library(name) is not None


def _free_space(folder: Path) -> tuple[int | None, bool]:
    """Return (free bytes, writable) of a folder or its nearest existing parent; tries a temporary file."""
    try:
        while not folder.is_dir() and folder != folder.parent:
            folder = folder.parent
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"sfactory")
            file.flush()
        return shutil.disk_usage(folder).free, True
    except OSError:
        return None, False


def _limit(value: int) -> str:
    return "no limit" if value == resource.RLIM_INFINITY else str(value)


def report(findings: list[MachineFinding], write: Callable[[str], object]) -> None:
    """Write the findings as text, one line each with the advice below it."""
    write(f"{platform.platform()}, {platform.machine()}\n")
    width = max(len(f.topic) for f in findings)
    for f in findings:
        write(f"{f.level:5} {f.topic:{width}}  {f.found}\n")
        if f.advice:
            write(f"{'':6}{'':{width}}  -> {f.advice}\n")
