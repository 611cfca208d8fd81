"""Runs whose value is the expectation over bins: they learn, are saved, played and started from."""

import shutil

import numpy as np
import pytest
from forked_processes import run_forked
from run_helpers import SMALL, command, rows

import sfactory
from sfactory.run import checkpoint

BINS = ["--model.value-head", "hl_gauss", "--normalize.value-targets", "true"]


def train(folder, *words, code=0, target="classic/cartpole"):
    done = run_forked(
        command("train", target, "--run.dir", folder, "--quiet", *words), capture_output=True, text=True, timeout=120
    )
    assert done.returncode == code, done.stderr[-2000:]
    return done.stderr


@pytest.fixture(scope="module")
def cartpole(tmp_path_factory):
    """A lockstep run, with the settings of the preset but for the learning rate, which stays."""
    folder = tmp_path_factory.mktemp("cartpole") / "run"
    words = ("--run.mode", "lockstep", "--optim.schedule", "constant", "--stop.env-steps", "16k")
    words += ("--log.every-updates", "4")
    train(folder, *BINS, *words)
    return folder


def test_lockstep_run_with_bins_learns_cartpole_and_its_values(cartpole):
    """A random policy has a return of 22."""
    found = rows(cartpole)
    assert found[-1]["charts/episodic_return"] > 80
    assert found[-1]["losses/value_outside"] == 0
    explained = [row["losses/explained_variance"] for row in found[-4:]]
    assert np.median(explained) > 0.5
    assert found[-1]["losses/value_loss"] < 2.5, "the cross-entropy begins at log 151 = 5"
    assert "the native kernels do not support a value head with bins" in (cartpole / "log.txt").read_text()


def test_policy_of_a_run_with_bins_has_values_in_units_of_reward(cartpole):
    policy = sfactory.load_policy(cartpole)
    upright, falling = np.zeros(4, np.float32), np.array([0.0, 0.0, 0.2, 3.0], np.float32)
    good, bad = policy.value(upright), policy.value(falling)
    assert 10 < good < 51, "at most 1 / (1 - 0.98)"
    assert bad < good - 5
    batch = policy.value(np.stack([upright, falling]))
    np.testing.assert_allclose(batch, [good, bad], rtol=1e-4)
    evaluated = run_forked(
        command("eval", cartpole, "--episodes", "2", "--greedy"), capture_output=True, text=True, timeout=60
    )
    assert evaluated.returncode == 0, evaluated.stderr[-2000:]


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("memory/tmaze", ["--trace.estimator", "vtrace", "--proximal.policy", "ewma"]),
        pytest.param("classic/pendulum", ["--model.value-low", "-40"], marks=pytest.mark.slow),
    ],
)
def test_async_run_with_bins_trains_and_resumes(tmp_path, target, words):
    """With a recurrent core and V-trace, and with continuous actions."""
    folder = tmp_path / "run"
    train(folder, *SMALL, *BINS, *words, "--stop.env-steps", "3000", target=target)
    assert rows(folder)[-1]["losses/value_loss"] > 0
    done = run_forked(
        command("resume", folder, "--stop.env-steps", "5000", "--quiet"), capture_output=True, text=True, timeout=90
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_init_from_a_run_with_bins_needs_values_in_the_same_units(cartpole, tmp_path):
    again = ("--run.init-from", cartpole, *SMALL, "--stop.env-steps", "500")
    train(tmp_path / "run", *again, *BINS)
    other = ("--model.value-head", "hl_gauss", "--model.value-high", "60")
    line = train(tmp_path / "other", *again, *other, code=2)
    assert "another network: its model.value_high 10.0, not 60.0" in line
    line = train(tmp_path / "other", *again, "--model.value-head", "hl_gauss", code=2)
    assert "its normalize.value_targets True, not False: the units of its bins" in line
    bare = tmp_path / "bare"
    shutil.copytree(checkpoint.newest(cartpole), bare)
    words = ("--run.init-from", bare, *SMALL, "--model.value-head", "hl_gauss", "--stop.env-steps", "500")
    line = train(tmp_path / "other", *words, code=4)
    assert "bins in other units: its normalize.value-targets is true" in line
