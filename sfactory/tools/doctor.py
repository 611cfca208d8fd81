"""`sfactory doctor`: what of this machine helps or hinders training, and what to do about it.

Every check is a function of what it reads, so that another machine's files can be given to it. A check answers with a
`Finding`: ok; warn: slower, or something is missing that not everybody needs; bad: training cannot work.
"""

from __future__ import annotations

import ctypes
import importlib.util
import json
import os
import platform
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sfactory.device.machine import affinity, control_groups, cpu_quota, read_text, read_words, smallest

GIB = 2**30
OLDEST_PYTHON = (3, 11)
WORKERS = 16  # whose descriptors should fit without a word
FDS = 64 + 16 * WORKERS  # as `workers.birth.check_descriptors` counts
EXTRAS = {  # extra -> modules it brings
    "minatar": ("minatar",),
    "atari": ("ale_py",),
    "mujoco": ("mujoco",),
    "envpool": ("envpool",),
    "video": ("av",),
    "plots": ("matplotlib",),
    "onnx": ("onnx", "onnxscript", "onnxruntime"),
    "wandb": ("wandb",),
}
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


@dataclass(frozen=True)
class Finding:
    """One line: ok, warn or bad; of what; what was found; what to do (empty where nothing is)."""

    level: str
    topic: str
    found: str
    advice: str = ""


def memory_limit(cgroup: Path) -> int | None:
    """Bytes the control group may use; None: no limit."""
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        for word in read_words(cgroup / name):
            if word.isdigit() and int(word) < 2**60:  # version 1 writes "no limit" as a huge number
                return int(word)
    return None


def check_python(version: tuple[int, ...], torch: str | None) -> Finding:
    """Python and torch."""
    text = f"Python {'.'.join(map(str, version[:3]))}, torch {torch or 'missing'}"
    if version < OLDEST_PYTHON:
        return Finding("bad", "python", text, "sfactory needs Python 3.11 or newer")
    if torch is None:
        return Finding("bad", "python", text, "pip install torch")
    return Finding("ok", "python", text)


def check_cores(cores: int, allowed: int, quota: float | None) -> Finding:
    """Cores of the machine, of this process's affinity, and of the control group's quota."""
    text = f"{cores} of the machine, {allowed} allowed, quota {'none' if quota is None else f'{quota:g}'}"
    usable = min(float(allowed), quota if quota is not None else float(allowed))
    if usable < 2:
        return Finding("warn", "cores", text, "samplers, inference and learner take turns on it; give it two or more")
    if quota is not None and quota < allowed - 0.5:
        best = max(1, int(quota) - 1)
        advice = f"more processes than {quota:g} wait for each other: --sampling.num-samplers {best} at most"
        return Finding("warn", "cores", text, advice)
    return Finding("ok", "cores", text)


def check_threads(environ: Mapping[str, str], usable: int) -> Finding:
    """Variables that make every sampler's BLAS start threads of its own."""
    set_here = {name: environ[name] for name in THREADS if name in environ}
    text = ", ".join(f"{name}={value}" for name, value in set_here.items()) or "no variable set"
    wrong = [name for name, value in set_here.items() if not value.isdigit() or not 1 <= int(value) <= max(usable, 1)]
    if wrong:
        advice = f"{wrong[0]} should be a number from 1 to {usable}; export {wrong[0]}=1"
        return Finding("warn", "threads", text, advice)
    many = [name for name, value in set_here.items() if int(value) > 1]
    if many:
        advice = f"BLAS takes {set_here[many[0]]} threads in every sampler that computes with it; export {many[0]}=1"
        return Finding("warn", "threads", text, advice)
    return Finding("ok", "threads", text)


def check_memory(total: int, available: int, limit: int | None) -> Finding:
    """Main memory, and what of it the control group may use."""
    size = min(total, limit or total)
    text = f"{size / GIB:.1f} GiB" + (f" (limit; the machine has {total / GIB:.1f})" if size < total else "")
    text += f", {min(available, size) / GIB:.1f} free"
    if min(available, size) < GIB:
        return Finding("warn", "memory", text, "a small run needs about 1 GiB; end what is not needed")
    return Finding("ok", "memory", text)


