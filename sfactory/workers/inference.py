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
from functools import cached_property, partial

import numpy as np
import torch

from sfactory.device.accelerator import accelerator_of, register
from sfactory.device.selection import pick_device, precision
from sfactory.learning.network import build_model
from sfactory.native.choice import why_not_native
from sfactory.shm.mailbox import NOTHING
from sfactory.shm.slots import unpack
from sfactory.shm.trajectory import CURRENT
from sfactory.workers.inference_batch import CpuBatch, GpuBatch, InferenceBatch
from sfactory.workers.inference_native import NativeTurn
from sfactory.workers.names import inference_name
from sfactory.workers.opponents import Opponents
from sfactory.workers.shared import SharedState
from sfactory.workers.worker import TelemetrySink, Worker

GATHER_S = 5e-4  # longest wait of a turn on a GPU for more groups, about the time of such a turn
ABSENT = CURRENT - 2**62
"""In place of the number of a player: no agent acts in this row."""
SLICE_S = 1e-4  # between two looks at the requests meanwhile


class Inference(Worker):
    """Computes actions in batches; see the top of this file."""

    def __init__(self, shared: SharedState, sink: TelemetrySink, whole_batch: bool = False, number: int = 0) -> None:
        """whole_batch: use one batch shape, all groups, as lockstep needs for bit-identical results. number: selects
        the groups it serves, `RunSpec.groups_served`."""
        super().__init__(inference_name(number), shared, sink)
        device = self.config.run.inference_device or self.config.run.device
        self.device = pick_device(device, self.run_spec.ranks.local_rank)
        self.model = build_model(self.config, self.run_spec.spec).to(self.device).eval()
        self.run_spec.check_model(self.model)
        weights = self.model.flat_size()
        policy = self.run_spec.policy_served(number)
        self.mailbox = shared.mailbox(weights, policy)
        self.words, self.version = shared.learner[policy], NOTHING
        self.whole_batch = whole_batch
        self.fields, schema = shared.trajectories, shared.trajectories.schema
        self.served = np.array(self.run_spec.groups_served(number))  # no other process responds to these groups
        self.E, self.G, self.has_state = schema.lanes, len(self.served), schema.state_size > 0
        self.obs_names, self.action_names = tuple(self.run_spec.spec.obs), tuple(self.run_spec.spec.actions)
        self.opponents = Opponents(self.run_spec, self.device) if schema.players else None
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
        if self.opponents is not None or why_not_native(self.config, self.model, self.device, self.precision):
            return None  # rows of opponents have other weights than the rest of the turn
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
        of_agents = bool(self.run_spec.spec.acting)
        run = partial(self._run_agents, requests, places) if of_agents else self.batch.run
        outputs = run(self.G if self.whole_batch else len(groups))
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
        actions, log_prob = self.model.distribution.sample_and_log_prob(out.params, inputs["noise"])
        outputs = {**actions, "log_prob": log_prob, "params": out.params, "value": out.value}
        if self.has_state:
            outputs["state"] = out.state
        return outputs

    def _run_agents(self, requests: np.ndarray, places: dict[int, int], groups: int) -> dict[str, np.ndarray]:
        """As `batch.run`, for rows of agents: those of opponents by their own policies.

        On the CPU only rows in which an agent acts are computed; the outputs of the others are zeros.
        """
        player = self._players(requests, places, groups)
        acting, own = player != ABSENT, player == CURRENT
        if self.accelerator is not None or own.all():
            outputs = self.batch.run(groups)
            numbers = np.unique(player[acting & ~own]).tolist()
            if numbers:
                outputs = {name: rows.copy() for name, rows in outputs.items()}  # the batch writes its own again
        else:
            outputs = self._blank_outputs(groups * self.E)
            numbers = np.unique(player[acting]).tolist()
        for number in numbers:
            rows = np.flatnonzero(player == number)
            inputs = self._inputs(requests, places, rows)
            if number == CURRENT:
                found = self._forward(inputs)
            else:
                assert self.opponents is not None
                with torch.inference_mode(), precision(self.precision, self.device)():
                    found = self.opponents.outputs(number, inputs)
            for name, values in found.items():
                outputs[name][rows] = values.numpy()
        return outputs

    def _players(self, requests: np.ndarray, places: dict[int, int], groups: int) -> np.ndarray:
        """Who acts in every row of the batch [rows] int64; ABSENT where no agent does."""
        player = np.full(groups * self.E, ABSENT, np.int64)
        for group, place in places.items():
            _, slot, t = unpack(requests[group])
            acting = self.fields[self.run_spec.spec.acting][group, slot, t]
            who = CURRENT if self.opponents is None else self.fields["player"][group, slot, t]
            player[place * self.E : place * self.E + self.E] = np.where(acting, who, ABSENT)
        return player

    def _blank_outputs(self, size: int) -> dict[str, np.ndarray]:
        """Outputs of rows in which no agent acts: zeros, and the recurrent state as it was."""
        rows = self.fields.schema.rows()
        names = (*self.action_names, "log_prob", "params", "value")
        outputs = {name: np.zeros((size, *rows[name][1]), rows[name][2]) for name in names}
        if self.has_state:
            assert isinstance(self.batch, CpuBatch)
            state, first = (self.batch.rows[name][:size] for name in ("state", "first"))
            outputs["state"] = np.where(first[:, None], np.float32(0), state)
        return outputs

    def _inputs(self, requests: np.ndarray, places: dict[int, int], rows: np.ndarray) -> dict[str, torch.Tensor]:
        """What a network reads in some rows of the batch, on this worker's device."""
        names = (*self.obs_names, "first", "noise", *["state"] * self.has_state)
        if isinstance(self.batch, CpuBatch):
            return {name: torch.from_numpy(self.batch.rows[name][rows]) for name in names}
        return {name: torch.from_numpy(self._of_rows(requests, places, name)[rows]).to(self.device) for name in names}

    def _of_rows(self, requests: np.ndarray, places: dict[int, int], name: str) -> np.ndarray:
        """A leaf of all rows of the batch, from the slots."""
        found: dict[int, np.ndarray] = {}
        for group, place in places.items():
            number, slot, t = unpack(requests[group])
            field = "memory" if name == "state" else name
            at = (group, number % 2) if name == "state" else (group, slot, t)
            found[place] = self.fields[field][at]
        blank = np.zeros_like(next(iter(found.values())))  # lockstep: a group without a request
        return np.concatenate([found.get(place, blank) for place in range(max(found) + 1)])

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
