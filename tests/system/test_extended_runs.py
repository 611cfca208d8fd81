"""A finished run that goes on: one score everywhere, and the same rows as a run that was never stopped."""

import hashlib
import json
import os
import re
from pathlib import Path

import pytest

import sfactory
from sfactory.cli import main as cli
from sfactory.config.parsing import field_types, flag_name
from sfactory.config.resume_rules import Rule, rule_of
from sfactory.errors import RunBusy
from sfactory.run import checkpoint
from sfactory.run.checkpoint_files import manifest_sha256
from sfactory.run.lock import lock_folder
from sfactory.run.reader import read_run, read_status
from sfactory.tools import report
from sfactory.tools.verify_resume import differences
from sfactory.workers.counters import Counters

pytestmark = pytest.mark.usefixtures("forked")

TINY = {
    "sampling": {"num_samplers": 1, "envs_per_group": 4, "rollout_length": 8},
    "batch": {"minibatches": 1},
    "optim": {"schedule": "constant"},
    "checkpoint": {"every_seconds": 1e9},
}


def train(run_dir, mode="lockstep", **sections):
    run = {"mode": mode, "dir": run_dir, **sections.pop("run", {})}
    log = {"quiet": True, "every_updates": 5, **sections.pop("log", {})}
    outcome = sfactory.train("classic/cartpole", **{**TINY, "log": log, **sections}, run=run)
    assert outcome.code == 0, outcome.sentence
    return outcome


def files(run_dir):
    """Contents of everything in a run folder but its lock."""
    return {
        str(path.relative_to(run_dir)): path.read_bytes()
        for path in sorted(Path(run_dir).rglob("*"))
        if path.is_file() and path.name != ".lock"
    }


def scores(outcome):
    """The training return of a run, from every place that has it."""
    run_dir = Path(outcome.run_dir)
    run, newest = read_run(run_dir), checkpoint.newest(run_dir)
    return {
        "outcome": outcome.training_return,
        "status.json": read_status(run_dir)["training_return"],
        "state.json": checkpoint.read_state(newest)["training_return"],
        "last row, for compare": run.column("charts/episodic_return")[-1],
        "report": report._final_return(run),
    }


# -- exactness -----------------------------------------------------------------------------------------------


@pytest.mark.sampled(2)
@pytest.mark.parametrize("updates", [12, 15])  # the run ends between two rows, or with one
def test_extended_lockstep_run_equals_a_run_that_was_never_finished(tmp_path, updates):
    evaluation = {"every": 250, "episodes": 2}
    train(tmp_path / "once", stop={"env_steps": 2000}, eval=evaluation)
    rows = read_run(tmp_path / "once").rows
    pairs = zip(rows["charts/updates"], rows["env_steps"], strict=True)
    found = {int(u): int(n) for u, n in pairs if u == u}  # rows of evaluations alone have no updates
    steps = found[15] - (0 if updates == 15 else 150)  # an update has at most 64 steps
    first = train(tmp_path / "twice", stop={"env_steps": steps}, eval=evaluation)
    assert (read_run(tmp_path / "twice").rows["charts/updates"][-1] == 15) == (updates == 15)
    assert first.env_steps < 2000
    sfactory.resume(tmp_path / "twice", stop={"env_steps": 2000})
    assert differences(tmp_path / "once", tmp_path / "twice") == []
    one, two = (checkpoint.read_state(checkpoint.newest(tmp_path / name)) for name in ("once", "twice"))
    assert one["episodes"] == two["episodes"]


FREE_CHANGES = {
    "run": {"learner_threads": 2, "inference_threads": 2, "inference_workers": 1, "debug": True, "profile": True,
            "spare_restarts": 3, "stall_timeout": 99.0, "requeue": True},
    "stop": {"env_steps": 1500, "frames": 9000, "seconds": 999.0, "target_return": 9e9},
    "log": {"every_seconds": 1.0, "console_seconds": 2.0, "episodes": True},
    "checkpoint": {"every_seconds": 1.0, "keep": 2, "milestones": 500},
    "env": {"step_timeout": 99.0, "build_timeout": 99.0, "fault_budget": 500},
    "eval": {"every": 400, "num_envs": 2, "episodes": 1},
}  # fmt: skip
"""Every setting that a resume changes silently, but those of other outputs (rows, videos, Weights & Biases) and
exactness."""


