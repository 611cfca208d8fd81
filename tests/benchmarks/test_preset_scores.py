"""Scores of the presets: what is trained, evaluated, kept and run again, and the pages that are written of it."""

import functools
import json
import re
import shutil
import signal
import subprocess
import sys
import tomllib
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import preset_page
import preset_scores
import pytest
from preset_page import interval, median, number, outputs
from preset_scores import OtherWork, PresetGrid, PresetScores, cell_of, main, measured, runs_of
from preset_table import AGAINST_RANDOM, SAMPLED, TABLE, Published, Row, by_cost
from scores import BLOCKS, commit, commit_of
from test_grid import Finished, change_preset, leave

from sfactory import api
from sfactory.config import presets, to_dict
from sfactory.config.flags import split_flags
from sfactory.config.parsing import build
from sfactory.config.scores import read_scores
from sfactory.run.checkpoint import candidates

ROOT = Path(__file__).parents[2]
SMALL = (
    "--sampling.envs-per-group", "4", "--sampling.rollout-length", "16", "--batch.minibatches", "2",
    "--batch.epochs", "1", "--optim.schedule", "constant", "--log.every-seconds", "0.1",
    "--env.settings.max-episode-steps", "20",
)  # fmt: skip
FEW = ("--episodes", "3", "--seed", "7")
OURS = {
    "classic/cartpole": Row(500, 1.0, 2, (Published("9", "v0", "Paper"),), FEW, SMALL),
    "classic/acrobot": Row(800, 4.0, seeds=1, evaluation=FEW),
    "minatar/breakout": Row(600, 0.5, seeds=1, evaluation=FEW),
}


ONCE = functools.cache(commit)


@pytest.fixture(autouse=True)
def commit_once(monkeypatch):
    """Ask git once which commit runs, and not for every run that is kept."""
    monkeypatch.setattr("scores.commit", ONCE)


# -- the table


def test_table_has_a_row_for_every_preset_and_for_the_tasks_of_families_that_have_some():
    names = {preset.name for preset in presets.presets()}
    assert names <= set(TABLE), "add a row to benchmarks/preset_table.py"
    others = {"atari/*", "envpool/*", "gymnasium/*", "minatar/*", "pettingzoo/*"}  # settings of any environment
    tasks = {f"{name.partition('/')[0]}/*" for name in set(TABLE) - names}
    assert {preset.name for preset in presets.family_defaults()} == others | tasks
    assert by_cost(TABLE)[0] == "classic/cartpole"
    assert by_cost(TABLE)[-1] == "atari/pong"


@pytest.mark.parametrize("name", TABLE)
def test_row_trains_the_preset_as_typed(name):
    row = TABLE[name]
    (run,) = runs_of(TABLE, [name], Path("out"), seeds=1)
    assert bool(row.changes) == (name == "procgen/coinrun"), "all others as typed"
    preset = build(*presets.target_layers(name), split_flags(row.changes)[0])
    typed, ours = (to_dict(one) for one in (preset, run.config()))
    assert ours["run"]["mode"] == "async"
    assert ours["stop"]["env_steps"] == row.steps <= typed["stop"]["env_steps"]
    typed["stop"] |= {"env_steps": row.steps}
    typed["log"] |= {"every_seconds": ours["log"]["every_seconds"]}  # makes the curve finer, changes no training
    assert ours == typed
    assert row.seeds == (5 if "minatar" in name else 3)
    assert row.evaluation == (AGAINST_RANDOM if name.startswith("selfplay/") else SAMPLED)
    assert all("](https://" in one.source for one in row.published)


# -- runs and evaluations, with processes that only leave files


