"""Observations of every kind: they start, say how they are read, and what needs them is learned."""

import json

import pytest
from builders import trained

import sfactory
from sfactory.errors import CheckpointError, CommandError, Exit
from sfactory.run import checkpoint
from sfactory.run.checkpoint_writer import _write_manifest
from sfactory.run.obs_reading import KEY
from sfactory.supervisor import train as training
from sfactory.tools.info import info

pytestmark = pytest.mark.usefixtures("forked")

LEARN = {
    "stop": {"env_steps": 12_000},
    "sampling": {"num_samplers": 1, "envs_per_group": 8, "rollout_length": 32},
    "batch": {"minibatches": 4, "epochs": 4},
    "optim": {"lr": 2e-3},
    "checkpoint": {"exact": False},
}


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("Counters", "obs: vector of 2 int64, 0 to 10000 -> mlp, normalized"),
        pytest.param(
            "Bar",
            "obs: picture 12x12x3 uint8, channels last -> small CNN (cnn), scaled by 1/255",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_what_only_the_observation_tells_is_learned(tmp_path, name, line):
    run = trained(tmp_path / "run", f"gymnasium/reading_envs:Reading{name}-v0", **LEARN)
    newest = checkpoint.candidates(run)[0]
    assert checkpoint.settled_return(newest) > 17  # 10: chance, 20: all right
    assert f" {line}\n" in (run / "log.txt").read_text()
    assert json.loads((newest / "state.json").read_text())[KEY] == [line]
    assert f"reads       {line}" in info(run).report()


SMALL = {"checkpoint": {"exact": False}, "stop": {"env_steps": 300}, "normalize": {"obs": False}}


def forget_reading(run):
    """Make the checkpoints of a run those of a version that did not record how observations are read."""
    for path in checkpoint.candidates(run):
        state = json.loads((path / "state.json").read_text())
        del state[KEY]
        (path / "state.json").write_text(json.dumps(state))
        (path / "manifest.json").unlink()
        _write_manifest(path)


def test_checkpoint_of_an_earlier_version_is_refused_where_its_scale_was_another(tmp_path):
    run = trained(tmp_path / "run", "gymnasium/reading_envs:ReadingMemory-v0", **SMALL)
    sfactory.load_policy(run)
    forget_reading(run)
    with pytest.raises(CheckpointError, match="read the observation in another way; now it is obs: vector of 3 uint8"):
        sfactory.load_policy(run)
    config = training_config(run)
    with pytest.raises(CommandError, match="read the observation in another way") as error:
        training.train(config, run, resume=True)
    assert error.value.exit_code == Exit.RESUME_REFUSED
    with pytest.raises(CheckpointError, match="read the observation in another way"):
        trained(tmp_path / "other", "gymnasium/reading_envs:ReadingMemory-v0", **SMALL, run={"init_from": str(run)})
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("target", ["minatar/breakout", "gymnasium/CartPole-v1"])
def test_checkpoint_of_an_earlier_version_is_used_where_nothing_changed(tmp_path, target):
    run = trained(tmp_path / "run", target, stop={"env_steps": 300})
    forget_reading(run)
    sfactory.load_policy(run)


def training_config(run):
    from sfactory.config.toml_file import from_toml

    return from_toml(run / "config.toml")


def test_shape_that_does_not_decide_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ValueError, match="obs: the shape 36x36x36 does not say which axes are a picture"):
        trained(tmp_path / "run", "gymnasium/reading_envs:ReadingCube-v0")
    assert not (tmp_path / "run").exists()