def check_shared_memory(size: int | None, has_memfd: bool) -> Finding:
    """SharedState memory: sfactory's own has no name and no limit; what else uses /dev/shm is an environment's business."""
    text = f"{'anonymous files' if has_memfd else 'no memfd_create'}, /dev/shm " + (
        "missing" if size is None else f"{size / GIB:.2f} GiB"
    )
    if not has_memfd:
        advice = "unlinked temporary files serve; put TMPDIR on a file system in memory"
        return Finding("warn", "shared memory", text, advice)
    return Finding("ok", "shared memory", text)


def check_descriptors(soft: int, hard: int) -> Finding:
    """File descriptors: the soft limit is raised by itself, the hard one cannot be."""
    text = f"{_limit(soft)}, at most {_limit(hard)}"
    if hard != resource.RLIM_INFINITY and hard < FDS:
        level = "bad" if hard < 64 + 16 * 3 else "warn"
        return Finding(level, "descriptors", text, f"{WORKERS} workers need {FDS}: ulimit -Hn {FDS}, or fewer samplers")
    return Finding("ok", "descriptors", text)


def check_death(pdeathsig: bool, pidfd: bool) -> Finding:
    """How surely workers die with their supervisor, and how soon a death is seen."""
    text = f"death signal {'yes' if pdeathsig else 'no'}, pidfd {'yes' if pidfd else 'no'}"
    if pdeathsig and pidfd:
        return Finding("ok", "processes", text)
    advice = "training works; a death is seen at the next tick, and the orphan_killer alone buries workers"
    return Finding("warn", "processes", text, advice)


def check_cuda(devices: list[str], driver: bool, torch: str | None) -> Finding:
    """CUDA. A machine without one is fine."""
    if devices:
        return Finding("ok", "cuda", ", ".join(devices))
    if driver:
        advice = f"torch {torch} sees no device; install a build for CUDA (https://pytorch.org/get-started)"
        return Finding("warn", "cuda", "a driver is here", advice)
    return Finding("ok", "cuda", "none: inference and learner run on the CPU")


def check_bf16(flags: set[str]) -> Finding:
    """Instructions that make `--run.precision bf16` faster on a CPU."""
    fast = [name for name in ("avx512_bf16", "amx_bf16") if name in flags]
    if fast:
        return Finding("ok", "bf16", f"{', '.join(fast)}: --run.precision bf16 can pay")
    return Finding("ok", "bf16", "not in this CPU: keep --run.precision fp32")


def check_compiler(found: str | None) -> Finding:
    """torch.compile needs a C++ compiler; sfactory does not."""
    if found:
        return Finding("ok", "compiler", found)
    return Finding("ok", "compiler", "none: only your own torch.compile would need one (apt-get install g++)")


def check_rendering(environ: Mapping[str, str], mujoco: bool, libraries: Mapping[str, bool]) -> Finding:
    """Whether MuJoCo could render here. Training never does."""
    if not mujoco:
        return Finding("ok", "rendering", "MuJoCo is not installed")
    asked = environ.get("MUJOCO_GL", "")
    if asked:
        library = {"egl": "EGL", "osmesa": "OSMesa"}.get(asked.lower(), "GL")
        if libraries.get(library):
            return Finding("ok", "rendering", f"MUJOCO_GL={asked}, lib{library} is here")
        advice = f"lib{library} is missing: apt-get install {_PACKAGES[library]}, or unset MUJOCO_GL"
        return Finding("warn", "rendering", f"MUJOCO_GL={asked}", advice)
    if environ.get("DISPLAY"):
        return Finding("ok", "rendering", f"DISPLAY={environ['DISPLAY']}")
    for name, value in (("EGL", "egl"), ("OSMesa", "osmesa")):
        if libraries.get(name):
            advice = f"for videos of MuJoCo: export MUJOCO_GL={value}"
            return Finding("warn", "rendering", f"no display; lib{name} is here", advice)
    advice = "for videos of MuJoCo: apt-get install libegl1, then export MUJOCO_GL=egl"
    return Finding("warn", "rendering", "no display, no libEGL, no libOSMesa", advice)


_PACKAGES = {"EGL": "libegl1", "OSMesa": "libosmesa6", "GL": "libgl1"}


