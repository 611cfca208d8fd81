"""A sweep: what it plans, what it starts, what it leaves alone. Processes are made up; real ones: tests/system."""

import fcntl
import json
import os
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest

from sfactory.config.toml_file import from_toml, to_toml
from sfactory.population import sweep


@pytest.fixture
def world(monkeypatch):
    """In place of processes: each is alive for two looks, then leaves a run folder and its exit code behind."""

    world = SimpleNamespace(started=[], codes={}, sent=[], alive=0, most=0, on_look=None)

    class Process:
        pid = 4194300

        def __init__(self, command, **_):
            self.verb, *rest = command[3:]
            self.config = from_toml(Path(rest[-1]))
            self.name = Path(self.config.run.dir).name
            assert (self.verb, rest[:-2]) in [("train", []), ("resume", [self.config.run.dir])]
            world.started.append((self.verb, self.name))
            world.alive += 1
            world.most = max(world.most, world.alive)
            self.looks, self.returncode = 0, None

        def poll(self):
            self.looks += 1
            if world.on_look:
                world.on_look()
            if self.returncode is None and (self.looks > 2 or world.sent):
                self.returncode = 130 if world.sent else world.codes.get(self.name, 0)
                world.alive -= 1
                leave(self.config, self.returncode)
            return self.returncode

    def leave(config, code):
        folder = Path(config.run.dir)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.toml").write_text(to_toml(config))
        row = {"env_steps": 1000, "seconds": 1.0, "charts/episodic_return": 1000 * config.optim.lr + config.run.seed}
        (folder / "metrics.jsonl").write_text(json.dumps(row) + "\n")
        words = {0: "finished", 130: "interrupted", 6: "environment fault"}
        status = {"state": words[code], "exit": code, "sentence": "x", "env_steps": 1000, "training_return": 1.0}
        (folder / "status.json").write_text(json.dumps(status))
        if code != 6:
            checkpoint = folder / "checkpoints/000000001000"
            checkpoint.mkdir(parents=True, exist_ok=True)
            (checkpoint / "state.json").write_text("{}")

    monkeypatch.setattr(sweep.subprocess, "Popen", Process)
    monkeypatch.setattr(sweep.os, "killpg", lambda pid, number: world.sent.append(number))
    monkeypatch.setattr(sweep, "POLL", 0.0)
    return world


GRID = ("sweep", "minatar/breakout", "--seeds", "0..1", "--grid", "optim.lr=1e-3,0.002", "--dir", "s")


def test_every_seed_meets_every_cell_and_the_table_is_over_seeds(world, typed):
    code, out, line = typed(*GRID, "--grid", "batch.epochs=1,2", "--surrogate.clip", "0.3")
    assert code == 0
    assert line == "sfactory: finished (exit 0): 8 of 8 runs finished"
    assert [name for _, name in world.started][:4] == [
        "optim.lr=1e-3_batch.epochs=1_s0", "optim.lr=1e-3_batch.epochs=2_s0",
        "optim.lr=2e-3_batch.epochs=1_s0", "optim.lr=2e-3_batch.epochs=2_s0",
    ]  # fmt: skip
    config = from_toml(Path("s/optim.lr=2e-3_batch.epochs=1_s1/config.toml"))
    assert (config.optim.lr, config.batch.epochs, config.run.seed) == (0.002, 1, 1)
    assert (config.surrogate.clip, config.env.name, config.log.quiet) == (0.3, "minatar/breakout", True)
    row = next(line for line in out.splitlines() if "batch.epochs=1 optim.lr=2e-3" in line)
    assert row.split()[2:4] == ["2", "2.5"]  # seeds 0 and 1 on top of 1000 lr


def test_without_a_grid_there_are_seeds_alone(world, typed):
    assert typed("sweep", "minatar/breakout", "--seeds", "3,5", "--dir", "s")[0] == 0
    assert [name for _, name in world.started] == ["s3", "s5"]


def test_at_most_so_many_run_at_a_time(world, typed):
    typed(*GRID, "--jobs", "3")
    assert (world.most, len(world.started)) == (3, 4)


def test_the_same_command_finds_its_folder_and_another_has_its_own(world, typed):
    words = ("sweep", "minatar/breakout", "--seeds", "0..0", "--grid", "optim.lr=1e-3")
    typed(*words)
    (folder,) = Path("runs").iterdir()
    assert folder.name.startswith("minatar-breakout_sweep_")
    typed(*words[:-1], "optim.lr=1e-4", "--stop.env-steps", "5k", "--log.every-seconds", "1")  # more of the same
    assert list(Path("runs").iterdir()) == [folder]
    typed(*words, "--surrogate.clip", "0.3")
    assert len(list(Path("runs").iterdir())) == 2


# -- again


def test_finished_runs_are_left_alone_and_interrupted_ones_resumed(world, typed):
    world.codes = {"optim.lr=1e-3_s1": 130}
    code, _, line = typed(*GRID)
    assert (code, "3 of 4 runs finished; others were stopped; the same command goes on" in line) == (130, True)
    world.started.clear()
    world.codes = {}
    code, _, line = typed(*GRID)
    assert world.started == [("resume", "optim.lr=1e-3_s1")]
    assert (code, "4 of 4 runs finished" in line) == (0, True)


