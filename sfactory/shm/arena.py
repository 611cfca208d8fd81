"""The arena: one anonymous shared-memory file, mapped as named numpy arrays.

The file has no name (`memfd_create`), so nothing can leak or collide in /dev/shm, a container's small /dev/shm does
not limit its size, and the kernel frees it with the last process that holds it. A child inherits the file descriptor.
"""

from __future__ import annotations

import contextlib
import math
import mmap
import os
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from sfactory.shm.control_groups import CGROUP, free_memory

ALIGN = 64  # bytes of a cache line: no word crosses a line and no two arrays share one


class Field(NamedTuple):
    """Shape and dtype of one array of the arena."""

    shape: tuple[int, ...]
    dtype: str

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize


Layout = Mapping[str, Field]


def _offsets(layout: Layout) -> tuple[dict[str, int], int]:
    offsets, end = {}, 0
    for name, field in layout.items():
        offsets[name] = end
        end += -(-field.nbytes // ALIGN) * ALIGN
    return offsets, max(end, ALIGN)


def arena_bytes(layout: Layout) -> int:
    """Size of an arena of this layout."""
    return _offsets(layout)[1]


def _anonymous_file() -> int:
    if sys.platform == "linux":
        return os.memfd_create("sfactory-arena", os.MFD_CLOEXEC)
    fd, path = tempfile.mkstemp(prefix="sfactory-arena-")
    os.unlink(path)
    return fd


def _not_enough_memory(size: int, reason: str) -> str:
    return (
        f"cannot allocate {size / 2**20:.0f} MiB of shared memory for the trajectories ({reason}); lower "
        "sampling.envs-per-group, sampling.rollout-length or sampling.slots-per-group"
    )


def _check_room(size: int, root: Path = CGROUP, membership: Path = Path("/proc/self/cgroup")) -> None:
    """MemoryError if `size` bytes are not free: the kernel grants shared memory page by page and kills the process at
    the first page that is missing."""
    free = free_memory(root, membership)
    if size > free.bytes:
        raise MemoryError(_not_enough_memory(size, free.text))


def _advise_huge_pages(memory: mmap.mmap) -> None:
    """Ask for pages of 2 MiB; a system that has none or refuses changes nothing.

    A GPU pins the arena page by page, in both processes that register it, and a CPU misses fewer translations. The
    system decides in /sys/kernel/mm/transparent_hugepage/shmem_enabled: never (the usual value); advise, where the
    kernel joins the pages in the background; always and within_size, where they are huge when they are allocated.
    """
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):
            memory.madvise(mmap.MADV_HUGEPAGE)


class Arena:
    """Named numpy arrays over one shared file.

    `arena["reward"]` is the array; `arena.fd` and `arena.layout` are what another process needs to see the same memory.
    """

    def __init__(self, layout: Layout, fd: int) -> None:
        self.layout, self.fd = dict(layout), fd
        offsets, size = _offsets(self.layout)
        self.nbytes = size
        self._map = mmap.mmap(fd, size)
        _advise_huge_pages(self._map)
        self._arrays = {
            name: np.ndarray(field.shape, field.dtype, buffer=self._map, offset=offsets[name])
            for name, field in self.layout.items()
        }

    @classmethod
    def create(cls, layout: Layout) -> Arena:
        """Allocate all memory now: MemoryError here instead of SIGBUS at the first access to a page that is missing."""
        fd = cls.reserve()
        try:
            return cls.allocate(layout, fd)
        except MemoryError:
            os.close(fd)
            raise

    @staticmethod
    def reserve() -> int:
        """Descriptor of an empty shared file, for memory whose size is known later."""
        return _anonymous_file()

    @classmethod
    def allocate(cls, layout: Layout, fd: int) -> Arena:
        """Allocate the memory of a reserved file and map it. A second call keeps the contents."""
        _, size = _offsets(layout)
        _check_room(size - os.fstat(fd).st_size)
        try:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(fd, 0, size)
            else:
                os.ftruncate(fd, size)
        except OSError as error:
            raise MemoryError(_not_enough_memory(size, str(error.strerror))) from error
        return cls(layout, fd)

    def __getitem__(self, name: str) -> np.ndarray:
        return self._arrays[name]

    def __contains__(self, name: str) -> bool:
        return name in self._arrays

    @property
    def whole(self) -> np.ndarray:
        """[nbytes] uint8, a view of the whole arena."""
        return np.frombuffer(self._map, np.uint8, self.nbytes)

    def dump(self) -> np.ndarray:
        """[nbytes] uint8, a copy of the whole arena."""
        return self.whole.copy()

    def load(self, contents: np.ndarray) -> None:
        """Restore the contents saved by `dump`. ValueError if the size differs."""
        if contents.shape != (self.nbytes,):
            raise ValueError(f"the arena has {self.nbytes} bytes, the saved one has {contents.size}")
        self.whole[...] = contents

    def close(self) -> None:
        """Close the descriptor. The mapping remains while arrays refer to it."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
