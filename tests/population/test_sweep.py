"""Sweeps: the jobs they plan, start, resume and skip. Processes are fakes; real ones are in tests/system."""

import fcntl
import json
import os
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest

from sfactory.config.toml_file import from_toml, to_toml
from sfactory.device import machine
from sfactory.population import commands, launchers, side_by_side


@pytest.fixture
def fake_processes(monkeypatch):
    """Fake processes: each runs for two polls, then writes a run folder and exits with the code in `codes`."""

    fakes = SimpleNamespace(started=[], codes={}, sent=[], running=0, most=0, on_poll=None)

    class Process:
        pid = 4194300

        def __init__(self, command, **_):
            self.command, *rest = command[3:]
            self.config = from_toml(Path(rest[-1]))
            self.name = Path(self.config.run.dir).name
            assert (self.command, rest[:-2]) in [("train", []), ("resume", [self.config.run.dir])]
            fakes.started.append((self.command, self.name))
            fakes.running += 1
            fakes.most = max(fakes.most, fakes.running)
            self.polls, self.returncode = 0, None

        def poll(self):
            self.polls += 1
            if fakes.on_poll:
                fakes.on_poll()
            if self.returncode is None and (self.polls > 2 or fakes.sent):
                code = fakes.codes.get(self.name, 0)
                self.returncode = 130 if fakes.sent else code.pop(0) if isinstance(code, list) else code
                fakes.running -= 1
                write_run(self.config, self.returncode)
            return self.returncode

    def write_run(config, code):
        folder = Path(config.run.dir)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.toml").write_text(to_toml(config))
        row = {"env_steps": 1000, "seconds": 1.0, "charts/episodic_return": 1000 * config.optim.lr + config.run.seed}
        (folder / "metrics.jsonl").write_text(json.dumps(row) + "\n")
        outcomes = {0: "finished", 130: "interrupted", 6: "environment fault", 75: "requeue"}
        status = {
            "state": outcomes.get(code, "running"),
            "exit": code,
            "sentence": "x",
            "env_steps": 1000,
            "training_return": 1.0,
        }
        (folder / "status.json").write_text(json.dumps(status))
        if code != 6:
            checkpoint = folder / "checkpoints/000000001000"
            checkpoint.mkdir(parents=True, exist_ok=True)
            (checkpoint / "state.json").write_text("{}")

    monkeypatch.setattr(commands.subprocess, "Popen", Process)
    monkeypatch.setattr(launchers.os, "killpg", lambda pid, number: fakes.sent.append(number))
    monkeypatch.setattr(side_by_side, "POLL_S", 0.0)
    return fakes


GRID = ("sweep", "minatar/breakout", "--seeds", "0..1", "--grid", "optim.lr=1e-3,0.002", "--dir", "s")


def test_sweep_runs_every_seed_of_every_grid_cell_and_tabulates_over_seeds(fake_processes, typed):
    code, out, line = typed(*GRID, "--grid", "batch.epochs=1,2", "--surrogate.clip", "0.3")
    assert code == 0
    assert line == "sfactory: finished (exit 0): 8 of 8 runs finished"
    assert [name for _, name in fake_processes.started][:4] == [
        "optim.lr=1e-3_batch.epochs=1_s0", "optim.lr=1e-3_batch.epochs=2_s0",
        "optim.lr=2e-3_batch.epochs=1_s0", "optim.lr=2e-3_batch.epochs=2_s0",
    ]  # fmt: skip
    config = from_toml(Path("s/optim.lr=2e-3_batch.epochs=1_s1/config.toml"))
    assert (config.optim.lr, config.batch.epochs, config.run.seed) == (0.002, 1, 1)
    assert (config.surrogate.clip, config.env.name, config.log.quiet) == (0.3, "minatar/breakout", True)
    row = next(line for line in out.splitlines() if "batch.epochs=1 optim.lr=2e-3" in line)
    assert row.split()[2:4] == ["2", "2.5"]  # seeds 0 and 1 on top of 1000 lr


def test_sweep_without_a_grid_varies_only_the_seed(fake_processes, typed):
    assert typed("sweep", "minatar/breakout", "--seeds", "3,5", "--dir", "s")[0] == 0
    assert [name for _, name in fake_processes.started] == ["s3", "s5"]


def test_sweep_runs_at_most_jobs_processes_at_a_time(fake_processes, typed):
    typed(*GRID, "--jobs", "3")
    assert (fake_processes.most, len(fake_processes.started)) == (3, 4)