def test_settings_that_change_silently_do_not_change_what_is_learned(tmp_path, capsys):
    every = {flag_name(f"{section}.{key}") for section, values in FREE_CHANGES.items() for key in values}
    free = {name for name in map(flag_name, field_types()) if rule_of(name) is Rule.FREE}
    of_wandb = {name for name in free if name.startswith("log.wandb")}
    assert free - every - of_wandb == {"log.every-updates", "log.quiet", "checkpoint.exact", "eval.video"}
    evaluation = {"every": 10**9, "episodes": 1}  # not before the resume
    train(tmp_path / "once", stop={"env_steps": 1500}, eval=evaluation)
    train(tmp_path / "twice", stop={"env_steps": 700}, eval=evaluation)
    assert sfactory.resume(tmp_path / "twice", **FREE_CHANGES).code == 0
    assert "warning" not in capsys.readouterr().err
    assert not [line for line in differences(tmp_path / "once", tmp_path / "twice") if "safetensors" in line]
    assert checkpoint.newest(tmp_path / "once").name == checkpoint.newest(tmp_path / "twice").name


def test_resume_writes_into_the_log_what_changed_in_learning(tmp_path, capsys):
    train(tmp_path / "a", stop={"env_steps": 300}, optim={"schedule": "linear", "lr": 1e-3})
    sfactory.resume(tmp_path / "a", stop={"env_steps": 600}, batch={"minibatches": 2}, optim={"beta1": 0.5})
    told = [line.split()[1] for line in capsys.readouterr().err.splitlines() if line.startswith("warning:")]
    log = (tmp_path / "a/log.txt").read_text()
    assert told == ["stop.env-steps", "batch.minibatches", "optim.beta1"]
    assert all(f"warning: {name} was" in log for name in told)
    assert re.search(r"learning rate: \S+ before, \S+ from here on \(.* linear, 0 at stop.env-steps 600\)", log)


# -- one score -----------------------------------------------------------------------------------------------


@pytest.mark.sampled(2)
@pytest.mark.parametrize(("mode", "steps"), [("lockstep", 600), ("async", 3000)])
def test_every_place_shows_the_same_score_after_a_run_and_after_its_resume(tmp_path, mode, steps, capsys):
    outcome = train(tmp_path / "a", mode, stop={"env_steps": steps})
    first = set(scores(outcome).values())
    assert len(first) == 1, scores(outcome)
    before = files(tmp_path / "a")
    again = sfactory.resume(tmp_path / "a")
    assert set(scores(again).values()) == first
    assert (again.code, again.env_steps, again.episodes) == (0, outcome.env_steps, outcome.episodes)
    assert files(tmp_path / "a") == before, "a resume with nothing to do writes nothing"
    further = sfactory.resume(tmp_path / "a", stop={"env_steps": 2 * steps})
    assert len(set(scores(further).values())) == 1, scores(further)
    games = read_run(tmp_path / "a").column("charts/games")
    assert list(games) == sorted(games), "episodes are counted over all launches"
    assert further.episodes >= outcome.episodes


def test_resume_with_nothing_to_do_starts_nothing(tmp_path, monkeypatch, capsys):
    run_dir = tmp_path / "a"
    outcome = train(run_dir, stop={"env_steps": 600})
    before = files(run_dir)
    monkeypatch.setattr("sfactory.supervisor.train.train", None)  # a call would raise
    changed = {"stop": {"env_steps": 300}, "optim": {"lr": 0.5}, "log": {"every_updates": 7}}
    again = sfactory.resume(run_dir, **changed)
    assert again.sentence == (
        f"nothing to do: stop.env-steps 300 was reached ({outcome.env_steps:,}); nothing was changed"
    )
    assert "warning" not in capsys.readouterr().err, "nothing continues under another setting"
    again = sfactory.resume(run_dir, stop={"env_steps": 250})  # whose double and its double is 1000
    assert again.resume_settings == {"stop.env_steps": 1200}, "the rule of the run, not the one of this resume"
    with pytest.raises(SystemExit) as end:
        cli.main(["resume", str(run_dir)])
    assert end.value.code == 0
    out, err = capsys.readouterr()
    assert f"training return {outcome.training_return:.2f} (mean of the last {outcome.episodes} episodes)" in out
    assert err.splitlines()[-1].startswith("sfactory: finished (exit 0): nothing to do: stop.env-steps 600 was reached")
    requeued = sfactory.train(
        "classic/cartpole", **{**TINY, "stop": {"env_steps": 600}, "log": {"quiet": True, "every_updates": 5}},
        run={"mode": "lockstep", "dir": run_dir, "requeue": True},
    )  # fmt: skip
    assert requeued.sentence.startswith("nothing to do")
    assert files(run_dir) == before


