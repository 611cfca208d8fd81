"""episodes.csv of whole runs: an exact resume continues it as if nothing had happened; a metric counts its lines."""

import csv

import pytest
from builders import trained

import sfactory
from sfactory.monitor.rows import read_rows

pytestmark = pytest.mark.usefixtures("forked")

TASK = {"env": {"settings": {"length": 3}}, "log": {"episodes": True, "every_updates": 2}}


def lines(run_dir):
    """All lines, without their seconds."""
    with open(run_dir / "episodes.csv", newline="") as file:
        return [{name: value for name, value in line.items() if name != "seconds"} for line in csv.DictReader(file)]


def test_an_exact_resume_continues_episodes_csv_without_lost_or_repeated_lines(tmp_path):
    whole = trained(tmp_path / "whole", "memory/tmaze", **TASK, stop={"env_steps": 1200})
    parts = trained(tmp_path / "parts", "memory/tmaze", **TASK, stop={"env_steps": 600})
    first = lines(parts)
    assert sfactory.resume(parts, stop={"env_steps": 1200}).code == 0
    assert lines(parts) == lines(whole)
    assert 0 < len(first) < len(lines(whole))
    assert [int(line["episode"]) for line in lines(whole)] == [*range(1, len(lines(whole)) + 1)]


def test_a_row_of_metrics_counts_lines_of_episodes_csv(tmp_path):
    run = trained(tmp_path / "run", "memory/tmaze", **TASK)
    found, rows = lines(run), read_rows(run)
    for row in rows:
        counted = found[: int(row["charts/games"])]
        assert len(counted) == row["charts/games"]
        assert all(int(line["env_steps"]) <= row["env_steps"] for line in counted)
        last = [float(line["return"]) for line in counted[-100:]]
        assert row["charts/episodic_return_max"] == max(last)
    assert rows
