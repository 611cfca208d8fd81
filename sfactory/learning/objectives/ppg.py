"""PPG: an actor-critic whose policy network learns the values too, in a phase of its own every few updates.

Cobbe et al. 2020, arXiv 2009.04416; with the averaged proximal policy it is PPG-EWMA (Hilton et al. 2021, arXiv
2110.00641). The updates between two phases are those of the actor-critic, but no value gradient reaches the policy's
trunk: the value head has a trunk of its own (`model.separate`) or reads detached features. Their observations and value
targets are kept. In the auxiliary phase an auxiliary value head trains the policy's trunk on them, the value head goes
on learning, and a KL holds the policy where it was before the phase. Then the proximal policy starts again.

Legend: T steps, B lanes of the batch, N batches in a phase, b lanes of a minibatch, K parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sfactory.algo.auxiliary import auxiliary_loss
from sfactory.config import Config
from sfactory.learning.batch import AUXILIARY_STREAM, Batch, rows_of, shuffled
from sfactory.learning.normalizers import Normalizers
from sfactory.learning.objectives.actor_critic import ActorCriticObjective, ActorCriticStart
from sfactory.learning.objectives.base import Loss, Minibatch, Phase
from sfactory.model.actor_critic import ActorCritic, Output
from sfactory.model.distributions import at_least_single
from sfactory.model.phasic_network import PhasicNetwork


class PhaseStart(NamedTuple):
    """What the loss of an auxiliary phase reads besides the batch; detached."""

    target: Tensor  # [T, N x B] target for the output of both value heads
    params: Tensor  # [T, N x B, K] before the phase

    def as_rows(self) -> PhaseStart:
        """[1, T x N x B]. Views."""
        return PhaseStart(*map(rows_of, self))


class PpgObjective(ActorCriticObjective):
    """Settings: those of the actor-critic, and section `ppg`. The network has an auxiliary value head."""

    network = PhasicNetwork

    def __init__(
        self,
        config: Config,
        model: ActorCritic,
        normalizers: Normalizers,
        autocast: Callable[[], AbstractContextManager[object]],
    ) -> None:
        super().__init__(config, model, normalizers, autocast)
        self.by_rows = config.batch.shuffle == "rows" and not model.state_size
        self.kept: dict[str, Tensor] = {}
        """Leaves of the kept batches side by side: obs/NAME [T, N x B, ...], first, valid, target [T, N x B], and
        `state` [N x B, H]. Allocated with the first batch, for all N."""
        self.batches = 0  # kept since the last phase
        self.phases = 0
        self.in_phase = False

    @property
    def recordable(self) -> bool:
        """False: updates with and without a phase differ."""
        return False

    def start(self, batch: Batch, out: Output) -> ActorCriticStart:
        start = super().start(batch, out)
        self._store(batch, self.normalizers.value(start.target))
        return start

    def after_step(self, skipped: Tensor) -> None:
        if not self.in_phase:
            super().after_step(skipped)

    def row(self) -> Mapping[str, float]:
        size = sum(x.numel() * x.element_size() for x in self.kept.values())
        return {**super().row(), "ppg/kept_mb": size / 1e6}

    # -- the auxiliary phase -----------------------------------------------------------------------------------------

    @torch.no_grad()
    def _store(self, batch: Batch, target: Tensor) -> None:
        """Copy what a phase needs of a batch. target: [T, B] in units of reward."""
        leaves = {f"obs/{name}": leaf[:-1] for name, leaf in batch.obs.items()}
        leaves |= {"first": batch.first[:-1], "target": target, "valid": batch.valid & target.isfinite()}
        if batch.state is not None:
            leaves["state"] = batch.state
        lanes, most = target.shape[1], self.config.ppg.policy_updates
        if self.kept and self.kept["target"].shape != (len(target), most * lanes):  # settings changed since the save
            self.kept, self.batches = {}, 0
        for name, leaf in leaves.items():
            axis = 0 if name == "state" else 1
            if name not in self.kept:
                shape = list(leaf.shape)
                shape[axis] = most * lanes
                self.kept[name] = leaf.new_zeros(shape)
            self.kept[name].narrow(axis, self.batches * lanes, lanes).copy_(leaf)
        self.batches += 1

    def further_phases(self, batch: Batch) -> Iterator[Phase]:
        if self.batches < self.config.ppg.policy_updates:
            return
        self.in_phase = True
        yield self._phase()
        self.in_phase = False
        self.phases += 1
        self.batches = 0
        self.proximal.reset(self.model)

    @torch.no_grad()
    def _phase(self) -> Phase:
        """All kept batches, with the policy as it is now."""
        assert self.outputs is not None
        kept, settings = self.kept, self.config.ppg
        target, valid = self.normalizers.target(kept["target"]), kept["valid"]
        unread = torch.zeros((), device=target.device).expand(target.shape)
        inputs = Batch(
            obs={name.removeprefix("obs/"): leaf for name, leaf in kept.items() if name.startswith("obs/")},
            first=kept["first"],
            action={},
            log_prob=unread,
            params=unread,
            reward=unread,
            terminated=unread,
            truncated=unread,
            valid=valid,
            lag=unread,
            state=kept.get("state"),
            discounted_return=None,
        )
        start = PhaseStart(target.masked_fill(~valid, 0.0), self.outputs(inputs).params)
        if self.by_rows:
            inputs, start = inputs.as_rows(), start.as_rows()
        order = shuffled(
            inputs.valid.shape[1], settings.phase_epochs, self.config.run.seed, self.phases, AUXILIARY_STREAM
        )
        return Phase(
            inputs,
            start,
            self.auxiliary_loss,
            torch.from_numpy(order).to(target.device),
            epochs=settings.phase_epochs,
            minibatches=settings.policy_updates * (settings.phase_minibatches or self.config.batch.minibatches),
            divisible=True,
        )

    def auxiliary_loss(self, part: Minibatch, start: PhaseStart, report: bool) -> Loss:
        """Loss of a minibatch of a phase."""
        if part.lanes is not None:
            start = PhaseStart(*(x.index_select(1, part.lanes) for x in start))
        params = at_least_single(part.out.params)
        found = auxiliary_loss(
            params[..., -1],
            at_least_single(part.out.value),
            start.target,
            self.distribution.kl(start.params, params),
            part.batch.valid,
            clone_coef=self.config.ppg.clone_coef,
            num_valid=part.num_valid,
        )
        if not report:
            return Loss(found.total, {}, {})
        names = {"auxiliary_loss": found.auxiliary, "value_loss": found.value, "clone_kl": found.distance}
        return Loss(found.total, {f"ppg/{name}": x.detach() for name, x in names.items()}, {})

    # -- checkpoints -------------------------------------------------------------------------------------------------

    def reset(self) -> None:
        super().reset()
        self.batches = self.phases = 0

    def cycle_state(self) -> dict[str, Any]:
        used = {} if not self.batches else {name: self._used(name).cpu().numpy() for name in self.kept}
        return {"batches": self.batches, "phases": self.phases, "kept": used}

    def load_cycle_state(self, state: Mapping[str, Any]) -> None:
        if not state or state["batches"] >= self.config.ppg.policy_updates:  # fewer than when it was saved
            return
        self.batches, self.phases = state["batches"], state["phases"]
        device = next(self.model.parameters()).device
        for name, array in state["kept"].items():
            axis = 0 if name == "state" else 1
            shape = list(array.shape)
            shape[axis] = shape[axis] // self.batches * self.config.ppg.policy_updates
            self.kept[name] = torch.zeros(shape, dtype=torch.from_numpy(np.asarray(array)).dtype, device=device)
            self._used(name).copy_(torch.from_numpy(np.asarray(array)))

    def _used(self, name: str) -> Tensor:
        """The part of a leaf that holds batches. A view."""
        axis = 0 if name == "state" else 1
        lanes = self.kept[name].shape[axis] // self.config.ppg.policy_updates
        return self.kept[name].narrow(axis, 0, self.batches * lanes)
