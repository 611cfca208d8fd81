"""Grids of runs: what is skipped, resumed, started again, and how much time is left."""

import base64
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import replay
import scores
import staleness_cells
from grid import Cell, Grid, Run, chosen_cells, finished_seeds, run, runs_of, score
from scores import BLOCKS, RETURN, Scores, _late, changed_settings, curve, fingerprint

from sfactory.config import Config, with_settings
from sfactory.config.toml_file import to_toml
from sfactory.errors import CommandError, Exit, SettingError

FLAGS = (
    "--sampling.envs-per-group", "4", "--sampling.rollout-length", "16", "--batch.minibatches", "2",
    "--batch.epochs", "1", "--optim.schedule", "constant", "--log.every-updates", "2",
)  # fmt: skip
CELLS = [Cell("tiny/a", "classic/cartpole", FLAGS, 1000), Cell("tiny/b", "classic/cartpole", FLAGS, 4000)]


class Finished:
    """A process that ends when it is asked, with a last line."""

    def __init__(self, code, output, line):
        self.code, self.output, self.line = code, output, line

    def poll(self):
        self.output.write_text(self.line)
        return self.code

    def cancel(self, number):
        pass


class Recorder:
    """A launcher that runs nothing. `outcomes`: name of a run -> what its processes do, one after the other."""

    def __init__(self, grid, outcomes=None):
        self.grid, self.outcomes, self.commands = grid, outcomes or {}, []
        grid.launcher = self

    def submit(self, command, resources):
        self.commands.append(command)
        words, names = command.arguments[3:], self.outcomes.get(command.name, [])
        what = names.pop(0) if names else "finished"
        folder = Path(words[1]) if words[0] == "resume" else Path(words[words.index("--run.dir") + 1])
        leave(folder, what)
        return Finished({"finished": 0, "lost": 7, "refused": 4}[what], command.output, f"sfactory: {what}\n")

    @property
    def words(self):
        return [(command.name, command.arguments[3]) for command in self.commands]


