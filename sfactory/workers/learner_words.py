"""Shared words of one policy's learner, as attributes."""

from __future__ import annotations

from enum import IntEnum

from sfactory.shm import atomics
from sfactory.shm.slots import SlotTable
from sfactory.workers.shared import CHECKPOINT, ENV_STEPS, OUTCOME, SAVE, SAVED, SCORE, STOP, UPDATES, SharedState

POLICY = 0
"""Number of the only policy of a run."""


class StopOrder(IntEnum):
    """What the supervisor wants of every worker."""

    RUN = 0
    FINISH = 1
    NOW = 2


class LearnerOutcome(IntEnum):
    """Whether and why a learner stopped training."""

    RUNNING = 0
    TARGET_REACHED = 1
    STOPPED = 2
    NON_FINITE = 3
    STORAGE = 4


class _Word:
    def __init__(self, array: str, index: int) -> None:
        self.array, self.index = array, index

    def __get__(self, owner: object, kind: type | None = None) -> int:
        return int(getattr(owner, self.array)[self.index])

    def __set__(self, owner: object, value: int) -> None:
        atomics.store(getattr(owner, self.array), self.index, int(value))


class LearnerWords:
    """Words written by the learner."""

    updates = _Word("words", UPDATES)
    env_steps = _Word("words", ENV_STEPS)
    outcome = _Word("words", OUTCOME)
    checkpoint = _Word("words", CHECKPOINT)
    saved = _Word("words", SAVED)

    def __init__(self, shared: SharedState, policy: int = POLICY) -> None:
        self.words = shared.progress


class SupervisorWords:
    """Words written by the supervisor."""

    stop = _Word("words", STOP)
    save_requests = _Word("words", SAVE)

    def __init__(self, shared: SharedState) -> None:
        self.words = shared.orders

    @property
    def training_return(self) -> float:
        return atomics.from_bits(int(self.words[SCORE]))


class LearnerRows:
    """Rows counted by the learner."""

    trained = _Word("words", 0)
    skipped = _Word("words", 1)
    in_update = _Word("words", 2)

    def __init__(self, slot_table: SlotTable, policy: int = POLICY) -> None:
        self.words = slot_table.trained