class Launcher:
    """Runs nothing: a training leaves a finished run, an evaluation prints its result. codes: exit codes by name."""

    def __init__(self, codes=None):
        self.words, self.codes, self.steps_off = [], codes or {}, 0

    def submit(self, command, resources):
        words = command.arguments[3:]
        self.words.append((command.name, words))
        code = self.codes.pop(command.name, 0)
        if words[0] == "eval":
            steps = json.loads((Path(words[1]) / "status.json").read_text())["env_steps"] + self.steps_off
            names = ("score", "score_low", "score_high") if "--against" in words else ("mean", "mean_low", "mean_high")
            scores = dict(zip(names, (8.0, 6.0, 9.0), strict=True))
            result = {"env_steps": steps, "episodes": 3, "protocol": "v9", **scores}
            result |= {"opponent": "random"} if "--against" in words else {}
            return Finished(code, command.output, f"a warning\n{json.dumps(result)}\nsfactory: evaluated (exit 0): x\n")
        if words[0] == "resume":
            folder, steps = Path(words[1]), 504
        else:
            folder = Path(words[words.index("--run.dir") + 1])
            steps = int(words[words.index("--stop.env-steps") + 1]) + 4  # of the last batch too
        leave(folder, "finished" if code == 0 else "lost", seconds=5.0, steps=steps)
        return Finished(code, command.output, "sfactory: done\n")


def grid_of(tmp_path, table=OURS, launcher=None, names=None):
    scores = PresetScores(tmp_path / "scores.csv", table)
    grid = PresetGrid(runs_of(table, names or by_cost(table), tmp_path), scores)
    grid.launcher = launcher or Launcher()
    return grid


def named(launcher):
    return [(name, words[0]) for name, words in launcher.words]


def test_preset_grid_runs_the_cheapest_first_evaluates_each_run_at_once_and_keeps_both(tmp_path, capsys):
    grid = grid_of(tmp_path)
    assert grid._time_left() == "; 4 left, about 6 min 30 s", "0.5 + 1 + 1 + 4 minutes"
    grid.run()
    runs = ["minatar/breakout seed 0", "classic/cartpole seed 0", "classic/cartpole seed 1", "classic/acrobot seed 0"]
    assert named(grid.launcher) == [
        pair for run in runs for pair in ((f"scores/{run}", "train"), (f"evaluation of scores/{run}", "eval"))
    ]
    folder = str(tmp_path / "scores/minatar/breakout/0")
    assert grid.launcher.words[1][1] == ["eval", folder, *FEW, "--json"]
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].startswith("[1/4] scores/minatar/breakout seed 0  5 s, score 8; 3 left, about ")
    assert lines[-1] == "[4/4] scores/classic/acrobot seed 0  5 s, score 8"
    found = measured(OURS, PresetScores(tmp_path / "scores.csv", OURS))
    assert {name: len(curves) for name, curves in found.items()} == {
        "classic/cartpole": 2, "classic/acrobot": 1, "minatar/breakout": 1,
    }  # fmt: skip
    (kept,) = found["minatar/breakout"]
    expected = {
        "evaluation": "--episodes 3 --seed 7", "evaluated_steps": "604", "episodes": "3", "protocol": "v9",
        "score": "8", "score_low": "6", "score_high": "9",
    }  # fmt: skip
    assert {name: kept.row[name] for name in expected} == expected
    assert kept.final == 7.0
    assert float(kept.row["others"]) >= 0
    assert int(kept.row["cores"]) >= 1


def test_preset_grid_does_not_run_again_what_is_kept(tmp_path, capsys):
    grid_of(tmp_path).run()
    shutil.rmtree(tmp_path / "scores")
    before = (tmp_path / "scores.csv").read_text()
    again = grid_of(tmp_path)
    again.run()
    assert again.launcher.words == []
    assert "4 runs, 4 finished before" in capsys.readouterr().out
    assert (tmp_path / "scores.csv").read_text() == before


def test_preset_grid_only_evaluates_a_run_whose_evaluation_is_missing(tmp_path):
    launcher = Launcher({"evaluation of scores/classic/cartpole seed 1": 143})
    first = grid_of(tmp_path, launcher=launcher, names=["classic/cartpole"])
    first.run()
    assert first.left == 1, "a run without an evaluation is not kept"
    trained = tmp_path / "scores/classic/cartpole/1.trained.json"
    assert json.loads(trained.read_text())["continued"] is False
    trained.write_text(json.dumps({"seconds": 77.0, "others": 0.5, "continued": False}))
    again = grid_of(tmp_path, names=["classic/cartpole"])
    again.run()
    assert named(again.launcher) == [("evaluation of scores/classic/cartpole seed 1", "eval")]
    kept = measured(OURS, again.scores)["classic/cartpole"][1]
    assert kept.seconds == 77.0, "of the process that trained it"
    assert (kept.row["others"], kept.row["continued"]) == ("0.50", "no")