def test_sweep_divides_the_cores_among_the_runs_side_by_side(fake_processes, typed, monkeypatch):
    monkeypatch.setattr(machine, "cores", lambda: 12)
    folder = "optim.lr=1e-3_s0"
    fake_processes.codes = {folder: 130}
    typed(*GRID, "--jobs", "2")
    sampling = from_toml(Path("s", folder, "config.toml")).sampling
    assert (sampling.num_samplers, sampling.envs_per_group) == (2, 8), "of 6 cores each"
    fake_processes.started.clear()
    monkeypatch.setattr(machine, "cores", lambda: 4)
    typed(*GRID, "--jobs", "2")
    assert fake_processes.started == [("resume", folder)], "the same runs on another machine"
    sampling = from_toml(Path("s", "configs", f"{folder}.toml")).sampling
    assert sampling.num_samplers == 0, "a resumed run keeps its own number"


def test_sweep_folder_depends_only_on_the_fixed_settings(fake_processes, typed):
    arguments = ("sweep", "classic/acrobot", "--seeds", "0..0", "--grid", "optim.lr=1e-3")
    typed(*arguments)
    (folder,) = Path("runs").iterdir()
    assert folder.name.startswith("classic-acrobot_sweep_")
    typed(*arguments[:-1], "optim.lr=1e-4", "--stop.env-steps", "5k", "--log.every-seconds", "1")  # more of the same
    assert list(Path("runs").iterdir()) == [folder]
    typed(*arguments, "--surrogate.clip", "0.3")
    assert len(list(Path("runs").iterdir())) == 2


# -- the same command a second time


def test_sweep_skips_finished_runs_and_resumes_interrupted_ones(fake_processes, typed):
    fake_processes.codes = {"optim.lr=1e-3_s1": 130}
    code, _, line = typed(*GRID)
    assert (code, "3 of 4 runs finished; others were stopped; repeat the command to continue" in line) == (130, True)
    fake_processes.started.clear()
    fake_processes.codes = {}
    code, _, line = typed(*GRID)
    assert fake_processes.started == [("resume", "optim.lr=1e-3_s1")]
    assert (code, "4 of 4 runs finished" in line) == (0, True)


def test_sweep_resumes_a_killed_run_and_moves_a_run_without_checkpoint_aside(fake_processes, typed):
    typed(*GRID)
    killed = Path("s/optim.lr=1e-3_s0")
    (killed / "status.json").write_text(json.dumps({"state": "running", "pid": 4194305}))
    empty = Path("s/optim.lr=2e-3_s0")
    (empty / "status.json").write_text(json.dumps({"state": "running", "pid": 4194305}))
    (empty / "checkpoints/000000001000/state.json").unlink()
    (empty / "checkpoints/000000001000").rmdir()
    fake_processes.started.clear()
    typed(*GRID)
    assert fake_processes.started == [("resume", killed.name), ("train", empty.name)]
    assert (Path("s/aside") / f"{empty.name}-1/config.toml").is_file()


def test_sweep_resumes_finished_runs_for_a_larger_stop_env_steps(fake_processes, typed):
    unchanging = (GRID[0], "classic/acrobot", *GRID[2:])  # nothing of it follows stop.env-steps
    typed(*unchanging, "--stop.env-steps", "1000")
    fake_processes.started.clear()
    typed(*unchanging, "--stop.env-steps", "500")
    assert fake_processes.started == []
    typed(*unchanging, "--stop.env-steps", "2000")
    assert [command for command, _ in fake_processes.started] == ["resume"] * 4


def test_sweep_reports_a_failed_run_and_restarts_it_only_with_retry(fake_processes, typed):
    fake_processes.codes = {"optim.lr=2e-3_s0": 6}
    code, out, line = typed(*GRID)
    assert code == 6
    assert line.startswith("sfactory: environment fault (exit 6): 3 of 4 runs finished; failed: optim.lr=2e-3_s0 (exit")
    assert "optim.lr=1e-3" in out, "the table of the runs so far"
    fake_processes.started.clear()
    fake_processes.codes = {}
    assert typed(*GRID)[0] == 6
    assert fake_processes.started == []
    assert typed(*GRID, "--retry")[0] == 0
    assert fake_processes.started == [("train", "optim.lr=2e-3_s0")]


def test_sweep_reports_a_run_of_this_machine_that_was_killed_and_goes_on_when_repeated(fake_processes, typed):
    fake_processes.codes = {"s0": -9}
    code, _, line = typed("sweep", "minatar/breakout", "--seeds", "0..1", "--dir", "s")
    assert (code, "failed: s0 (exit -9)" in line) == (7, True)
    assert fake_processes.started == [("train", "s0"), ("train", "s1")]
    fake_processes.codes = {}
    assert typed("sweep", "minatar/breakout", "--seeds", "0..1", "--dir", "s")[0] == 0
    assert fake_processes.started[2:] == [("resume", "s0")]


