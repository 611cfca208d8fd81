"""The evaluator: play whole episodes with the newest checkpoint while training continues.

consumes     checkpoints
produces     eval/* (telemetry)
waits for    a checkpoint beyond the next multiple of eval.every
unblocked by the learner, which writes a checkpoint there

It uses no shared memory and holds no state that must not be lost: it may be killed at any moment. Only the end of a
finished run waits for it, for a bounded time. If it is too slow, multiples are skipped: it evaluates the newest
checkpoint. Every evaluation starts from the same seeds, so that two points of a curve differ only by their policies.
"""

from __future__ import annotations

import faulthandler
import time
from collections.abc import Callable

import numpy as np

from sfactory.envs import EnvError, listen_to_builds
from sfactory.envs.build_clock import BUILT
from sfactory.learning.network import build_model
from sfactory.monitor.messages import NO_EVALUATION, Message
from sfactory.monitor.statistics import iqm
from sfactory.play.episodes import model_policy, num_play_envs, play_task
from sfactory.run import checkpoint
from sfactory.workers.names import POLICY, evaluator_name
from sfactory.workers.shared import RunSpec
from sfactory.workers.worker import TelemetrySink

POLL_S = 0.5


class Watchdog:
    """Ends this process, with its stack on stderr, if `reset` is not called for `seconds`.

    An environment that hangs may hold the interpreter lock, so a Python thread could not do this; faulthandler uses a C
    thread.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._armed = -np.inf

    def reset(self) -> None:
        """Start the time again. Cheap: the timer is set again at most every second."""
        now = time.monotonic()
        if now - self._armed > min(1.0, self.seconds / 4):
            faulthandler.dump_traceback_later(self.seconds, exit=True)
            self._armed = now

    def allow(self, seconds: float) -> None:
        """Start the time again with another limit, once: the next `reset` restores the usual one at once."""
        faulthandler.dump_traceback_later(max(seconds, self.seconds), exit=True)
        self._armed = -np.inf

    def stop(self) -> None:
        """Disarm until the next `reset`."""
        faulthandler.cancel_dump_traceback_later()
        self._armed = -np.inf


class PolicyPlayer:
    """Plays episodes with a network of its own; the caller loads the weights into `model`."""

    def __init__(self, run_spec: RunSpec, policy: int = POLICY) -> None:
        self.name = evaluator_name(policy)
        self.run_spec, self.model = run_spec, build_model(run_spec.config, run_spec.spec).eval()

    def evaluate(
        self,
        env_steps: int,
        on_step: Callable[[int], None] = lambda environments: None,
        on_build: Callable[[int], None] = lambda environments: None,
    ) -> Message:
        """Play eval.episodes episodes of every task; return the results as telemetry.

        env_steps: trained steps of the policy. on_step, on_build: see `play_task`.
        """
        config, start = self.run_spec.config, time.perf_counter()
        seed, row = config.run.seed, {}
        returns, lengths, iqms = [], [], []
        for task in config.env.tasks:
            _, _, played = play_task(
                task,
                config.env.options,
                model_policy(self.model, config.eval.greedy, seed),
                config.eval.episodes,
                seed,
                squash=config.model.squash,
                num_envs=num_play_envs(config),
                on_build=on_build,
                on_step=on_step,
                env_index=config.sampling.num_envs,  # training environments have the numbers below
            )
            returns.append(float(np.mean(played.returns)))
            lengths.append(float(np.mean(played.lengths)))
            iqms.append(float(iqm(np.asarray(played.returns))))
            if len(config.env.tasks) > 1:
                row[f"eval/episodic_return/{task}"] = returns[-1]
        means = zip(("episodic_return", "episodic_length", "iqm"), (returns, lengths, iqms), strict=True)
        row |= {f"eval/{name}": float(np.mean(values)) for name, values in means}
        row |= {"eval/env_steps": float(env_steps), "eval/seconds": time.perf_counter() - start}
        return "eval", self.name, row


class Evaluator:
    """Evaluates new checkpoints in a process of its own; see the top of this file."""

    def __init__(self, run_spec: RunSpec, sink: TelemetrySink, evaluated: int, policy: int = POLICY) -> None:
        self.run_spec, self.sink = run_spec, sink
        self.checkpoint_dir = run_spec.policy_dir(policy)
        self.evaluated = evaluated  # trained steps of the policy that was evaluated last
        self.player = PolicyPlayer(run_spec, policy)
        self.watchdog = Watchdog(run_spec.config.env.step_timeout)

    def step(self) -> bool:
        """One evaluation, if the newest checkpoint is due for one."""
        newest = next(iter(checkpoint.candidates(self.checkpoint_dir)), None)
        if newest is None or not self.run_spec.evaluation_due(self.evaluated, int(newest.name)):
            return False
        try:
            checkpoint.verify(newest)
            weights = checkpoint.load(newest, ("model",)).parts["model"]
        except Exception:  # pruned while it was read, or damaged: wait for the next one
            return False
        self.player.model.load_state_dict(weights)
        message: Message
        try:
            with listen_to_builds(self._on_build_of):
                message = self.player.evaluate(int(newest.name), self._on_step, self._on_build)
        except EnvError as error:  # the environment's fault; a later policy may do better
            message = NO_EVALUATION, self.player.name, (int(newest.name), str(error))
        self.sink.put(message)
        self.watchdog.stop()
        self.evaluated = int(newest.name)
        return True

    def _on_step(self, environments: int) -> None:
        if environments == 1:
            self.watchdog.reset()
        else:
            self.watchdog.allow(environments * self.run_spec.config.env.step_timeout)

    def _on_build(self, environments: int) -> None:
        self.watchdog.allow(environments * self.run_spec.config.env.build_timeout)

    def _on_build_of(self, env: int) -> None:
        """A group builds one environment, or has built it (`listen_to_builds`)."""
        if env == BUILT:
            self.watchdog.reset()
        else:
            self._on_build(1)

    def run(self) -> None:
        """Evaluate until the process is killed, at the latest when the supervisor exits."""
        while True:
            if not self.step():
                time.sleep(POLL_S)
