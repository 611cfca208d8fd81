"""The doorbell: many writers, one reader, a pipe of 8-byte rings.

A ring says "look at the book" and nothing else: what it carries decides nothing, so a lost or doubled ring is harmless.
Writes below PIPE_BUF are atomic, so there is no lock that a dead writer could hold. Both ends are non-blocking: a full
pipe already wakes the reader, and the ring is dropped. Every wait is bounded.
"""

from __future__ import annotations

import os
import select

RING = b"\1" * 8
WAIT_S = 0.1  # the longest wait between two looks at the book, whatever is lost


class Doorbell:
    """One pipe. `ring()` from any process, `wait()` and `drain()` from its owner."""

    def __init__(self, read_fd: int, write_fd: int) -> None:
        self.read_fd, self.write_fd = read_fd, write_fd
        self._poll = select.poll()
        self._poll.register(read_fd, select.POLLIN)

    @classmethod
    def create(cls) -> Doorbell:
        read_fd, write_fd = os.pipe()
        # Set once, here: the flag belongs to the open file and is shared by every process that gets the descriptor.
        os.set_blocking(read_fd, False)
        os.set_blocking(write_fd, False)
        return cls(read_fd, write_fd)

    @property
    def fds(self) -> tuple[int, int]:
        return self.read_fd, self.write_fd

    def ring(self) -> None:
        try:
            os.write(self.write_fd, RING)
        except BlockingIOError:
            pass  # full: the reader has been told more than once
        except BrokenPipeError:
            pass  # nobody reads any more; the supervisor will say so

    def drain(self) -> bool:
        """Take every waiting ring; True if there was one."""
        try:
            return bool(os.read(self.read_fd, 65536))
        except BlockingIOError:
            return False

    def wait(self, timeout_s: float = WAIT_S) -> bool:
        """Sleep until somebody rings or the time is over. Drain and then look; never look and then drain."""
        return bool(self._poll.poll(timeout_s * 1000))

    def close(self) -> None:
        os.close(self.read_fd)
        os.close(self.write_fd)