def test_a_killed_run_is_resumed_and_one_that_holds_nothing_makes_room(world, typed):
    typed(*GRID)
    killed = Path("s/optim.lr=1e-3_s0")
    (killed / "status.json").write_text(json.dumps({"state": "running", "pid": 4194305}))
    empty = Path("s/optim.lr=2e-3_s0")
    (empty / "status.json").write_text(json.dumps({"state": "running", "pid": 4194305}))
    (empty / "checkpoints/000000001000/state.json").unlink()
    (empty / "checkpoints/000000001000").rmdir()
    world.started.clear()
    typed(*GRID)
    assert world.started == [("resume", killed.name), ("train", empty.name)]
    assert (Path("s/aside") / f"{empty.name}-1/config.toml").is_file()


def test_a_longer_run_is_a_resume(world, typed):
    typed(*GRID, "--stop.env-steps", "1000")
    world.started.clear()
    typed(*GRID, "--stop.env-steps", "500")
    assert world.started == []
    typed(*GRID, "--stop.env-steps", "2000")
    assert [verb for verb, _ in world.started] == ["resume"] * 4


def test_a_failed_run_is_named_and_tried_again_only_when_asked(world, typed):
    world.codes = {"optim.lr=2e-3_s0": 6}
    code, out, line = typed(*GRID)
    assert code == 6
    assert line.startswith("sfactory: environment fault (exit 6): 3 of 4 runs finished; failed: optim.lr=2e-3_s0 (exit")
    assert "optim.lr=1e-3" in out, "the table of what there is"
    world.started.clear()
    world.codes = {}
    assert typed(*GRID)[0] == 6
    assert world.started == []
    assert typed(*GRID, "--retry")[0] == 0
    assert world.started == [("train", "optim.lr=2e-3_s0")]


def test_a_run_that_failed_before_it_had_a_folder_is_remembered(world, typed):
    Path("s").mkdir()
    Path("s/sweep.json").write_text(json.dumps({"optim.lr=1e-3_s0": [11, "resources refused"]}))
    code, _, line = typed(*GRID)
    assert code == 11
    assert "optim.lr=1e-3_s0 (exit 11)" in line
    assert len(world.started) == 3


def test_a_signal_is_passed_on_and_starts_nothing_more(world, typed):
    def interrupt():
        world.on_look = None
        os.kill(os.getpid(), signal.SIGINT)

    world.on_look = interrupt
    before = signal.getsignal(signal.SIGINT)
    code, _, line = typed(*GRID, "--jobs", "2")
    assert (code, len(world.started)) == (130, 2)
    assert world.sent == [signal.SIGINT] * 2
    assert "0 of 4 runs finished; the same command goes on" in line
    assert signal.getsignal(signal.SIGINT) is before


# -- refusals


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        ("", "expected one TARGET, got none"),
        ("minatar/breakot", "did you mean breakout?"),
        ("minatar/breakout --grid optim.lrr=1e-3", "optim.lrr: no such setting; did you mean optim.lr?"),
        ("minatar/breakout --grid optim.lr=1e-3,fast", "optim.lr: 'fast' is not a number"),
        ("minatar/breakout --grid trace.estimator=gae,vtrce", "did you mean vtrace?"),
        ("minatar/breakout --grid batch.minibatches=8,7", "must divide into 7 minibatches"),
        ("minatar/breakout --grid optim.lr", "'optim.lr' is not NAME=V1,V2"),
        ("minatar/breakout --grid optim.lr=1,,2", "is not NAME=V1,V2"),
        ("minatar/breakout --grid optim.lr=1 --grid optim.lr=2", "optim.lr is given twice"),
        ("minatar/breakout --grid optim.lr=1,2 --optim.lr 3", "optim.lr is in the grid and given by itself"),
        ("minatar/breakout --grid run.seed=1,2", "run.seed is not varied here; use --seeds"),
        ("minatar/breakout --run.dir x", "run.dir: a sweep sets it itself; use --dir"),
        ("minatar/breakout --seeds 4..0", "'4..0' names no seed"),
        ("minatar/breakout --seeds few", "'few' is neither 0..4 nor 1,5,7"),
        ("minatar/breakout --jobs 0", "jobs is 0"),
        ("minatar/breakout --grid env.settings.sticky=0.1,0.2", "no such setting"),
        ("minatar/breakout --sedes 0..4", "sedes: no such setting; did you mean seeds?"),
    ],
)
def test_a_mistake_is_answered_before_anything_starts(world, typed, tmp_path, words, answer):
    code, out, line = typed("sweep", *words.split())
    assert (code, out) == (2, "")
    assert answer in line
    assert (world.started, list(tmp_path.iterdir())) == ([], [])


def test_a_folder_of_other_settings_is_refused(world, typed):
    typed(*GRID)
    code, _, line = typed(*GRID, "--surrogate.clip", "0.3")
    assert code == 2
    assert "s/optim.lr=1e-3_s0 holds a run with another surrogate.clip; choose another --dir" in line


def test_two_sweeps_do_not_share_a_folder(world, typed):
    Path("s").mkdir()
    with Path("s/.lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        code, _, line = typed(*GRID)
    assert (code, world.started) == (3, [])
    assert "another sweep works in s" in line


def test_widths_and_settings_of_the_environment_can_be_varied(world, typed):
    words = ("--grid", "model.hidden=64,128+32", "--grid", "env.settings.sticky_action_prob=0.0,0.25")
    code, out, _ = typed("sweep", "minatar/breakout", "--seeds", "0..0", "--dir", "w", *words)
    assert code == 0
    config = from_toml(Path("w/model.hidden=128,32_env.settings.sticky-action-prob=0.25_s0/config.toml"))
    assert (config.model.hidden, config.env.settings) == ((128, 32), {"sticky_action_prob": 0.25})
    assert "no table" in out, "other rules: scores do not compare"
