"""The sampler: steps groups of environments and writes what they say where the learner will read it.

consumes    actions of its groups (the inference worker's answers), FREE slots
produces    observations, rewards and ends in its SAMPLING slots; READY slots
waits for   an answer, or for a FREE slot
unblocked by the inference worker (answer), the learner (release)

Owns its environments and nothing else. Two groups or more: one steps while the other waits. Never imports torch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from sfactory.envs import EnvError, Group, Step, bounded, make_group
from sfactory.shm.slots import FREE, READY, SAMPLING, Request
from sfactory.workers.shared import ENVIRONMENT, WORK, SharedState
from sfactory.workers.worker import TelemetrySink, Worker

NOISE_STREAM = 1
SEED_STREAM = 2


def slot_noise(seed: int, group: int, launch: int, number: int, shape: tuple[int, ...]) -> np.ndarray:
    """Uniform noise of one slot, [T, E, N] float32 in [0, 1).

    Counter-based (Philox): keyed by seed, stream and group, counted by launch and the slot's first request number. So
    an action depends on (environment, step, weights), not on who shared its batch; a newborn repeats nothing.
    """
    bits = np.random.Philox(key=[seed, NOISE_STREAM << 32 | group], counter=[0, 0, number, launch])
    return np.random.Generator(bits).random(shape, dtype=np.float32)


def env_seeds(seed: int, launch: int, generation: int, first_env: int, num_envs: int) -> list[int]:
    """One 31-bit seed per environment, different for every environment, launch and generation."""
    return [
        int(np.random.SeedSequence([seed, SEED_STREAM, launch, generation, env]).generate_state(1)[0]) >> 1
        for env in range(first_env, first_env + num_envs)
    ]


class GroupRun:
    """One group on its way through its slots. E environments, T steps per slot."""

    def __init__(self, index: int, envs: Group, shared: SharedState) -> None:
        self.index, self.envs = index, envs
        self.bounded = bounded(shared.run_spec.spec, shared.run_spec.config.model.squash)
        self.slot_table, self.trajectories = shared.slot_table, shared.trajectories
        self.schema, run_spec = self.trajectories.schema, shared.run_spec
        self.T, self.E = self.schema.rollout_length, self.schema.envs_per_group
        self.seed, self.launch = run_spec.config.run.seed, run_spec.launch
        self.gamma = run_spec.config.trace.gamma
        self.inside = shared.arena["inside"][run_spec.sampler_of(index)]
        self.episode_seed, self.episode_step = (shared.arena[f"episode_{what}"][index] for what in ("seed", "step"))
        self.episode_step[:] = 0
        self._note_seeds()
        if hasattr(envs, "at"):
            envs.at = self.inside[1:]
        self.obs_names, self.action_names = tuple(run_spec.spec.obs), tuple(run_spec.spec.actions)
        self.obs: Mapping[str, np.ndarray] = envs.reset()
        self.first = np.ones(self.E, bool)
        self.discounted_return = np.zeros(self.E, np.float32)
        self.number = -1  # of the last request; -1: a newborn that has not taken over yet
        self.slot = -1  # -1: between two slots
        self.t = 0
        self.view: dict[str, np.ndarray] = {}

    def recover(self) -> bool:
        """Take the group over from a predecessor (or from nobody), once its last request is answered."""
        if self.slot_table.pending(self.index):
            return False
        self.slot_table.discard_unfinished(self.index)
        self.number = self.slot_table.last_request(self.index).number
        return True

    def begin(self) -> bool:
        """Begin the next slot and ask for its first actions, if the slot is this sampler's to begin."""
        # Slots are used in a ring, so the next one is the one handed over least often.
        handed = [self.slot_table.handover_count(self.index, slot) for slot in range(self.schema.slots_per_group)]
        slot = handed.index(min(handed))
        state = self.slot_table.state(self.index, slot)
        if state == FREE:
            self.slot_table.transition(self.index, slot, FREE, SAMPLING)
        elif state != SAMPLING:  # SAMPLING: a predecessor's, begun anew
            return False
        self.slot, self.t = slot, 0
        self.view = {name: self.trajectories[name][self.index, slot] for name in self.trajectories.names}
        noise = self.view["noise"]
        noise[...] = slot_noise(self.seed, self.index, self.launch, self.number + 1, noise.shape)
        self._see()
        self._ask()
        return True

    def act(self) -> Step:
        """Give the answer to the environments and write what came of it; hand the slot over when it is full."""
        view, t = self.view, self.t
        self.inside[:] = self.index, -1
        step = self.envs.step(self.bounded({name: view[name][t] for name in self.action_names}))
        view["reward"][t] = step.reward
        view["terminated"][t], view["truncated"][t], view["valid"][t] = step.terminated, step.truncated, step.valid
        if self.schema.discounted_return:
            self.discounted_return *= self.gamma
            self.discounted_return += step.reward
            view["discounted_return"][t] = self.discounted_return
            self.discounted_return[step.terminated | step.truncated | ~step.valid] = 0.0
        self.episode_step += 1
        self.episode_step[step.first | step.terminated | step.truncated] = 0
        if step.faults:
            self._note_seeds()
        self.obs, self.first, self.t = step.obs, step.first, t + 1
        self._see()
        if self.t < self.T:
            self._ask()
        else:
            self.slot_table.transition(self.index, self.slot, SAMPLING, READY)
            self.slot = -1
        return step

    def _note_seeds(self) -> None:
        """For the message about an environment that takes the whole process with it."""
        self.episode_seed[:] = getattr(self.envs, "seeds", 0)

    def state(self) -> dict[str, Any]:
        """Where the group stands, its environments included. EnvError if they cannot be saved."""
        if not hasattr(self.envs, "snapshot"):
            raise EnvError(f"{self.envs.spec.name} cannot be saved exactly: its group has no snapshot() and restore()")
        own = {name: getattr(self, name) for name in ("number", "slot", "t", "first", "discounted_return")}
        return {**own, "obs": dict(self.obs), "envs": json.dumps(self.envs.snapshot())}

    def set_state(self, state: dict[str, Any]) -> None:
        """The inverse, with the arena already as it was."""
        self.envs.restore(json.loads(state.pop("envs")))  # type: ignore[attr-defined]
        for name, value in state.items():
            setattr(self, name, value)
        if self.slot >= 0:
            self.view = {name: self.trajectories[name][self.index, self.slot] for name in self.trajectories.names}

    def _see(self) -> None:
        """Write what the policy will see at row t; row T is the bootstrap."""
        for name in self.obs_names:
            self.view[name][self.t] = self.obs[name]
        self.view["first"][self.t] = self.first

    def _ask(self) -> None:
        self.number += 1
        self.slot_table.request(self.index, Request(self.number, self.slot, self.t))


