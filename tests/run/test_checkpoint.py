"""Checkpoints: what was saved comes back, or is refused with a reason; whatever happens, one good one stands."""

import contextlib
import errno
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch

from sfactory.run import checkpoint, checkpoint_writer
from sfactory.run.checkpoint import CheckpointError, Contents, load, load_lockstep, newest, verify
from sfactory.run.checkpoint_writer import save

GOLDEN = Path(__file__).parent.parent / "golden"


def contents(steps, value=None):
    """Small, and different for every number of steps."""
    value = float(steps) if value is None else value
    parts = {part: {"w": torch.full((3,), value), "n.b": torch.tensor(steps)} for part in checkpoint.PARTS}
    return Contents({"env_steps": steps, "launch": 0}, parts, lockstep={"arena": np.arange(4, dtype=np.uint8)})


def same(path, steps):
    got, want = load(path), contents(steps)
    assert got.state == want.state
    for part, tensors in want.parts.items():
        assert set(got.parts[part]) == set(tensors)
        assert all(torch.equal(got.parts[part][name], tensor) for name, tensor in tensors.items())
    assert np.array_equal(load_lockstep(path)["arena"], want.lockstep["arena"])
    return True


def test_what_was_saved_comes_back_and_the_oldest_make_room(tmp_path):
    for steps in (10, 20, 30, 40):
        assert same(save(tmp_path, contents(steps), keep=2), steps)
    assert [path.name for path in checkpoint.candidates(tmp_path)] == ["000000000040", "000000000030"]
    assert newest(tmp_path).name == "000000000040"


def scored(steps, training_return):
    made = contents(steps)
    return Contents({**made.state, "training_return": training_return}, made.parts)


def kept(run):
    return [int(path.name) for path in checkpoint.candidates(run)]


def test_the_best_by_training_return_is_kept_besides_the_newest(tmp_path):
    for steps, training_return in ((10, 1.0), (20, 9.0), (30, 3.0), (40, 9.0), (50, 5.0), (60, 2.0), (70, 8.5)):
        save(tmp_path, scored(steps, training_return), keep=2)
    assert kept(tmp_path) == [70, 60, 40]  # of equals the newest
    assert checkpoint.best(tmp_path).name == "000000000040"
    (tmp_path / "checkpoints/000000000040/model.safetensors").write_bytes(b"")
    assert checkpoint.best(tmp_path).name == "000000000070"  # a damaged one is not the best
    save(tmp_path, contents(80), keep=2)
    assert kept(tmp_path) == [80, 70]


def test_without_a_training_return_there_is_no_best(tmp_path):
    save(tmp_path, contents(10), keep=1)
    assert checkpoint.best(tmp_path) is None


def test_the_first_checkpoint_after_each_milestone_is_kept_for_good(tmp_path):
    for steps in (0, 90, 105, 150, 190, 290, 301, 302, 350):
        save(tmp_path, contents(steps), keep=2, milestones=100)
    assert kept(tmp_path) == [350, 302, 301, 290, 105]
    assert same(newest(tmp_path), 350)


def test_damaged_checkpoints_do_not_push_out_the_last_good_ones(tmp_path):
    for steps in (10, 20, 30, 40):
        save(tmp_path, contents(steps), keep=4)
    for steps in (20, 30):
        (tmp_path / f"checkpoints/{steps:012d}/state.json").write_text("{}")
    save(tmp_path, contents(50), keep=3)
    assert kept(tmp_path) == [50, 40, 30, 20, 10]
    save(tmp_path, contents(60), keep=3)
    assert kept(tmp_path) == [60, 50, 40]


def test_the_same_step_saved_again_replaces_it_whole(tmp_path):
    save(tmp_path, contents(10, value=1.0), keep=2)
    assert same(save(tmp_path, contents(10), keep=2), 10)


@pytest.mark.parametrize("atomic", [True, False])
def test_the_same_step_saved_again_leaves_a_good_one_at_every_moment(tmp_path, monkeypatch, atomic):
    """The old one or the new one; where the system cannot swap two folders, it is put aside for a moment."""
    save(tmp_path, contents(10, value=1.0), keep=2)
    real, seen = shutil.rmtree, []

    def watched(*how, **more):
        seen.append(newest(tmp_path))
        real(*how, **more)
        seen.append(newest(tmp_path))

    monkeypatch.setattr(shutil, "rmtree", watched)
    if not atomic:
        monkeypatch.setattr(checkpoint_writer.ctypes, "CDLL", lambda name: object())
    assert same(save(tmp_path, contents(10), keep=2), 10)
    assert seen
    assert all(path is not None for path in seen)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["000000000010"]


