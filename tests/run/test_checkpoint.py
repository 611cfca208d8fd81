"""Checkpoints: saved contents load unchanged or are rejected with a reason; a valid one is always kept."""

import contextlib
import errno
import itertools
import json
import os
import random
import shutil
import sys
import tempfile
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from forked_processes import run_forked

from sfactory.errors import FileRefused
from sfactory.run import checkpoint, checkpoint_files, checkpoint_writer
from sfactory.run.checkpoint import PARTS, CheckpointError, Contents, load_lockstep, newest, read, verify
from sfactory.run.checkpoint_writer import save

GOLDEN = Path(__file__).parent.parent / "golden"


def contents(steps, value=None):
    """Small contents, different for every number of steps."""
    value = float(steps) if value is None else value
    parts = {part: {"w": torch.full((3,), value), "n.b": torch.tensor(steps)} for part in checkpoint.PARTS}
    return Contents({"env_steps": steps, "launch": 0}, parts, lockstep={"arena": np.arange(4, dtype=np.uint8)})


def same(path, steps):
    got, want = read(path, PARTS), contents(steps)
    assert got.state == want.state
    for part, tensors in want.parts.items():
        assert set(got.parts[part]) == set(tensors)
        assert all(torch.equal(got.parts[part][name], tensor) for name, tensor in tensors.items())
    assert np.array_equal(load_lockstep(path)["arena"], want.lockstep["arena"])
    return True


def test_save_and_load_give_equal_contents_and_prune_the_oldest(tmp_path):
    for steps in (10, 20, 30, 40):
        assert same(save(tmp_path, contents(steps), keep=2), steps)
    assert [path.name for path in checkpoint.candidates(tmp_path)] == ["000000000040", "000000000030"]
    assert newest(tmp_path).name == "000000000040"


def scored(steps, training_return):
    made = contents(steps)
    return Contents({**made.state, "training_return": training_return}, made.parts)


def kept(run):
    return [int(path.name) for path in checkpoint.candidates(run)]


def test_prune_keeps_the_best_by_training_return(tmp_path):
    for steps, training_return in ((10, 1.0), (20, 9.0), (30, 3.0), (40, 9.0), (50, 5.0), (60, 2.0), (70, 8.5)):
        save(tmp_path, scored(steps, training_return), keep=2)
    assert kept(tmp_path) == [70, 60, 40]  # of equals the newest
    assert checkpoint.best(tmp_path).name == "000000000040"
    (tmp_path / "checkpoints/000000000040/model.safetensors").write_bytes(b"")
    assert checkpoint.best(tmp_path).name == "000000000070"  # a damaged one is not the best
    save(tmp_path, contents(80), keep=2)
    assert kept(tmp_path) == [80, 70]


def test_best_is_none_without_a_training_return(tmp_path):
    save(tmp_path, contents(10), keep=1)
    assert checkpoint.best(tmp_path) is None


def test_prune_keeps_the_first_checkpoint_after_each_milestone(tmp_path):
    for steps in (0, 90, 105, 150, 190, 290, 301, 302, 350):
        save(tmp_path, contents(steps), keep=2, milestones=100)
    assert kept(tmp_path) == [350, 302, 301, 290, 105]
    assert same(newest(tmp_path), 350)


def test_prune_does_not_count_damaged_checkpoints(tmp_path):
    for steps in (10, 20, 30, 40):
        save(tmp_path, contents(steps), keep=4)
    for steps in (20, 30):
        (tmp_path / f"checkpoints/{steps:012d}/state.json").write_text("{}")
    save(tmp_path, contents(50), keep=3)
    assert kept(tmp_path) == [50, 40, 30, 20, 10]
    save(tmp_path, contents(60), keep=3)
    assert kept(tmp_path) == [60, 50, 40]


def test_save_at_the_same_step_replaces_the_checkpoint(tmp_path):
    save(tmp_path, contents(10, value=1.0), keep=2)
    assert same(save(tmp_path, contents(10), keep=2), 10)


@pytest.mark.parametrize("atomic", [True, False])
def test_save_at_the_same_step_always_leaves_a_valid_checkpoint(tmp_path, monkeypatch, atomic):
    """The old or the new one, also where the system cannot swap two folders."""
    save(tmp_path, contents(10, value=1.0), keep=2)
    real, newest_seen = shutil.rmtree, []

    def rmtree(*args, **kwargs):
        newest_seen.append(newest(tmp_path))
        real(*args, **kwargs)
        newest_seen.append(newest(tmp_path))

    monkeypatch.setattr(shutil, "rmtree", rmtree)
    if not atomic:
        monkeypatch.setattr(checkpoint_writer.ctypes, "CDLL", lambda name: object())
    assert same(save(tmp_path, contents(10), keep=2), 10)
    assert newest_seen
    assert all(path is not None for path in newest_seen)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["000000000010"]


