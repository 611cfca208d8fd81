"""`sfactory watch` shows the content of a run folder and changes nothing."""

import json
import os
import subprocess
import sys

import pytest

from sfactory.config import Config, Env, Sampling, Stop
from sfactory.config.toml_file import to_toml
from sfactory.monitor.writers import METRICS_FILE, drop_rows_after
from sfactory.run.lock import lock_folder
from sfactory.tools.watch import RunWatcher, watch

CONFIG = Config(
    env=Env(name="minatar/breakout"), stop=Stop(env_steps=1000), sampling=Sampling(num_samplers=2, slots_per_group=3)
)


@pytest.fixture
def run_dir(tmp_path):
    folder = tmp_path / "runs" / "one"
    (folder / "checkpoints" / "000000000100").mkdir(parents=True)
    (folder / "config.toml").write_text(to_toml(CONFIG))
    return folder


def write(run_dir, steps, end="\n", **metrics):
    with (run_dir / METRICS_FILE).open("a") as file:
        row = {"env_steps": steps, "seconds": steps / 10, "charts/SPS": 10.0, "charts/FPS": 10.0, **metrics}
        file.write(json.dumps(row) + end)


@pytest.fixture(autouse=True)
def lock(run_dir):
    """This process has the lock of a run, as the one that trains it."""
    descriptor = lock_folder(run_dir)
    yield
    os.close(descriptor)


def status(run_dir, state, pid=None):
    content = {"state": state, "env_steps": 1, "pid": pid or os.getpid()}
    (run_dir / "status.json").write_text(json.dumps(content))


def contents(run_dir):
    return {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in run_dir.rglob("*")}


def test_run_watcher_reads_the_newest_row_and_faults(run_dir):
    write(run_dir, 100, **{"charts/episodic_return": 1.0, "stage/learner/wait": 0.25})
    write(run_dir, 200, **{"charts/episodic_return": 2.0, "losses/entropy": None})
    (run_dir / "log.txt").write_text(
        "2026-11-21 15:00:00 sampler-1 died (killed by SIGKILL); respawned\n"
        "2026-11-21 15:00:01 ledger: 10 rows sampled\n"
        "2026-11-21 15:00:02 environment 3: boom\nTraceback\n  learner said nothing\n"
    )
    os.utime(run_dir / METRICS_FILE, (1000.0, 1000.0))
    os.utime(run_dir / "checkpoints" / "000000000100", (900.0, 900.0))
    before = contents(run_dir)
    snapshot = RunWatcher(run_dir).read(now=1007.0)
    assert contents(run_dir) == before
    assert (snapshot.env_steps, snapshot.seconds, snapshot.env, snapshot.name) == (200, 20.0, "minatar/breakout", "one")
    assert snapshot.history == ((100.0, 10.0, 1.0), (200.0, 20.0, 2.0))
    assert snapshot.value("stage/learner/wait") == 0.25  # from the row before
    assert snapshot.value("losses/entropy") is None
    assert snapshot.faults == ("sampler-1 died (killed by SIGKILL); respawned", "environment 3: boom")
    assert (snapshot.slots, snapshot.state, snapshot.since) == (12, "running", 7.0)
    assert snapshot.checkpoint == (100, 100.0)  # when the row was written, as everything else


def test_run_watcher_shows_a_finished_run_as_of_its_end(run_dir):
    write(run_dir, 100)
    status(run_dir, "finished")
    os.utime(run_dir / "checkpoints" / "000000000100", (900.0, 900.0))
    os.utime(run_dir / "status.json", (903.0, 903.0))
    snapshot = RunWatcher(run_dir).read(now=5000.0)
    assert (snapshot.state, snapshot.since, snapshot.checkpoint) == ("finished", 0.0, (100, 3.0))


def test_run_watcher_reads_rows_once_and_waits_for_complete_lines(run_dir, monkeypatch):
    watcher = RunWatcher(run_dir)
    assert watcher.read(0.0).row == {}
    write(run_dir, 100)
    write(run_dir, 200, end="")
    assert watcher.read(0.0).env_steps == 100
    with (run_dir / METRICS_FILE).open("a") as file:
        file.write("\n")
    assert watcher.read(0.0).env_steps == 200
    added = []
    real = watcher.history.add
    monkeypatch.setattr(watcher.history, "add", lambda steps, *row: added.append(steps) or real(steps, *row))
    write(run_dir, 300)
    watcher.read(0.0)
    assert added == [300]


def test_run_watcher_reads_a_resumed_run_again(run_dir):
    watcher = RunWatcher(run_dir)
    for steps in (100, 200, 300):
        write(run_dir, steps, **{"charts/episodic_return": float(steps)})
    watcher.read(0.0)
    drop_rows_after(run_dir, 100)
    write(run_dir, 150, **{"charts/episodic_return": 7.0})
    assert watcher.read(0.0).history == ((100.0, 10.0, 100.0), (150.0, 15.0, 7.0))


def test_watch_ends_when_the_run_ends(run_dir, monkeypatch, capsys):
    write(run_dir, 100)
    status(run_dir, "running")
    monkeypatch.setattr("sfactory.tools.watch.time.sleep", lambda _: status(run_dir, "lost"))
    assert watch(run_dir).state == "lost"
    assert capsys.readouterr().err == "100 steps | 10 steps/s | 10%, 1 min 30 s left\n"


def test_run_watcher_reports_a_killed_supervisor(run_dir):
    """No process wrote how the run ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    write(run_dir, 100)
    status(run_dir, "running", process.pid)
    assert watch(run_dir).state == "killed"


def test_watch_command_reports_the_last_snapshot(run_dir, typed):
    write(run_dir, 1000)
    status(run_dir, "finished")
    assert typed("watch", run_dir) == (0, "", f"sfactory: watched (exit 0): {run_dir}: finished, 1,000 steps")
    code, _, last = typed("watch", "runs/two")
    assert code == 2
    assert "runs/two does not exist" in last
    assert typed("watch")[0] == 2


def test_ctrl_c_ends_the_watching_and_not_the_run(run_dir, typed, monkeypatch):
    def interrupt(_):
        raise KeyboardInterrupt

    write(run_dir, 100)
    monkeypatch.setattr("sfactory.tools.watch.time.sleep", interrupt)
    assert typed("watch", run_dir) == (0, "", f"sfactory: watched (exit 0): {run_dir}: running, 100 steps")


def test_watching_never_loads_torch():
    code = "import sys, sfactory.tools.watch; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_watch_of_a_run_that_ended_shows_what_it_reached_after_its_last_row(run_dir):
    write(run_dir, 100)
    content = {"state": "interrupted", "env_steps": 180, "seconds": 18.0}
    (run_dir / "status.json").write_text(json.dumps(content))
    snapshot = RunWatcher(run_dir).read(0.0)
    assert (snapshot.state, snapshot.env_steps, snapshot.seconds) == ("interrupted", 180, 18.0)
