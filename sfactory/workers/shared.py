"""What a run shares: the run_spec (numbers), the handles (descriptors) and the memory they lead to, declared in one place."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sfactory.config import Config
from sfactory.envs import EnvSpec
from sfactory.shm import atomics
from sfactory.shm.arena import Arena, Field
from sfactory.shm.doorbell import Doorbell
from sfactory.shm.slots import SlotTable, slot_table_layout
from sfactory.shm.trajectory import Schema, Trajectories

# The supervisor's words, in the array "orders".
STOP, SAVE, SCORE = range(3)  # SCORE: the training return as bits of a float64, NaN before there is one
RUN_ON, FINISH, NOW = 0, 1, 2  # values of STOP: go on; finish the update, save, leave; leave

# The learner's words, in the array "progress".
UPDATES, ENV_STEPS, OUTCOME, CHECKPOINT, SAVED = range(5)
RUNNING, TARGET_REACHED, STOPPED, NON_FINITE, STORAGE = range(5)  # values of OUTCOME

EVALUATOR = "evaluator"  # its name; no row in `RunSpec.workers`, for it shares no memory

_PHASE_BITS = 4
IDLE, WORK, ENVIRONMENT = range(3)  # phases of a heartbeat; only ENVIRONMENT runs against the environment's deadline


@dataclass(frozen=True)
class RunSpec:
    """Everything every worker knows before it is born. Derived from the configuration and the environment's spec."""

    config: Config
    spec: EnvSpec
    run_dir: str
    launch: int
    """How often this run was started before: async random numbers are keyed by it too, so a resume repeats nothing."""
    resume_from: str = ""
    """Checkpoint to go on from; empty: a new run."""

    @property
    def schema(self) -> Schema:
        s, actions = self.config.sampling, self.spec.actions.values()
        core, size = self.config.model.core, self.config.model.core_size
        return Schema(
            rollout_length=s.rollout_length,
            envs_per_group=s.envs_per_group,
            num_groups=s.num_groups,
            slots_per_group=s.slots_per_group,
            obs={name: (leaf.shape, leaf.dtype) for name, leaf in self.spec.obs.items()},
            actions={name: (leaf.shape, leaf.dtype) for name, leaf in self.spec.actions.items()},
            num_params=sum(sum(a.sizes) * (2 if a.kind == "box" else 1) for a in actions),
            num_noise=sum(sum(a.sizes) if a.kind == "box" else len(a.sizes) for a in actions),
            state_size={"none": 0, "gru": size, "lstm": 2 * size}[core],
            discounted_return=self.config.normalize.reward,
        )

    @property
    def workers(self) -> tuple[str, ...]:
        """Names of all workers; the index in this tuple is the row of the heartbeat."""
        return ("learner", "inference", *(f"sampler-{i}" for i in range(self.config.sampling.num_samplers)))

    def task_of(self, group: int) -> int:
        """Index into `config.env.tasks` of what this group plays."""
        return group % len(self.config.env.tasks)

    def groups_of(self, sampler: int) -> range:
        per = self.config.sampling.groups_per_sampler
        return range(sampler * per, (sampler + 1) * per)

    def sampler_of(self, group: int) -> int:
        return group // self.config.sampling.groups_per_sampler

    def evaluation_due(self, evaluated: int, env_steps: int) -> bool:
        """Whether a multiple of eval.every lies between two policies, named by their trained steps: the learner writes
        a checkpoint then, and the evaluator plays it."""
        every = self.config.eval.every
        return every > 0 and env_steps // every > evaluated // every

    @property
    def debug_dir(self) -> Path:
        return Path(self.run_dir) / "debug"

    def layout(self) -> dict[str, Field]:
        s = self.config.sampling
        return {
            "orders": Field((8,), "int64"),
            "progress": Field((8,), "int64"),
            "heartbeat": Field((len(self.workers), 8), "int64"),
            # Where a sampler is, for the message when it dies there: group and environment, then seeds and steps.
            "inside": Field((s.num_samplers, 2), "int64"),
            "episode_seed": Field((s.num_groups, s.envs_per_group), "int64"),
            "episode_step": Field((s.num_groups, s.envs_per_group), "int64"),
            "mail_begun": Field((8,), "int64"),
            "mail_done": Field((8,), "int64"),
            "mail_count": Field((8,), "int64"),
            **slot_table_layout(s.num_groups, s.slots_per_group),
            **self.schema.layout(),
        }


@dataclass(frozen=True)
class SharedHandles:
    """File descriptors of everything shared. `bells` in the order of `RunSpec.workers`."""

    arena: int
    mail: int
    bells: tuple[tuple[int, int], ...]


class SharedState:
    """The memory of a run as one process sees it."""

    def __init__(self, run_spec: RunSpec, handles: SharedHandles) -> None:
        self.run_spec, self.handles = run_spec, handles
        s = run_spec.config.sampling
        self.arena = Arena(run_spec.layout(), handles.arena)
        self.slot_table = SlotTable(self.arena, s.slots_per_group, s.rollout_length, s.envs_per_group)
        self.trajectories = Trajectories(self.arena, run_spec.schema)
        self.bells = {name: Doorbell(*fds) for name, fds in zip(run_spec.workers, handles.bells, strict=True)}
        self.sampler_bells = [self.bells[f"sampler-{i}"] for i in range(s.num_samplers)]
        self.orders, self.progress = self.arena["orders"], self.arena["progress"]
        self.heartbeat = self.arena["heartbeat"][:, 0]

    @classmethod
    def create(cls, run_spec: RunSpec) -> SharedState:
        """Allocate everything; called once, by the supervisor, before any worker is born."""
        arena = Arena.create(run_spec.layout())
        mail = Arena.reserve()
        bells = tuple(Doorbell.create().fds for _ in run_spec.workers)
        shared = cls(run_spec, SharedHandles(arena.fd, mail, bells))
        atomics.store(shared.orders, SCORE, atomics.to_bits(np.nan))
        for name in ("mail_begun", "mail_done"):
            for buffer in range(2):
                atomics.store(shared.arena[name], buffer, -1)
        if run_spec.config.run.debug:
            shared.trajectories.poison()
        return shared

    def mailbox_memory(self, num_weights: int) -> np.ndarray:
        """[2, P] float32, allocated by the first of learner and inference: only they know the network's size."""
        return Arena.allocate({"mail": Field((2, num_weights), "float32")}, self.handles.mail)["mail"]

    @property
    def stop(self) -> int:
        return int(self.orders[STOP])

    def set_training_return(self, value: float) -> None:
        """By the supervisor: the training return so far (NaN: none yet), which the learner stores in checkpoints."""
        atomics.store(self.orders, SCORE, atomics.to_bits(value))

    def ring_all(self) -> None:
        for bell in self.bells.values():
            bell.ring()

    def close(self) -> None:
        """Give everything back: memory goes with its last descriptor and mapping. Not twice."""
        for bell in self.bells.values():
            bell.close()
        self.arena.close()
        os.close(self.handles.mail)


def heartbeat_word(count: int, phase: int) -> int:
    return count << _PHASE_BITS | phase


def heartbeat_phase(word: int) -> int:
    return int(word) & ((1 << _PHASE_BITS) - 1)
