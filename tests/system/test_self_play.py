"""Real runs in self-play: the pool grows, a resume goes on, other runs play in it, workers may be killed."""

import json
import subprocess
import time

import pytest
from forked_processes import run_forked
from match_runs import NETS
from run_helpers import command, rows, workers_named

pytestmark = pytest.mark.usefixtures("envpool_loaded")
GAME = "envpool/TicTacToe-v1"
SMALL = [
    "--sampling.num-samplers", "1", "--sampling.groups-per-sampler", "2", "--sampling.envs-per-group", "8",
    "--sampling.rollout-length", "16", "--batch.minibatches", "2", "--batch.epochs", "2", "--optim.lr", "1e-3",
    "--log.every-seconds", "0.3", "--checkpoint.every-seconds", "0.5", "--run.device", "cpu", "--quiet",
    "--selfplay.share", "0.7", "--selfplay.every", "2000", "--selfplay.games", "50", "--selfplay.pool", "40",
]  # fmt: skip


def run(folder, *words, code=0):
    done = run_forked(command(*words), cwd=folder, capture_output=True, text=True, timeout=120)
    assert done.returncode == code, done.stderr[-3000:]
    return done


def pool_of(folder):
    return json.loads((folder / "pool/ratings.json").read_text())


@pytest.mark.timeout(240)
def test_self_play_trains_resumes_and_plays_against_other_runs(tmp_path):
    run(tmp_path, "train", GAME, "--run.dir", "a", *SMALL, "--stop.env-steps", "8k")
    last = rows(tmp_path / "a")[-1]
    assert last["selfplay/pool"] >= 3
    assert last["selfplay/games"] > 100
    assert last["selfplay/wins"] + last["selfplay/draws"] + last["selfplay/losses"] == pytest.approx(1)
    before = pool_of(tmp_path / "a")
    counted = sum(one["wins"] + one["draws"] + one["losses"] for one in before["opponents"])
    assert counted == before["games"] == last["selfplay/games"]
    ledger = json.loads((tmp_path / "a/status.json").read_text())["ledger"]
    assert ledger["sampled"] == sum(ledger[name] for name in ("trained", "skipped", "discarded", "in_flight"))
    run(tmp_path, "resume", "a", "--stop.env-steps", "10k", "--quiet")
    after = pool_of(tmp_path / "a")
    assert after["games"] > before["games"]
    assert {one["number"] for one in before["opponents"] if not one["retired"]} & {
        one["number"] for one in after["opponents"]
    }
    assert "Elo" in run(tmp_path, "info", "a").stdout
    opponents = ["--selfplay.opponents", "a", "--selfplay.every", "1M", "--selfplay.admit", "1"]
    run(tmp_path, "train", GAME, "--run.dir", "b", *SMALL, *opponents, "--stop.env-steps", "3k")
    last = rows(tmp_path / "b")[-1]
    assert last["selfplay/pool"] == 1
    assert 0 <= last["selfplay/score/a"] <= 1
    values = ["--algorithm.name", "pqn", *opponents]  # against a policy of another algorithm, with masks
    run(tmp_path, "train", GAME, "--run.dir", "q", *SMALL, *values, "--stop.env-steps", "3k")
    assert 0 <= rows(tmp_path / "q")[-1]["selfplay/score/a"] <= 1
    refused = run(tmp_path, "train", "gymnasium/CartPole-v1", "--run.dir", "c", *SMALL, code=2)
    assert "needs an environment with two agents or more" in refused.stderr
    assert not (tmp_path / "c").exists()
    other = run(tmp_path, "train", "envpool/ConnectFour-v1", "--run.dir", "c", *SMALL, *opponents, code=2)
    assert "envpool/ConnectFour-v1: obs obs [6, 7, 2] bool" in other.stderr
    assert "but selfplay.opponents a was trained with obs [3, 3, 2] bool" in other.stderr


@pytest.mark.faults
def test_self_play_survives_kills_of_samplers_and_inference(tmp_path):
    words = ["train", GAME, "--run.dir", "run", *SMALL, "--stop.env-steps", "40k"]
    process = subprocess.Popen(
        command(*words), cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 60
    while not (tmp_path / "run/pool/ratings.json").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    killed = 0
    for name in ("sampler-0", "inference", "sampler-0"):
        for worker in workers_named(process, name):
            worker.kill()
            killed += 1
        time.sleep(0.7)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err[-3000:]
    assert killed >= 3
    last = rows(tmp_path / "run")[-1]
    assert last["faults/total"] >= 3
    pool = pool_of(tmp_path / "run")
    assert sum(one["wins"] + one["draws"] + one["losses"] for one in pool["opponents"]) <= pool["games"]
    assert last["selfplay/games"] > 500


def test_self_play_in_lockstep_repeats_itself(tmp_path):
    lockstep = ["--run.mode", "lockstep", "--checkpoint.exact", "false", "--log.every-updates", "5"]
    for name in "ab":
        run(tmp_path, "train", GAME, "--run.dir", name, *SMALL, *lockstep, "--stop.env-steps", "4k")
    assert pool_of(tmp_path / "a") == pool_of(tmp_path / "b")
    first, second = (
        [{k: v for k, v in row.items() if k.startswith(("selfplay", "losses"))} for row in rows(tmp_path / name)]
        for name in "ab"
    )
    assert first == second
    assert first[-1]["selfplay/games"] > 20
    run(tmp_path, "resume", "a", "--stop.env-steps", "5k", "--quiet")
    refused = run(tmp_path, "resume", "a", "--selfplay.share", "0", "--stop.env-steps", "9k", code=4)
    assert "selfplay.share" in refused.stderr


@pytest.mark.slow
def test_self_play_against_runs_with_another_network_and_an_encoder_of_ones_own_file(tmp_path):
    """Both rivals are trained in other folders; that of this run has no such file."""
    short = [*SMALL, "--stop.env-steps", "600", "--selfplay.every", "1M", "--selfplay.admit", "1"]
    places = {name: tmp_path / name for name in ("wide", "memory", "here")}
    for place in places.values():
        place.mkdir()
    (places["wide"] / "nets_of_a_rival.py").write_text(NETS)
    run(places["wide"], "train", GAME, "--run.dir", "run", *short, "--model.encoder", "nets_of_a_rival:Wide")
    core = ["--model.separate", "false", "--model.core", "gru", "--model.core-size", "16"]
    run(places["memory"], "train", GAME, "--run.dir", "run", *short, *core, "--model.hidden", "32,16")
    words = ["--selfplay.opponents", "../wide/run,../memory/run", *core, "--model.hidden", "8"]
    run(places["here"], "train", GAME, "--run.dir", "run", *short, *words)
    last = rows(places["here"] / "run")[-1]
    assert last["selfplay/pool"] == 2
    played = {
        one["name"]: one["wins"] + one["draws"] + one["losses"] for one in pool_of(places["here"] / "run")["opponents"]
    }
    assert min(played.values()) > 5, played
    assert set(played) == {"../wide/run", "../memory/run"}
    run(places["here"], "resume", "run", "--stop.env-steps", "900", "--quiet")
    assert pool_of(places["here"] / "run")["games"] > sum(played.values())