def test_preset_grid_marks_runs_whose_seconds_are_not_of_one_command(tmp_path):
    for seed, state in enumerate(("killed", "finished")):  # one has a checkpoint, one was finished by an orphan
        config = runs_of(OURS, ["classic/cartpole"], tmp_path)[seed].config()
        leave(tmp_path / f"scores/classic/cartpole/{seed}", state, steps=504, checkpoint=True, config=config)
    grid = grid_of(tmp_path, names=["classic/cartpole"])
    grid.run()
    name = "scores/classic/cartpole seed"
    assert named(grid.launcher) == [
        (f"evaluation of {name} 1", "eval"), (f"{name} 0", "resume"), (f"evaluation of {name} 0", "eval")
    ]  # fmt: skip
    first, second = measured(OURS, grid.scores)["classic/cartpole"]
    assert first.row["continued"] == second.row["continued"] == "yes"
    assert first.row["others"]
    assert second.row["others"] == ""


def test_preset_grid_tells_failures_at_the_end_and_runs_the_others(tmp_path):
    launcher = Launcher({"scores/minatar/breakout seed 0": 7, "evaluation of scores/classic/cartpole seed 0": 5})
    grid = grid_of(tmp_path, launcher=launcher)
    with pytest.raises(SystemExit) as ended:
        grid.run()
    assert str(ended.value).splitlines() == [
        "scores/minatar/breakout seed 0: done",
        "evaluation of scores/classic/cartpole seed 0: evaluated (exit 0): x",
    ]
    assert grid.left == 2


def test_preset_grid_keeps_no_evaluation_of_another_checkpoint_than_the_last_and_goes_on(tmp_path):
    grid = grid_of(tmp_path)
    grid.launcher.steps_off = -100
    with pytest.raises(SystemExit) as ended:
        grid.run()
    folder = tmp_path / "scores/minatar/breakout/0"
    lines = str(ended.value).splitlines()
    assert lines[0] == (
        "evaluation of scores/minatar/breakout seed 0: the checkpoint is of 504 steps, the run has 604; "
        f"delete {folder} to train it again"
    )
    assert len(lines) == 4, "the other runs too"
    assert not (tmp_path / "scores.csv").exists()


def test_kept_run_counts_only_for_the_evaluation_of_the_table(tmp_path):
    grid_of(tmp_path, names=["classic/acrobot"]).run()
    other = OURS | {"classic/acrobot": OURS["classic/acrobot"]._replace(evaluation=("--episodes", "9"))}
    assert measured(other, PresetScores(tmp_path / "scores.csv", other)) == {}
    again = grid_of(tmp_path, other, names=["classic/acrobot"])
    again.run()
    assert named(again.launcher) == [("evaluation of scores/classic/acrobot seed 0", "eval")], "its folder is there"
    assert len(measured(other, PresetScores(tmp_path / "scores.csv", other))["classic/acrobot"]) == 1


def test_preset_that_changed_is_stale_in_the_table_and_runs_again(root, monkeypatch):
    names, folder = ["classic/acrobot"], root / "scores/classic/acrobot/0"
    (run,) = runs_of(OURS, names, root)
    leave(folder, "finished", steps=804, config=run.config())
    grid_of(root, names=names).run()
    change_preset(monkeypatch, optim__lr=0.5)
    kept = PresetScores(root / "scores.csv", OURS)
    assert measured(OURS, kept) == {}
    old = preset_scores.stale(OURS, kept)
    assert (list(old), old["classic/acrobot"].changed) == (names, ["optim.lr"])
    files = outputs(OURS, {}, root, old)
    assert "| [classic/acrobot](#classicacrobot) | 800 | 0 of 1 | stale: 8.00 |" in files["docs/scores.md"]
    section = files["docs/scores.md"].partition("## classic/acrobot\n")[2].partition("\n## ")[0]
    assert "Stale: changed since this was measured (" in section
    assert "): optim.lr. Evaluation then: 8.00." in section
    assert tomllib.loads(files["configs/scores.toml"]) == {}, "sfactory presets shows no score of other settings"
    again = grid_of(root, names=names)
    again.run()
    assert named(again.launcher) == [
        ("scores/classic/acrobot seed 0", "train"), ("evaluation of scores/classic/acrobot seed 0", "eval")
    ]  # fmt: skip
    assert list(measured(OURS, again.scores)) == names
    assert preset_scores.stale(OURS, again.scores) == {}


