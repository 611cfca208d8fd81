"""The state that the workers of a run share, declared in one place.

`RunSpec` holds the settings and derived numbers, `SharedHandles` the file descriptors, `SharedState` the shared memory
as one process sees it.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any

from sfactory.config import Config
from sfactory.config.algorithms import rules_of
from sfactory.device.ranks import ALONE, Ranks
from sfactory.envs import EnvSpec
from sfactory.monitor.episodes import Episodes
from sfactory.shm import atomics
from sfactory.shm.arena import Arena, Field
from sfactory.shm.atomics import Word, Words
from sfactory.shm.doorbell import Doorbell
from sfactory.shm.mailbox import NOTHING, Mailbox, mailbox_layout
from sfactory.shm.published import Published, published_layout
from sfactory.shm.slots import SlotTable, slot_table_layout
from sfactory.shm.trajectory import Schema, Trajectories
from sfactory.workers.names import POLICY, inference_name, learner_name, sampler_name


class StopOrder(IntEnum):
    """What the supervisor wants of every worker."""

    RUN = 0
    """Keep running."""
    FINISH = 1
    """Finish the update, save a checkpoint and exit."""
    NOW = 2
    """Exit without a checkpoint."""


class LearnerOutcome(IntEnum):
    """Whether and why a learner stopped training."""

    RUNNING = 0
    STOP_RULE = 1
    """A stop rule was reached."""
    STOPPED = 2
    """The supervisor stopped it."""
    NON_FINITE = 3
    """Too many updates in a row had a loss or gradient that was not finite."""
    STORAGE = 4
    """The last checkpoint could not be written."""
    INTERRUPTED = 5
    """With several learners: one of their supervisors had a Ctrl-C, and all learners stopped after the same update."""
    TERMINATED = 6
    """The same, with a SIGTERM or SIGHUP."""
    REQUEUED = 7
    """The same, with a signal to stop for the scheduler."""


class Precision(IntEnum):
    """Arithmetic of a policy's networks."""

    FP32 = 0
    BF16 = 1


class Phase(IntEnum):
    """What a worker is doing. The position of a sampler says with which environment."""

    IDLE = 0
    WORK = 1
    ENVIRONMENT = 2
    """Stepping environments, each for at most `env.step_timeout`."""
    BUILD = 3
    """Building environments and resetting them for the first time, each for at most `env.build_timeout`."""
    CLOSE = 4
    """Closing environments at the end of the run."""


WHOLE_GROUP, AT_ONCE = -1, -2
"""Positions of a sampler that does not know which environment runs: one after the other, or all in one native call."""


SILENT_S = 3.0
"""Without a pulse of the supervisor, after which workers wait: it is written four times a second (`Pulse`)."""


class SupervisorWords(Words):
    """Words written by the supervisor."""

    stop = Word(0, StopOrder)
    save_requests = Word(1, int)
    """How often a checkpoint was requested; the learner compares it with the last value it has seen."""
    proposal = Word(2, LearnerOutcome)
    """How all learners of the job are to end, because of a signal; RUNNING: there was none."""
    pulse = Word(3, int)
    """When the supervisor last showed that it runs, in ms of the monotonic clock; 0 if no supervisor does."""

    def beat(self) -> None:
        """Show that the supervisor runs."""
        self.pulse = time.monotonic_ns() // 1_000_000

    @property
    def silent(self) -> bool:
        """Whether the supervisor was stopped: it has had no pulse for SILENT_S."""
        pulse = self.pulse
        return pulse != 0 and time.monotonic_ns() // 1_000_000 - pulse > 1000 * SILENT_S


class LearnerWords(Words):
    """Words written by the learner of one policy."""

    updates = Word(0, int)
    env_steps = Word(1, int)
    outcome = Word(2, LearnerOutcome)
    checkpoint = Word(3, int)
    """Trained env_steps of the newest checkpoint; meaningful once `saved`."""
    saved = Word(4, bool)
    """Whether there is a checkpoint."""
    precision = Word(5, Precision)
    """Written before version 0 is published, so every process that has weights can read it."""
    optimizer_steps = Word(6, int)
    """A sign of life within a long update."""
    waits = Word(7, int)
    """A sign of life while the learner waits for learners that live."""


_PHASE_BITS = 4


def heartbeat_word(count: int, phase: Phase) -> int:
    return count << _PHASE_BITS | phase


def heartbeat_phase(word: int) -> Phase:
    return Phase(int(word) & ((1 << _PHASE_BITS) - 1))


