"""The evaluator: plays whole games with the newest checkpoint while the others train.

consumes    checkpoints
produces    eval/* (telemetry)
waits for   a checkpoint beyond the next multiple of eval.every
unblocked by the learner, which writes one there

It shares no memory and holds nothing that must not be lost: it may be killed at any moment, and nobody waits for it but
the end of a finished run, for a bounded time. Where it is too slow, multiples are passed over: it takes the newest.
Every evaluation begins the same games: two points of a curve differ by their policies, not by their luck with seeds.
"""

from __future__ import annotations

import faulthandler
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sfactory.learning.network import build_model
from sfactory.monitor.messages import Message
from sfactory.monitor.statistics import iqm
from sfactory.play.episodes import model_policy, play_task
from sfactory.run import checkpoint
from sfactory.workers.shared import EVALUATOR, RunSpec
from sfactory.workers.worker import TelemetrySink

LOOK_S = 0.5


class Watchdog:
    """Ends this process, its stack on stderr, when nothing was heard for `seconds`.

    An environment that hangs may hold the interpreter, so no Python thread could see to it; faulthandler's is C.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._armed = -np.inf

    def hear(self) -> None:
        """All is well. Cheap: it is armed anew once in a while only."""
        now = time.monotonic()
        if now - self._armed > min(1.0, self.seconds / 4):
            faulthandler.dump_traceback_later(self.seconds, exit=True)
            self._armed = now

    def rest(self) -> None:
        faulthandler.cancel_dump_traceback_later()
        self._armed = -np.inf


class PolicyPlayer:
    """Plays with a network of its own; whoever calls puts the weights in."""

    def __init__(self, run_spec: RunSpec) -> None:
        self.run_spec, self.model = run_spec, build_model(run_spec.config, run_spec.spec).eval()

    def evaluate(self, env_steps: int, alive: Callable[[], None] = lambda: None) -> Message:
        """eval.episodes games of every task, as telemetry. alive: called before every step."""
        config, begun = self.run_spec.config, time.perf_counter()
        seed, row = config.run.seed, {}
        returns, lengths, iqms = [], [], []
        for task in config.env.tasks:
            policy = model_policy(self.model, config.eval.greedy, seed)

            def watched(obs: Mapping[str, np.ndarray], first: np.ndarray, policy: Any = policy) -> Any:
                alive()
                return policy(obs, first)

            squash, episodes = config.model.squash, config.eval.episodes
            _, _, games = play_task(task, config.env.arguments, watched, episodes, seed, squash=squash)
            returns.append(float(np.mean(games.returns)))
            lengths.append(float(np.mean(games.lengths)))
            iqms.append(float(iqm(np.asarray(games.returns))))
            if len(config.env.tasks) > 1:
                row[f"eval/episodic_return/{task}"] = returns[-1]
        means = zip(("episodic_return", "episodic_length", "iqm"), (returns, lengths, iqms), strict=True)
        row |= {f"eval/{name}": float(np.mean(values)) for name, values in means}
        row |= {"eval/env_steps": float(env_steps), "eval/seconds": time.perf_counter() - begun}
        return "eval", EVALUATOR, row


class Evaluator:
    """The evaluator as a process of its own."""

    def __init__(self, run_spec: RunSpec, sink: TelemetrySink, evaluated: int) -> None:
        self.run_spec, self.sink = run_spec, sink
        self.evaluated = evaluated  # trained steps of the policy that was evaluated last
        self.evaluator = PolicyPlayer(run_spec)
        self.watchdog = Watchdog(run_spec.config.env.step_timeout)

    def step(self) -> bool:
        """One evaluation, if the newest checkpoint is to have one."""
        newest = next(iter(checkpoint.candidates(Path(self.run_spec.run_dir))), None)
        if newest is None or not self.run_spec.evaluation_due(self.evaluated, int(newest.name)):
            return False
        try:
            checkpoint.verify(newest)
            weights = checkpoint.load(newest, ("model",)).parts["model"]
        except Exception:  # thinned out while it was read, or damaged: the next one will do
            return False
        self.evaluator.model.load_state_dict(weights)
        self.watchdog.hear()  # building environments counts as a step
        self.sink.put(self.evaluator.evaluate(int(newest.name), self.watchdog.hear))
        self.watchdog.rest()
        self.evaluated = int(newest.name)
        return True

    def run(self) -> None:
        """Until it is killed; it dies with the supervisor."""
        while True:
            if not self.step():
                time.sleep(LOOK_S)
