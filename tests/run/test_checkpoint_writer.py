"""Checkpoints written by a thread: what was copied is what is written, and no end of a save is lost."""

import threading

import pytest
import torch

from sfactory.run import checkpoint
from sfactory.run.checkpoint import Contents
from sfactory.run.checkpoint_writer import Saver


def contents(steps, value=1.0):
    parts = {part: {"w": torch.full((4,), value)} for part in checkpoint.PARTS}
    return Contents({"env_steps": steps}, parts)


def test_weights_that_move_on_while_they_are_written_are_saved_as_they_were(tmp_path, monkeypatch):
    go = threading.Event()
    real = checkpoint.save
    monkeypatch.setattr(checkpoint, "save", lambda *a: (go.wait(10), real(*a)))
    saver, live = Saver(tmp_path, keep=2), contents(10)
    saver.begin(live)
    assert saver.busy
    assert saver.take(wait=False) is None
    live.parts["model"]["w"] += 100.0
    go.set()
    assert saver.take(wait=True) == (10, None)
    assert not saver.busy
    assert saver.take(wait=True) is None  # an end is taken once
    assert checkpoint.load(checkpoint.newest(tmp_path)).parts["model"]["w"].tolist() == [1.0] * 4


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), SystemExit(3), KeyboardInterrupt()])
def test_whatever_ends_a_save_is_told(tmp_path, monkeypatch, error):
    def fail(*args):
        raise error

    monkeypatch.setattr(checkpoint, "save", fail)
    saver = Saver(tmp_path, keep=2)
    saver.begin(contents(10))
    assert saver.take(wait=True) == (10, error)


def test_without_a_thread_to_be_had_the_update_waits(tmp_path, monkeypatch):
    def refuse(self):
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        saver = Saver(tmp_path, keep=2)
        saver.begin(contents(10))
    assert saver.take(wait=False) == (10, None)
    assert checkpoint.newest(tmp_path).name == "000000000010"
