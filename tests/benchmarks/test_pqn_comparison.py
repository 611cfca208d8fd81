"""The comparison of PQN with PPO: what is run, and how a curve is read at equal seconds."""

import json
from pathlib import Path

import pytest
from pqn import GAMES, main, pairs, runs, table
from preset_scores import PresetScores, runs_of
from preset_table import PQN, TABLE
from scores import Scores


def test_runs_are_those_of_make_scores_and_take_turns():
    found = runs(GAMES, 2, Path("out"))
    names = [name for game in GAMES for name in (f"minatar/{game}", f"pqn/minatar/{game}")]
    assert [run.cell.target for run in found] == names * 2
    assert set(found) == set(runs_of(TABLE, names, Path("out"), seeds=2))
    for run in found[:2]:
        config = run.config()
        assert config.run.mode == "async"
        assert config.stop.env_steps == PQN
    assert [run.config().algorithm.name for run in found[:2]] == ["actor_critic", "pqn"]


def keep(scores, run, slope, seconds, others="0.01"):
    """A run whose return is `slope` times the share of its steps."""
    run.folder.mkdir(parents=True, exist_ok=True)
    rows = [{"env_steps": x * PQN // 100, "charts/episodic_return": slope * x / 100} for x in range(1, 101)]
    (run.folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    columns = {"cores": "2", "others": others, "evaluation": " ".join(TABLE[run.cell.target].evaluation)}
    return run.keep(scores, seconds, {**columns, "score": str(2 * slope)})


def test_slower_run_is_read_at_the_seconds_of_the_faster_one(tmp_path):
    scores = PresetScores(tmp_path / "scores.csv", TABLE)
    ppo, pqn = runs(["breakout"], 1, tmp_path)
    fast = keep(scores, ppo, 10.0, 100.0)
    assert table(scores, 3)[2:] == [], "one run of the pair is missing"
    slow = keep(scores, pqn, 40.0, 200.0, others="0.9")
    assert slow.at_seconds(100.0) == pytest.approx(18.1, abs=0.1), "between 40 and 50 % of its steps"
    assert fast.at_seconds(100.0) == fast.final
    first, second = table(scores, 3)[2:]
    assert first.startswith("| breakout | PPO | 1 | 20.0 | 9.6 | 5.0 | 100 | 9.6 |")
    assert "| 200 (busy) | 18." in second


def test_seeds_count_up_to_the_first_one_of_which_a_run_is_missing(tmp_path):
    scores = PresetScores(tmp_path / "scores.csv", TABLE)
    of_game = runs(["asterix"], 3, tmp_path)
    for number in (0, 1, 2, 4, 5):  # seed 1 has no run of PQN
        keep(scores, of_game[number], 1.0, 1.0)
    assert len(pairs("asterix", scores, 3)) == 1
    keep(scores, of_game[3], 1.0, 1.0)
    assert len(pairs("asterix", scores, 3)) == 3
    assert "| asterix | PPO | 3 | 2.0 (2.0 to 2.0) | " in table(scores, 3)[2]


def test_report_says_machine_and_days_and_starts_no_run(tmp_path, capsys):
    kept = tmp_path / "scores.csv"
    scores = PresetScores(kept, TABLE)
    for run in runs(["freeway"], 1, tmp_path):
        keep(scores, run, 1.0, 1.0)
    main(["--report", "--scores", str(kept), "--seeds", "1"], tmp_path)
    page = (tmp_path / "pqn_tables.md").read_text()
    assert page in capsys.readouterr().out
    assert f"2 cores of {scores.curves.popitem()[1].row['processor']}" in page
    assert page.count("| freeway | ") == 2
    assert Scores(kept).curves.keys() == PresetScores(kept, TABLE).curves.keys()
