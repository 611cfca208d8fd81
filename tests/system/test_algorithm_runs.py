"""Every algorithm trains, publishes, is saved and plays, with several processes and in lockstep."""

import numpy as np
import pytest
from forked_processes import run_forked
from run_helpers import SMALL, command, rows

import sfactory
from sfactory.run import checkpoint

WORDS = {
    "pqn": ["--pqn.epsilon-fraction", "0.5"],
    "ppg": ["--ppg.policy-updates", "2", "--ppg.phase-epochs", "1"],
    "dae": ["--dae.advantages", "returns"],
}


@pytest.mark.parametrize(
    ("algorithm", "mode"),
    [
        ("pqn", "async"),
        ("ppg", "lockstep"),
        ("dae", "lockstep"),
        pytest.param("pqn", "lockstep", marks=pytest.mark.slow),
        pytest.param("ppg", "async", marks=pytest.mark.slow),
        pytest.param("dae", "async", marks=pytest.mark.slow),
    ],
)
def test_a_run_trains_saves_and_plays(tmp_path, algorithm, mode):
    folder = tmp_path / "run"
    words = ["--run.dir", folder, "--run.mode", mode, "--algorithm.name", algorithm, "--stop.env-steps", "3000"]
    done = run_forked(
        command("train", "classic/cartpole", *SMALL, *words, *WORDS[algorithm], "--log.every-updates", "1", "--quiet"),
        capture_output=True,
        text=True,
        timeout=90,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    last = rows(folder)[-1]
    if algorithm == "pqn":
        assert checkpoint.read_from(folder).parts["model"]["epsilon"].item() == pytest.approx(0.05)
        assert last["pqn/epsilon"] >= 0.049, "the mean since the row before"
        assert last["losses/q_loss"] > 0
    elif algorithm == "dae":
        assert last["losses/advantage"] > 0
    else:
        assert last["ppg/kept_mb"] > 0
        assert last["ppg/clone_kl"] >= 0
    policy = sfactory.load_policy(folder)
    obs = np.random.default_rng(0).normal(size=(64, 4)).astype(np.float32)
    greedy, sampled = policy.act(obs), policy.act(obs, greedy=False)
    assert set(greedy.tolist()) <= {0, 1}
    assert (greedy != sampled).any(), "5 % of the actions, or more, are random"
    assert (greedy == policy.act(obs)).all()
    evaluated = run_forked(
        command("eval", folder, "--episodes", "2", "--greedy"), capture_output=True, text=True, timeout=60
    )
    assert evaluated.returncode == 0, evaluated.stderr[-2000:]
