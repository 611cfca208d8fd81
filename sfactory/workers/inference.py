"""The inference worker: answers every group that waits, in one batch, with the newest weights.

consumes    requests, observations, noise, the mailbox
produces    actions, log-probabilities, distribution parameters, values, the version that acted
waits for   a request
unblocked by the samplers; at birth by the learner (version 0)

Owns its copy of the weights, which the mailbox can give again, and one row of recurrent state per request, which is
written in turn with another: so it holds nothing that must not be lost, and a fresh one finds all outstanding requests
by one look at the slot_table.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from sfactory.device.accelerator import accelerator_of, register
from sfactory.device.selection import pick_device, precision
from sfactory.learning.network import build_model
from sfactory.shm.mailbox import NOTHING, Mailbox
from sfactory.shm.slots import unpack
from sfactory.workers.inference_batch import CpuBatch, GpuBatch, InferenceBatch
from sfactory.workers.shared import SharedState
from sfactory.workers.worker import TelemetrySink, Worker


class Inference(Worker):
    """See the top of this file. `whole_batch`: always the same batch shape, as lockstep needs for equal bits."""

    def __init__(self, shared: SharedState, sink: TelemetrySink, whole_batch: bool = False) -> None:
        super().__init__("inference", shared, sink)
        self.device = pick_device(self.config.run.inference_device or self.config.run.device)
        self.model = build_model(self.config, self.run_spec.spec).to(self.device).eval()
        self.distribution = self.model.distribution
        self.autocast = precision(self.config.run.precision, self.device)
        weights = self.model.flat_size()
        self.mailbox = Mailbox(shared.arena, shared.mailbox_memory(weights))
        self.version = NOTHING
        self.whole_batch = whole_batch
        self.fields, schema = shared.trajectories, shared.trajectories.schema
        self.E, self.G, self.has_state = schema.envs_per_group, schema.num_groups, schema.state_size > 0
        self.obs_names, self.action_names = tuple(self.run_spec.spec.obs), tuple(self.run_spec.spec.actions)
        self.accelerator = accelerator_of(self.device, spin=not whole_batch, exact=whole_batch)
        scratch = torch.empty(weights)
        self.scratch = scratch if self.accelerator is None else self.accelerator.pinned(scratch)
        self.batch = self._answers()
        self.stages.drain()

    def _answers(self) -> InferenceBatch:
        rows, places = self.shared.trajectories.schema.rows(), self.G * self.E
        leaves = {name: rows[name][1:] for name in (*self.obs_names, "first", "noise")}
        inputs = {name: np.zeros((places, *shape), dtype) for name, (shape, dtype) in leaves.items()}
        if self.has_state:
            inputs["state"] = np.zeros((places, self.shared.trajectories.schema.state_size), np.float32)
        if self.accelerator is None:
            return CpuBatch(self._forward, inputs, self.E)
        direct = register(self.accelerator, self.shared.arena, self.log)
        return GpuBatch(
            self._forward, inputs, self.E, self.accelerator, direct=direct, whole=self.whole_batch, say=self.log
        )

    def step(self) -> bool:
        asked = self.slot_table.request_words.copy()
        groups = np.flatnonzero(asked != self.slot_table.response_words).tolist()
        if not groups:
            return False
        self.refresh()  # after the look: the other way round data of lag 0 would sometimes have lag 1
        if self.version == NOTHING:
            return False
        self.stages.mark("look")
        # One batch shape in lockstep: groups that do not wait are computed with their last rows, and not answered.
        places = {group: group if self.whole_batch else place for place, group in enumerate(groups)}
        self._gather(asked, places)
        self.stages.mark("gather")
        outputs = self.batch.run(self.G if self.whole_batch else len(groups))
        self.stages.mark("forward")
        self._scatter(asked, places, outputs)
        for group in groups:
            self.slot_table.respond(group, asked[group])
        for sampler in sorted({self.run_spec.sampler_of(group) for group in groups}):
            self.shared.sampler_bells[sampler].ring()
        self.envs += len(groups) * self.E
        self.stages.mark("answer")
        return True

    def close(self) -> None:
        if self.accelerator is not None:
            self.accelerator.release()

    def refresh(self) -> None:
        """Take the newest weights from the mailbox, if they are newer and whole."""
        version = self.mailbox.fetch(self.scratch.numpy(), self.version)
        if version not in (self.version, NOTHING):
            self.model.read_flat(self.scratch)  # in place, in turn with the passes; waited for with the next of them
            self.version = version

    def _gather(self, asked: np.ndarray, places: dict[int, int]) -> None:
        """The waiting groups' rows, side by side."""
        for group, place in places.items():
            number, slot, t = unpack(asked[group])
            for name in (*self.obs_names, "first", "noise"):
                self.batch.stage(name, place, self.fields[name][group, slot, t])
            if self.has_state:
                state = self.fields["memory"][group, number % 2]
                if t == 0:
                    self.fields["state"][group, slot] = state
                self.batch.stage("state", place, state)

    @torch.inference_mode()
    def _forward(self, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """One forward pass: every answer of a batch has one version."""
        with self.autocast():
            out = self.model({name: inputs[name] for name in self.obs_names}, inputs.get("state"), inputs["first"])
        actions, log_prob = self.distribution.sample_and_log_prob(out.params, inputs["noise"])
        outputs = {**actions, "log_prob": log_prob, "params": out.params, "value": out.value}
        if self.has_state:
            outputs["state"] = out.state
        return outputs

    def _scatter(self, asked: np.ndarray, places: dict[int, int], outputs: dict[str, np.ndarray]) -> None:
        """Write the answers into the slots. Only rows that `asked` names are touched."""
        E = self.E
        for group, place in places.items():
            number, slot, t = unpack(asked[group])
            rows = slice(place * E, place * E + E)
            for name in (*self.action_names, "log_prob", "params", "value"):
                self.fields[name][group, slot, t] = outputs[name][rows]
            if self.has_state:
                self.fields["memory"][group, (number + 1) % 2] = outputs["state"][rows]
            self.fields["policy_version"][group, slot, t] = self.version
