"""Whole runs of envpool tasks from the command line: image and vector observations."""

import json

import pytest
from forked_processes import ForkedCommand, run_forked
from run_helpers import command, finish, rows, start
from safetensors.numpy import load_file

pytestmark = [pytest.mark.envpool, pytest.mark.timeout(300)]  # three commands each, and envpool loads for seconds


def trained_resumed_and_evaluated(run, task, steps, evaluation, *words):
    """Train `steps`, resume to twice as many, evaluate; (rows of both, newest checkpoint, evaluation)."""
    one = ["--sampling.num-samplers", 1]  # of them all: what is asked here is not about many processes
    finish(start(run, *one, "--stop.env-steps", steps, *words, target=task, popen=ForkedCommand), 0)
    first = rows(run)
    assert first[-1]["env_steps"] >= steps
    resumed = run_forked(
        command("resume", run, "--stop.env-steps", 2 * steps), capture_output=True, text=True, timeout=90
    )
    assert resumed.returncode == 0, resumed.stderr[-3000:]
    both = rows(run)
    axis = [row["env_steps"] for row in both]
    assert both[: len(first) - 1] == first[: len(first) - 1]
    assert axis == sorted(set(axis)), "one strictly increasing curve"
    assert axis[-1] >= 2 * steps
    assert both[-1]["faults/total"] == 0
    played = run_forked(command("eval", run, "--json", *evaluation), capture_output=True, text=True, timeout=90)
    assert played.returncode == 0, played.stderr[-3000:]
    newest = max((run / "checkpoints").iterdir(), key=lambda path: path.name)
    state = json.loads((newest / "state.json").read_text())
    report = json.loads(played.stdout)
    assert state["env_steps"] == report["env_steps"] == int(newest.name) == axis[-1]
    return both, newest, report


@pytest.mark.slow
def test_envpool_pong_trains_resumes_and_evaluates(tmp_path):
    run = tmp_path / "run"
    evaluation = ["--episodes", 4, "--max-steps", 60]
    curve, newest, report = trained_resumed_and_evaluated(run, "envpool/Pong-v5", 1500, evaluation)
    assert report["protocol"] == json.loads((newest / "state.json").read_text())["protocol"] == "envpool, Pong-v5"
    assert (report["lengths"], report["capped"], report["faults"]) == ([60] * 4, 4, 0)
    assert curve[-1]["charts/frames"] == 4 * curve[-1]["env_steps"]
    weights = load_file(newest / "model.safetensors")
    assert next(w.shape for w in weights.values() if w.ndim == 4) == (32, 4, 8, 8)  # convolutions took it
    assert not any("obs_mean" in name for name in weights)  # bytes have no normalizer


@pytest.mark.slow
def test_envpool_halfcheetah_trains_resumes_and_evaluates_with_its_normalizer(tmp_path):
    run = tmp_path / "run"
    words = ["--env.settings.max-episode-steps", 50, "--normalize.obs"]
    evaluation = ["--episodes", 4, "--greedy"]
    curve, newest, report = trained_resumed_and_evaluated(run, "envpool/HalfCheetah-v5", 20_000, evaluation, *words)
    protocol = "envpool, HalfCheetah-v5, max_episode_steps=50"
    assert report["protocol"] == json.loads((newest / "state.json").read_text())["protocol"] == protocol
    assert (report["lengths"], report["capped"], report["faults"]) == ([50] * 4, 0, 0)
    assert len(set(report["returns"])) == 4  # four seeds, one greedy policy
    lengths = [
        row["charts/episodic_length"] for row in curve if "charts/episodic_length" in row
    ]  # written once a second
    assert set(lengths) == {50}
    weights, statistics = load_file(newest / "model.safetensors"), load_file(newest / "normalizers.safetensors")
    assert statistics["obs.obs.count"] == curve[-1]["env_steps"]  # every trained step of both runs, no reset row
    assert statistics["obs.obs.mean"].any()
    assert (weights["obs_mean_obs"] == statistics["obs.obs.mean"].astype("float32")).all()
