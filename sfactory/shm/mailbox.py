"""The mailbox: the newest weights, from the learner to the inference worker, without either ever waiting.

Two buffers, each with a `begun` and a `done` version. The learner writes the one that is not the newest: begun, data,
done. The reader picks the newest done one, copies it aside and looks again: if it was begun anew meanwhile the copy may
be torn and is thrown away. Nothing is held, so there is nothing to clear after a death and no publication is skipped.
Weights, normaliser and version are one buffer: they can never disagree.
"""

from __future__ import annotations

import numpy as np

from sfactory.shm import atomics
from sfactory.shm.arena import Arena

NOTHING = -1


class Mailbox:
    """`post` by the learner alone, `fetch` by anybody."""

    def __init__(self, arena: Arena, buffers: np.ndarray) -> None:
        self.buffers = buffers  # [2, P] float32
        self.begun, self.done = arena["mail_begun"], arena["mail_done"]
        self.count = arena["mail_count"]  # publications so far, per buffer: which is newer (versions may repeat)

    @property
    def newest(self) -> int:
        """The buffer posted last."""
        return int(self.count[1] > self.count[0])

    def begin(self, version: int) -> np.ndarray:
        """The buffer to write version into, [P] float32; `finish` announces it."""
        buffer = 1 - self.newest
        atomics.store(self.done, buffer, NOTHING)
        atomics.store(self.begun, buffer, version)
        return self.buffers[buffer]

    def finish(self, version: int) -> None:
        buffer = 1 - self.newest
        atomics.store(self.done, buffer, version)
        atomics.store(self.count, buffer, int(self.count[1 - buffer]) + 1)

    def version(self) -> int:
        """Version of the newest whole weights; NOTHING before the first."""
        return int(self.done[self.newest])

    def fetch(self, out: np.ndarray, have: int) -> int:
        """Copy the newest weights into `out` [P] unless they are version `have`; returns the version `out` now holds.

        `out` is written only with whole weights or, when every try was torn, left torn with NOTHING returned: the
        caller keeps its old weights then (out is a copy aside, not the network).
        """
        for _ in range(8):
            buffer = self.newest
            count, version = int(self.count[buffer]), int(self.done[buffer])
            if version in (have, NOTHING):
                return have
            out[:] = self.buffers[buffer]
            if int(self.count[buffer]) == count and int(self.begun[buffer]) == version == int(self.done[buffer]):
                return version
        return NOTHING