def check_folder(folder: Path, free: int | None, writable: bool) -> Finding:
    """Where runs are written."""
    if not writable:
        return Finding("bad", "runs folder", f"{folder} cannot be written", "stand elsewhere, or give --run.dir")
    text = f"{folder} can be written" + ("" if free is None else f", {free / GIB:.1f} GiB free")
    if free is not None and free < GIB:
        return Finding("warn", "runs folder", text, "checkpoints need room: free some, or give --run.dir")
    return Finding("ok", "runs folder", text)


def check_extras(missing: Mapping[str, list[str]]) -> Iterator[Finding]:
    """Packages that belong to extras; extra -> what of it is missing."""
    for extra, names in missing.items():
        if names:
            yield Finding("warn", f"extra {extra}", f"no {', '.join(names)}", f"pip install 'sfactory[{extra}]'")
        else:
            yield Finding("ok", f"extra {extra}", "installed")


# -- this machine --------------------------------------------------------------------------------------------


def examine(folder: Path | None = None) -> list[Finding]:
    """Everything, of this machine. folder: where runs would be written; ./runs if None."""
    import psutil

    torch = _torch()
    groups, memory = control_groups(), psutil.virtual_memory()
    limit = smallest(memory_limit(group) for group in groups)
    driver = Path("/proc/driver/nvidia/version").exists() or shutil.which("nvidia-smi") is not None
    shm = Path("/dev/shm")
    libraries = {name: _library(name) for name in _PACKAGES}
    place = folder or Path("runs")
    allowed = affinity()
    return [
        check_python(tuple(sys.version_info[:3]), torch.get("version")),
        check_cores(os.cpu_count() or 1, allowed, smallest(cpu_quota(group) for group in groups)),
        check_threads(os.environ, allowed),
        check_memory(memory.total, memory.available, None if limit is None else int(limit)),
        check_shared_memory(shutil.disk_usage(shm).total if shm.is_dir() else None, hasattr(os, "memfd_create")),
        check_descriptors(*resource.getrlimit(resource.RLIMIT_NOFILE)),
        check_death(_death_signal(), hasattr(os, "pidfd_open")),
        check_cuda(torch.get("devices", []), driver, torch.get("version")),
        check_bf16(_cpu_flags()),
        check_compiler(shutil.which("g++") or shutil.which("c++") or shutil.which("clang++")),
        check_rendering(os.environ, importlib.util.find_spec("mujoco") is not None, libraries),
        check_folder(place, *_room(place)),
        *check_extras({e: [m for m in ms if importlib.util.find_spec(m) is None] for e, ms in EXTRAS.items()}),
    ]


def _torch() -> dict[str, Any]:
    """Version and CUDA devices, asked of another process: a broken torch can crash, and this one shall go on."""
    code = (
        "import json, torch\n"
        "names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]\n"
        "print(json.dumps({'version': torch.__version__, 'devices': names}))"
    )
    try:
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
        return dict(json.loads(done.stdout.splitlines()[-1]))
    except (OSError, subprocess.TimeoutExpired, ValueError, IndexError):
        return {}


def _death_signal() -> bool:
    """Whether prctl(PR_SET_PDEATHSIG) is there, asked without changing anything."""
    if sys.platform != "linux":
        return False
    value = ctypes.c_int()
    return ctypes.CDLL(None).prctl(2, ctypes.byref(value)) == 0 and value.value in (0, *map(int, signal.Signals))


def _cpu_flags(path: Path = Path("/proc/cpuinfo")) -> set[str]:
    lines = read_text(path).splitlines()
    return {word for line in lines if line.startswith(("flags", "Features")) for word in line.split()[2:]}


def _library(name: str) -> bool:
    from ctypes.util import find_library

    return find_library(name) is not None


def _room(folder: Path) -> tuple[int | None, bool]:
    """(bytes free, can be written) of a folder or of what it would be made in; tried with a file that is deleted."""
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


def report(findings: list[Finding], write: Callable[[str], object]) -> None:
    """For people: one line each, and what to do below it."""
    write(f"{platform.platform()}, {platform.machine()}\n")
    width = max(len(f.topic) for f in findings)
    for f in findings:
        write(f"{f.level:5} {f.topic:{width}}  {f.found}\n")
        if f.advice:
            write(f"{'':6}{'':{width}}  -> {f.advice}\n")