def test_main_writes_what_is_stale(root, monkeypatch):
    words = ["--scores", str(root / "scores.csv"), "--out", str(root / "runs"), "--report"]
    grid_of(root, names=["classic/acrobot"]).run()
    change_preset(monkeypatch, optim__lr=0.5)
    main(words, OURS, root)
    assert "| stale: 8.00 |" in (root / "docs/scores.md").read_text()
    assert "| stale: 8.00 |" in preset_scores.files(root / "scores.csv", OURS)["docs/scores.md"]


def test_preset_grid_keeps_the_score_of_a_match_and_the_curve_of_elo(tmp_path):
    table = {"classic/acrobot": OURS["classic/acrobot"]._replace(evaluation=AGAINST_RANDOM, metric="selfplay/elo")}
    folder = tmp_path / "scores/classic/acrobot/0"
    leave(folder, "finished", steps=800)
    rows = [{"env_steps": at, "charts/episodic_return": 0.0, "selfplay/elo": 1000.0 + at} for at in (400, 800)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    grid_of(tmp_path, table).run()
    found = measured(table, PresetScores(tmp_path / "scores.csv", table))
    (kept,) = found["classic/acrobot"]
    assert kept.row["score"] == "8"
    assert kept.values[0] == 1400.0
    assert kept.values[-1] == pytest.approx(1784.0)
    page = preset_page.page(table, found)
    assert "3 episodes against random play: 8.00" in page
    assert "training, last tenth" not in page, "an Elo rating is no return"


def test_expected_time_follows_how_much_finished_runs_differed_from_their_rough_cost(tmp_path):
    grid = grid_of(tmp_path)
    grid._count(grid.processes.queue[0], 60.0)  # breakout: 30 s by the table
    grid._count(grid.processes.queue[1], 120.0)  # a seed of CartPole: 60 s
    del grid.processes.queue[:2]
    assert grid._time_left() == "; 2 left, about 10 min 00 s", "2 minutes, and 4 minutes times 2"


def test_other_work_is_what_is_busy_without_our_own_processes(monkeypatch):
    busy, own, clock = iter([100.0, 130.0]), iter([10.0, 28.0]), iter([0.0, 20.0])
    monkeypatch.setattr(preset_scores, "_busy_seconds", lambda: next(busy))
    monkeypatch.setattr(preset_scores, "_own_seconds", lambda: next(own))
    monkeypatch.setattr(preset_scores.time, "monotonic", lambda: next(clock))
    assert OtherWork().cores() == pytest.approx(0.6)


def test_own_seconds_include_children_of_children_that_ended():
    before, busy = preset_scores._own_seconds(), preset_scores._busy_seconds()
    spin = "import time\nwhile time.process_time() < 0.5: pass"
    subprocess.run([sys.executable, "-c", f"import subprocess, sys; subprocess.run([sys.executable, '-c', {spin!r}])"])
    assert preset_scores._own_seconds() - before >= 0.5
    assert preset_scores._busy_seconds() - busy >= 0.4


def test_commit_of_a_run_is_the_one_that_trained_it_last(tmp_path):
    assert commit_of(tmp_path) == commit()  # no provenance
    launches = [{"git": {"commit": name * 40}} for name in ("a", "b")]
    (tmp_path / "provenance.json").write_text(json.dumps({"launches": launches}))
    assert commit_of(tmp_path) == "bbbbbbb"
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout.strip()
    (tmp_path / "provenance.json").write_text(json.dumps({"launches": [{"git": {"commit": head}}]}))
    assert commit_of(tmp_path) == commit()


def test_commit_names_the_commit_and_no_change_of_results():
    assert (
        commit().rstrip("+")
        == subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True
        ).stdout.strip()
    )


# -- the command


@pytest.fixture
def root(tmp_path):
    """A folder for the pages, with the gallery, whose other text is kept."""
    (tmp_path / "docs").mkdir()
    shutil.copy(ROOT / "docs/gallery.md", tmp_path / "docs/gallery.md")
    return tmp_path


