"""Load torch in less time."""

from __future__ import annotations

import contextlib
import gc
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def loading_torch(frozen: bool = False) -> Iterator[None]:
    """Import torch, and what needs it, without the garbage collector.

    The import makes half a million objects that stay. Looking through them again and again is 0.15 s of its 1.6 s of
    processor time (2 cores of an Intel Xeon, torch 2.13). No effect if torch is loaded.

    frozen: leave everything that exists afterwards out of later collections. For workers alone, at their beginning: in
    a user's process there may be objects that become garbage, as environments, which must be closed.
    """
    if "torch" in sys.modules or not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        if frozen:
            gc.freeze()
        gc.enable()