@dataclass(frozen=True)
class RunSpec:
    """Everything a worker knows when it starts. Derived from the configuration and the environment's spec."""

    config: Config
    spec: EnvSpec
    run_dir: str
    launch: int
    """How often this run was started before. Async random numbers are keyed by it, so a resume repeats none."""
    resume_from: str = ""
    """Checkpoint to resume from; empty for a new run."""
    ranks: Ranks = ALONE
    """The place of this run's processes in a job of several learners."""

    @property
    def num_policies(self) -> int:
        """Policies trained in one run. Each has its learner, inference workers, mailbox and checkpoints."""
        return 1

    @property
    def num_inference(self) -> int:
        """Inference workers of each policy.

        Lockstep has one: a forward pass over other numbers of rows may round differently, and a lockstep run must not
        depend on how its groups are divided among workers.
        """
        run = self.config.run
        return 1 if run.mode == "lockstep" else min(max(1, run.inference_workers), self.config.sampling.samplers)

    @property
    def schema(self) -> Schema:
        s, actions = self.config.sampling, self.spec.actions.values()
        core, size = self.config.model.core, self.config.model.core_size
        return Schema(
            rollout_length=s.rollout_length,
            lanes=s.envs_per_group * self.spec.rows,
            num_groups=s.num_groups,
            slots_per_group=s.slots_per_group,
            obs={name: (leaf.shape, leaf.dtype) for name, leaf in self.spec.obs.items()},
            actions={name: (leaf.shape, leaf.dtype) for name, leaf in self.spec.actions.items()},
            num_params=rules_of(self.config).further_params
            + sum(sum(a.sizes) * (2 if a.kind == "box" else 1 + rules_of(self.config).per_choice) for a in actions),
            num_noise=sum(sum(a.sizes) if a.kind == "box" else len(a.sizes) for a in actions),
            state_size={"none": 0, "gru": size, "lstm": 2 * size}[core],
            discounted_return=self.config.normalize.reward,
            players=self.self_play,
        )

    @property
    def self_play(self) -> bool:
        """Whether there is a pool of opponents."""
        return self.config.selfplay.share > 0

    @property
    def batch_lanes(self) -> int:
        """Lanes side by side in one batch."""
        return self.config.lanes * self.spec.rows

    @property
    def batch_rows(self) -> int:
        """Rows of one batch."""
        return self.config.batch_rows * self.spec.rows

    def check_model(self, model: Any) -> None:
        """AssertionError if a network and the slots disagree about the sizes of what they exchange."""
        schema, distribution = self.schema, model.distribution
        assert distribution.num_params == schema.num_params, "slot and distribution disagree on parameters"
        assert distribution.num_noise == schema.num_noise, "slot and distribution disagree on noise"
        assert model.state_size == schema.state_size, "slot and core disagree on the recurrent state"

    @property
    def workers(self) -> tuple[str, ...]:
        """Names of all workers with shared memory; the index in this tuple is the row of the heartbeat."""
        policies, samplers = range(self.num_policies), range(self.config.sampling.samplers)
        inference = range(self.num_policies * self.num_inference)
        return (*map(learner_name, policies), *map(inference_name, inference), *map(sampler_name, samplers))

    def task_of(self, group: int) -> int:
        """Index into `config.env.tasks` of the group's environments."""
        return self.config.task_of(group)

    def policy_of(self, group: int) -> int:
        """Number of the policy that acts in the group's environments and is trained on them."""
        return group % self.num_policies

    def in_job(self, group: int) -> int:
        """Number of a group among those of all ranks: seeds and noise depend on it."""
        return self.ranks.rank * self.config.sampling.num_groups + group

    def groups_of(self, sampler: int) -> range:
        per = self.config.sampling.groups_per_sampler
        return range(sampler * per, (sampler + 1) * per)

    def sampler_of(self, group: int) -> int:
        return group // self.config.sampling.groups_per_sampler

    def inference_of(self, group: int) -> int:
        """Number of the inference worker that serves the group: the only process that responds to its requests.

        A sampler's groups of one policy have one worker; samplers are assigned to the workers in turn. The first
        `num_policies` workers have the numbers of their policies, as if each were the only one.
        """
        return self.policy_of(group) + self.num_policies * (self.sampler_of(group) % self.num_inference)

    def groups_served(self, inference: int) -> list[int]:
        """Groups of one inference worker."""
        return [group for group in range(self.config.sampling.num_groups) if self.inference_of(group) == inference]

    def policy_served(self, inference: int) -> int:
        """Number of the policy whose weights an inference worker uses."""
        return inference % self.num_policies

    def evaluation_due(self, evaluated: int, env_steps: int) -> bool:
        """Whether a multiple of eval.every lies between two policies, given by their trained env_steps.

        The learner writes a checkpoint there and the evaluator evaluates it.
        """
        every = self.config.eval.every
        return every > 0 and env_steps // every > evaluated // every

    def policy_dir(self, policy: int = POLICY) -> Path:
        """The folder with the checkpoints of a policy; for policy 0 the run folder itself."""
        return Path(self.run_dir) / f"policy-{policy}" if policy else Path(self.run_dir)

    @property
    def debug_dir(self) -> Path:
        return Path(self.run_dir) / "debug"

    def layout(self) -> dict[str, Field]:
        """Arrays of the arena. Lockstep checkpoints store them as raw bytes: order and sizes must not change."""
        s, selfplay = self.config.sampling, self.config.selfplay
        pool = published_layout(1 + selfplay.pool + len(selfplay.opponent_paths), "pool") if self.self_play else {}
        return {
            "orders": Field((8,), "int64"),
            "progress": Field((self.num_policies, 8), "int64"),
            "heartbeat": Field((len(self.workers), 8), "int64"),
            # Position of each sampler, for the message when it exits there: group and environment, seeds, steps.
            "position": Field((s.samplers, 2), "int64"),
            "episode_seed": Field((s.num_groups, s.envs_per_group), "int64"),
            "episode_step": Field((s.num_groups, s.envs_per_group), "int64"),
            **mailbox_layout(self.num_policies),
            **slot_table_layout(s.num_groups, s.slots_per_group, self.num_policies),
            **self.schema.layout(),
            **pool,
        }

    def episodes_layout(self) -> dict[str, Field]:
        """Arrays of the last episodes: memory of its own, because the arena is part of lockstep checkpoints."""
        return published_layout(Episodes.size(len(self.config.env.tasks)))


