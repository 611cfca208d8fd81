"""Metrics that every worker sends: waiting time per turn."""

from sfactory.config import Config, Env, Sampling
from sfactory.envs import make_spec
from sfactory.monitor.messages import METRICS
from sfactory.workers.shared import RunSpec, SharedState
from sfactory.workers.worker import ListSink, Worker


class IdleWorker(Worker):
    """A worker that never has work."""

    def step(self):
        return False


def test_worker_counts_waits_that_are_longer_than_the_interval_of_messages(tmp_path):
    """A learner that waits 2.5 s for its data sends messages in between, without a turn."""
    config = Config(env=Env("gymnasium/CartPole-v1"), sampling=Sampling(1, 1, 2, 4))
    shared = SharedState.create(RunSpec(config, make_spec(config.env.name), str(tmp_path), 0))
    worker = IdleWorker("sampler-0", shared, ListSink())
    for seconds, turns in ((1.0, 0), (1.0, 0), (0.5, 1), (0.25, 1)):
        worker.stages.seconds["wait"] = seconds
        worker.turns = turns
        worker.flush()
    sent = [payload for kind, _, payload in worker.sink.drain() if kind == METRICS]
    assert sent == [{"queue/sampler_wait_ms": (2500.0, 1.0)}, {"queue/sampler_wait_ms": (250.0, 1.0)}]
    shared.close()
