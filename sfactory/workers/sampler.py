"""The sampler: step groups of environments and write the results into trajectory slots.

consumes     actions of its groups (responses of its inference worker), FREE slots
produces     observations, rewards and ends in its SAMPLING slots; READY slots
waits for    a response, or a FREE slot
unblocked by its inference worker (response), the learner (release)

Owns its environments and no other state. With two groups or more, one steps while the other waits. Never imports torch.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np

from sfactory.envs import EnvError, Group, Step, bounded, check_spaces, listen_to_builds, make_group
from sfactory.envs.build_clock import BUILT
from sfactory.envs.retry import START_S, retried
from sfactory.envs.spec import LONGEST_TRACE
from sfactory.errors import shortened
from sfactory.monitor import messages
from sfactory.shm.slots import FREE, READY, SAMPLING, Request
from sfactory.workers.names import sampler_name
from sfactory.workers.seats import Seats
from sfactory.workers.shared import AT_ONCE, WHOLE_GROUP, Phase, SharedState
from sfactory.workers.worker import TelemetrySink, Worker

RESULTS_EVERY_S = 0.1  # so that a training return is not much older than the weights it is saved with
NOISE_STREAM = 1
SEED_STREAM = 2
MOST_INFOS = 200
"""Episodes with numbers in one message, 300 KB at most: a message that does not fit into the queue is lost."""


def slot_noise(seed: int, group: int, launch: int, number: int, shape: tuple[int, ...]) -> np.ndarray:
    """Uniform noise of one slot, [T, E, N] float32 in [0, 1).

    Counter-based (Philox): keyed by seed, stream and group, counted by launch and the slot's first request number. An
    action therefore depends on (environment, step, weights) and not on the other groups of its batch, and a restarted
    sampler repeats no noise.
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
    """Steps one group of E environments through its slots of T steps."""

    def __init__(self, index: int, envs: Group, shared: SharedState, beat: Callable[[], None] = lambda: None) -> None:
        """beat: called while the group waits on purpose, see `sfactory.envs.Group`."""
        self.index, self.envs = index, envs
        self.bounded = bounded(shared.run_spec.spec, shared.run_spec.config.model.squash)
        self.slot_table, self.trajectories = shared.slot_table, shared.trajectories
        self.schema, run_spec = self.trajectories.schema, shared.run_spec
        self.T, self.rows = self.schema.rollout_length, self.schema.lanes
        self.E = run_spec.config.sampling.envs_per_group
        self.seed, self.launch, self.in_job = run_spec.config.run.seed, run_spec.launch, run_spec.in_job(index)
        self.gamma = run_spec.config.trace.gamma
        self.task, policy = run_spec.task_of(index), run_spec.policy_of(index)
        self.inference_bell = shared.inference_bells[run_spec.inference_of(index)]
        self.learner_bell = shared.learner_bells[policy]
        self.position = shared.arena["position"][run_spec.sampler_of(index)]  # group, environment
        self.episode_seed, self.episode_step = (shared.arena[f"episode_{name}"][index] for name in ("seed", "step"))
        self.episode_step[:] = 0
        self._record_seeds()
        self.stepping = AT_ONCE if getattr(envs, "at_once", False) else WHOLE_GROUP
        if hasattr(envs, "at"):
            envs.at = self.position[1:]
        if hasattr(envs, "beat"):
            envs.beat = beat
        self.acting = bool(run_spec.spec.acting)
        self.obs_names, self.action_names = tuple(run_spec.spec.obs), tuple(run_spec.spec.actions)
        self.obs: Mapping[str, np.ndarray] = envs.reset()
        self.first = np.ones(self.rows, bool)
        self.discounted_return = np.zeros(self.rows, np.float32)
        self.number = -1  # of the last request; -1: `recover` is still to be called
        self.slot = -1  # -1: between two slots
        self.t = 0
        self.broken = 0  # episodes that the last step cut because an environment failed
        self.seats = Seats(shared, index) if self.schema.players else None
        self.view: dict[str, np.ndarray] = {}

    def recover(self) -> bool:
        """Continue after the previous generation of this sampler, if any, once its last request has a response."""
        if self.slot_table.pending(self.index):
            return False
        self.slot_table.discard_unfinished(self.index)
        self.number = self.slot_table.last_request(self.index).number
        if self.seats is not None:
            self.seats.begin(np.ones(self.E, bool), self.number)
        return True

    def begin(self) -> bool:
        """Start the next slot and request its first actions, if this sampler may write to the slot."""
        # Slots are used as a ring, so the next one is the one handed over least often.
        counts = [self.slot_table.handover_count(self.index, slot) for slot in range(self.schema.slots_per_group)]
        slot = counts.index(min(counts))
        state = self.slot_table.state(self.index, slot)
        if state == FREE:
            self.slot_table.transition(self.index, slot, FREE, SAMPLING)
        elif state != SAMPLING:  # SAMPLING: started by a previous generation, overwritten from its first row
            return False
        self.slot, self.t = slot, 0
        self.view = {name: self.trajectories[name][self.index, slot] for name in self.trajectories.names}
        noise = self.view["noise"]
        noise[...] = slot_noise(self.seed, self.in_job, self.launch, self.number + 1, noise.shape)
        self._write_obs()
        self._request()
        return True

    def act(self) -> Step:
        """Step the environments with the policy's actions and write the result; hand the slot over when it is full."""
        view, t = self.view, self.t
        self.position[:] = self.index, self.stepping
        step = self.envs.step(self.bounded({name: view[name][t] for name in self.action_names}))
        view["reward"][t] = step.reward
        view["terminated"][t], view["truncated"][t], view["valid"][t] = step.terminated, step.truncated, step.valid
        if self.schema.discounted_return:
            # In the agent's own time: what comes while it waits follows the same action.
            np.multiply(self.discounted_return, self.gamma, out=self.discounted_return, where=self._own_steps(step))
            self.discounted_return += step.reward
            view["discounted_return"][t] = self.discounted_return
            self.discounted_return[step.terminated | step.truncated | step.first] = 0.0
        if self.seats is not None:
            view["outcome"][t] = self.seats.step(step, self.number)
        self.broken = self._count_broken(step) if step.faults else 0
        self.episode_step += 1
        self.episode_step[self._of_envs(step.first | step.terminated | step.truncated)] = 0
        if step.faults:
            self._record_seeds()
        self.obs, self.first, self.t = step.obs, step.first, t + 1
        self._write_obs()
        if self.t < self.T:
            self._request()
        else:
            self.slot_table.transition(self.index, self.slot, SAMPLING, READY)
            self.slot = -1
        return step

    def state(self) -> dict[str, Any]:
        """State of the group and its environments. EnvError if the environments cannot be saved."""
        if not hasattr(self.envs, "snapshot"):
            raise EnvError(f"{self.envs.spec.name} cannot be saved exactly: its group has no snapshot() and restore()")
        own = {name: getattr(self, name) for name in ("number", "slot", "t", "first", "discounted_return")}
        if self.seats is not None:
            own["seats"] = self.seats.state()
        return {**own, "obs": dict(self.obs), "envs": json.dumps(self.envs.snapshot())}

    def set_state(self, state: dict[str, Any]) -> None:
        """The inverse of `state`. The arena must have been restored before."""
        self.envs.restore(json.loads(state.pop("envs")))  # type: ignore[attr-defined]
        if self.seats is not None:
            self.seats.set_state(state.pop("seats"))
        for name, value in state.items():
            setattr(self, name, value)
        if self.slot >= 0:
            self.view = {name: self.trajectories[name][self.index, self.slot] for name in self.trajectories.names}

    def _count_broken(self, step: Step) -> int:
        """Episodes that end in a step with failures: those of the failed environments, and those that the group reset
        with them, because native code cannot reset a single environment."""
        broken = self._of_envs(step.first & ~step.valid) & (self.episode_step > 0)
        broken[[fault.env for fault in step.faults]] = True
        return int(np.count_nonzero(broken))

    def _of_envs(self, rows: np.ndarray) -> np.ndarray:
        """Flags of rows -> flags of environments, [E]: those of all agents."""
        of_envs: np.ndarray = np.logical_and.reduce(rows.reshape(self.E, -1), axis=1)
        return of_envs

    def _own_steps(self, step: Step) -> Any:
        """Rows whose agent has acted; all of them where an environment has one agent."""
        return step.valid if self.acting else True

    def _record_seeds(self) -> None:
        """Write the seeds into shared memory, for the error message if an environment ends the whole process."""
        self.episode_seed[:] = getattr(self.envs, "seeds", 0)

    def _write_obs(self) -> None:
        """Write the observation of row t; row T is the bootstrap."""
        for name in self.obs_names:
            self.view[name][self.t] = self.obs[name]
        self.view["first"][self.t] = self.first
        if self.seats is not None:
            self.view["player"][self.t] = self.seats.player

    def _request(self) -> None:
        """Request actions for row t."""
        self.number += 1
        self.slot_table.request(self.index, Request(self.number, self.slot, self.t))


