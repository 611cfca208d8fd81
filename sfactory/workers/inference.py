"""An inference worker: compute actions for every group it serves that has a pending request, in one batch.

consumes     requests, observations, noise, the mailbox
produces     actions, log-probabilities, distribution parameters, values, the version of the weights
waits for    a request
unblocked by the samplers; at the start by the learner (version 0)

Owns a copy of the weights, which the mailbox still holds, and computes one row of recurrent state per request into the
other of two rows. It therefore holds no state that must not be lost: a restarted inference worker finds every pending
request in the slot table.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import cached_property

import numpy as np
import torch

from sfactory.device.accelerator import accelerator_of, register
from sfactory.device.selection import pick_device, precision
from sfactory.learning.network import build_model
from sfactory.learning.objectives import objective_class
from sfactory.native.choice import why_not_native
from sfactory.shm.mailbox import NOTHING
from sfactory.shm.slots import unpack
from sfactory.workers.inference_batch import CpuBatch, GpuBatch, InferenceBatch
from sfactory.workers.inference_native import NativeTurn
from sfactory.workers.names import inference_name
from sfactory.workers.shared import SharedState
from sfactory.workers.worker import TelemetrySink, Worker

GATHER_S = 5e-4  # longest wait of a turn on a GPU for more groups, about the time of such a turn
SLICE_S = 1e-4  # between two looks at the requests meanwhile


class Inference(Worker):
    """Computes actions in batches; see the top of this file."""

    def __init__(self, shared: SharedState, sink: TelemetrySink, whole_batch: bool = False, number: int = 0) -> None:
        """whole_batch: use one batch shape, all groups, as lockstep needs for bit-identical results. number: selects
        the groups it serves, `RunSpec.groups_served`."""
        super().__init__(inference_name(number), shared, sink)
        self.device = pick_device(self.config.run.inference_device or self.config.run.device)
        self.model = build_model(self.config, self.run_spec.spec).to(self.device).eval()
        self.run_spec.check_model(self.model)
        self.objective = objective_class(self.config)
        weights = self.model.flat_size()
        policy = self.run_spec.policy_served(number)
        self.mailbox = shared.mailbox(weights, policy)
        self.words, self.version = shared.learner[policy], NOTHING
        self.whole_batch = whole_batch
        self.fields, schema = shared.trajectories, shared.trajectories.schema
        self.served = np.array(self.run_spec.groups_served(number))  # no other process responds to these groups
        self.E, self.G, self.has_state = schema.lanes, len(self.served), schema.state_size > 0
        self.obs_names, self.action_names = tuple(self.run_spec.spec.obs), tuple(self.run_spec.spec.actions)
        self.accelerator = accelerator_of(self.device, urgent=not whole_batch, exact=whole_batch)
        scratch = torch.empty(weights)
        self.scratch = scratch if self.accelerator is None else self.accelerator.pinned(scratch)
        # A turn of a GPU costs nearly the same for one group as for many: wait for as many as there are samplers.
        patient = self.accelerator is not None and not whole_batch
        samplers = len({self.run_spec.sampler_of(group) for group in self.served.tolist()})
        self.enough, self.gather_s = samplers if patient else 1, GATHER_S
        self.envs = 0  # environments that got actions since the last message
        self.stages.drain()

    # -- known once the learner has announced the precision and published version 0 ----------------------------------

    @cached_property
    def precision(self) -> str:
        """fp32 or bf16; for `auto` the learner's choice."""
        setting = self.config.run.precision
        return self.words.precision.name.lower() if setting == "auto" else setting

    @cached_property
    def native(self) -> NativeTurn | None:
        """Turns by the native kernels; None if torch computes this network."""
        if why_not_native(self.config, self.model, self.device, self.precision):
            return None
        return NativeTurn(self.model, self.shared.trajectories, self.config.run.inference_threads)

    @cached_property
    def batch(self) -> InferenceBatch:
        """Rows for torch; a recording contains the precision."""
        rows, places = self.shared.trajectories.schema.rows(), self.G * self.E
        leaves = {name: rows[name][1:] for name in (*self.obs_names, "first", "noise")}
        inputs = {name: np.zeros((places, *shape), dtype) for name, (shape, dtype) in leaves.items()}
        if self.has_state:
            inputs["state"] = np.zeros((places, self.shared.trajectories.schema.state_size), np.float32)
        if self.accelerator is None:
            return CpuBatch(self._forward, inputs, self.E)
        direct = register(self.accelerator, self.shared.arena, self.log)
        return GpuBatch(
            self._forward, inputs, self.E, self.accelerator, direct=direct, whole=self.whole_batch, log=self.log
        )

    def step(self) -> bool:
        """Respond to all pending requests, if there are any and the first weights are published."""
        requests, waiting = self._pending()
        groups = waiting.tolist()
        if not groups:
            return False
        self.refresh()  # after reading the requests: in the other order on-policy data would sometimes have lag 1
        if self.version == NOTHING:
            return False
        self.stages.mark("look")
        if self.native is not None:
            self.native.run(waiting, requests, self.version)
            self.stages.mark("forward")
        else:
            self._run_batch(requests, groups)
        for group in groups:
            self.slot_table.respond(group, requests[group])
        for sampler in sorted({self.run_spec.sampler_of(group) for group in groups}):
            self.shared.sampler_bells[sampler].ring()
        self.envs += len(groups) * self.E
        self.stages.mark("answer")
        return True

    def _pending(self) -> tuple[np.ndarray, np.ndarray]:
        """All request words, and the groups whose request has no response yet; on a GPU after a moment for more."""
        deadline = time.monotonic() + self.gather_s
        while True:
            requests = self.slot_table.request_words.copy()
            pending = requests != self.slot_table.response_words
            waiting = self.served[pending[self.served]]
            if not len(waiting) or len(waiting) >= self.enough or time.monotonic() >= deadline:
                return requests, waiting
            time.sleep(SLICE_S)
            self.stages.mark("wait")

    def _run_batch(self, requests: np.ndarray, groups: list[int]) -> None:
        """Gather the rows of the groups in one batch, compute it and scatter the outputs."""
        # Lockstep has one batch shape: groups without a request are computed with their last rows, without a response.
        places = {group: group if self.whole_batch else place for place, group in enumerate(groups)}
        self._gather(requests, places)
        self.stages.mark("gather")
        outputs = self.batch.run(self.G if self.whole_batch else len(groups))
        self.stages.mark("forward")
        self._scatter(requests, places, outputs)

    def flush(self) -> None:
        """Send stage times and recorded metrics."""
        if self.turns:
            self.record("queue/inference_batch", self.envs, self.turns)
        self.envs = 0
        super().flush()

    def close(self) -> None:
        if self.accelerator is not None:
            self.accelerator.release()

    def refresh(self) -> None:
        """Load the newest weights of the mailbox if they are newer than the current ones and complete."""
        version = self.mailbox.fetch(self.scratch.numpy(), self.version)
        if version not in (self.version, NOTHING):
            self.model.read_flat(self.scratch)  # in place and on the forward's stream; the next pass waits for it
            if self.native is not None:
                self.native.load(self.scratch)
            self.version = version

    def _gather(self, requests: np.ndarray, places: dict[int, int]) -> None:
        """Stage the rows of every group in `places`: group -> place in the batch."""
        for group, place in places.items():
            number, slot, t = unpack(requests[group])
            for name in (*self.obs_names, "first", "noise"):
                self.batch.stage(name, place, self.fields[name][group, slot, t])
            if self.has_state:
                state = self.fields["memory"][group, number % 2]
                if t == 0:
                    self.fields["state"][group, slot] = state
                self.batch.stage("state", place, state)

    @torch.inference_mode()
    def _forward(self, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """One forward pass, so that one version acts in the whole batch."""
        with precision(self.precision, self.device)():
            out = self.model({name: inputs[name] for name in self.obs_names}, inputs.get("state"), inputs["first"])
        actions, log_prob = self.objective.act(self.model, out, inputs["noise"])
        outputs = {**actions, "log_prob": log_prob, "params": out.params, "value": out.value}
        if self.has_state:
            outputs["state"] = out.state
        return outputs

    def _scatter(self, requests: np.ndarray, places: dict[int, int], outputs: dict[str, np.ndarray]) -> None:
        """Write the outputs into the slots. Writes only the rows named by `requests`."""
        E = self.E
        for group, place in places.items():
            number, slot, t = unpack(requests[group])
            rows = slice(place * E, place * E + E)
            for name in (*self.action_names, "log_prob", "params", "value"):
                self.fields[name][group, slot, t] = outputs[name][rows]
            if self.has_state:
                self.fields["memory"][group, (number + 1) % 2] = outputs["state"][rows]
            self.fields["policy_version"][group, slot, t] = self.version
