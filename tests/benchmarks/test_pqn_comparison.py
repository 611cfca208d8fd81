"""The comparison of PQN with PPO: what is run, and how a curve is read at equal seconds."""

import json

import pytest
from grid import Run
from pqn import GAMES, STEPS, cells, table
from scores import Scores


def test_cells_are_the_presets_as_typed():
    for (_, name), cell in cells().items():
        config = Run(cell, 0, None).config()
        assert config.run.mode == "async"
        assert config.stop.env_steps == STEPS
        assert config.algorithm.name == {"ppo": "actor_critic", "pqn": "pqn"}[name]
    assert {game for game, _ in cells()} == set(GAMES)


def kept_line(scores, cell, folder, slope, seconds):
    """A run whose return is `slope` times the share of its steps."""
    run = Run(cell, 0, folder)
    folder.mkdir(exist_ok=True)
    rows = [{"env_steps": x * STEPS // 100, "charts/episodic_return": slope * x / 100} for x in range(1, 101)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return run.keep(scores, seconds)


def test_slower_run_is_read_at_the_seconds_of_the_faster_one(tmp_path):
    scores, both = Scores(tmp_path / "scores.csv"), cells()
    fast = kept_line(scores, both["breakout", "ppo"], tmp_path / "a", 10.0, 100.0)
    slow = kept_line(scores, both["breakout", "pqn"], tmp_path / "b", 40.0, 200.0)
    assert slow.at_seconds(100.0) == pytest.approx(18.1, abs=0.1), "between 40 and 50 % of its steps"
    assert fast.at_seconds(100.0) == fast.final
    first, second = table(scores, 1)[2:]
    assert first.startswith("| breakout | PPO preset | 1 | 9.6 (9.6 to 9.6) | 5.0 (5.0 to 5.0) | 100 | ")
    assert "| 200 | 18." in second
