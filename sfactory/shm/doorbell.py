"""The doorbell: wake a waiting process through a pipe; many writers, one reader.

A ring only wakes the reader, which then reads the slot table. It carries no data, so a lost or doubled ring does no
harm. Writes below PIPE_BUF are atomic, so there is no lock that a killed writer could hold. Both ends do not block: a
full pipe wakes the reader anyway, and the ring is dropped. Every wait is bounded.
"""

from __future__ import annotations

import os
import select

RING = b"\1" * 8
WAIT_S = 0.1  # the longest time between two reads of the slot table, even if rings are lost


class Doorbell:
    """One pipe. `ring()` from any process, `wait()` and `drain()` from its owner."""

    def __init__(self, read_fd: int, write_fd: int) -> None:
        self.read_fd, self.write_fd = read_fd, write_fd
        self._poll = select.poll()
        self._poll.register(read_fd, select.POLLIN)

    @classmethod
    def create(cls) -> Doorbell:
        read_fd, write_fd = os.pipe()
        # The flag belongs to the open file description and is shared by every process that inherits the descriptor.
        os.set_blocking(read_fd, False)
        os.set_blocking(write_fd, False)
        return cls(read_fd, write_fd)

    @property
    def fds(self) -> tuple[int, int]:
        return self.read_fd, self.write_fd

    def ring(self) -> None:
        """Wake the owner. Never blocks and never raises."""
        try:
            os.write(self.write_fd, RING)
        except BlockingIOError:
            pass  # full: rings are waiting already
        except BrokenPipeError:
            pass  # the reader is gone; the supervisor handles that

    def drain(self) -> bool:
        """Remove all waiting rings; return whether there was one."""
        try:
            return bool(os.read(self.read_fd, 65536))
        except BlockingIOError:
            return False

    def wait(self, timeout_s: float = WAIT_S) -> bool:
        """Sleep until a ring or the timeout. After it, drain first and then read shared words, never the reverse."""
        return bool(self._poll.poll(timeout_s * 1000))

    def close(self) -> None:
        os.close(self.read_fd)
        os.close(self.write_fd)