def test_a_checkpoint_that_cannot_be_read_is_passed_over(tmp_path, monkeypatch):
    """A sector that fails, a file of somebody else's: no damage that a hash would tell."""
    for steps in (10, 20):
        save(tmp_path, contents(steps), keep=2)
    real = checkpoint.file_sha256

    def fails(path):
        if "20" in path.parent.name:
            raise OSError(5, "Input/output error")
        return real(path)

    monkeypatch.setattr(checkpoint, "file_sha256", fails)
    told = []
    assert newest(tmp_path, told).name == "000000000010"
    assert "Input/output error" in told[0]


def test_what_is_not_finite_is_never_written(tmp_path):
    save(tmp_path, contents(10), keep=2)
    bad = contents(20)
    bad.parts["optimizer"]["w"][1] = float("nan")
    with pytest.raises(CheckpointError, match="optimizer is not finite at w"):
        save(tmp_path, bad, keep=2)
    assert newest(tmp_path).name == "000000000010"


CALLS = (
    (os, "open"), (os, "fsync"), (os, "close"), (Path, "mkdir"), (Path, "rename"), (Path, "write_text"),
    (Path, "write_bytes"),
    (shutil, "rmtree"), (np, "savez"),
)  # fmt: skip


class Fault:
    """Counts calls of everything that touches the disk; at call `at` something happens, before or after it."""

    def __init__(self, monkeypatch, at, happen, after):
        self.count, self.at, self.happen, self.after = 0, at, happen, after
        for owner, name in CALLS:
            monkeypatch.setattr(owner, name, self.wrap(getattr(owner, name)))

    def wrap(self, real):
        def call(*args, **kwargs):
            self.count += 1
            now = self.count == self.at
            if now and not self.after:
                self.happen()
            result = real(*args, **kwargs)
            if now and self.after:
                self.happen()
            return result

        return call


def fail(number):
    def happen():
        raise OSError(number, os.strerror(number))

    return happen


def calls_of_a_save(tmp_path):
    with pytest.MonkeyPatch.context() as patch:
        fault = Fault(patch, at=-1, happen=None, after=False)
        save(tmp_path / "count", contents(10), keep=1)
    return fault.count


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC])
@pytest.mark.parametrize("after", [False, True])
def test_an_error_at_any_call_leaves_a_good_checkpoint(memory_path, number, after):
    calls = calls_of_a_save(memory_path)
    assert calls > 20
    for at in range(1, calls + 1):
        run = memory_path / f"{at}"
        save(run, contents(10), keep=2)
        with pytest.MonkeyPatch.context() as patch:
            Fault(patch, at, fail(number), after)
            with contextlib.suppress(OSError):  # what only tidies up may fail in silence
                save(run, contents(20), keep=2)
        found = newest(run)
        assert same(found, int(found.name))
        assert same(save(run, contents(30), keep=2), 30)  # and the next save works


@pytest.mark.parametrize("after", [False, True])
def test_a_kill_at_any_call_leaves_a_good_checkpoint(memory_path, after):
    for at in range(1, calls_of_a_save(memory_path) + 1):
        run = memory_path / f"{at}"
        save(run, contents(10), keep=2)
        pid = os.fork()
        if pid == 0:
            with pytest.MonkeyPatch.context() as patch:
                Fault(patch, at, lambda: os._exit(9), after)
                save(run, contents(20), keep=2)
            os._exit(0)
        os.waitpid(pid, 0)
        found = newest(run)
        assert same(found, int(found.name))
        assert same(save(run, contents(30), keep=2), 30)
        assert not [p for p in (run / "checkpoints").iterdir() if p.name.startswith(".")]  # no litter


def mutate(files, draw):
    """One random change of one file: its name and new bytes, None for removed."""
    name = draw.choice(sorted(files))
    data = bytearray(files[name])
    kind = draw.choice(["flip", "cut", "grow", "remove", "swap", "zero"])
    at = draw.randrange(len(data))
    if kind == "flip":
        data[at] ^= 1 << draw.randrange(8)
    elif kind == "cut":
        del data[at:]
    elif kind == "grow":
        data += draw.randbytes(draw.randrange(1, 9))
    elif kind == "zero":
        data[at : at + 16] = bytes(len(data[at : at + 16]))
    elif kind == "swap":
        data = bytearray(files[draw.choice(sorted(files))])
    return name, None if kind == "remove" else bytes(data)


