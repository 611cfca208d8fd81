"""CheckpointWriter: writes what was copied at `start`, and returns the result of every save."""

import os
import shutil
import threading

import pytest
import torch

from sfactory.errors import CheckpointError
from sfactory.run import checkpoint, checkpoint_writer
from sfactory.run.checkpoint import Contents
from sfactory.run.checkpoint_writer import CheckpointWriter
from sfactory.run.lock import LOCK, lock_folder


def contents(steps, value=1.0):
    parts = {part: {"w": torch.full((4,), value)} for part in checkpoint.PARTS}
    return Contents({"env_steps": steps}, parts)


def test_checkpoint_writer_saves_the_weights_as_they_were_at_start(tmp_path, monkeypatch):
    go = threading.Event()
    real = checkpoint_writer.save
    monkeypatch.setattr(checkpoint_writer, "save", lambda *a: (go.wait(10), real(*a)))
    saver, live = CheckpointWriter(tmp_path, keep=2), contents(10)
    saver.start(live)
    assert saver.busy
    assert saver.poll(wait=False) is None
    live.parts["model"]["w"] += 100.0
    go.set()
    assert saver.poll(wait=True) == (10, None)
    assert not saver.busy
    assert saver.poll(wait=True) is None  # a result is returned once
    assert checkpoint.read(checkpoint.newest(tmp_path), checkpoint.PARTS).parts["model"]["w"].tolist() == [1.0] * 4


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), SystemExit(3), KeyboardInterrupt()])
def test_checkpoint_writer_returns_the_error_of_a_save(tmp_path, monkeypatch, error):
    def fail(*args):
        raise error

    monkeypatch.setattr(checkpoint_writer, "save", fail)
    saver = CheckpointWriter(tmp_path, keep=2)
    saver.start(contents(10))
    assert saver.poll(wait=True) == (10, error)


def test_checkpoint_writer_saves_in_the_caller_without_a_thread(tmp_path, monkeypatch):
    def refuse(self):
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        saver = CheckpointWriter(tmp_path, keep=2)
        saver.start(contents(10))
    assert saver.poll(wait=False) == (10, None)
    assert checkpoint.newest(tmp_path).name == "000000000010"


def test_checkpoint_writer_writes_nothing_into_the_folder_of_another_run(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    os.close(lock_folder(run))
    saver = CheckpointWriter(run / "policy-1", keep=1, locked=run)
    saver.start(contents(10))
    assert saver.poll(wait=True) == (10, None)
    (run / LOCK).write_text("1")  # as if another folder were in its place
    saver.start(contents(20))
    error = saver.poll(wait=True).error
    assert isinstance(error, OSError)
    assert "another run is in the place of" in str(error)
    assert [path.name for path in checkpoint.candidates(run / "policy-1")] == ["000000000010"]


def test_checkpoint_writer_goes_on_in_a_new_folder_that_its_own_run_has_made(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    os.close(lock_folder(run))
    saver = CheckpointWriter(run, keep=1)
    shutil.rmtree(run)
    saver.start(contents(10))  # before the supervisor has made it again
    assert saver.poll(wait=True) == (10, None)
    os.close(lock_folder(run))
    saver.start(contents(20))
    assert saver.poll(wait=True) == (20, None)


def test_checkpoint_of_the_same_step_is_kept_if_the_new_one_is_damaged_on_disk(tmp_path, monkeypatch):
    final = checkpoint_writer.save(tmp_path, contents(10), keep=2)
    real = checkpoint_writer._write_manifest

    def write_and_damage(folder):
        real(folder)
        path = folder / "model.safetensors"
        path.write_bytes(path.read_bytes()[:-1] + b"\x00")

    monkeypatch.setattr(checkpoint_writer, "_write_manifest", write_and_damage)
    with pytest.raises(CheckpointError):
        checkpoint_writer.save(tmp_path, contents(10, value=2.0), keep=2)
    assert checkpoint.read(final, checkpoint.PARTS).parts["model"]["w"].tolist() == [1.0] * 4
    assert [path.name for path in final.parent.iterdir()] == [final.name], "and nothing else is left"
