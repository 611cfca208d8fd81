"""Compile `kernels.c` for the processor at hand, once, and load it.

The compiled library is in the user's cache folder, under a name that depends on the source, the compiler and the
processor. A machine without a C compiler has no kernels; everything works without them, more slowly.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import functools
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sfactory.device.machine import processor, user_cache
from sfactory.shm.control_groups import read_text

SOURCE = Path(__file__).with_name("kernels.c")
COMPILERS = ("cc", "gcc", "clang")
FLAGS = ("-O3", "-std=gnu11", "-fno-math-errno", "-fno-trapping-math", "-shared", "-fPIC")
TUNED = ("-march=native", "-mcpu=native", "")  # the first that the compiler accepts
BUILD_TIMEOUT_S = 60.0
_ADDRESS, _NUMBER = ctypes.c_void_p, ctypes.c_int64
SIGNATURES: dict[str, tuple[Any, ...]] = {
    "sf_panel": (),
    "sf_network_size": (),
    "sf_loss_size": (),
    "sf_pack": (_ADDRESS,) * 3 + (_NUMBER,),
    "sf_forward": (_ADDRESS,) * 3 + (_NUMBER,) + (_ADDRESS,) * 4 + (_NUMBER,) * 3 + (_ADDRESS,) * 2,
    "sf_backward": (_ADDRESS,) * 3 + (_NUMBER,) + (_ADDRESS,) * 3 + (_NUMBER,) * 3 + (_ADDRESS,) * 3,
    "sf_loss": (_ADDRESS,) * 2 + (_NUMBER,) + (_ADDRESS,) * 4,
    "sf_adam": (_ADDRESS,) * 4 + (_NUMBER,) + (ctypes.c_double,) * 7,
    "sf_rows": (_ADDRESS, _NUMBER, _ADDRESS) + (_NUMBER,) * 3 + (_ADDRESS,) * 3 + (_NUMBER,),
    "sf_act": (_ADDRESS,) * 2 + (_NUMBER,) + (_ADDRESS,) * 3 + (_NUMBER,) + (_ADDRESS,) * 3,
}
"""Arguments of the functions in kernels.c."""
RESULTS = {"sf_adam": ctypes.c_double}


class NoKernels(RuntimeError):
    """The kernels cannot be used on this machine; the message says why, in one line."""


def compiler() -> list[str]:
    """The command of the C compiler: the environment variable CC, else the first of `COMPILERS`.

    Raises NoKernels.
    """
    own = shlex.split(os.environ.get("CC", ""))
    if own:
        if shutil.which(own[0]) is None:
            raise NoKernels(f"the compiler of the environment variable CC ({own[0]}) was not found")
        return own
    for name in COMPILERS:
        if (path := shutil.which(name)) is not None:
            return [path]
    raise NoKernels("no C compiler (cc, gcc or clang) was found; install one, for example gcc, or set CC")


def cache_dir() -> Path:
    """Folder of the compiled libraries: in the user's cache, or a folder of this user alone among temporary files.

    Raises NoKernels if neither can be written.
    """
    cache = user_cache()
    own = Path(tempfile.gettempdir()) / f"sfactory-kernels-{os.getuid()}"
    for path in (*([cache / "sfactory" / "kernels"] if cache else []), own):
        with contextlib.suppress(OSError):
            path.mkdir(parents=True, exist_ok=True, mode=0o700)
            status = path.stat()
            # Files in this folder are executed: no other user may be able to write them.
            if os.access(path, os.W_OK) and status.st_uid == os.getuid() and not status.st_mode & 0o022:
                return path
    tried = f"neither {cache} nor {own.parent} can be written" if cache else f"{own.parent} cannot be written"
    raise NoKernels(f"{tried}; set XDG_CACHE_HOME to a folder of your own")


def library_path(command: Sequence[str]) -> Path:
    """Where the library for this source, compiler and processor lies, or is to be built."""
    version = subprocess.run([*command, "--version"], capture_output=True, text=True, timeout=BUILD_TIMEOUT_S).stdout
    features = [
        line for line in read_text(Path("/proc/cpuinfo")).splitlines() if line.startswith(("flags", "Features"))
    ]
    parts = (SOURCE.read_text(), *command, version, *FLAGS, processor(), platform.machine(), *features[:1])
    return cache_dir() / f"{hashlib.sha256(chr(0).join(parts).encode()).hexdigest()[:24]}.so"


def build() -> Path:
    """Path of the compiled library; compiles it if it is not there. Processes that call this together build it once.

    Raises NoKernels if there is no compiler or it fails.
    """
    try:
        command = compiler()
        path = library_path(command)
        if path.exists():
            return path
        with open(path.with_suffix(".lock"), "w") as lock:
            with contextlib.suppress(OSError):  # a file system without locks: several processes may build it
                fcntl.flock(lock, fcntl.LOCK_EX)  # released when the file is closed, or its process ends
            if not path.exists():
                _compile(command, path)
        return path
    except (OSError, subprocess.SubprocessError) as error:
        raise NoKernels(f"the kernels could not be built: {error}") from error


def build_in_background() -> None:
    """Start `build` in a thread: the kernels are ready when the workers have imported torch. Failures are ignored
    here: a worker that needs the kernels calls `load`."""

    def run() -> None:
        with contextlib.suppress(NoKernels):
            build()

    threading.Thread(target=run, name="build of the kernels", daemon=True).start()


def _compile(command: Sequence[str], path: Path) -> None:
    temporary = path.with_suffix(f".{os.getpid()}-{threading.get_ident()}")
    result = None
    for tuned in TUNED:
        words = [*command, *FLAGS, *filter(None, [tuned]), str(SOURCE), "-o", str(temporary), "-lm"]
        result = subprocess.run(words, capture_output=True, text=True, timeout=BUILD_TIMEOUT_S)
        if result.returncode == 0:
            temporary.replace(path)
            return
    assert result is not None
    reason = (result.stderr.strip().splitlines() or ["no output"])[0]
    raise NoKernels(f"{command[0]} failed: {reason}")


def identity() -> str:
    """Short name of the compiled kernels: equal where source, compiler and processor are equal. Raises NoKernels."""
    return build().stem[:12]


@functools.cache
def load() -> ctypes.CDLL:
    """The compiled kernels; builds them at the first call on a machine. Raises NoKernels."""
    try:
        library = ctypes.CDLL(str(build()))
    except OSError as error:
        raise NoKernels(f"the compiled kernels cannot be loaded: {error}") from error
    for name, arguments in SIGNATURES.items():
        function = getattr(library, name)
        function.argtypes, function.restype = arguments, RESULTS.get(name, None if arguments else ctypes.c_int64)
    return library
