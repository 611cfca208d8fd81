"""A run takes over the checkpoint of another one: what it keeps of its own, and what a crash leaves."""

import json

import numpy as np
import pytest
import torch

from sfactory.errors import CheckpointError
from sfactory.monitor.rows import rows_until
from sfactory.run import checkpoint, takeover
from sfactory.run.checkpoint import Contents, load_lockstep, read
from sfactory.run.checkpoint_writer import save
from sfactory.run.takeover import counters_of, install, stage, weights_sha256


def episodes(mean, count):
    return {"count": count, "complete": True, "returns": [[mean] * 100], "lengths": [10.0] * 100}


def saved(run_dir, env_steps, value, mean, launch=0):
    """A checkpoint whose tensors are all `value`, and whose state names `mean` and other numbers."""
    parts = {part: {"w": torch.full((3,), float(value))} for part in checkpoint.PARTS}
    state = {
        "env_steps": env_steps, "frames": 4 * env_steps, "updates": env_steps // 10, "seconds": env_steps / 100,
        "skipped_updates": value, "launch": launch, "lr": value / 100, "initial_lr": 0.5, "kl": 0.1, "ess": 0.9,
        "training_return": mean, "episodes": episodes(mean, env_steps // 5), "rows_until": env_steps - 5,
        "held_slots": 6,
    }  # fmt: skip
    return save(run_dir, Contents(state, parts, lockstep={"arena": np.zeros(4, np.uint8)}), keep=3)


@pytest.fixture
def two(tmp_path):
    """A member at 1000 steps and a leader at 1200."""
    return saved(tmp_path / "m0", 1000, 1, 5.0, launch=3), saved(tmp_path / "m1", 1200, 2, 50.0)


def taken(tmp_path, two, own=None):
    own_path, leader = two
    state = read(own_path).state if own is None else own
    stage(leader, tmp_path / "staged/m0-r1", {**counters_of(state), "episodes": state["episodes"]})
    install(tmp_path / "staged/m0-r1", tmp_path / "m0")
    return read(tmp_path / "m0/checkpoints/000000001000", checkpoint.PARTS)


def test_takeover_brings_the_policy_of_the_leader_to_the_steps_of_the_member(tmp_path, two):
    found = taken(tmp_path, two)
    for part in checkpoint.PARTS:
        assert torch.equal(found.parts[part]["w"], torch.full((3,), 2.0)), part
    state = found.state
    assert (state["lr"], state["training_return"], state["kl"]) == (0.02, 50.0, 0.1)
    assert state["episodes"] == episodes(50.0, 200), "the leader's returns, the member's own count"
    own = {"env_steps": 1000, "frames": 4000, "updates": 100, "seconds": 10.0, "skipped_updates": 1, "launch": 3}
    assert {name: state[name] for name in own} == own
    assert [path.name for path in checkpoint.candidates(tmp_path / "m0")] == ["000000001000"]
    assert weights_sha256(found.path) == weights_sha256(two[1])


def test_takeover_leaves_a_counter_of_the_leader_that_the_member_does_not_have(tmp_path, two):
    own, leader = two
    state = read(leader, checkpoint.PARTS).state | {"environment_steps": 400}
    save(tmp_path / "other", Contents(state, read(leader, checkpoint.PARTS).parts), keep=3)
    found = taken(tmp_path, (own, tmp_path / "other/checkpoints" / leader.name))
    assert "environment_steps" not in found.state


def test_takeover_leaves_the_environments_of_the_leader_and_keeps_the_rows_of_the_member(tmp_path, two):
    found = taken(tmp_path, two)
    assert load_lockstep(found.path) == {}
    assert rows_until(found.state) == 1000
    assert "held_slots" not in found.state, "slots held for replay are with the environments"


def test_takeover_keeps_the_pool_of_opponents_of_the_member(tmp_path, two):
    """The policies in a pool are files of their run; those of the leader are not copied."""
    for run, checkpoint_path in zip(("m0", "m1"), two, strict=True):
        contents = read(checkpoint_path, checkpoint.PARTS)
        contents.state["selfplay"] = {"pool of": run}
        save(tmp_path / run, contents, keep=3)
    assert taken(tmp_path, two).state["selfplay"] == {"pool of": "m0"}
    assert "selfplay" not in taken(tmp_path, two, own={"env_steps": 1000, "episodes": {"count": 0}}).state


def test_takeover_does_not_change_the_leader(tmp_path, two):
    before = {path.name: path.read_bytes() for path in two[1].iterdir()}
    taken(tmp_path, two)
    assert {path.name: path.read_bytes() for path in two[1].iterdir()} == before


def test_takeover_keeps_the_versions_that_wrote_the_tensors(tmp_path, two):
    assert json.loads((taken(tmp_path, two).path / "manifest.json").read_text())["torch"] == torch.__version__


def test_takeover_gives_a_member_without_any_checkpoint_its_first_one(tmp_path, two):
    stage(two[1], tmp_path / "staged/m2-r1", {"env_steps": 0, "frames": 0, "updates": 0, "seconds": 0.0, "launch": 0})
    install(tmp_path / "staged/m2-r1", tmp_path / "m2")
    assert checkpoint.newest(tmp_path / "m2").name == "000000000000"


def test_stage_refuses_a_damaged_source_and_leaves_nothing(tmp_path, two):
    file = two[1] / "optimizer.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"\x01")
    with pytest.raises(CheckpointError, match=r"optimizer\.safetensors"):
        stage(two[1], tmp_path / "staged/m0-r1", read(two[0]).state)
    assert not (tmp_path / "staged").exists()


@pytest.mark.parametrize("call", ["copyfile", "write_manifest", "verify"])
def test_stage_that_is_killed_leaves_no_staged_folder_and_can_be_repeated(tmp_path, two, monkeypatch, call):
    place = takeover.shutil if call == "copyfile" else takeover
    whole, calls = getattr(place, call), []

    def killed(*arguments, **options):
        calls.append(call)
        if len(calls) == 2 or call == "write_manifest":
            raise KeyboardInterrupt
        return whole(*arguments, **options)

    own = read(two[0]).state
    with monkeypatch.context() as patch:
        patch.setattr(place, call, killed)
        with pytest.raises(KeyboardInterrupt):
            stage(two[1], tmp_path / "staged/m0-r1", own)
    assert not (tmp_path / "staged/m0-r1").exists()
    assert torch.equal(taken(tmp_path, two).parts["model"]["w"], torch.full((3,), 2.0))


@pytest.mark.parametrize("killed_at", [1, 2])
def test_install_that_is_killed_is_completed_when_it_is_repeated(tmp_path, two, monkeypatch, killed_at):
    staged = tmp_path / "staged/m0-r1"
    stage(two[1], staged, read(two[0]).state)
    whole, calls = takeover.Path.rename, []

    def rename(path, target):
        calls.append(target)
        if len(calls) == killed_at:
            raise KeyboardInterrupt
        return whole(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(takeover.Path, "rename", rename)
        with pytest.raises(KeyboardInterrupt):
            install(staged, tmp_path / "m0")
    assert staged.is_dir(), "it is installed when the command is repeated"
    install(staged, tmp_path / "m0")
    assert torch.equal(read(two[0], ("model",)).parts["model"]["w"], torch.full((3,), 2.0))
    assert [path.name for path in two[0].parent.iterdir()] == ["000000001000"]
