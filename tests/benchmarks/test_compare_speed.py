"""`benchmarks/compare_speed.py`: what is measured in which order, and the table."""

from pathlib import Path

import compare_speed
import pytest

INSTALLED = {"old": Path("/old"), "new": Path("/new")}


def test_compare_speed_in_turn_alternates_which_commit_is_first():
    order = []

    def measure(at, number):
        order.append(at.name)
        return {"steps/s": 10.0 * number + len(order), "memory, MB": 1.0}

    found = compare_speed.in_turn(3, measure, INSTALLED)
    assert order == ["old", "new", "new", "old", "old", "new"]
    assert found == {"steps/s": [(1.0, 2.0), (14.0, 13.0), (25.0, 26.0)], "memory, MB": [(1.0, 1.0)] * 3}


def test_compare_speed_table_row_has_medians_and_the_spread_of_the_ratio():
    row = compare_speed.table_row("breakout", "steps/s", [(100.0, 200.0), (50.0, 150.0), (120.0, 180.0)])
    assert row == "| breakout | steps/s | 100 | 180 | 1.80 (1.50 to 3.00) | 100 50 120; 200 150 180 |"


def test_compare_speed_run_figures_names_the_reason_of_a_failure(tmp_path):
    here = Path(compare_speed.__file__).parents[1]
    with pytest.raises(compare_speed.BenchFailed, match=r"exit 2: .*no-such: no such setting"):
        compare_speed.run_figures(here, ("minatar/breakout", "--no-such", "1"), 1.0, tmp_path)