@pytest.mark.sampled(2)
@pytest.mark.parametrize("mode", ["lockstep", "async"])
def test_resume_completes_the_record_of_a_run_that_was_killed_at_its_end(tmp_path, mode):
    """After the last checkpoint, before the last row and the status."""
    run_dir = tmp_path / "a"
    outcome = train(run_dir, mode, stop={"env_steps": 1000})
    original = read_run(run_dir).rows
    status = {**read_status(run_dir), "state": "running", "pid": 2**22 + 1}
    (run_dir / "status.json").write_text(json.dumps(status))
    lines = (run_dir / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run_dir / "metrics.jsonl").write_text("".join(lines[:-1]))
    nothing = sfactory.resume(run_dir, stop={"env_steps": 500})
    assert nothing.sentence.startswith("stop.env-steps 500 was reached")
    assert read_status(run_dir)["state"] == "finished"
    rows = read_run(run_dir).rows
    for name in ("env_steps", "charts/episodic_return", "charts/games", "charts/updates"):
        assert list(rows[name]) == list(original[name]), name
    assert set(scores(nothing).values()) == {outcome.training_return}


def test_resume_with_nothing_to_do_leaves_a_running_run_alone(tmp_path):
    run_dir = tmp_path / "a"
    train(run_dir, stop={"env_steps": 300})
    lock = lock_folder(run_dir)
    try:
        with pytest.raises(RunBusy, match="in use by process"):
            sfactory.resume(run_dir)
    finally:
        os.close(lock)


def test_resume_that_trains_nothing_keeps_the_score(tmp_path):
    outcome = train(tmp_path / "a", stop={"env_steps": 600})
    seconds = checkpoint.read_state(Path(outcome.checkpoint))["seconds"]
    again = sfactory.resume(tmp_path / "a", stop={"env_steps": 0, "seconds": seconds + 1e-6})  # over before an update
    assert again.sentence.startswith("stop.seconds")
    assert again.env_steps == outcome.env_steps
    assert set(scores(again).values()) == set(scores(outcome).values()) == {outcome.training_return}


@pytest.mark.slow
def test_resume_without_a_known_score_does_not_make_one_up(tmp_path):
    """A checkpoint of an earlier version: its episodes are not known."""
    run_dir = tmp_path / "a"
    train(run_dir, "async", stop={"env_steps": 600})
    newest = checkpoint.newest(run_dir)
    state = checkpoint.read_state(newest)
    for name in ("episodes", "training_return"):
        state.pop(name, None)
    (newest / "state.json").write_text(json.dumps(state))
    resign(newest)
    outcome = sfactory.resume(run_dir, stop={"env_steps": 700})
    assert outcome.episodes < 100
    assert outcome.training_return is None
    assert read_status(run_dir).get("training_return") is None


def resign(path):
    """Make the manifest of a checkpoint agree with its files."""
    manifest = json.loads((path / "manifest.json").read_text())
    for name, entry in manifest["files"].items():
        entry |= {
            "size": (path / name).stat().st_size,
            "sha256": hashlib.sha256((path / name).read_bytes()).hexdigest(),
        }
    manifest["sha256"] = manifest_sha256(manifest)
    (path / "manifest.json").write_text(json.dumps(manifest))


# -- stop rules ----------------------------------------------------------------------------------------------


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    ("stop", "name"),
    [
        ({"env_steps": 500}, "stop.env-steps"),
        ({"env_steps": 0, "frames": 500}, "stop.frames"),
        ({"env_steps": 0, "seconds": 0.2}, "stop.seconds"),
        ({"env_steps": 20_000, "target_return": 5.0}, "stop.target-return"),
        ({"env_steps": 500, "frames": 500}, "stop.env-steps"),
    ],
)
def test_the_command_in_the_last_line_trains_on_after_every_stop_rule(tmp_path, monkeypatch, capsys, stop, name):
    monkeypatch.chdir(tmp_path)
    if name == "stop.seconds":  # a second is ten updates: on a busy machine one may take longer than the raised limit
        monkeypatch.setattr(Counters, "tick", lambda counters: setattr(counters, "seconds", counters.updates / 10))
    outcome = train("a", stop=stop)
    assert name in outcome.sentence
    with pytest.raises(SystemExit):
        cli.main(["resume", "a"])  # nothing to do: the same command is proposed
    out, err = capsys.readouterr()
    assert "sfactory resume" not in out
    command = err.splitlines()[-1].partition("; resume: sfactory ")[2].split()
    assert command[:2] == ["resume", "a"]
    assert f"--{name}" in command
    # What the command does, but as short as possible: the other rules end it.
    last = ["--stop.seconds", "5"] if "--stop.seconds" not in command else []
    with pytest.raises(SystemExit) as end:
        cli.main([*command, *last, "--quiet"])
    assert end.value.code == 0
    assert read_status(Path("a"))["env_steps"] > outcome.env_steps