@dataclass(frozen=True)
class SharedHandles:
    """File descriptors of everything shared. `bells` in the order of `RunSpec.workers`."""

    arena: int
    mail: int
    episodes: int
    bells: tuple[tuple[int, int], ...]


class SharedState:
    """The shared memory and doorbells of a run, as one process sees them."""

    def __init__(self, run_spec: RunSpec, handles: SharedHandles) -> None:
        self.run_spec, self.handles = run_spec, handles
        s, policies = run_spec.config.sampling, range(run_spec.num_policies)
        self.arena = Arena(run_spec.layout(), handles.arena)
        self.slot_table = SlotTable(self.arena, s.slots_per_group, s.rollout_length, run_spec.schema.lanes)
        self.trajectories = Trajectories(self.arena, run_spec.schema)
        self.bells = {name: Doorbell(*fds) for name, fds in zip(run_spec.workers, handles.bells, strict=True)}
        self.learner_bells = [self.bells[learner_name(policy)] for policy in policies]
        inference = range(run_spec.num_policies * run_spec.num_inference)
        self.inference_bells = [self.bells[inference_name(number)] for number in inference]
        self.sampler_bells = [self.bells[sampler_name(index)] for index in range(s.samplers)]
        self.supervisor = SupervisorWords(self.arena["orders"])
        self.learner = [LearnerWords(self.arena["progress"][policy]) for policy in policies]
        self.heartbeat, self.in_charge = self.arena["heartbeat"][:, 0], self.arena["heartbeat"][:, 1]
        """By worker: its newest heartbeat, and the generation that may work; a spare waits until that is its own."""
        self.episodes = Published(Arena(run_spec.episodes_layout(), handles.episodes))
        self.pool = Published(self.arena, "pool") if run_spec.self_play else None
        """How many opponents there are, and their numbers."""

    @classmethod
    def create(cls, run_spec: RunSpec) -> SharedState:
        """Allocate everything; called once, by the supervisor, before any worker starts."""
        arena = Arena.create(run_spec.layout())
        mail, episodes = Arena.reserve(), Arena.create(run_spec.episodes_layout())
        bells = tuple(Doorbell.create().fds for _ in run_spec.workers)
        shared = cls(run_spec, SharedHandles(arena.fd, mail, episodes.fd, bells))
        shared.episodes.write(Episodes(len(run_spec.config.env.tasks)).numbers())
        for name in ("mail_begun", "mail_done"):
            for policy in range(run_spec.num_policies):
                for buffer in range(2):
                    atomics.store(shared.arena[name], (policy, buffer), NOTHING)
        if run_spec.config.run.debug:
            shared.trajectories.poison()
        return shared

    def mailbox(self, num_weights: int, policy: int = POLICY) -> Mailbox:
        """The mailbox of a policy with P = num_weights weights.

        The learner or an inference worker allocates its memory, whichever is first: they alone know P.
        """
        layout = {"mail": Field((self.run_spec.num_policies, 2, num_weights), "float32")}
        return Mailbox(self.arena, Arena.allocate(layout, self.handles.mail)["mail"][policy], policy)

    def rows_by_task(self) -> dict[str, int]:
        """Sampled rows of every task since the run started; empty if there is one task."""
        config = self.run_spec.config
        tasks = config.env.tasks
        rows = dict.fromkeys(tasks, 0) if len(tasks) > 1 else {}
        for group, count in enumerate(self.slot_table.rows_of_groups() if rows else ()):
            rows[tasks[config.task_of(group)]] += count
        return rows

    def ring_inference(self, policy: int = POLICY) -> None:
        """Ring all inference workers of a policy."""
        for number, bell in enumerate(self.inference_bells):
            if self.run_spec.policy_served(number) == policy:
                bell.ring()

    def ring_all(self) -> None:
        for bell in self.bells.values():
            bell.ring()

    def close(self) -> None:
        """Close all descriptors; memory is freed with its last descriptor and mapping. Only once."""
        for bell in self.bells.values():
            bell.close()
        self.arena.close()
        os.close(self.handles.mail)
        os.close(self.handles.episodes)
