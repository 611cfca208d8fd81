"""The book: who holds each trajectory slot, what each group asked, and what was answered.

    FREE -> SAMPLING -> READY -> LEARNING -> FREE

The sampler of a group takes its slot out of FREE and SAMPLING, the learner takes it out of READY and LEARNING: a slot's
state says which process may write its word. Each group owns a small ring of slots and uses them in order; there is no
global free list. A slot word holds the state and how often the slot was handed over, in one store; a request word holds
the request's number, slot and step, in one store. Request numbers never restart, so a newborn sampler never takes its
predecessor's answers for its own.

The ledger counts rows (a row is one environment at one step, reset rows too):

    sampled = trained + skipped + discarded + in flight          exact while the workers stand still
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from sfactory.shm import atomics
from sfactory.shm.arena import Arena, Field

FREE, SAMPLING, READY, LEARNING = range(4)
STATES = ("free", "sampling", "ready", "learning")
_STATE_BITS, _T_BITS, _SLOT_BITS = 2, 16, 8


class Request(NamedTuple):
    """A group waits for actions of step `t` in `slot`."""

    number: int
    slot: int
    t: int


class RowCounts(NamedTuple):
    """Rows since the run began."""

    sampled: int
    trained: int
    skipped: int
    discarded: int
    in_flight: int

    @property
    def consistent(self) -> bool:
        return self.sampled == self.trained + self.skipped + self.discarded + self.in_flight


def pack(request: Request) -> int:
    return (request.number << (_T_BITS + _SLOT_BITS)) | (request.slot << _T_BITS) | request.t


def unpack(word: int) -> Request:
    word = int(word)
    return Request(word >> (_T_BITS + _SLOT_BITS), (word >> _T_BITS) & 0xFF, word & 0xFFFF)


def slot_table_layout(num_groups: int, slots_per_group: int) -> dict[str, Field]:
    """Arrays of the book. A line per group keeps two writers out of one cache line."""
    return {
        "request": Field((num_groups, 8), "int64"),  # [:, 0] is the word; the rest is distance to the next writer
        "answered": Field((num_groups,), "int64"),
        "slot": Field((num_groups, max(slots_per_group, 8)), "int64"),
        "discarded": Field((num_groups, 8), "int64"),
        "trained": Field((8,), "int64"),  # learner's: rows trained, rows skipped, rows of slots it gave back untrained
    }


class SlotTable:
    """The words of all groups and slots. One process writes each of them at a time; everybody reads all."""

    def __init__(self, arena: Arena, slots_per_group: int, rollout_length: int, envs_per_group: int) -> None:
        self.request_words, self.response_words = arena["request"][:, 0], arena["answered"]
        self.slot = arena["slot"][:, :slots_per_group]
        self.discarded = arena["discarded"][:, 0]
        self.trained = arena["trained"]
        self.num_groups, self.slots_per_group = self.slot.shape
        self.rollout_length, self.envs_per_group = rollout_length, envs_per_group

    # -- slots -------------------------------------------------------------------------------------------------

    def state(self, group: int, slot: int) -> int:
        return int(self.slot[group, slot]) & 3

    def handover_count(self, group: int, slot: int) -> int:
        """How often this slot was handed over to the learner."""
        return int(self.slot[group, slot]) >> _STATE_BITS

    def transition(self, group: int, slot: int, source: int, to: int) -> None:
        """The only way a state changes; asserts the old holder."""
        word = int(self.slot[group, slot])
        assert word & 3 == source, f"slot {group}/{slot} is {STATES[word & 3]}, not {STATES[source]}"
        handed = (word >> _STATE_BITS) + (to == READY)
        atomics.store(self.slot, (group, slot), handed << _STATE_BITS | to)

    def in_state(self, state: int) -> list[tuple[int, int]]:
        """Every (group, slot) in that state, from one look at the whole book."""
        groups, slots = np.nonzero(self.slot & 3 == state)
        return list(zip(groups.tolist(), slots.tolist(), strict=True))

    # -- asking and answering ----------------------------------------------------------------------------------

    def last_request(self, group: int) -> Request:
        return unpack(self.request_words[group])

    def request(self, group: int, request: Request) -> None:
        atomics.store(self.request_words, group, pack(request))

    def pending(self, group: int) -> bool:
        """A request is outstanding while asked and answered differ."""
        return bool(self.request_words[group] != self.response_words[group])

    def respond(self, group: int, word: int) -> None:
        """Answer by storing the word that was read: what was asked since stays outstanding."""
        atomics.store(self.response_words, group, word)

    # -- the ledger --------------------------------------------------------------------------------------------

    def handed_over(self, group: int) -> int:
        """Rows per environment that this group ever handed to the learner."""
        return int((self.slot[group] >> _STATE_BITS).sum()) * self.rollout_length

    def discard_unfinished(self, group: int) -> None:
        """A newborn writes off what its predecessor asked and never handed over. Assigned, never added: a newborn that
        dies here leaves a number that the next one computes again."""
        number = self.last_request(group).number
        atomics.store(self.discarded, group, number - self.handed_over(group))

    def row_counts(self) -> RowCounts:
        """Count the rows; in flight comes from the slot and request words, and from the learner's word for the rows it
        has copied and not trained. Between two of its stores (microseconds) a batch may be counted twice."""
        envs, rows = self.envs_per_group, self.rollout_length * self.envs_per_group
        in_flight = int(self.trained[2])
        for group in range(self.num_groups):
            states = self.slot[group] & 3
            in_flight += int(((states == READY) | (states == LEARNING)).sum()) * rows
            request = self.last_request(group)
            if request.number and states[request.slot] == SAMPLING and self._belongs(group, request):
                in_flight += (request.t + 1) * envs
        sampled = sum(self.last_request(g).number for g in range(self.num_groups)) * envs
        trained, skipped = int(self.trained[0]), int(self.trained[1])
        return RowCounts(sampled, trained, skipped, int(self.discarded.sum()) * envs, in_flight)

    def _belongs(self, group: int, request: Request) -> bool:
        """False between a newborn's write-off and its first request: the rows are counted as discarded already."""
        return request.number > int(self.discarded[group]) + self.handed_over(group)
