"""Publish the learner's weights to the inference workers, optionally a fixed number of updates late."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

import torch

from sfactory.device.accelerator import Accelerator
from sfactory.model.actor_critic import ActorCritic
from sfactory.shm.mailbox import Mailbox


class Publisher:
    """Writes weights into the mailbox. With a forced lag, weights are held back, never slots."""

    def __init__(
        self,
        model: ActorCritic,
        mailbox: Mailbox,
        ring: Callable[[], None],
        accelerator: Accelerator | None = None,
        forced_lag: int = 0,
    ) -> None:
        """ring: wakes the inference workers. forced_lag: publish the weights of this many updates ago."""
        self.model, self.mailbox, self.ring, self.forced_lag = model, mailbox, ring, forced_lag
        self.held_back = deque[tuple[int, torch.Tensor]](maxlen=forced_lag + 1)  # (version, weights), newest last
        # A GPU writes into memory of this process only, never into the arena.
        self.pinned = None if accelerator is None else accelerator.pinned(torch.empty(model.flat_size()))

    def publish(self, updates: int) -> None:
        """Publish the weights after this many updates, or those of `forced_lag` updates before."""
        version = max(0, updates - self.forced_lag)
        if self.forced_lag:
            weights = torch.empty(self.model.flat_size())
            self._copy_weights(weights)
            self.held_back.append((updates, weights))
            versions = dict(self.held_back)
            if version not in versions:  # after an async resume the older weights are missing
                version = self.held_back[0][0]
            if self.mailbox.version() == version:
                return
            self.mailbox.begin(version)[:] = versions[version].numpy()
        else:
            self._copy_weights(torch.from_numpy(self.mailbox.begin(version)))
        self.mailbox.finish(version)
        self.ring()

    def _copy_weights(self, target: torch.Tensor) -> None:
        """Copy the weights into host memory [P]."""
        if self.pinned is None:
            self.model.write_flat(target)
        else:
            self.model.write_flat(self.pinned)
            target.copy_(self.pinned)

    # -- exact resume ------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Weights held back and the contents of the mailbox."""
        held_back = [(version, weights.numpy()) for version, weights in self.held_back]
        return {"held_back": held_back, "mail": self.mailbox.buffers}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.held_back.clear()
        self.held_back.extend((version, torch.from_numpy(weights)) for version, weights in state["held_back"])
        self.mailbox.buffers[...] = state["mail"]