class Sampler(Worker):
    """Steps its groups of environments; see the top of this file."""

    def __init__(self, index: int, shared: SharedState, sink: TelemetrySink, generation: int = 0) -> None:
        super().__init__(sampler_name(index), shared, sink)
        run, sampling, env = self.config.run, self.config.sampling, self.config.env
        self.runs: list[GroupRun] = []
        self.position = shared.arena["position"][index]
        self._outside = Phase.BUILD  # phase between the environments that a group reports as being built
        for group in self.run_spec.groups_of(index):
            self.position[:] = group, WHOLE_GROUP
            self._beat()
            first_env = self.run_spec.in_job(group) * sampling.envs_per_group
            seeds = env_seeds(run.seed, self.run_spec.launch, generation, first_env, sampling.envs_per_group)
            exact = run.mode == "lockstep" and self.config.checkpoint.exact
            task = env.tasks[self.run_spec.task_of(group)]
            build = partial(self._build, task, seeds, exact, first_env)
            with listen_to_builds(partial(self._on_build, group)):
                # One was built before, for the spec: a simulator may hold its port or license for a moment longer.
                envs = retried(build, START_S, self._beat, lambda error: getattr(error, "fault", False))
            self.position[:] = group, WHOLE_GROUP
            self._beat()
            self.runs.append(GroupRun(group, envs, shared, self._beat))
        self._outside = Phase.ENVIRONMENT
        self.episodes: list[tuple[Any, ...]] = []  # see `messages.EPISODES`
        self.num_infos = 0  # of these episodes, how many have numbers
        self.steps = 0  # valid ones since the last message
        self._next_results = 0.0
        self.stages.drain()

    def _beat(self) -> None:
        """Show that this worker lives, while it builds or steps environments."""
        self.heartbeat(self._outside)

    def _build(self, task: str, seeds: list[int], exact: bool, first_env: int) -> Group:
        """Build a group with the spaces of the run. Raises EnvError."""
        group = make_group(task, len(seeds), seeds, self.config.env.options, exact, env_index=first_env)
        return check_spaces(self.run_spec.spec, group)

    def _on_build(self, group: int, env: int) -> None:
        """An environment is about to be built or first reset, at the start or in place of one that failed; or is."""
        self.position[:] = group, WHOLE_GROUP if env == BUILT else env
        self.heartbeat(self._outside if env == BUILT else Phase.BUILD)

    def step(self) -> bool:
        """Act in every group that has a response, and start every slot that is free."""
        worked = False
        for run in self.runs:
            if run.number < 0:
                worked |= run.recover()
            elif run.slot < 0:
                if run.begin():
                    run.inference_bell.ring()
                    self.stages.mark("write")
                    worked = True
            elif not self.slot_table.pending(run.index):
                self._act(run)
                worked = True
        return worked

    def _act(self, run: GroupRun) -> None:
        self._beat()
        step = run.act()
        self.heartbeat(Phase.WORK)
        if run.slot < 0:
            run.learner_bell.ring()
            run.begin()
        run.inference_bell.ring()
        if step.episodes:
            numbers = dict(step.infos)
            for env, episodic_return, length in step.episodes:
                own = (numbers[env],) if env in numbers else ()
                self.episodes.append((episodic_return, length, run.task, *own))
            self.num_infos += len(numbers)
        self.steps += int(np.count_nonzero(step.valid))
        if self.num_infos >= MOST_INFOS:
            self._send_results()
        if step.faults:
            self._send_results(run.broken)  # first: what was good before decides what a failure means
        for fault in step.faults:
            text = f"environment {run.index * run.E + fault.env}: {shortened(fault.message, 2 * LONGEST_TRACE)}"
            self.sink.put((messages.FAULT, self.name, text))
        self.stages.mark("env_step")

    def _send_results(self, broken: int = 0) -> None:
        """Send complete episodes with their numbers, and how many steps and broken episodes there were."""
        if self.episodes:
            self.sink.put((messages.EPISODES, self.name, self.episodes))
            self.episodes, self.num_infos = [], 0
        if self.steps or broken:
            self.sink.put((messages.STEPS, self.name, (self.steps, broken)))
            self.steps = 0

    def report(self, now: Callable[[], float] = time.monotonic) -> None:
        super().report(now)
        if now() >= self._next_results:
            self._next_results = now() + RESULTS_EVERY_S
            self._send_results()

    def flush(self) -> None:
        super().flush()
        self._send_results()

    def close(self) -> None:
        for run in self.runs:
            self.position[:] = run.index, WHOLE_GROUP
            self.heartbeat(Phase.CLOSE)
            run.envs.close()