def test_newest_skips_a_checkpoint_that_cannot_be_read(tmp_path, monkeypatch):
    """A failing sector or a missing permission raises OSError, not CheckpointError."""
    for steps in (10, 20):
        save(tmp_path, contents(steps), keep=2)
    real = checkpoint_files.open_to_read

    def fails(path, *most):
        if "20" in path.parent.name and path.name == "model.safetensors":
            raise OSError(5, "Input/output error")
        return real(path, *most)

    monkeypatch.setattr(checkpoint_files, "open_to_read", fails)
    warnings = []
    assert newest(tmp_path, warnings, move_damaged=True).name == "000000000010"
    assert "Input/output error" in warnings[0]
    assert not (tmp_path / "corrupt").exists(), "it may be readable in a moment"


def test_save_rejects_non_finite_tensors(tmp_path):
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
    """Counts disk calls; at call `at`, `happen` is called before or after it."""

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


@pytest.mark.sampled(3)  # both errors and both moments
@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC])
@pytest.mark.parametrize("after", [False, True])
def test_save_error_at_any_call_leaves_a_valid_checkpoint(memory_path, number, after):
    calls = calls_of_a_save(memory_path)
    assert calls > 20
    for at in range(1, calls + 1):
        run = memory_path / f"{at}"
        save(run, contents(10), keep=2)
        with pytest.MonkeyPatch.context() as patch:
            Fault(patch, at, fail(number), after)
            with contextlib.suppress(OSError):  # errors of deleting temporary files are ignored
                save(run, contents(20), keep=2)
        found = newest(run)
        assert same(found, int(found.name))
        assert same(save(run, contents(30), keep=2), 30)  # and the next save works


@pytest.mark.parametrize("after", [False, True])
def test_kill_at_any_call_of_save_leaves_a_valid_checkpoint(memory_path, after):
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
        assert not [p for p in (run / "checkpoints").iterdir() if p.name.startswith(".")]  # no temporary folders


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
    """Folder in memory where available: ten thousand small writes are fast there."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None) as folder:
        yield Path(folder)


@pytest.mark.sampled(3)  # four thousand: each thousand is drawn alike
@pytest.mark.parametrize("thousand", range(10))
def test_verify_rejects_ten_thousand_mutations(memory_path, thousand):
    good = save(memory_path / "run", contents(10), keep=1)
    files = {file.name: file.read_bytes() for file in good.iterdir()}
    draw, refused = random.Random(thousand), 0
    for _ in range(1000):
        name, data = mutate(files, draw)
        if data is None:
            (good / name).unlink()
        else:
            (good / name).write_bytes(data)
        try:
            verify(good)
            assert same(good, 10)  # a space after the manifest, a file replaced by itself
        except CheckpointError:
            assert data != files[name]
            refused += 1
        (good / name).write_bytes(files[name])
    assert refused > 900


def test_verify_rejects_a_manifest_with_files_outside_the_checkpoint(tmp_path):
    """Its hash is correct, but it names a file in another folder."""
    good = save(tmp_path / "run", contents(10), keep=1)
    manifest = json.loads((good / "manifest.json").read_text())
    manifest["files"]["../../secret"] = {"size": 1, "sha256": "0"}
    manifest["sha256"] = checkpoint_files.manifest_sha256(manifest)
    (good / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError):
        verify(good)


def test_newest_returns_the_newest_valid_one_and_moves_damaged_ones(tmp_path):
    for steps in (10, 20, 30):
        save(tmp_path, contents(steps), keep=3)
    (tmp_path / "checkpoints/000000000030/model.safetensors").write_bytes(b"")
    (tmp_path / "checkpoints/000000000020/manifest.json").unlink()
    warnings = []
    assert newest(tmp_path).name == "000000000010"
    assert not (tmp_path / "corrupt").exists(), "a command that only reads moves nothing"
    assert newest(tmp_path, warnings, move_damaged=True).name == "000000000010"
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
def test_golden_checkpoint_of_every_format_version_loads(version):
    path = GOLDEN / version / "checkpoints" / "000000000010"
    verify(path)
    assert same(path, 10)


def test_current_format_has_a_golden_checkpoint():
    assert (GOLDEN / f"checkpoint_v{checkpoint.FORMAT}").is_dir()


def test_loading_a_checkpoint_unpickles_nothing(tmp_path):
    save(tmp_path, contents(10), keep=1)
    script = """
