"""Start a new run from the weights of another one: `--run.init-from`."""

import shutil

import pytest
import torch
from builders import train_parts
from forked_processes import run_forked
from run_helpers import SMALL, command, rows

import sfactory
from sfactory.errors import CommandError, EnvError, Exit
from sfactory.run import checkpoint

TARGET = "gymnasium/Pendulum-v1"


def train(folder, *words, code=0):
    words = [TARGET, "--run.dir", folder, *SMALL, "--quiet", *words]
    done = run_forked(command("train", *words), capture_output=True, text=True, timeout=90)
    assert done.returncode == code, done.stderr[-2000:]
    return done.stderr.splitlines()[-1] if done.stderr else ""


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    folder = tmp_path_factory.mktemp("teacher") / "run"
    train(folder, "--stop.env-steps", 6000)
    return folder


def test_init_from_copies_weights_and_normalizer_but_no_counters(teacher, tmp_path):
    folder = tmp_path / "run"  # lr so small that what it began with is what it ends with
    words = ("--run.init-from", teacher, "--optim.lr", "1e-12", "--stop.env-steps", 500, "--run.seed", 9)
    train(folder, *words, "--run.mode", "lockstep")
    theirs, ours = (checkpoint.read(checkpoint.newest(run), checkpoint.PARTS) for run in (teacher, folder))
    assert 500 <= ours.state["env_steps"] < 1500
    learned = [name for name in theirs.parts["model"] if "obs_" not in name]
    for name in learned:
        torch.testing.assert_close(ours.parts["model"][name], theirs.parts["model"][name], rtol=0, atol=1e-7)
    count = "obs.obs.count"  # its statistics go on counting where the teacher's stood
    assert ours.parts["normalizers"][count] > theirs.parts["normalizers"][count] + 400
    assert rows(folder)[-1]["env_steps"] < 1500


def test_init_from_accepts_a_checkpoint_folder(teacher, tmp_path):
    train(tmp_path / "run", "--run.init-from", checkpoint.newest(teacher), "--stop.env-steps", 200)


@pytest.mark.parametrize("mode", ["async", "lockstep"])
def test_init_from_refuses_another_network_and_lists_differences(teacher, tmp_path, mode):
    words = ("--run.init-from", teacher, "--model.hidden", 32, 32, "--run.mode", mode)
    line = train(tmp_path / "run", *words, code=2)
    assert "another network: its model.hidden (64, 64), not (32, 32)" in line
    assert not (tmp_path / "run").exists()
    line = train(tmp_path / "run", "--run.init-from", teacher, "--model.squash", "--run.mode", mode, code=2)
    assert "its model.squash False, not True" in line  # the same shapes, and another meaning
    line = train(tmp_path / "run", "--run.init-from", teacher, "--algorithm.name", "ppg", "--run.mode", mode, code=2)
    assert "another network: its algorithm.name 'actor_critic', not 'ppg'" in line


@pytest.mark.sampled(2)
@pytest.mark.parametrize("mode", ["async", "lockstep"])
def test_init_from_refuses_a_bare_checkpoint_of_other_shapes(teacher, tmp_path, mode):
    bare = tmp_path / "bare"
    shutil.copytree(checkpoint.newest(teacher), bare)
    words = ("--run.init-from", bare, "--model.hidden", 32, 32, "--run.mode", mode)
    line = train(tmp_path / "run", *words, code=4)
    assert "another network: critic.encoders.0.layers.0.bias [64], expected [32]" in line


def test_init_from_without_a_checkpoint_writes_nothing(tmp_path):
    line = train(tmp_path / "run", "--run.init-from", tmp_path / "nowhere", code=2)
    assert "nowhere holds no checkpoint to begin with" in line
    assert not (tmp_path / "run").exists()


def test_init_from_does_not_move_a_damaged_checkpoint(teacher, tmp_path):
    theirs = tmp_path / "theirs"
    shutil.copytree(teacher, theirs)
    newest = checkpoint.newest(theirs)
    (newest / "model.safetensors").write_bytes(b"x")
    train(tmp_path / "run", "--run.init-from", theirs, "--stop.env-steps", 200)
    assert newest.exists()
    assert not (theirs / "corrupt").exists()


@pytest.mark.parametrize("resume", [True, False])
def test_other_actions_of_equal_shape_are_refused(tmp_path, resume):
    """Two choices and three have as many logits as three and two: the shapes of the weights say nothing."""
    run, other = train_parts(tmp_path / "run"), {"settings": {"sizes": [3, 2]}}
    ways = {
        True: lambda: sfactory.resume(run, stop={"env_steps": 900}, env=other, allow=["env.settings"]),
        False: lambda: train_parts(tmp_path / "new", env=other, run={"init_from": str(run)}),
    }
    message = r"actions action \[2\] of \[3, 2\], but .* was trained with action"
    with pytest.raises((CommandError, EnvError), match=message) as error:
        ways[resume]()
    assert error.value.exit_code == (Exit.RESUME_REFUSED if resume else Exit.USAGE)
