"""Transfer the newest weights from the learner to its inference workers without locks or waits.

Two buffers, each with a `begun` and a `done` version. The learner writes the buffer that is not the newest: begun,
data, count, done. A reader copies the newest complete buffer and checks its versions again: if the learner has begun to
overwrite it meanwhile, the copy may be torn and is discarded. No process holds a buffer, so there is nothing to clear
after a worker is killed and no publication is skipped. Weights, normalizer and version are one buffer and always agree.
"""

from __future__ import annotations

import numpy as np

from sfactory.shm import atomics
from sfactory.shm.arena import Arena, Field

NOTHING = -1
"""Version of a buffer without weights."""


def mailbox_layout(num_policies: int) -> dict[str, Field]:
    """Arrays of the versions, one row per policy; the weights have memory of their own."""
    return {f"mail_{name}": Field((num_policies, 8), "int64") for name in ("begun", "done", "count")}


class Mailbox:
    """The two weight buffers of one policy. `begin` and `finish` by its learner alone, `fetch` by any process."""

    def __init__(self, arena: Arena, buffers: np.ndarray, policy: int) -> None:
        """buffers: [2, P] float32 in shared memory, P weights."""
        self.buffers = buffers
        self.begun, self.done = arena["mail_begun"][policy], arena["mail_done"][policy]
        self.count = arena["mail_count"][policy]  # publications per buffer: tells the newer one, as versions may repeat

    @property
    def newest(self) -> int:
        """Index of the buffer published last."""
        return int(self.count[1] > self.count[0])

    def begin(self, version: int) -> np.ndarray:
        """The buffer to write `version` into, [P] float32; `finish` announces it."""
        buffer = 1 - self.newest
        atomics.store(self.done, buffer, NOTHING)
        atomics.store(self.begun, buffer, version)
        return self.buffers[buffer]

    def finish(self, version: int) -> None:
        """Announce the version written into the buffer of `begin`.

        The count is stored before `done`: a reader that was stopped since the buffer was the newest one would otherwise
        take this version before the count names it, and go back to the other buffer in its next `fetch`.
        """
        buffer = 1 - self.newest
        atomics.store(self.count, buffer, int(self.count[1 - buffer]) + 1)
        atomics.store(self.done, buffer, version)

    def version(self) -> int:
        """Version of the newest complete weights; NOTHING before the first."""
        return int(self.done[self.newest])

    def fetch(self, out: np.ndarray, current: int) -> int:
        """Copy the newest weights into `out` [P] unless they are version `current`; return the version of `out`.

        Returns `current` if there is nothing newer, and NOTHING if every copy was torn. `out` is garbage then, so it
        must be a buffer of its own, not the network's parameters: the caller keeps its previous weights.
        """
        for _ in range(8):
            buffer = self.newest
            count, version = int(self.count[buffer]), int(self.done[buffer])
            if version in (current, NOTHING):
                return current
            out[:] = self.buffers[buffer]
            if int(self.count[buffer]) == count and int(self.begun[buffer]) == version == int(self.done[buffer]):
                return version
        return NOTHING
