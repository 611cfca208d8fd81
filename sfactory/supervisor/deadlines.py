"""Time limits: of environments that are stepped or built, and of a run in which nothing arrives.

An environment has `env.step_timeout` for each step and `env.build_timeout` to be built and reset for the first time.
Every environment that a sampler begins to step or build counts as a sign of life, so a group may take as long as its
environments together. A group that does not report them has the time of all of them.

A run is stalled after `run.stall_timeout` in which no row was written, no optimizer step was taken, the learner did not
wait for learners of other ranks that live, no sampler was inside an environment, where the limits above hold, and no
worker was starting. Samplers stop writing when every slot is full, so a learner that does not get on is found as well.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

from sfactory.supervisor.worker_process import WorkerProcess
from sfactory.workers.names import LEARNER, SAMPLER, parse_worker
from sfactory.workers.shared import WHOLE_GROUP, Phase, RunSpec, SharedState, heartbeat_phase

START_S = 300.0  # for a worker to load packages, before its first heartbeat


class Watched(Protocol):
    """A worker whose heartbeat is watched; see `WorkerProcess`."""

    name: str
    heartbeat: tuple[int, int]
    heartbeat_at: float
    beats: bool
    began_at: float
    ready: bool


class Deadlines:
    """Reads heartbeats and positions of the workers. Times are seconds on the supervisor's clock."""

    def __init__(self, run_spec: RunSpec, shared: SharedState) -> None:
        self.run_spec, self.config, self.shared = run_spec, run_spec.config, shared
        self.arrived_at = 0.0  # when a row or an update last arrived
        self._seen: tuple[list[tuple[int, int, int]], bytes, bytes] | None = None

    # -- one worker --------------------------------------------------------------------------------------------

    def heartbeat(self, name: str) -> tuple[int, int]:
        """The newest heartbeat word of a worker, and the environment that a sampler is in."""
        kind, index = parse_worker(name)
        env = int(self.shared.arena["position"][index, 1]) if kind == SAMPLER else 0
        return int(self.shared.heartbeat[self.run_spec.workers.index(name)]), env

    def phase(self, name: str) -> Phase:
        """What a worker is doing; IDLE for the evaluator, which has no heartbeat."""
        return heartbeat_phase(self.heartbeat(name)[0]) if name in self.run_spec.workers else Phase.IDLE

    def begin(self, worker: Watched) -> None:
        """Watch a worker that was started, before it may work: no limit holds before its first heartbeat.

        The word still holds the last heartbeat of the previous generation.
        """
        if worker.name in self.run_spec.workers:  # all but the evaluator
            worker.heartbeat = self.heartbeat(worker.name)
            if parse_worker(worker.name).kind != LEARNER:
                worker.heartbeat_at = math.inf

    def listen(self, worker: Watched, now: float) -> bool:
        """Note the newest heartbeat of a worker; False if there is none since the last call, or the start."""
        if worker.name not in self.run_spec.workers or (heartbeat := self.heartbeat(worker.name)) == worker.heartbeat:
            return False
        if not worker.beats:
            worker.beats, worker.began_at = True, now
        worker.heartbeat, worker.heartbeat_at = heartbeat, now
        worker.ready |= heartbeat_phase(heartbeat[0]) != Phase.BUILD
        return True

    def exceeded(self, worker: Watched, now: float) -> str:
        """The limit that a worker has exceeded, empty if none. Notes its newest heartbeat."""
        if self.listen(worker, now):
            return ""
        heartbeat = worker.heartbeat
        phase, env = heartbeat_phase(heartbeat[0]), self.config.env
        if phase == Phase.ENVIRONMENT:
            what, limit, setting = "environment step", env.step_timeout, "env.step-timeout"
        elif phase == Phase.BUILD:
            what, limit, setting = "building an environment", env.build_timeout, "env.build-timeout"
        else:
            return ""
        number = self.config.sampling.envs_per_group if heartbeat[1] == WHOLE_GROUP else 1
        if now - worker.heartbeat_at <= number * limit:
            return ""
        times = f"{number} x " if number > 1 else ""
        return f"{what} exceeded {times}{limit:g} s ({setting}{self.position(worker.name)})"

    def position(self, name: str) -> str:
        """The environment a sampler steps or builds, for messages; empty if it is not inside one."""
        kind, index = parse_worker(name)
        phase = self.phase(name)
        if kind != SAMPLER or phase not in (Phase.ENVIRONMENT, Phase.BUILD):
            return ""
        arena, size = self.shared.arena, self.config.sampling.envs_per_group
        group, env = (int(x) for x in arena["position"][index])
        doing = "in" if phase == Phase.ENVIRONMENT else "building"
        if env < 0:
            return f", {doing} environments {group * size} to {group * size + size - 1}"
        where = f", {doing} environment {group * size + env}"
        if phase == Phase.BUILD:
            return where
        seed, step = int(arena["episode_seed"][group, env]), int(arena["episode_step"][group, env])
        return f"{where}, seed {seed}, step {step} of the episode"

    # -- the run -----------------------------------------------------------------------------------------------

    def stalled(self, workers: Sequence[WorkerProcess], now: float) -> bool:
        """Whether nothing has arrived for `run.stall_timeout`. workers: those that run and share memory."""
        rows, positions = self.shared.slot_table.request_words, self.shared.arena["position"]
        learners = [(learner.updates, learner.optimizer_steps, learner.waits) for learner in self.shared.learner]
        seen = learners, rows.tobytes(), positions.tobytes()
        busy = any(
            self.phase(worker.name) in (Phase.ENVIRONMENT, Phase.BUILD)
            if worker.beats
            else now - worker.started_at < START_S
            for worker in workers
        )
        if busy or seen != self._seen:
            self._seen, self.arrived_at = seen, now
        return now - self.arrived_at > self.config.run.stall_timeout
