"""Whole runs with real processes: training, signals, kills, resuming, data on policy."""

import json
import os
import signal
from itertools import pairwise
from pathlib import Path

import pytest
from forked_processes import ForkedCommand, run_forked
from run_helpers import all_exited, children, command, finish, rows, start, steps, wait_for, workers_named

from sfactory.run import checkpoint


def test_run_trains_writes_its_folder_and_resumes(tmp_path):
    run = tmp_path / "run"
    _, err = finish(start(run, "--log.every-seconds", 0.1, "--stop.env-steps", 8_000, popen=ForkedCommand), 0)
    last = err.strip().splitlines()[-1]
    assert last.startswith("sfactory: finished (exit 0):"), last
    assert "resume: sfactory resume" in last
    first = rows(run)
    assert len(first) > 3
    assert first[-1]["env_steps"] >= 8_000
    assert [r["env_steps"] for r in first] == sorted(r["env_steps"] for r in first)
    assert {"config.toml", "metrics.jsonl", "tb", "log.txt", "checkpoints", "debug", "status.json"} <= {
        p.name for p in run.iterdir()
    }
    assert not [p for p in Path("/dev/shm").glob("*sfactory*")]

    done = run_forked(command("resume", run, "--stop.env-steps", 16_000), capture_output=True, text=True, timeout=90)
    assert done.returncode == 0, done.stderr[-3000:]
    again = rows(run)
    assert again[: len(first) - 1] == first[: len(first) - 1]
    axis = [r["env_steps"] for r in again]
    assert axis == sorted(set(axis)), "one strictly increasing curve"
    assert axis[-1] >= 16_000
    assert json.loads((run / "status.json").read_text())["state"] == "finished"


def test_samplers_of_a_run_do_not_import_torch(tmp_path):
    process = start(tmp_path / "run")
    wait_for(lambda: steps(tmp_path / "run") > 0, process=process)
    samplers = workers_named(process, "sampler")
    assert len(samplers) == 3
    for sampler in samplers:  # asked of the living: what the process has mapped
        maps = Path(f"/proc/{sampler.pid}/maps").read_text()
        assert "numpy" in maps
        assert "torch" not in maps
        assert sampler.memory_full_info().pss < 100 * 2**20
    assert any("torch" in Path(f"/proc/{p.pid}/maps").read_text() for p in workers_named(process, "learner"))
    process.send_signal(signal.SIGTERM)
    finish(process, 143)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signal_saves_exits_with_its_code_and_ends_all_processes(tmp_path, number, code):
    run = tmp_path / "run"
    process = start(run, "--checkpoint.every-seconds", 1000, popen=ForkedCommand)
    wait_for(lambda: steps(run) > 0, process=process)
    family = children(process)
    os.killpg(process.pid, number)  # as a terminal or a scheduler does: to every process
    _, err = finish(process, code)
    assert f"(exit {code})" in err.strip().splitlines()[-1]
    first, last = sorted(int(path.name) for path in (run / "checkpoints").iterdir())
    assert first == 0 < last
    wait_for(lambda: all_exited(family), seconds=1.0)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("mode", ["async", "lockstep"])