def test_sweep_starts_a_run_again_that_a_scheduler_stopped_or_lost(fake_processes, typed, monkeypatch):
    monkeypatch.setattr(launchers.LocalLauncher, "reruns", True)
    fake_processes.codes = {"s0": [75, -9, 143, 0], "s1": [-9] * 9}
    code, _, line = typed("sweep", "minatar/breakout", "--seeds", "0..1", "--jobs", "2", "--dir", "s")
    assert (code, "1 of 2 runs finished; failed: s1 (exit -9)" in line) == (7, True)
    ways = [way for way, name in fake_processes.started if name == "s0"]
    assert ways == ["train", "resume", "resume", "resume"]
    assert [name for _, name in fake_processes.started].count("s1") == 1 + 3, "it got nowhere"
    assert from_toml(Path("s/configs/s0.toml")).run.requeue


def test_sweep_json_keeps_the_exit_code_of_a_run_without_a_folder(fake_processes, typed):
    Path("s").mkdir()
    Path("s/sweep.json").write_text(json.dumps({"optim.lr=1e-3_s0": [11, "resources refused"]}))
    code, _, line = typed(*GRID)
    assert code == 11
    assert "optim.lr=1e-3_s0 (exit 11)" in line
    assert len(fake_processes.started) == 3


def test_sweep_forwards_a_signal_and_starts_no_more_runs(fake_processes, typed):
    def interrupt():
        fake_processes.on_poll = None
        os.kill(os.getpid(), signal.SIGINT)

    fake_processes.on_poll = interrupt
    before = signal.getsignal(signal.SIGINT)
    code, _, line = typed(*GRID, "--jobs", "2")
    assert (code, len(fake_processes.started)) == (130, 2)
    assert fake_processes.sent == [signal.SIGINT] * 2
    assert "0 of 4 runs finished; repeat the command to continue" in line
    assert signal.getsignal(signal.SIGINT) is before


# -- errors


@pytest.mark.parametrize(
    ("arguments", "message"),
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
        ("minatar/breakout --grid optim.lr=1,2 --optim.lr 3", "optim.lr is in the grid and also given as a flag"),
        ("minatar/breakout --grid run.seed=1,2", "run.seed cannot be in the grid; use --seeds"),
        ("minatar/breakout --run.dir x", "run.dir: a sweep sets it itself; use --dir"),
        ("minatar/breakout --seeds 4..0", "'4..0' contains no seed"),
        ("minatar/breakout --seeds few", "'few' is neither a range such as 0..4"),
        ("minatar/breakout --jobs 0", "--jobs: must be at least 1, got 0"),
        ("minatar/breakout --grid env.settings.sticky=0.1,0.2", "no such setting"),
        ("minatar/breakout --sedes 0..4", "sedes: no such setting; did you mean seeds?"),
    ],
)
def test_sweep_reports_usage_errors_before_it_starts_a_run(fake_processes, typed, tmp_path, arguments, message):
    code, out, line = typed("sweep", *arguments.split())
    assert (code, out) == (2, "")
    assert message in line
    assert (fake_processes.started, list(tmp_path.iterdir())) == ([], [])


def test_sweep_refuses_a_folder_of_other_settings(fake_processes, typed):
    typed(*GRID)
    code, _, line = typed(*GRID, "--surrogate.clip", "0.3")
    assert code == 2
    assert "s/optim.lr=1e-3_s0 holds a run with another surrogate.clip; choose another --dir" in line


def test_sweep_folder_lock_refuses_a_second_sweep(fake_processes, typed):
    Path("s").mkdir()
    with Path("s/.lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        code, _, line = typed(*GRID)
    assert (code, fake_processes.started) == (3, [])
    assert "s is in use by process" in line


def test_sweep_grid_accepts_tuples_and_environment_settings(fake_processes, typed):
    arguments = ("--grid", "model.hidden=64,128+32", "--grid", "env.settings.sticky_action_prob=0.0,0.25")
    code, out, _ = typed("sweep", "minatar/breakout", "--seeds", "0..0", "--dir", "w", *arguments)
    assert code == 0
    config = from_toml(Path("w/model.hidden=128,32_env.settings.sticky-action-prob=0.25_s0/config.toml"))
    assert (config.model.hidden, config.env.settings) == ((128, 32), {"sticky_action_prob": 0.25})
    assert "no table" in out, "runs of different protocols are not compared"
