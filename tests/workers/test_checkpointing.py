"""When the learner saves a checkpoint, and what it records of it."""

from types import SimpleNamespace

import pytest
import torch

from sfactory.config import Checkpoint, Config, Env, Eval, Run
from sfactory.envs import EnvSpec, Leaf
from sfactory.learning.distributed import SingleLearner
from sfactory.monitor.episodes import Episodes, stored_episodes
from sfactory.run import checkpoint
from sfactory.run.checkpoint_writer import SaveResult
from sfactory.workers import checkpointing as module
from sfactory.workers.checkpointing import Checkpointing
from sfactory.workers.counters import Counters
from sfactory.workers.shared import LearnerOutcome, RunSpec


class FakeSaver:
    """A `CheckpointWriter` that records what it is given; a save ends when `ended` is set."""

    def __init__(self, *unused):
        self.begun, self.ended, self.busy = [], None, False

    def start(self, contents):
        self.begun.append(contents.state["env_steps"])

    def poll(self, wait):
        ended, self.ended = self.ended, None
        return ended


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


def make_checkpointing(monkeypatch, env_steps=1500, leader=True, **sections):
    monkeypatch.setattr(module, "CheckpointWriter", FakeSaver)
    config = Config(env=Env("gymnasium/CartPole-v1"), **sections)
    learners = SingleLearner()
    learners.is_leader = leader
    update = SimpleNamespace(
        config=config,
        kernels="torch",
        lr=1e-3,
        kl=0.0,
        ess=1.0,
        lag=0.0,
        slow_fast=None,
        learners=learners,
        state_dict=dict,
    )
    words = SimpleNamespace(checkpoint=0, saved=0, outcome=LearnerOutcome.RUNNING)
    supervisor = SimpleNamespace(save_requests=0)
    lines = []
    spec = EnvSpec("some/env", {"obs": Leaf((3,), "float32")}, {}, frame_skip=4)
    counters, episodes = Counters(env_steps=env_steps), Episodes()
    one = Checkpointing(RunSpec(config, spec, "", 0), update, counters, episodes, words, supervisor, lines.append, 0)
    one.lines = lines
    return one


def test_checkpointing_saves_at_once_in_a_new_run_and_then_after_every_seconds(monkeypatch, clock):
    one = make_checkpointing(monkeypatch, checkpoint=Checkpoint(every_seconds=60.0))
    assert one.save_if_due()
    one.saver.ended = SaveResult(1500, None)
    assert not one.save_if_due()
    assert (one.words.checkpoint, one.words.saved, one.unsaved) == (1500, True, False)
    clock[0] += 61.0
    assert not one.save_if_due()  # nothing new
    one.counters.env_steps = 1600
    assert one.save_if_due()
    assert one.saver.begun == [1500, 1600]


def test_checkpointing_saves_once_per_request(monkeypatch, clock):
    one = make_checkpointing(monkeypatch)
    one.started_one = True
    assert not one.save_if_due()
    one.supervisor.save_requests = 2
    assert one.save_if_due()
    assert not one.save_if_due()


def test_checkpointing_starts_one_save_per_evaluation_even_if_the_disk_is_full(monkeypatch, clock):
    """The save failed and the multiple of eval.every is still later than the last checkpoint: it is not repeated."""
    one = make_checkpointing(monkeypatch, eval=Eval(every=1000))
    one.started_one = True
    for steps in (1500, 1600, 1700, 2100):
        one.counters.env_steps = steps
        one.save_if_due()
        one.saver.ended = SaveResult(steps, OSError(28, "No space left on device"))
    assert one.saver.begun == [1500, 2100]
    assert one.words.saved == 0
    assert one.words.outcome == LearnerOutcome.RUNNING


def test_checkpointing_in_lockstep_needs_no_checkpoint_for_an_evaluation(monkeypatch, clock):
    one = make_checkpointing(monkeypatch, eval=Eval(every=1000), run=Run(mode="lockstep"))
    one.started_one = True
    assert not one.save_if_due()


def test_checkpointing_saves_at_milestones(monkeypatch, clock):
    one = make_checkpointing(monkeypatch, env_steps=900, checkpoint=Checkpoint(milestones=1000))
    one.started_one = True
    assert not one.save_if_due()
    one.counters.env_steps = 1100
    assert one.save_if_due()
    one.counters.env_steps = 1900
    assert not one.save_if_due()


def test_checkpointing_of_a_learner_that_is_not_the_leader_saves_nothing(monkeypatch, clock):
    one = make_checkpointing(monkeypatch, leader=False)
    one.supervisor.save_requests = 1
    assert not one.save_if_due()
    assert one.saver.begun == []


def test_checkpointing_starts_nothing_while_a_save_is_being_written(monkeypatch, clock):
    one = make_checkpointing(monkeypatch)
    one.saver.busy = True
    assert not one.save_if_due()
    one.saver.busy = False
    assert one.save_if_due()


@pytest.mark.parametrize("last", [False, True])
def test_storage_error_ends_the_run_only_at_the_last_save(monkeypatch, clock, last):
    one = make_checkpointing(monkeypatch)
    one.saver.ended = SaveResult(1500, OSError(28, "No space left on device"))
    one.finish_save(wait=True, last=last)
    assert one.words.outcome == (LearnerOutcome.STORAGE if last else LearnerOutcome.RUNNING)
    assert one.lines == [
        "checkpoint at 1500 failed: [Errno 28] No space left on device; the previous checkpoint is kept"
    ]
    one.saver.ended = SaveResult(1500, ZeroDivisionError("a bug"))
    with pytest.raises(ZeroDivisionError):
        one.finish_save(wait=True)


def test_checkpoint_state_holds_counters_and_the_training_return_once_there_is_one(monkeypatch, clock):
    one = make_checkpointing(monkeypatch)
    assert one.state()["frames"] == 6000
    assert "training_return" not in one.state()
    one.episodes.add([(9.0, 3, 0), (10.0, 4, 0)])
    assert one.state()["training_return"] == 9.5
    assert stored_episodes(one.state(), 1).state() == one.episodes.state()


def test_take_stall_returns_the_longest_save_once(monkeypatch, clock):
    one = make_checkpointing(monkeypatch)
    for seconds in (2.0, 5.0, 1.0):
        monkeypatch.setattr(one, "state", lambda s=seconds: (clock.__setitem__(0, clock[0] + s), {"env_steps": 0})[1])
        one.save()
    assert one.take_stall() == pytest.approx(5.0)
    assert one.take_stall() == 0.0


def test_initialize_from_lists_the_tensors_that_differ(monkeypatch, clock, tmp_path):
    one = make_checkpointing(monkeypatch)
    parts = {"model": {"a": torch.zeros(3), "b": torch.zeros(1)}, "normalizers": {}}
    monkeypatch.setattr(checkpoint, "read_from", lambda path, parts_: SimpleNamespace(parts=parts, path=path))
    own = {"a": torch.zeros(2), "c": torch.zeros(4)}
    one.update.model = SimpleNamespace(state_dict=lambda: own)
    with pytest.raises(checkpoint.CheckpointError) as error:
        one.initialize_from(tmp_path)
    assert str(error.value).endswith(
        "another network: a [3], expected [2], 'b' is not in this network, c missing, expected [4]"
    )