def test_best_and_milestone_checkpoints_are_kept_with_the_return_of_their_row(tmp_path, mode):
    run = tmp_path / "run"
    # In async mode training goes on while a checkpoint is written: a slow disk must not miss a whole milestone.
    every = 20_000 if mode == "async" else 5000
    steps_words = ["--checkpoint.milestones", every, "--stop.env-steps", int(4.4 * every)]
    words = ["--run.mode", mode, "--checkpoint.keep", 1, *steps_words]
    finish(start(run, *words, "--log.every-seconds", 0.1, "--log.every-updates", 2, popen=ForkedCommand), 0)
    kept = checkpoint.candidates(run)
    marks = {int(path.name) // every for path in kept}
    assert marks >= {1, 2, 3, 4}
    assert len(kept) <= 6
    best = checkpoint.best(run)
    scores = {path: checkpoint.settled_return(path) for path in kept}
    assert scores[best] == max(score for score in scores.values() if score is not None)
    known = [row["charts/episodic_return"] for row in rows(run) if row["charts/games"] >= 100]
    assert min(known) <= scores[best] <= max(known)


def test_workers_exit_within_a_second_of_a_killed_supervisor(tmp_path):
    run = tmp_path / "run"
    process = start(run)
    wait_for(lambda: steps(run) > 0, process=process)
    family = children(process)
    assert sum(len(workers_named(process, kind)) for kind in ("learner", "inference", "sampler")) == 5
    process.kill()
    process.wait()
    wait_for(lambda: all_exited(family), seconds=1.0)


def test_killed_samplers_and_inference_are_restarted(tmp_path):
    run = tmp_path / "run"
    # Steps take time, so that a sampler is killed in the middle of a rollout, not while it waits for the learner.
    process = start(run, "--env.settings.slow-step", 0.002, target="faults/count", popen=ForkedCommand)
    wait_for(lambda: steps(run) > 0, process=process)
    log = run / "log.txt"
    restarts = "exited (killed by SIGKILL); restarted"
    for round_ in range(6):
        victim = workers_named(process, "inference" if round_ == 3 else "sampler")[0]
        victim.kill()
        # Rows of the others can arrive before the supervisor has seen this death.
        wait_for(lambda deaths=round_ + 1: log.read_text().count(restarts) == deaths, seconds=30.0, process=process)
        before = steps(run)
        wait_for(lambda before=before: steps(run) > before, seconds=30.0, process=process)
    # A sampler counts what the one before it has lost; on a busy machine it may have been killed before it could.
    wait_for(lambda: rows(run)[-1]["ledger/discarded"] > 0, seconds=30.0, process=process)
    process.send_signal(signal.SIGTERM)
    finish(process, 143)
    assert log.read_text().count(restarts) == 6
    ledger = json.loads((run / "status.json").read_text())["ledger"]
    assert ledger["discarded"] > 0
    assert ledger["sampled"] == sum(ledger[k] for k in ("trained", "skipped", "discarded", "in_flight"))
    assert ledger["trained"] >= rows(run)[-1]["env_steps"]  # env_steps leaves reset rows out
    again = command("resume", run, "--stop.env-steps", steps(run) + 1000)
    done = run_forked(again, capture_output=True, text=True, timeout=90)
    assert done.returncode == 0, done.stderr[-3000:]


def test_killed_learner_ends_the_run_and_the_last_checkpoint_is_kept(tmp_path):
    run = tmp_path / "run"
    process = start(run)
    wait_for(
        lambda: (run / "checkpoints").exists() and any(p.name.isdigit() for p in (run / "checkpoints").iterdir()),
        process=process,
    )
    workers_named(process, "learner")[0].kill()
    _, err = finish(process, 7)
    assert "the learner exited (killed by SIGKILL)" in err.strip().splitlines()[-1]


def test_environment_that_cannot_be_built_ends_the_run_with_its_message(tmp_path):
    process = start(tmp_path / "run", "--env.settings.raise-at", "-1", target="faults/count", popen=ForkedCommand)
    _, err = finish(process, 6)
    assert "faults/count" in err.strip().splitlines()[-1]
    assert not (tmp_path / "run").exists()


def lockstep(run_dir, seed=1, *words):
    args = ["--run.mode", "lockstep", "--run.seed", seed, "--stop.env-steps", 8000, "--log.every-updates", 5]
    finish(start(run_dir, *args, *words, popen=ForkedCommand), 0)
    wall = {"seconds", "charts/SPS", "charts/FPS"}
    kept = [
        {k: v for k, v in row.items() if k not in wall and not k.startswith(("stage/", "system/"))}
        for row in rows(run_dir)
    ]
    (newest,) = sorted(p for p in (run_dir / "checkpoints").iterdir() if p.name.isdigit())[-1:]
    return kept, {p.name: p.read_bytes() for p in newest.glob("*.safetensors")}


def test_lockstep_runs_of_the_same_seed_are_equal_bit_for_bit(tmp_path):
    one, two, other = lockstep(tmp_path / "a"), lockstep(tmp_path / "b"), lockstep(tmp_path / "c", 2)
    assert one[0] == two[0]
    assert one[1] == two[1]
    assert one[1] != other[1]
    assert len(one[0]) > 3


def test_on_policy_data_has_lag_0_and_rho_1(tmp_path):
    run = tmp_path / "run"
    finish(start(run, "--sampling.slots-per-group", 1, "--stop.env-steps", 5000, popen=ForkedCommand), 0)
    assert all(r["lag/max"] == 0 for r in rows(run) if "lag/max" in r)
    assert all(r["offpolicy/max_abs_log_rho"] < 1e-4 for r in rows(run) if "offpolicy/max_abs_log_rho" in r)
    stale = tmp_path / "stale"
    words = ["--log.every-seconds", 0.2, "--sampling.slots-per-group", 1, "--batch.forced-lag", 3]
    finish(start(stale, *words, "--stop.env-steps", 8000, popen=ForkedCommand), 0)
    found = rows(stale)
    later = [row for before, row in pairwise(found) if before["charts/updates"] >= 3 and "lag/max" in row]
    assert {row["lag/max"] for row in later} == {3.0}  # so the test above can fail


def test_run_with_replay_trains_reports_and_goes_on_without_the_held_slots(tmp_path):
    run = tmp_path / "run"
    words = ["--replay.ratio", 1, "--replay.max-age", 3, "--log.every-seconds", 0.2]
    finish(start(run, *words, "--stop.env-steps", 10_000, popen=ForkedCommand), 0)
    found = rows(run)
    last = found[-1]
    assert 0.4 < last["replay/share"] < 0.6
    assert 1.0 <= last["replay/age"] <= last["replay/oldest"] <= 3.0
    assert last["lag/mean"] > last["replay/fresh_lag"]
    assert last["replay/held_slots"] == 18.0  # of three updates with a slot of each of six groups
    assert last["replay/updates_without"] == 1.0
    assert last["env_steps"] <= last["charts/updates"] * 6 * 4 * 8  # fresh rows alone
    log = (run / "log.txt").read_text()
    assert "replay.ratio 1: an update trains on 192 fresh rows and 192 replayed ones, at most 3 updates after" in log
    again = command("resume", run, "--stop.env-steps", 16_000, "--replay.ratio", 0.5)
    done = run_forked(again, capture_output=True, text=True, timeout=90)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "warning: replay.ratio was 1.0 and is 0.5 from here on" in (run / "log.txt").read_text()
    assert rows(run)[-1]["replay/updates_without"] == 1.0  # of this launch: async checkpoints hold no slots
    assert 0.2 < rows(run)[-1]["replay/share"] < 0.45


def test_learner_recomputes_behavior_log_probs_with_the_normalizer(tmp_path):
    """With data three updates old rho is not 1, but the two workers differ only by rounding."""
    run = tmp_path / "run"
    words = ["--run.mode", "lockstep", "--batch.forced-lag", 3, "--normalize.obs", "--log.every-updates", 1]
    words += ["--proximal.policy", "snapshot", "--proximal.snapshot-age", 0, "--stop.env-steps", 4000]
    finish(start(run, *words, target="gymnasium/Pendulum-v1", popen=ForkedCommand), 0)
    assert all(r["offpolicy/max_discrepancy"] < 1e-4 for r in rows(run))
    assert rows(run)[-1]["lag/mean"] == 3.0
    assert rows(run)[-1]["offpolicy/max_abs_log_rho"] > 1e-2


MASKED = """
import gymnasium, numpy as np

class Masked(gymnasium.Env):
    \"\"\"Only one of four actions is allowed at each step, another one every time; a forbidden one is a fault.\"\"\"
    action_space = gymnasium.spaces.Discrete(4)
    observation_space = gymnasium.spaces.Dict(
        {"x": gymnasium.spaces.Box(0, 1, (2,)), "action_mask": gymnasium.spaces.MultiBinary(4)})

    def obs(self):
        self.allowed = self.np_random.permutation(4)[:2]
        return {"x": np.full(2, 0.5, np.float32), "action_mask": np.isin(range(4), self.allowed).astype(np.int8)}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return self.obs(), {}

    def step(self, action):
        assert action in self.allowed, "a forbidden action"
        self.t += 1
        return self.obs(), float(action == self.allowed.max()), self.t == 10, False, {}

gymnasium.register("Masked-v0", Masked)
"""


@pytest.mark.parametrize("kernels", ["native", "torch"])
def test_masked_actions_are_never_taken_and_the_learner_uses_the_same_mask(tmp_path, monkeypatch, kernels):
    (tmp_path / "masked_game.py").write_text(MASKED)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    run = tmp_path / "run"
    words = ["--sampling.slots-per-group", 1, "--stop.env-steps", 6000, "--run.kernels", kernels]
    finish(start(run, *words, target="gymnasium/masked_game:Masked-v0", popen=ForkedCommand), 0)
    last = rows(run)[-1]
    assert last["faults/total"] == 0
    assert "forbidden" not in (run / "log.txt").read_text()
    assert all(row["offpolicy/max_abs_log_rho"] < 1e-4 for row in rows(run))
    assert last["losses/entropy"] < 0.7  # ln 2: the forbidden half does not count
    found = run_forked(command("eval", run, "--episodes", 4), capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