def test_main_leaves_out_long_runs_and_refuses_a_name_that_no_preset_has(root, capsys, monkeypatch):
    words = ["--scores", str(root / "scores.csv"), "--out", str(root / "runs")]
    monkeypatch.setattr(PresetGrid, "run", lambda grid: print([run.name for run in grid.processes.queue]))
    main([*words, "--hours", "0.02", "--seeds", "1"], OURS, root)
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == [
        "left out, one run takes more than 0.02 hours: classic/acrobot",
        "['scores/minatar/breakout seed 0', 'scores/classic/cartpole seed 0']",
    ]
    main([*words, "--only", "classic/"], OURS, root)
    shown = capsys.readouterr().out.splitlines()[0]
    assert "breakout" not in shown
    assert shown.count("cartpole") == 2
    with pytest.raises(SystemExit) as refused:
        main([*words, "--only", "atari/"], OURS, root)
    assert refused.value.code == 2
    assert "no preset begins with this" in capsys.readouterr().err


def test_main_writes_the_pages_of_what_is_kept_also_after_a_signal(root, monkeypatch):
    def run(grid):
        grid.launcher = Launcher()
        del grid.processes.queue[1:]
        grid.processes.run()
        raise SystemExit(int(signal.SIGINT))

    monkeypatch.setattr(PresetGrid, "run", run)
    with pytest.raises(SystemExit):
        main(["--scores", str(root / "scores.csv"), "--out", str(root / "runs")], OURS, root)
    assert "| 8.00 |  | 7.00 |" in (root / "docs/scores.md").read_text()


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_main_trains_cartpole_evaluates_its_final_checkpoint_and_runs_it_once(root, capsys):
    table = {"classic/cartpole": OURS["classic/cartpole"]._replace(seeds=1)}
    words = ["--scores", str(root / "scores.csv"), "--out", str(root / "runs")]
    main(words, table, root)
    first = capsys.readouterr().out
    assert "[1/1] scores/classic/cartpole seed 0" in first
    (run,) = (root / "runs/scores/classic").rglob("config.toml")
    newest = max(candidates(run.parent), key=lambda path: int(path.name))
    (kept,) = measured(table, PresetScores(root / "scores.csv", table))["classic/cartpole"]
    assert int(kept.row["evaluated_steps"]) == int(newest.name) >= 500
    again = api.evaluate(newest, episodes=3, seed=7)
    assert float(kept.row["score"]) == pytest.approx(np.mean(again.returns), abs=0.01)
    assert kept.row["episodes"] == "3"
    assert np.isfinite(kept.values).all()
    shutil.rmtree(root / "runs")
    main(words, table, root)
    assert "1 runs, 1 finished before\n" in capsys.readouterr().out
    assert not (root / "runs").exists()
    scores = read_scores(root / "configs/scores.toml")
    assert scores["classic/cartpole"].score == pytest.approx(float(kept.row["score"]), abs=1e-3)
    assert scores["classic/cartpole"].seconds == pytest.approx(kept.seconds, abs=0.1)


# -- pages