@pytest.fixture
def memory_path():
    """A folder in memory where there is one: ten thousand small writes wear no disk and take no minute."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None) as folder:
        yield Path(folder)


def test_ten_thousand_mutations_are_refused_or_load_what_was_saved(memory_path):
    good = save(memory_path / "run", contents(10), keep=1)
    files = {file.name: file.read_bytes() for file in good.iterdir()}
    draw, refused = random.Random(0), 0
    for _ in range(10_000):
        name, data = mutate(files, draw)
        if data is None:
            (good / name).unlink()
        else:
            (good / name).write_bytes(data)
        try:
            verify(good)
            assert same(good, 10)  # a blank behind the manifest, a file swapped with itself
        except CheckpointError:
            assert data != files[name]
            refused += 1
        (good / name).write_bytes(files[name])
    assert refused > 9000


def test_a_forged_manifest_leads_nowhere_outside(tmp_path):
    """Names in a manifest are data: one that points elsewhere is not a file of this checkpoint."""
    good = save(tmp_path / "run", contents(10), keep=1)
    manifest = json.loads((good / "manifest.json").read_text())
    manifest["files"]["../../secret"] = {"size": 1, "sha256": "0"}
    manifest["sha256"] = checkpoint.manifest_sha256(manifest)
    (good / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError):
        verify(good)


def test_the_newest_good_one_wins_and_bad_ones_are_named_and_moved(tmp_path):
    for steps in (10, 20, 30):
        save(tmp_path, contents(steps), keep=3)
    (tmp_path / "checkpoints/000000000030/model.safetensors").write_bytes(b"")
    (tmp_path / "checkpoints/000000000020/manifest.json").unlink()
    warnings = []
    assert newest(tmp_path, warnings).name == "000000000010"
    assert len(warnings) == 2
    assert "model.safetensors has 0 bytes" in warnings[0]
    assert sorted(p.name for p in (tmp_path / "corrupt").iterdir()) == ["000000000020", "000000000030"]
    shutil.rmtree(tmp_path / "checkpoints/000000000010")
    assert newest(tmp_path) is None
    save(tmp_path, contents(40), keep=3)
    (tmp_path / "checkpoints/000000000040/state.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"000000000040 skipped: state\.json has 2 bytes"):
        newest(tmp_path)


@pytest.mark.parametrize("version", sorted(p.name for p in GOLDEN.glob("checkpoint_v*")))
def test_a_checkpoint_of_every_format_version_still_loads(version):
    path = GOLDEN / version / "checkpoints" / "000000000010"
    verify(path)
    assert same(path, 10)


def test_there_is_a_golden_checkpoint_of_todays_format():
    assert (GOLDEN / f"checkpoint_v{checkpoint.FORMAT}").is_dir()


def test_nothing_is_unpickled_on_the_load_path(tmp_path):
    save(tmp_path, contents(10), keep=1)
    script = """
import sys, pathlib
from sfactory.run.checkpoint import load, load_lockstep, newest
import torch, numpy, safetensors.torch
events = []
sys.addaudithook(lambda name, args: events.append(name) if name.startswith("pickle.") else None)
path = newest(pathlib.Path(sys.argv[1]))
load(path), load_lockstep(path)
assert not events, events
import pickle; pickle.loads(pickle.dumps(print))
assert events  # the hook works
"""
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=True)


def test_the_last_checkpoint_has_an_age_and_one_that_vanishes_is_passed_over(tmp_path, monkeypatch):
    assert checkpoint.last_saved(tmp_path, 1000.0) is None
    for steps, written in ((10, 900.0), (20, 950.0)):
        folder = tmp_path / "checkpoints" / f"{steps:012d}"
        folder.mkdir(parents=True)
        os.utime(folder, (written, written))
    assert checkpoint.last_saved(tmp_path, 1000.0) == (20, 50.0)
    found = checkpoint.candidates(tmp_path)
    found[0].rmdir()
    monkeypatch.setattr(checkpoint, "candidates", lambda _: found)
    assert checkpoint.last_saved(tmp_path, 1000.0) == (10, 100.0)