def leave(folder, state, seconds=10.0, steps=500, checkpoint=False, config=None):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "status.json").write_text(json.dumps({"state": state, "seconds": seconds, "env_steps": steps}))
    row = {"env_steps": steps, "charts/episodic_return": 7.0, "offpolicy/ess": 0.5}
    (folder / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    if checkpoint:
        (folder / "checkpoints" / f"{steps:012d}").mkdir(parents=True)
    if config is not None:
        (folder / "config.toml").write_text(to_toml(config))


def grid_of(cells, tmp_path, seeds, jobs):
    return Grid(runs_of(cells, tmp_path, seeds), Scores(tmp_path / "scores.csv"), jobs)


def folder_of(tmp_path, cell, seed):
    return tmp_path / cell.name / str(seed)


def test_grid_skips_finished_runs_resumes_those_with_a_checkpoint_and_starts_the_rest_again(tmp_path):
    leave(folder_of(tmp_path, CELLS[0], 0), "finished")
    leave(folder_of(tmp_path, CELLS[1], 0), "killed", checkpoint=True)
    leave(folder_of(tmp_path, CELLS[0], 1), "killed")
    (folder_of(tmp_path, CELLS[0], 1) / "old").write_text("rubbish")
    grid = grid_of(CELLS, tmp_path, 2, 1)
    recorder = Recorder(grid)
    assert grid.left == 3
    grid.run()
    assert recorder.words == [("tiny/b seed 0", "resume"), ("tiny/a seed 1", "train"), ("tiny/b seed 1", "train")]
    assert not (folder_of(tmp_path, CELLS[0], 1) / "old").exists()
    assert grid.left == 0
    assert {command.environment["OMP_NUM_THREADS"] for command in recorder.commands} == {"1"}
    assert "1001" in recorder.commands[1].arguments, "the second seed"


def test_grid_counts_a_run_that_a_signal_has_stopped_at_its_end(tmp_path):
    for seed, steps in enumerate((1000, 999)):
        run = Run(CELLS[0], seed, folder_of(tmp_path, CELLS[0], seed))
        leave(run.folder, "terminated", steps=steps, checkpoint=True, config=run.config())
        status = run.folder / "status.json"
        status.write_text(json.dumps({**json.loads(status.read_text()), "exit": int(Exit.TERMINATED)}))
    grid = grid_of(CELLS[:1], tmp_path, 2, 1)
    recorder = Recorder(grid)
    grid.run()
    assert recorder.words == [("tiny/a seed 1", "resume")]


def test_grid_counts_no_run_that_ended_without_finishing(tmp_path):
    grid = grid_of(CELLS[:1], tmp_path, 2, 1)
    Recorder(grid, {"tiny/a seed 0": ["lost"]})
    with pytest.raises(SystemExit, match="tiny/a seed 0: lost"):
        grid.run()
    assert grid.left == 1


def test_grid_starts_a_run_again_once_if_its_checkpoint_cannot_be_continued(tmp_path):
    leave(folder_of(tmp_path, CELLS[0], 0), "killed", checkpoint=True)
    grid = grid_of(CELLS[:1], tmp_path, 1, 1)
    recorder = Recorder(grid, {"tiny/a seed 0": ["refused"]})
    grid.run()
    assert recorder.words == [("tiny/a seed 0", "resume"), ("tiny/a seed 0", "train")]


def test_grid_refuses_a_folder_with_other_settings(tmp_path):
    other = Run(Cell("tiny/a", "classic/cartpole", (*FLAGS, "--optim.lr", "0.5"), 1000), 0, tmp_path).config()
    leave(folder_of(tmp_path, CELLS[0], 0), "finished", config=other)
    with pytest.raises(CommandError, match=r"holds a run with another optim\.lr"):
        grid_of(CELLS, tmp_path, 1, 1)


def test_grid_estimates_by_task_and_length_and_else_by_steps(tmp_path, capsys):
    leave(folder_of(tmp_path, CELLS[0], 0), "finished", seconds=10.0)
    grid = grid_of(CELLS, tmp_path, 2, 1)
    # Left: b seed 0, a seed 1, b seed 1; a takes 10 s, b four times as many steps.
    assert grid._time_left() == "; 3 left, about 1 min 30 s"
    leave(folder_of(tmp_path, CELLS[1], 0), "finished", seconds=100.0)
    grid = grid_of(CELLS, tmp_path, 2, 1)
    assert grid._time_left() == "; 2 left, about 1 min 50 s"
    assert grid_of(CELLS, tmp_path, 2, 2)._time_left() == "; 2 left, about 1 min 40 s", "the longest one"
    Recorder(grid)
    grid.run()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "4 runs, 2 finished before; 2 left, about 1 min 50 s"
    assert lines[1].startswith("[3/4] tiny/a seed 1  ")
    assert "; 1 left, about 1 min 40 s" in lines[1]
    assert "left" not in lines[2]
    assert grid_of([Cell("x", "classic/cartpole", FLAGS, 10)], tmp_path, 1, 1)._time_left() == "; 1 left"


@pytest.mark.parametrize(("only", "expected"), [
    ("", ["a/one", "a/two", "b/one", "b/three"]), ("two,three", ["a/two", "b/three"]), ("b/", ["b/one", "b/three"]),
])  # fmt: skip
def test_only_takes_cells_whose_name_contains_one_of_several_texts(only, expected):
    cells = [CELLS[0]._replace(name=name) for name in ("a/one", "a/two", "b/one", "b/three", "a/one")]
    assert [cell.name for cell in chosen_cells(cells, only)] == expected


@pytest.mark.parametrize(
    "cell",
    [c for c in [*staleness_cells.corrections().values(), *replay.cells().values()] if "breakout" in c.target],
    ids=lambda cell: cell.name,
)
def test_grids_of_breakout_keep_the_settings_of_their_first_runs(cell, tmp_path):
    """The preset has changed since: without its old settings, new runs would be compared with kept ones of others."""
    config = Run(cell, 0, tmp_path).config()
    assert (config.trace.trace_lambda, config.optim.schedule, config.loss.entropy_final) == (0.95, "constant", None)


def test_a_run_is_trained_with_the_file_of_its_cell(tmp_path):
    cell = CELLS[0]._replace(target="minatar/breakout", flags=(), base="breakout.toml")
    one, started = Run(cell, 0, tmp_path / "0"), []
    grid = Grid([one], Scores(tmp_path / "scores.csv"), 1)
    grid.launcher = SimpleNamespace(submit=lambda command, _: started.append(command.arguments))
    grid._start(one)
    assert started[0][started[0].index("--config") + 1].endswith("benchmarks/settings/breakout.toml")


def test_kept_curves_need_no_folder_and_count_only_for_the_same_flags(tmp_path):
    leave(folder_of(tmp_path, CELLS[0], 0), "finished", seconds=33.0)
    leave(folder_of(tmp_path, CELLS[0], 1), "killed")
    grid_of(CELLS[:1], tmp_path, 2, 1)
    shutil.rmtree(tmp_path / "tiny")
    kept = Scores(tmp_path / "scores.csv")
    assert finished_seeds(CELLS[0], kept, 2) == 1
    assert score(CELLS[0], kept, 2) is None
    found = score(CELLS[0], kept, 1)
    assert found.area.tolist() == found.final.tolist() == [7.0]
    assert found.curves.shape == (1, BLOCKS)
    assert found.extra["offpolicy/ess"] == 0.5
    grid = grid_of(CELLS[:1], tmp_path, 2, 1)
    assert grid.left == 1
    assert grid.seconds == {("classic/cartpole", 1000): [33.0]}
    for other in (CELLS[0]._replace(flags=(*FLAGS, "--optim.lr", "0.5")), CELLS[0]._replace(first_seed=1)):
        assert finished_seeds(other, kept, 1) == 0


def change_preset(monkeypatch, **settings):
    """From here on the presets have these values, by names with two underscores for the dot."""
    config = Run.config
    values = {name.replace("__", "."): value for name, value in settings.items()}
    monkeypatch.setattr(Run, "config", lambda run: with_settings(config(run), values))


def test_grid_runs_again_what_was_kept_with_other_settings(tmp_path, monkeypatch, capsys):
    run_ = Run(CELLS[0], 0, folder_of(tmp_path, CELLS[0], 0))
    leave(run_.folder, "finished", config=run_.config())
    assert grid_of(CELLS[:1], tmp_path, 1, 1).left == 0
    change_preset(monkeypatch, log__every_seconds=77.0, checkpoint__keep=9)
    assert grid_of(CELLS[:1], tmp_path, 1, 1).left == 0, "these decide nothing"
    before = (tmp_path / "scores.csv").read_text()
    change_preset(monkeypatch, optim__lr=0.5)
    kept = Scores(tmp_path / "scores.csv")
    assert run_.curve(kept) is None
    assert run_.stale(kept)[1] == ["optim.lr"]
    assert finished_seeds(CELLS[0], kept, 1) == 0
    grid = grid_of(CELLS[:1], tmp_path, 1, 1)
    (run_.folder / "old").write_text("of the run of then")
    recorder = Recorder(grid)
    grid.run()
    assert "tiny/a seed 0 is stale and runs again: changed since are optim.lr\n" in capsys.readouterr().out
    assert recorder.words == [("tiny/a seed 0", "train")]
    assert not (run_.folder / "old").exists()
    after = (tmp_path / "scores.csv").read_text()
    assert after.startswith(before), "the row of then is still there"
    assert len(after.splitlines()) == len(before.splitlines()) + 1
    assert grid_of(CELLS[:1], tmp_path, 1, 1).left == 0


def test_scores_of_before_have_no_settings_and_count_as_they_are(tmp_path, monkeypatch):
    for cell in CELLS:
        leave(folder_of(tmp_path, cell, 0), "finished")
    grid_of(CELLS[:1], tmp_path, 1, 1)
    file = tmp_path / "scores.csv"
    lines = [line.rpartition(",")[0] for line in file.read_text().splitlines()]  # as without the column
    file.write_text("".join(f"{line}\n" for line in lines))
    change_preset(monkeypatch, optim__lr=0.5)
    grid_of(CELLS, tmp_path, 1, 1)
    head, old, _ = file.read_text().splitlines()
    assert (head, old) == (f"{lines[0]},settings", lines[1])
    kept = Scores(file)
    assert [finished_seeds(cell, kept, 1) for cell in CELLS] == [1, 1]
    change_preset(monkeypatch, optim__lr=0.25)
    assert [finished_seeds(cell, kept, 1) for cell in CELLS] == [1, 0]
    with file.open("a") as at_end:
        at_end.write(f"{old}\n")  # by an earlier version: shorter than the head
    assert finished_seeds(CELLS[0], Scores(file), 1) == 1


def test_changed_settings_names_them_and_ignores_new_ones_at_their_default():
    config = Run(CELLS[0], 0, Path()).config()
    kept = fingerprint(config)
    assert changed_settings(kept, config) == changed_settings("", config) == []
    assert changed_settings(kept, with_settings(config, {"run.seed": 9, "run.dir": "x"})) == []
    other = with_settings(config, {"optim.lr": 0.5, "env.settings": {"a": 1}})
    assert changed_settings(kept, other) == ["env.settings.a", "optim.lr"]
    assert changed_settings(fingerprint(with_settings(config, {"env.reward_scale": 3.0})), config) == [
        "env.reward_scale"
    ]

    def without(name):
        """The fingerprint of a time in which there was no such setting."""
        parts = scores._parts(config)
        del parts[name]
        return base64.b64encode(b"".join(sorted(parts.values()))).decode()

    assert config.env.reward_scale == Config().env.reward_scale
    assert changed_settings(without("env.reward_scale"), config) == []
    assert config.sampling.envs_per_group != Config().sampling.envs_per_group
    assert changed_settings(without("sampling.envs_per_group"), config) == ["sampling.envs_per_group"]
    constant = with_settings(config, {"optim.schedule": "constant", "stop.env_steps": 7000})
    linear = with_settings(constant, {"optim.schedule": "linear"})
    assert changed_settings(fingerprint(constant), linear) == ["optim.schedule"], "the length is what it was"
    assert changed_settings(fingerprint(linear), with_settings(linear, {"stop.env_steps": 8000})) == ["stop.env_steps"]
    more = base64.b64encode(base64.b64decode(kept) + b"\x00\x00").decode()
    assert changed_settings(more, config) == ["a setting that no longer exists"]


def test_run_whose_flags_are_refused_today_is_stale(tmp_path, monkeypatch):
    leave(folder_of(tmp_path, CELLS[0], 0), "finished")
    grid_of(CELLS[:1], tmp_path, 1, 1)

    def refused(run):
        raise SettingError("no such setting")

    monkeypatch.setattr(Run, "config", refused)
    assert Run(CELLS[0], 0, Path()).stale(Scores(tmp_path / "scores.csv"))[1] == ["no such setting"]


def test_area_is_the_mean_of_the_curve_and_final_that_of_its_last_tenth(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    rows = [{"env_steps": step, "charts/episodic_return": step / 10} for step in range(10, 1001, 10)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    kept = Scores(tmp_path / "scores.csv").add("cell", 0, "target", 1000, ["--a"], folder, 1.0)
    assert kept.area == pytest.approx(50.5)
    assert kept.final == pytest.approx(95.5)


def test_a_kept_curve_is_that_of_a_later_command(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    rows = [{"env_steps": step, "charts/episodic_return": step / 7, "losses/entropy": 1 / 7} for step in (10, 1000)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    kept = Scores(tmp_path / "scores.csv").add("cell", 0, "target", 1000, ["--a"], folder, 1 / 7)
    again = Scores(tmp_path / "scores.csv").find("cell", 0, "target", 1000, ["--a"])
    assert (again.values.tolist(), again.seconds) == (kept.values.tolist(), kept.seconds)
    assert again.extra["losses/entropy"] == kept.extra["losses/entropy"]


SCRIPT = """
import sys
sys.path[:0] = [sys.argv[1], sys.argv[2]]
from pathlib import Path
from types import SimpleNamespace
from grid import run
from test_grid import STOPPED_CELLS
from scores import Scores
out = Path(sys.argv[3])
run(STOPPED_CELLS, Scores(out / "scores.csv"), out, 1, 1)
"""
STOPPED_CELLS = [Cell("tiny/c", "classic/cartpole", FLAGS, 12_000)]


def started(out):
    here = Path(__file__).parent
    benchmarks = here.parents[1] / "benchmarks"
    words = [sys.executable, "-c", SCRIPT, str(benchmarks), str(here), str(out)]
    return subprocess.Popen(words, start_new_session=True)


def wait_for(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_grid_that_was_stopped_or_killed_goes_on_to_the_same_curve(number, tmp_path):
    folder = tmp_path / "stopped" / "tiny/c/0"

    def status():
        try:
            return json.loads((folder / "status.json").read_text())
        except (OSError, ValueError):
            return {}

    process = started(tmp_path / "stopped")
    wait_for(lambda: status().get("env_steps", 0) > 1000)
    os.kill(process.pid, number)
    code = process.wait(60)
    assert code == (Exit.TERMINATED if number == signal.SIGTERM else -signal.SIGKILL)
    wait_for(lambda: status().get("state") not in ("running", None))  # also of an orphan: it saves and ends
    assert status()["state"] != "finished"
    before = status()["env_steps"]
    kept = Scores(tmp_path / "stopped" / "scores.csv")
    assert run(STOPPED_CELLS, kept, tmp_path / "stopped", 1, 1) > 0
    run(STOPPED_CELLS, Scores(tmp_path / "whole" / "scores.csv"), tmp_path / "whole", 1, 1)
    assert status()["state"] == "finished"
    assert (folder / "log.txt").read_text().count("learner: kernels") == 2, "two launches of one run"
    assert 0 < before < 12_000
    whole = curve(tmp_path / "whole" / "tiny/c/0", 12_000)
    assert curve(folder, 12_000).tolist() == whole.tolist()
    shutil.rmtree(tmp_path / "stopped")


def test_curve_leaves_out_rows_whose_number_was_not_finite(tmp_path):
    rows = [{"env_steps": n, "seconds": n, RETURN: value} for n, value in ((1, 2.0), (2, None), (4, 6.0))]
    rows[0]["losses/entropy"], rows[2]["losses/entropy"] = None, 0.5
    (tmp_path / "metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    assert curve(tmp_path, 4)[-1] == 6.0
    assert _late(tmp_path)["losses/entropy"] == 0.5