def kept_runs(tmp_path, name, values, others="0.00", date="2026-12-01", continued=(), table=OURS):
    """Runs of a preset, one per value: its return rises to the value, its evaluation has it; 10 s, 11 s and so on.

    continued: seeds of those that were interrupted.
    """
    scores, row = PresetScores(tmp_path / "scores.csv", table), table[name]
    for seed, value in enumerate(values):
        folder = tmp_path / f"{name}/{seed}"
        folder.mkdir(parents=True)
        rows = [{"env_steps": row.steps * x // 20, "charts/episodic_return": value * x / 20} for x in range(1, 21)]
        rows = [one for one in rows if np.isfinite(value)]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
        columns = {
            "cores": "2", "others": others, "continued": "yes" if seed in continued else "no",
            "evaluation": " ".join(row.evaluation), "evaluated_steps": str(row.steps),
            "episodes": "3", "protocol": "v9", "score": str(value), "score_low": "0", "score_high": "9",
        }  # fmt: skip
        run = runs_of(table, [name], tmp_path)[seed]
        scores.add(cell_of(name, row).name, seed, name, row.steps, run.flags, folder, 10.0 + seed,
                   columns | {"processor": "Chip 9", "commit": "abc1234", "date": date})  # fmt: skip


def test_page_has_score_interval_seeds_steps_time_machine_date_commit_and_published(root):
    kept_runs(root, "classic/cartpole", [10.0, 20.0])
    found = measured(OURS, PresetScores(root / "scores.csv", OURS))
    page = outputs(OURS, found, root)["docs/scores.md"]
    low, high = (number(x) for x in interval(np.array([10.0, 20.0]))[1:])
    row = next(line for line in page.splitlines() if line.startswith("| [classic/cartpole]"))
    assert row.split(" | ")[1:5] == ["500", "2", f"15.0 ({low} to {high})", "15.0"]
    assert row.split(" | ")[6:] == ["10 s", "9 (v0) |"]
    section = page.partition("## classic/cartpole\n")[2].partition("\n## ")[0]
    for text in (
        "pictures/scores/classic-cartpole.svg", "3 episodes: 15.0", "each seed: 10.0, 20.0", "--stop.env-steps 500`",
        "500 steps, 2 seeds, 10 s a run", "2 cores of Chip 9, 2026-12-01, commit abc1234", "published: 9 (v0); Paper",
        "`sfactory eval RUN --episodes 3 --seed 7`", "protocol: v9",
    ):  # fmt: skip
        assert text in section
    assert "| [classic/acrobot](#classicacrobot) | 800 | 0 of 1 | not measured |" in page
    assert "Not measured: no run is finished. On two cores one may take about 4 minutes." in page


def test_median_is_that_of_all_seeds_and_empty_where_there_is_none():
    assert median(np.array([5.5, 6.6, 56.7, 6.2, 68.2])) == "6.60"
    assert median(np.array([5.5])) == ""
    assert median(np.array([5.5, np.nan, 1.0])) == ""


def test_page_marks_times_beside_other_work_and_incomplete_seeds(root):
    kept_runs(root, "classic/cartpole", [10.0], others="1.25")
    kept_runs(root, "classic/acrobot", [-5.0], others="")
    page = outputs(OURS, measured(OURS, PresetScores(root / "scores.csv", OURS)), root)["docs/scores.md"]
    assert "| 1 of 2 | 10.0 |" in page
    assert "- 500 steps, 1 of 2 seeds, 10 s a run" in page
    assert "| 10 s, busy |" in page
    assert "10 s a run; other programs used up to 1.2 cores meanwhile" in page
    assert re.search(r"\| -5\.00 \|  \| -4\.7[78] \| 10 s \|", page), "no mark where it is not known"
    assert "whether other programs ran is not known of every run" in page


def test_page_leaves_interrupted_runs_out_of_the_time(root):
    kept_runs(root, "classic/cartpole", [10.0, 20.0], continued=[0])
    kept_runs(root, "classic/acrobot", [-5.0], continued=[0])
    files = outputs(OURS, measured(OURS, PresetScores(root / "scores.csv", OURS)), root)
    assert "2 seeds, 11 s a run; 1 run interrupted and continued, not counted in the time" in files["docs/scores.md"]
    assert (
        "1 seed, 10 s a run; 1 run interrupted and continued, the time is of training alone" in files["docs/scores.md"]
    )
    assert "seconds = 11.0" in files["configs/scores.toml"]


def test_flags_that_change_the_training_are_shown_with_the_curve_and_every_score(root):
    changed = OURS["classic/acrobot"]._replace(changes=("--optim.lr", "0.01"))
    table = OURS | {"classic/acrobot": changed}
    (run,) = runs_of(table, ["classic/acrobot"], root)
    assert run.config().optim.lr == 0.01
    kept_runs(root, "classic/acrobot", [7.0], table=table)
    files = outputs(table, measured(table, PresetScores(root / "scores.csv", table)), root)
    page = files["docs/scores.md"]
    assert "| [classic/acrobot](#classicacrobot) with `--optim.lr 0.01` | 800 |" in page
    assert "`sfactory train classic/acrobot --optim.lr 0.01 --stop.env-steps 800`" in page
    assert ">classic/acrobot, --optim.lr 0.01</text>" in files["docs/pictures/scores/classic-acrobot.svg"]
    (score,) = tomllib.loads(files["configs/scores.toml"]).values()
    assert score["what"] == "mean return in 3 episodes (with --optim.lr 0.01)"


def test_page_without_complete_episodes_has_no_picture(root):
    kept_runs(root, "classic/acrobot", [float("nan")])
    files = outputs(OURS, measured(OURS, PresetScores(root / "scores.csv", OURS)), root)
    assert "no complete episode" in files["docs/scores.md"]
    assert not [name for name in files if name.endswith(".svg")]


def test_write_deletes_pictures_of_presets_without_runs_and_keeps_the_rest_of_the_gallery(root):
    kept_runs(root, "minatar/breakout", [3.0])
    found = measured(OURS, PresetScores(root / "scores.csv", OURS))
    before = (root / "docs/gallery.md").read_text()
    preset_page.write(OURS, found, root)
    (root / "docs/pictures/scores/gone-game.svg").write_text("<svg/>")
    preset_page.write(OURS, found, root)
    assert [path.name for path in (root / "docs/pictures/scores").iterdir()] == ["minatar-breakout.svg"]
    gallery = (root / "docs/gallery.md").read_text()
    assert "](pictures/scores/minatar-breakout.svg)](scores.md#minatarbreakout)" in gallery
    assert gallery.partition("<!-- end -->")[2] == before.partition("<!-- end -->")[2]
    preset_page.write(OURS, {}, root)
    assert "No curve of a preset is recorded yet" in (root / "docs/gallery.md").read_text()


def test_picture_is_a_drawing_of_400_pixels_with_a_band_and_colors_for_light_and_dark(root):
    kept_runs(root, "classic/cartpole", [10.0, 20.0])
    runs = measured(OURS, PresetScores(root / "scores.csv", OURS))["classic/cartpole"]
    text = preset_page.picture("classic/cartpole", OURS["classic/cartpole"], runs)
    drawing = ET.fromstring(text)
    assert drawing.tag == "{http://www.w3.org/2000/svg}svg"
    assert drawing.get("width") == "400"
    assert "prefers-color-scheme:dark" in text
    assert 'class="back"' in text
    shown = [element.text for element in drawing.iter("{http://www.w3.org/2000/svg}text")]
    assert shown[:2] == ["classic/cartpole", "training return, 2 seeds"]
    assert 'class="c0 band"' in text
    one = preset_page.picture("classic/cartpole", OURS["classic/cartpole"], runs[:1])
    assert "band" not in one.partition("</style>")[2]
    assert "training return, 1 seed<" in one
    widest = 6.8 * max(map(len, TABLE)) + 6.2 * len("training return, 5 seeds")  # pixels of a letter, at most
    assert widest < 400 - 20, "the two texts above the picture would overlap"


def test_scores_file_has_what_presets_shows(root):
    kept_runs(root, "classic/cartpole", [10.0, 20.0], others="0.5", date="2026-12-03")
    preset_page.write(OURS, measured(OURS, PresetScores(root / "scores.csv", OURS)), root)
    scores = read_scores(root / "configs/scores.toml")
    assert set(scores) == {"classic/cartpole"}
    found = scores["classic/cartpole"]
    assert (found.score, found.seeds, found.steps, found.seconds) == (15.0, 2, 500, 10.5)
    assert found.low <= 15.0 <= found.high
    assert (found.machine, found.busy, found.date) == ("2 cores of Chip 9", True, "2026-12-03")
    assert found.what == "mean return in 3 episodes"


def test_committed_pictures_and_scores_are_those_of_the_committed_runs():
    files = preset_scores.files()
    for name, text in files.items():
        assert (ROOT / name).read_text() == text, f"{name}: run python benchmarks/preset_scores.py --report"
    committed = {f"docs/pictures/scores/{path.name}" for path in (ROOT / "docs/pictures/scores").glob("*.svg")}
    assert committed == {name for name in files if name.endswith(".svg")}


def test_curves_of_kept_runs_have_all_parts(root):
    kept_runs(root, "classic/cartpole", [10.0])
    (kept,) = measured(OURS, PresetScores(root / "scores.csv", OURS))["classic/cartpole"]
    assert len(kept.values) == BLOCKS
