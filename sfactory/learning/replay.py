"""Replay: train again on slots that the learner has had, beside fresh ones (`replay.ratio`).

    slots --`Staging.copy`--> fresh lanes --`HeldSlots.mix`--> fresh and replayed lanes --> update
                                   `-- after the update, `HeldSlots.hold` --> held for the next `replay.max_age` updates

A slot goes back to its sampler as without replay, so what is held is a copy in the learner's own memory: on the
learner's device, where staged batches are. It is a ring of batches: the batch of update u replaces that of update
u - max_age. Every update draws its slots without replacement from all that are held, by random numbers that depend on
the seed and on the number of updates only.

A replayed row keeps what was stored when its action was selected: observation, action, log-probability and parameters
of behavior, reward, ends. Everything that depends on the weights is computed again by the update that trains on it.
Its lag grows by its age, the updates since it was fresh. The recurrent state before row 0 is that of its first time.

While fewer slots are held than an update draws (in the first updates, after an async resume, and after skipped
updates), the fresh lanes are trained on alone. Batches thus have two sizes, not more.

Legend: T steps, F fresh lanes, R replayed lanes, E lanes of a slot, A = `replay.max_age`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sfactory.config import Config
from sfactory.device.accelerator import Accelerator
from sfactory.errors import SettingError
from sfactory.learning.batch import Batch
from sfactory.learning.staging import Staging, as_batch

REPLAY_STREAM = 4


class Replayed(NamedTuple):
    """One slot that is trained on again."""

    age: int
    """Updates since it was fresh."""
    lags: Counter[int]
    """Its valid rows by their lag now."""


class Mixed(NamedTuple):
    """What an update trains on."""

    batch: Batch
    """[T, F + R], the fresh lanes first; [T, F] where too few slots are held."""
    replayed: list[Replayed]


class HeldSlots:
    """Copies of the slots of the last A updates, and the batch of fresh and replayed lanes."""

    def __init__(self, config: Config, staging: Staging, accelerator: Accelerator | None = None) -> None:
        """SettingError if the device has too little memory."""
        self.seed, self.max_age = config.run.seed, config.replay.max_age
        self.staging, self.accelerator = staging, accelerator
        self.slots, self.replayed_slots = config.batch_slots, config.replayed_slots
        self.fresh_lanes, self.slot_lanes = staging.lanes, staging.schema.lanes
        self.staged = {name: leaf for name, leaf in staging.on_device.items() if name != "policy_version"}
        lanes = self.fresh_lanes + self.replayed_slots * self.slot_lanes
        try:
            self.ring = {name: leaf.new_zeros((self.max_age, *leaf.shape)) for name, leaf in self.staged.items()}
            """Field -> the ring [A, T(+1), F, ...]; of the recurrent state [A, F, H]."""
            self.mixed = {name: self._wider(name, leaf, lanes) for name, leaf in self.staged.items()}
        except torch.OutOfMemoryError as error:
            raise SettingError(
                f"replay.max-age {self.max_age} with replay.ratio {config.replay.ratio:g} needs more memory than the "
                f"learner's device has free; lower one of them ({str(error).splitlines()[0]})"
            ) from error
        fresh = torch.zeros_like(self.mixed["valid"])
        fresh[:, : self.fresh_lanes] = True
        self.batch = as_batch(staging.schema, self.mixed, fresh)
        self.births: dict[int, list[Counter[int]]] = {}
        """Update that trained on a batch first -> valid rows of each of its slots by their lag then."""
        self.updates_without = 0
        """Updates that trained on fresh lanes alone."""

    def _wider(self, name: str, leaf: Tensor, lanes: int) -> Tensor:
        shape = list(leaf.shape)
        shape[_axis(name)] = lanes
        return leaf.new_zeros(shape)

    # -- once per update -------------------------------------------------------------------------------------------

    def mix(self, updates: int) -> Mixed:
        """The staged batch with replayed lanes beside it. updates: finished before the one that this is for."""
        self._forget(updates)
        chosen = self.chosen(updates)
        if not chosen:
            self.updates_without += 1
            return Mixed(self.staging.batch, [])
        self._run(lambda: self._copy_to_batch(chosen, updates))
        return Mixed(self.batch, [self._replayed(birth, slot, updates) for birth, slot in chosen])

    def chosen(self, updates: int) -> list[tuple[int, int]]:
        """(birth, slot of that batch) of the slots that the next update replays; empty if too few are held."""
        candidates = [(birth, slot) for birth in sorted(self.births) for slot in range(self.slots)]
        if len(candidates) < self.replayed_slots:
            return []
        bits = np.random.Philox(key=[self.seed, REPLAY_STREAM], counter=[0, 0, 0, updates])
        drawn = np.random.Generator(bits).choice(len(candidates), self.replayed_slots, replace=False)
        return [candidates[index] for index in sorted(drawn.tolist())]

    def hold(self, birth: int) -> None:
        """Copy the staged batch into the ring, after update number `birth`, that of its training, was taken.

        A batch with a skipped step is not held: it may be the reason.
        """
        self._forget(birth + 1)
        self._run(lambda: self._copy_to_ring(birth % self.max_age))
        self.births[birth] = self.staging.lag_counts(birth)

    def _forget(self, updates: int) -> None:
        """Forget what is too old for the update after so many."""
        self.births = {birth: lags for birth, lags in self.births.items() if updates - birth <= self.max_age}

    def _copy_to_batch(self, chosen: list[tuple[int, int]], updates: int) -> None:
        fresh = slice(0, self.fresh_lanes)
        for name, target in self.mixed.items():
            _lanes(name, target, fresh).copy_(self.staged[name])
            for number, (birth, slot) in enumerate(chosen):
                source = _lanes(name, self.ring[name][birth % self.max_age], self._lanes_of(slot))
                copied = _lanes(name, target, self._lanes_of(number, self.fresh_lanes)).copy_(source)
                if name == "lag":
                    copied.add_(updates - birth)

    def _copy_to_ring(self, place: int) -> None:
        for name, leaf in self.staged.items():
            self.ring[name][place].copy_(leaf)

    def _lanes_of(self, slot: int, first: int = 0) -> slice:
        """Lanes of one of several slots side by side, which begin at lane `first`."""
        start = first + slot * self.slot_lanes
        return slice(start, start + self.slot_lanes)

    def _replayed(self, birth: int, slot: int, updates: int) -> Replayed:
        age = updates - birth
        return Replayed(age, Counter({lag + age: rows for lag, rows in self.births[birth][slot].items()}))

    def _run(self, work: Callable[[], None]) -> None:
        if self.accelerator is None:
            work()
        else:
            self.accelerator.run(work)

    # -- what is reported ------------------------------------------------------------------------------------------

    @property
    def nbytes(self) -> int:
        """Bytes of the ring and of the batch of fresh and replayed lanes."""
        assert self.batch.fresh is not None
        return sum(leaf.nbytes for leaf in (*self.ring.values(), *self.mixed.values(), self.batch.fresh))

    @property
    def num_held(self) -> int:
        """Number of slots that are held."""
        return len(self.births) * self.slots

    def row(self) -> dict[str, float]:
        """Metrics of what is held."""
        return {
            "replay/held_slots": float(self.num_held),
            "replay/memory_mb": self.nbytes / 1e6,
            "replay/updates_without": float(self.updates_without),
        }

    def to_host(self) -> dict[str, Tensor]:
        """Every leaf of the batch of fresh and replayed lanes on the host, to be inspected."""
        return {name: leaf.cpu() for name, leaf in self.mixed.items()}

    # -- exact resume ----------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Which slots are held, without their contents."""
        births = [(birth, [dict(of_slot) for of_slot in self.births[birth]]) for birth in sorted(self.births)]
        return {"births": births, "without": self.updates_without}

    def dump(self) -> np.ndarray:
        """Contents of all held slots, [bytes] uint8: batch after batch, field after field."""
        leaves = [self.ring[name][birth % self.max_age] for birth in sorted(self.births) for name in sorted(self.ring)]
        found, start = np.empty(sum(leaf.nbytes for leaf in leaves), np.uint8), 0
        for leaf in leaves:
            found[start : start + leaf.nbytes] = leaf.cpu().numpy().reshape(-1).view(np.uint8)
            start += leaf.nbytes
        return found

    def load(self, state: Mapping[str, Any] | None, contents: np.ndarray | None, updates: int) -> bool:
        """Hold what `state_dict` and `dump` returned, as far as it is not too old; updates: finished so far.

        Returns False, and holds nothing, if the contents are of slots of another size. None: nothing was held.
        """
        self.births, births = {}, [] if state is None else state["births"]
        self.updates_without = 0 if state is None else state["without"]
        leaves = [(name, self.ring[name][0]) for name in sorted(self.ring)]
        data = np.empty(0, np.uint8) if contents is None else contents
        if data.nbytes != len(births) * sum(leaf.nbytes for _, leaf in leaves):
            return False
        start = 0
        for birth, lags in births:
            for name, leaf in leaves:
                if updates - birth <= self.max_age:
                    part = torch.from_numpy(data[start : start + leaf.nbytes].copy()).view(leaf.dtype).view(leaf.shape)
                    self.ring[name][birth % self.max_age].copy_(part)
                start += leaf.nbytes
            if updates - birth <= self.max_age:
                self.births[birth] = [Counter(of_slot) for of_slot in lags]
        return True


def _axis(name: str) -> int:
    """The axis of lanes."""
    return 0 if name == "state" else 1


def _lanes(name: str, leaf: Tensor, lanes: slice) -> Tensor:
    """A view of some lanes of a field [T(+1), B, ...], or of the recurrent state [B, H]."""
    return leaf[lanes] if _axis(name) == 0 else leaf[:, lanes]
