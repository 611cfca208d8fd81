"""The evaluator: play whole episodes with the newest checkpoint while training continues.

consumes     checkpoints
produces     eval/* (telemetry)
waits for    a checkpoint beyond the next multiple of eval.every
unblocked by the learner, which writes a checkpoint there

It uses no shared memory and holds no state that must not be lost: it may be killed at any moment. Only the end of a
finished run waits for it, for a bounded time. If it is too slow, multiples are skipped, and the log says so: it plays
the newest checkpoint. Every evaluation starts from the same seeds: two points of a curve differ only by their policies.
"""

from __future__ import annotations

import contextlib
import faulthandler
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from sfactory.envs import EnvError
from sfactory.errors import FileRefused
from sfactory.learning.network import build_model
from sfactory.monitor.messages import EVALUATION, LOG, NO_EVALUATION, Message
from sfactory.monitor.statistics import iqm, spread
from sfactory.play.episodes import model_policy, num_play_envs, play_task
from sfactory.play.eval_video import show_episodes
from sfactory.play.watched_group import NO_CLOCK, EnvClock
from sfactory.run import checkpoint
from sfactory.run.presence import LockHolder
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
        self.filming = run_spec.config.eval.video
        self._lock_holder = LockHolder(Path(run_spec.run_dir))
        self.lengths: dict[str, float] = {}  # task -> mean length of an episode in the last evaluation
        self.env_index = run_spec.ranks.world_size * run_spec.config.sampling.num_envs  # those below train

    def evaluate(self, env_steps: int, clock: EnvClock = NO_CLOCK) -> Message:
        """Play eval.episodes episodes of every task; return the results as telemetry.

        env_steps: trained steps of the policy.
        """
        config, start = self.run_spec.config, time.perf_counter()
        seed, row = config.run.seed, {}
        means: dict[str, list[float]] = defaultdict(list)
        capped = 0
        for task in config.env.tasks:
            _, _, played = play_task(
                task,
                config.env.options,
                model_policy(self.model, config.eval.greedy, seed),
                config.eval.episodes,
                seed,
                squash=config.model.squash,
                num_envs=num_play_envs(config),
                clock=clock,
                env_index=self.env_index,
            )
            capped += played.capped
            mean = float(np.mean(played.returns))
            self.lengths[task] = float(np.mean(played.lengths))
            own: dict[str, Any] = {"episodic_return": mean, "episodic_length": np.mean(played.lengths)}
            own |= {"iqm": iqm(np.asarray(played.returns)), **spread(played.returns)}
            own |= {f"info/{name}": np.mean(values) for name, values in played.infos.items()}
            for name, value in own.items():
                means[name].append(float(value))
            if len(config.env.tasks) > 1:
                row[f"eval/episodic_return/{task}"] = mean
        row |= {f"eval/{name}": float(np.mean(values)) for name, values in means.items()}
        row |= {"eval/env_steps": float(env_steps), "eval/seconds": time.perf_counter() - start}
        if capped:
            row["eval/capped"] = float(capped)
        return EVALUATION, self.name, row

    def film(self, env_steps: int, clock: EnvClock = NO_CLOCK) -> list[Message]:
        """Show an episode of the policy in TensorBoard, if eval.video says so; return what the log is told.

        Training does not need it: after an error no more episodes are filmed.
        """
        if not self.filming:
            return []
        config = self.run_spec.config
        try:
            self._lock_holder.require()
            show_episodes(
                Path(self.run_spec.run_dir),
                config,
                lambda: model_policy(self.model, config.eval.greedy, config.run.seed),
                env_steps,
                self.lengths,
                clock,
                self.env_index,
            )
        except Exception as error:
            self.filming = False
            text = f"no video of the policy after {env_steps:,} steps, and none of later ones: {error}"
            return [(LOG, self.name, text)]
        return []


class EvaluatorClock:
    """Ends this process if an environment exceeds its time limit (a `sfactory.play.watched_group.EnvClock`)."""

    def __init__(self, step_timeout: float, build_timeout: float) -> None:
        self.build_timeout, self.watchdog = build_timeout, Watchdog(step_timeout)

    def own(self) -> None:
        """The time of the network counts as that of the next step."""

    def build(self, environments: int) -> None:
        self.watchdog.allow(environments * self.build_timeout)

    def step(self, environments: int) -> None:
        if environments == 1:
            self.watchdog.reset()
        else:
            self.watchdog.allow(environments * self.watchdog.seconds)


class Evaluator:
    """Evaluates new checkpoints in a process of its own; see the top of this file."""

    def __init__(
        self, run_spec: RunSpec, sink: TelemetrySink, evaluated: int, policy: int = POLICY, generation: int = 0
    ) -> None:
        """evaluated: trained steps of the policy that was evaluated last. generation: how often it was restarted."""
        self.run_spec, self.sink = run_spec, sink
        self.checkpoint_dir = run_spec.policy_dir(policy)
        self.evaluated = evaluated
        self.player = PolicyPlayer(run_spec, policy)
        env = run_spec.config.env
        self.clock = EvaluatorClock(env.step_timeout, env.build_timeout)
        self._reason = "the evaluator was starting"  # why multiples of eval.every are skipped, if they are
        if generation and self.player.filming:  # rendering may have ended it: scores are needed, videos are not
            self.player.filming = False
            sink.put((LOG, self.player.name, "no more videos of policies: the evaluator was restarted"))

    def step(self) -> bool:
        """One evaluation, if the newest checkpoint is due for one."""
        newest: Path | None = None
        with contextlib.suppress(FileRefused, OSError):  # the folder may have been replaced
            newest = next(iter(checkpoint.candidates(self.checkpoint_dir)), None)
        if newest is None or not self.run_spec.evaluation_due(self.evaluated, int(newest.name)):
            self._reason = "they were passed within one update, or within a second"
            return False
        try:
            weights = checkpoint.read(newest, ("model",)).parts["model"]
        except Exception:  # pruned while it was read, or damaged: wait for the next one
            return False
        if skipped := skipped_multiples(self.evaluated, int(newest.name), self.run_spec.config.eval.every):
            self.sink.put((LOG, self.player.name, f"no evaluation at {skipped} steps: {self._reason}"))
        self.player.model.load_state_dict(weights)
        message: Message
        try:
            message = self.player.evaluate(int(newest.name), self.clock)
            for note in self.player.film(int(newest.name), self.clock):  # first: the end waits for the result alone
                self.sink.put(note)
        except EnvError as error:  # the environment's fault; a later policy may do better
            message = NO_EVALUATION, self.player.name, (int(newest.name), str(error))
        self.sink.put(message)
        self.clock.watchdog.stop()
        self.evaluated, self._reason = int(newest.name), "the one before was still playing"
        return True

    def run(self) -> None:
        """Evaluate until the process is killed, at the latest when the supervisor exits."""
        while True:
            if not self.step():
                time.sleep(POLL_S)


def skipped_multiples(evaluated: int, env_steps: int, every: int) -> str:
    """The multiples of eval.every between two evaluations, as `2,000 to 5,000`; empty if there are none.

    evaluated, env_steps: trained steps of the policy that was evaluated last, and of the one that is next.
    """
    first, last = (evaluated // every + 1) * every, (env_steps // every - 1) * every
    return "" if last < first else f"{first:,}" if last == first else f"{first:,} to {last:,}"
