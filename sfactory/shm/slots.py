"""The slot table: the state of every trajectory slot, and the requests of every group.

    FREE -> SAMPLING -> READY -> LEARNING -> FREE

The sampler of a group moves its slots out of FREE and SAMPLING, the learner moves them out of READY and LEARNING: the
state of a slot decides which process may write its word. Each group owns a small ring of slots and uses them in order;
there is no global free list. A slot word holds the state and how often the slot was handed over, in one store; a
request word holds the number of the request, the slot and the step, in one store. Request numbers never restart, so a
restarted sampler cannot mistake a response to its previous generation for its own.

Rows are counted (a row is one environment, or one of its agents, at one step, reset rows included):

    sampled = trained + skipped + discarded + in flight          exact while no worker runs
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from sfactory.shm import atomics
from sfactory.shm.arena import Arena, Field
from sfactory.shm.atomics import Word, Words

FREE, SAMPLING, READY, LEARNING = range(4)
STATES = ("free", "sampling", "ready", "learning")
_STATE_BITS, _T_BITS, _SLOT_BITS = 2, 16, 8


class Request(NamedTuple):
    """A group needs actions for step `t` of `slot`."""

    number: int
    slot: int
    t: int


class RowCounts(NamedTuple):
    """Rows since the run started."""

    sampled: int
    trained: int
    skipped: int
    discarded: int
    in_flight: int

    @property
    def consistent(self) -> bool:
        """Whether every sampled row is accounted for exactly once."""
        return self.sampled == self.trained + self.skipped + self.discarded + self.in_flight


def pack(request: Request) -> int:
    return (request.number << (_T_BITS + _SLOT_BITS)) | (request.slot << _T_BITS) | request.t


def unpack(word: int) -> Request:
    word = int(word)
    return Request(word >> (_T_BITS + _SLOT_BITS), (word >> _T_BITS) & 0xFF, word & 0xFFFF)


def slot_table_layout(num_groups: int, slots_per_group: int, num_policies: int = 1) -> dict[str, Field]:
    """Arrays of the slot table. One cache line per group keeps words of different writers apart."""
    return {
        "request": Field((num_groups, 8), "int64"),  # [:, 0] is the word, the rest is padding
        "response": Field((num_groups,), "int64"),
        "slot": Field((num_groups, max(slots_per_group, 8)), "int64"),
        "discarded": Field((num_groups, 8), "int64"),
        "trained": Field((num_policies, 8), "int64"),
    }


class LearnerRows(Words):
    """Rows counted by the learner of one policy."""

    trained = Word(0, int)
    skipped = Word(1, int)
    """Rows that no optimizer step was taken with, because a loss or gradient was not finite."""
    in_update = Word(2, int)
    """Rows of slots that are released already and not trained yet."""


class SlotTable:
    """The shared words of all groups and slots. At any moment one process writes each of them; every process reads."""

    def __init__(self, arena: Arena, slots_per_group: int, rollout_length: int, lanes: int) -> None:
        self.request_words, self.response_words = arena["request"][:, 0], arena["response"]
        self.slot = arena["slot"][:, :slots_per_group]
        self.discarded = arena["discarded"][:, 0]
        self.learner_rows = [LearnerRows(words) for words in arena["trained"]]  # one per policy
        self.num_groups, self.slots_per_group = self.slot.shape
        self.rollout_length, self.lanes = rollout_length, lanes

    # -- slots -------------------------------------------------------------------------------------------------

    def state(self, group: int, slot: int) -> int:
        return int(self.slot[group, slot]) & 3

    def handover_count(self, group: int, slot: int) -> int:
        """How often this slot was handed over to the learner."""
        return int(self.slot[group, slot]) >> _STATE_BITS

    def transition(self, group: int, slot: int, source: int, target: int) -> None:
        """Move a slot from one state to the next. AssertionError if it is not in state `source`."""
        word = int(self.slot[group, slot])
        assert word & 3 == source, f"slot {group}/{slot} is {STATES[word & 3]}, not {STATES[source]}"
        handover_count = (word >> _STATE_BITS) + (target == READY)
        atomics.store(self.slot, (group, slot), handover_count << _STATE_BITS | target)

    def in_state(self, state: int) -> list[tuple[int, int]]:
        """Every (group, slot) in that state, from one pass over the whole table."""
        groups, slots = np.nonzero(self.slot & 3 == state)
        return list(zip(groups.tolist(), slots.tolist(), strict=True))

    # -- requests and responses --------------------------------------------------------------------------------

    def last_request(self, group: int) -> Request:
        return unpack(self.request_words[group])

    def request(self, group: int, request: Request) -> None:
        atomics.store(self.request_words, group, pack(request))

    def pending(self, group: int) -> bool:
        """Whether the last request has no response yet: its word and the response word differ."""
        return bool(self.request_words[group] != self.response_words[group])

    def respond(self, group: int, word: int) -> None:
        """Respond by storing the request word that was read: a later request stays pending."""
        atomics.store(self.response_words, group, word)

    # -- row counts --------------------------------------------------------------------------------------------

    def rows_handed_over(self, group: int) -> int:
        """Rows per lane that this group has handed over to the learner."""
        return int((self.slot[group] >> _STATE_BITS).sum()) * self.rollout_length

    def discard_unfinished(self, group: int) -> None:
        """Count the rows that were requested and never handed over as discarded; called by a restarted sampler.

        The count is assigned, not added: if the sampler is killed here, its next generation computes the same number.
        """
        number = self.last_request(group).number
        atomics.store(self.discarded, group, number - self.rows_handed_over(group))

    def row_counts(self) -> RowCounts:
        """Count all rows.

        Rows in flight follow from slot words, request words and the learner's count of rows it has copied and not
        trained. Between two of the learner's stores (microseconds) a batch may be counted twice.
        """
        lanes, rows = self.lanes, self.rollout_length * self.lanes
        in_flight = sum(learner.in_update for learner in self.learner_rows)
        for group in range(self.num_groups):
            states = self.slot[group] & 3
            in_flight += int(((states == READY) | (states == LEARNING)).sum()) * rows
            request = self.last_request(group)
            if request.number and states[request.slot] == SAMPLING and self._in_current_slot(group, request):
                in_flight += (request.t + 1) * lanes
        return RowCounts(
            sampled=sum(self.rows_of_groups()),
            trained=sum(learner.trained for learner in self.learner_rows),
            skipped=sum(learner.skipped for learner in self.learner_rows),
            discarded=int(self.discarded.sum()) * lanes,
            in_flight=in_flight,
        )

    def rows_of_groups(self) -> list[int]:
        """Sampled rows of every group since the run started."""
        return [self.last_request(group).number * self.lanes for group in range(self.num_groups)]

    def _in_current_slot(self, group: int, request: Request) -> bool:
        """False between `discard_unfinished` and the next request: the request's rows are counted as discarded."""
        return request.number > int(self.discarded[group]) + self.rows_handed_over(group)