class Sampler(Worker):
    """See the top of this file."""

    def __init__(self, index: int, shared: SharedState, sink: TelemetrySink, generation: int = 0) -> None:
        super().__init__(f"sampler-{index}", shared, sink)
        run, sampling, env = self.config.run, self.config.sampling, self.config.env
        self.runs: list[GroupRun] = []
        for group in self.run_spec.groups_of(index):
            self.heartbeat(ENVIRONMENT)
            shared.arena["inside"][index] = group, -1
            first_env = group * sampling.envs_per_group
            seeds = env_seeds(run.seed, self.run_spec.launch, generation, first_env, sampling.envs_per_group)
            exact = run.mode == "lockstep" and self.config.checkpoint.exact
            task = env.tasks[self.run_spec.task_of(group)]
            envs = make_group(task, sampling.envs_per_group, seeds, env.arguments, exact)
            self.runs.append(GroupRun(group, envs, shared))
        self.episodes: list[tuple[float, int, int]] = []  # return, length, task
        self.inference_bell, self.learner_bell = shared.bells["inference"], shared.bells["learner"]
        self.stages.drain()

    def step(self) -> bool:
        """Act in every group whose answer is there, begin every slot that can be begun."""
        worked = False
        for run in self.runs:
            if run.number < 0:
                worked |= run.recover()
            elif run.slot < 0:
                if run.begin():
                    self.inference_bell.ring()
                    self.stages.mark("write")
                    worked = True
            elif not self.slot_table.pending(run.index):
                self._act(run)
                worked = True
        return worked

    def _act(self, run: GroupRun) -> None:
        self.heartbeat(ENVIRONMENT)
        step = run.act()
        self.heartbeat(WORK)
        if run.slot < 0:
            self.learner_bell.ring()
            run.begin()
        self.inference_bell.ring()
        task = self.run_spec.task_of(run.index)
        self.episodes += [(episode.episodic_return, episode.length, task) for episode in step.episodes]
        for fault in step.faults:
            self.sink.put(("fault", self.name, f"environment {run.index * run.E + fault.env}: {fault.message}"))
        self.stages.mark("env_step")

    def flush(self) -> None:
        super().flush()
        if self.episodes:
            self.sink.put(("episodes", self.name, self.episodes))
            self.episodes = []

    def close(self) -> None:
        for run in self.runs:
            run.envs.close()