import sys, pathlib
from sfactory.run.checkpoint import PARTS, load_lockstep, newest, read
import torch, numpy, safetensors.torch
events = []
sys.addaudithook(lambda name, args: events.append(name) if name.startswith("pickle.") else None)
path = newest(pathlib.Path(sys.argv[1]))
read(path, PARTS), load_lockstep(path)
assert not events, events
import pickle; pickle.loads(pickle.dumps(print))
assert events  # the hook works
"""
    (tmp_path / "load.py").write_text(script)
    run_forked([sys.executable, "load.py", str(tmp_path)], cwd=tmp_path, check=True)


def test_last_saved_has_an_age_and_skips_a_checkpoint_that_was_pruned(tmp_path, monkeypatch):
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


# -- checkpoints that a stranger, another version or another process made -----------------------------------------


def test_prune_removes_only_what_has_a_name_of_ours(tmp_path):
    save(tmp_path, contents(10), keep=1)
    folder = tmp_path / "checkpoints"
    kept_names = (".git", ".ssh", "2024", ".000000000020.backup", "notes")
    for name in (*kept_names, ".000000000020.4711", ".000000000020.old"):
        (folder / name).mkdir()
        (folder / name / "file").write_text("x")
    (folder / ".000000000030.12").symlink_to(tmp_path)
    save(tmp_path, contents(50), keep=1)
    left = {path.name for path in folder.iterdir()}
    assert left == {*kept_names, ".000000000030.12", "000000000050"}
    assert all((folder / name / "file").exists() for name in kept_names)


def test_save_refuses_checkpoints_that_lead_out_of_the_run(tmp_path):
    (tmp_path / "elsewhere" / ".000000000001.5").mkdir(parents=True)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "checkpoints").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(FileRefused, match="checkpoints is a link"):
        save(tmp_path / "run", contents(10), keep=1)
    assert [path.name for path in (tmp_path / "elsewhere").iterdir()] == [".000000000001.5"]


def test_newest_refuses_another_format_and_leaves_it_where_it_is(tmp_path):
    for steps in (10, 20):
        path = save(tmp_path, contents(steps), keep=2)
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps({**manifest, "format": 2}))
    warnings = []
    assert newest(tmp_path, warnings, move_damaged=True).name == "000000000010"
    assert "format 2, this version reads 1" in warnings[0]
    assert not (tmp_path / "corrupt").exists()


def forged(path, name, data):
    """Change a file of a checkpoint, and write a manifest that fits."""
    (path / name).write_bytes(data)
    (path / "manifest.json").unlink()
    checkpoint_writer._write_manifest(path)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_verify_rejects_weights_that_are_not_finite(tmp_path, value, dtype):
    from safetensors.torch import save as serialize

    path = save(tmp_path, contents(10), keep=1)
    tensors = {"a": torch.zeros(3, dtype=dtype), "b": torch.tensor([torch.finfo(dtype).max, value], dtype=dtype)}
    forged(path, "model.safetensors", serialize(tensors))
    with pytest.raises(CheckpointError, match=r"model\.safetensors is not finite at 'b'"):
        verify(path)
    tensors["b"][1] = torch.finfo(dtype).min
    forged(path, "model.safetensors", serialize(tensors))
    verify(path)


def test_read_newest_skips_a_checkpoint_that_the_caller_cannot_use(tmp_path):
    for steps in (10, 20):
        save(tmp_path, contents(steps), keep=2)

    def check(found):
        if found.state["env_steps"] == 20:
            raise CheckpointError("another network")

    warnings = []
    assert checkpoint.read_newest(tmp_path, (), warnings, True, check).path.name == "000000000010"
    assert warnings == ["checkpoint 000000000020 skipped: another network"]
    assert not (tmp_path / "corrupt").exists()


def test_read_continues_with_a_checkpoint_that_is_pruned_meanwhile(tmp_path, monkeypatch):
    """Its files are open before the first of them is read."""
    path = save(tmp_path, contents(10), keep=1)
    real = checkpoint_files._read_file

    def prune_first(*arguments):
        if path.exists():
            shutil.rmtree(path)
        real(*arguments)

    monkeypatch.setattr(checkpoint_files, "_read_file", prune_first)
    assert checkpoint.read_newest(tmp_path, ("model",)).parts["model"]["w"].tolist() == [10.0] * 3


def test_read_newest_takes_the_next_one_if_the_run_prunes_the_newest_while_it_is_opened(tmp_path, monkeypatch):
    save(tmp_path, contents(10), keep=1)
    real = checkpoint_files.read_manifest

    def save_first(path):
        if path.name == "000000000010":
            save(tmp_path, contents(20), keep=1)
        return real(path)

    monkeypatch.setattr(checkpoint_files, "read_manifest", save_first)
    warnings = []
    assert checkpoint.read_newest(tmp_path, (), warnings, move_damaged=True).path.name == "000000000020"
    assert not warnings
    assert not (tmp_path / "corrupt").exists()


def test_prune_leaves_a_checkpoint_that_is_held(tmp_path):
    save(tmp_path, contents(10), keep=1)
    with checkpoint.held(lambda: checkpoint.resolve(tmp_path)) as path:
        for steps in (20, 30):
            save(tmp_path, contents(steps), keep=1)
        assert same(path, 10)
    save(tmp_path, contents(40), keep=1)
    assert kept(tmp_path) == [40]


def test_held_chooses_again_if_its_checkpoint_was_pruned(tmp_path):
    save(tmp_path, contents(10), keep=1)

    def choose():
        path = checkpoint.resolve(tmp_path)
        if path.name == "000000000010":
            save(tmp_path, contents(20), keep=1)
        return path

    with checkpoint.held(choose) as path:
        assert path.name == "000000000020"


def test_load_lockstep_refuses_a_file_that_grows_when_it_is_read(tmp_path):
    path = save(tmp_path, contents(10), keep=1)
    np.savez_compressed(path / "lockstep.npz", arena=np.zeros(10_000_000, np.uint8))
    with pytest.raises(CheckpointError, match="compressed"):
        load_lockstep(path)


def test_candidates_lists_again_if_a_checkpoint_is_pruned_after_the_folder_was_listed(tmp_path, monkeypatch):
    save(tmp_path, contents(1), keep=1)
    entries, saved = checkpoint.folder_entries, []

    def a_run_saves_after_the_listing(folder):
        listed = entries(folder)
        monkeypatch.undo()
        saved.append(save(tmp_path, contents(2), keep=1))
        return listed

    monkeypatch.setattr(checkpoint, "folder_entries", a_run_saves_after_the_listing)
    found = checkpoint.candidates(tmp_path)
    assert found == saved


def test_best_looks_again_if_the_best_was_pruned_since_a_better_one_was_saved(tmp_path, monkeypatch):
    save(tmp_path, scored(1, 1.0), keep=1)
    settled, saved = checkpoint.settled_return, []

    def a_run_saves_a_better_one(path):
        monkeypatch.undo()
        saved.append(save(tmp_path, scored(2, 2.0), keep=1))
        return settled(path)

    monkeypatch.setattr(checkpoint, "settled_return", a_run_saves_a_better_one)
    assert checkpoint.best(tmp_path) == tmp_path / "checkpoints" / "000000000002"
    assert len(saved) == 1


def test_read_newest_and_held_never_fail_beside_constant_saves_of_one_checkpoint(tmp_path):
    save(tmp_path, contents(1), keep=1)
    stop = threading.Event()

    def keep_saving():
        for steps in itertools.count(2):
            save(tmp_path, contents(steps), keep=1)
            if stop.is_set():
                return

    saver = threading.Thread(target=keep_saving)
    saver.start()
    try:
        for _ in range(30):
            warnings = []
            found = checkpoint.read_newest(tmp_path, ("model",), warnings)
            assert found.parts["model"]["w"].tolist() == [found.state["env_steps"]] * 3
            assert not warnings
            with checkpoint.held(lambda: checkpoint.resolve(tmp_path)) as path:
                count = checkpoint.read_newest(tmp_path).state["env_steps"]
                while checkpoint.read_newest(tmp_path).state["env_steps"] < count + 2:
                    pass
                assert same_weights(path)
    finally:
        stop.set()
        saver.join()


def same_weights(path):
    return read(path, PARTS).parts["model"]["w"].tolist() == [int(path.name)] * 3
