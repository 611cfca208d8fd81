"""Board, table of metrics, console line, lag and bottleneck."""

import math
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sfactory.config import Stop
from sfactory.monitor.board import Board
from sfactory.monitor.bottleneck import bottleneck, bound
from sfactory.monitor.episodes import Episodes
from sfactory.monitor.format import console_line, duration, human
from sfactory.monitor.lag import lag_row, percentile
from sfactory.monitor.table import METRICS, meaning


def test_every_metric_of_the_table_has_a_meaning_in_one_line():
    assert all(metric.meaning and "\n" not in metric.meaning for metric in METRICS.values())
    assert {name.split("/")[0] for name in METRICS} == {
        "charts", "info", "losses", "lag", "offpolicy", "proximal", "queue", "ledger", "system", "faults", "eval",
        "stage", "selfplay", "replay", "ppg", "pqn",
    }  # fmt: skip


@pytest.mark.parametrize(
    "message",
    [
        ("learner", "learner", {"losses/polcy_loss": 1.0}),
        ("stages", "sampler-0", {"env_stp": 1.0}),
        ("stages", "smpler-0", {"env_step": 1.0}),
        ("epsodes", "sampler-0", [(1.0, 1)]),
    ],
)
def test_board_rejects_an_unknown_metric_stage_worker_or_message_kind(message):
    with pytest.raises(KeyError):
        Board().handle(message)


def test_meaning_of_a_metric_per_worker_is_the_entry_with_the_placeholder():
    assert meaning("lag/mean/sampler-12") == METRICS["lag/mean/<worker>"].meaning
    with pytest.raises(KeyError):
        meaning("lag/seconds/sampler-12")


def test_training_return_is_the_mean_of_the_last_hundred_episodes():
    board = Board()
    assert board.episodes.training_return is None
    assert "charts/episodic_return" not in board.snapshot(1, 1, 1, 1.0)
    board.handle(("episodes", "sampler-0", [(1000.0, 5, 0)] * 50))
    assert board.episodes.training_return == 1000.0
    board.handle(("episodes", "sampler-1", [(float(i), 2 * i, 0) for i in range(100)]))
    assert board.episodes.training_return == pytest.approx(49.5)
    assert board.episodes.count == 150
    row = board.snapshot(10, 10, 1, 2.0)
    assert row["charts/episodic_return"] == pytest.approx(49.5)
    assert row["charts/episodic_length"] == pytest.approx(99.0)
    assert row["charts/games"] == 150


def test_sps_and_fps_are_of_the_time_since_the_previous_row():
    board = Board()
    assert board.snapshot(1000, 4000, 1, 10.0)["charts/SPS"] == pytest.approx(100.0)
    row = board.snapshot(3000, 12000, 5, 12.0)
    assert row["charts/SPS"] == pytest.approx(1000.0)
    assert row["charts/FPS"] == pytest.approx(4000.0)
    assert board.snapshot(3000, 12000, 5, 12.0)["charts/SPS"] == pytest.approx(1000.0)  # no time passed
    assert board.snapshot(3000, 12000, 5, 13.0)["charts/SPS"] == 0.0


def test_sps_of_a_resumed_run_leaves_out_earlier_launches():
    assert Board(1000, 10.0).snapshot(1500, 1500, 7, 11.0)["charts/SPS"] == pytest.approx(500.0)


def test_stage_shares_are_over_all_workers_of_a_kind_and_since_the_previous_row():
    board = Board()
    board.handle(("stages", "sampler-0", {"wait": 1.0, "env_step": 3.0}))
    board.handle(("stages", "sampler-1", {"wait": 2.0, "write": 2.0}))
    board.handle(("stages", "learner", {"wait": 9.0, "update": 1.0}))
    row = board.snapshot(1, 1, 1, 1.0)
    assert row["stage/sampler/wait"] == pytest.approx(3 / 8)
    assert row["stage/sampler/env_step"] == pytest.approx(3 / 8)
    assert row["stage/learner/update"] == pytest.approx(0.1)
    assert row["stage/learner/publish"] == 0.0  # not missing: a mean over rows needs it
    assert bottleneck(row) == "sampler"
    assert not [name for name in board.snapshot(2, 2, 2, 2.0) if name.startswith("stage/")]


@pytest.mark.parametrize(
    ("waits", "word"),
    [
        ({"sampler": 0.94, "inference": 0.77, "learner": 0.01}, "learner-bound"),
        ({"sampler": 0.02, "inference": 0.60, "learner": 0.70}, "sampling-bound"),
        ({"sampler": 0.50, "inference": 0.05, "learner": 0.40}, "inference-bound"),
        (
            {"sampler": 0.45, "inference": 0.55, "learner": 0.60},
            "in turns, mostly sampler",
        ),  # one group: workers take turns
        ({"sampler": 0.03, "inference": 0.02, "learner": 0.0}, "learner-bound"),
        ({}, ""),
    ],
)
def test_bound_names_the_worker_that_is_always_busy_or_says_in_turns(waits, word):
    assert bound({f"stage/{kind}/wait": share for kind, share in waits.items()}) == word


def test_lag_row_counts_replayed_steps_among_all_and_not_among_those_of_a_sampler():
    row = lag_row({"sampler-0": {0: 6}}, {2: 3, 8: 1})
    assert (row["lag/mean"], row["lag/max"], row["lag/share_2"]) == (1.4, 8.0, 0.3)
    assert (row["lag/mean/sampler-0"], row["lag/max/sampler-0"]) == (0.0, 0.0)


def test_lag_row_has_mean_percentile_and_maximum_of_all_and_of_each_sampler():
    row = lag_row({"sampler-0": {0: 90, 1: 5}, "sampler-1": {4: 5}, "sampler-2": {}})
    assert row["lag/mean"] == pytest.approx(0.25)
    assert row["lag/p95"] == pytest.approx(1.15)
    assert row["lag/max"] == 4.0
    assert row["lag/mean/sampler-1"] == row["lag/p95/sampler-1"] == row["lag/max/sampler-1"] == 4.0
    assert row["lag/max/sampler-0"] == 1.0
    assert "lag/mean/sampler-2" not in row
    assert [meaning(name) for name in row]
    assert lag_row({}) == {}


@example({3: 1, 10: 1}, 95)  # the two forms of the interpolation differ
@given(st.dictionaries(st.integers(-1, 300), st.integers(1, 40), min_size=1), st.sampled_from([5, 50, 95, 100]))
def test_lag_row_equals_numpy_on_the_list_of_all_lags(counts, percent):
    """To the bit: a lockstep run writes the same rows as before."""
    lags = np.repeat(np.array(list(counts)), list(counts.values()))
    assert percentile(counts, percent) == np.percentile(lags, percent)
    row = lag_row({"sampler-0": counts})
    assert (row["lag/mean"], row["lag/p95"], row["lag/max"]) == (lags.mean(), np.percentile(lags, 95), lags.max())
    edges = [0, 1, 2, 4, 8, 16]
    bins = np.bincount(np.searchsorted(edges, lags), minlength=7)
    assert [row[name] for name in row if "share" in name] == (bins / bins.sum()).tolist()


def test_lag_shares_are_the_bins_of_a_histogram():
    row = lag_row({"sampler-0": dict.fromkeys((0, 1, 2, 3, 4, 5, 8, 9), 1), "sampler-1": {16: 1, 17: 1}})
    shares = {name: row[f"lag/share_{name}"] for name in ("0", "1", "2", "4", "8", "16", "more")}
    assert shares == pytest.approx({"0": 0.1, "1": 0.1, "2": 0.1, "4": 0.2, "8": 0.2, "16": 0.2, "more": 0.1})


def test_lag_seconds_is_mean_lag_times_the_duration_of_an_update():
    board = Board()
    board.snapshot(0, 0, 0, 0.0)
    board.snapshot(1, 1, 10, 5.0)
    board.handle(("learner", "learner", {"lag/mean": 0.25}))
    assert board.snapshot(2, 2, 20, 10.0)["lag/seconds"] == pytest.approx(0.125)


def test_faults_are_counted_by_worker_kind_and_never_reset():
    board = Board()
    board.handle(("fault", "sampler-0", "sampler-0 exited"))
    board.handle(("fault", "sampler-2", "environment 3: boom"))
    board.snapshot(1, 1, 1, 1.0)
    board.handle(("fault", "inference", "inference exited"))
    row = board.snapshot(2, 2, 2, 2.0)
    assert (row["faults/total"], row["faults/sampler"], row["faults/inference"]) == (3, 2, 1)


def test_broken_episodes_are_counted_beside_the_complete_ones():
    board = Board()
    row = board.snapshot(1, 1, 1, 1.0)
    assert row["faults/broken_episodes"] == 0
    assert "faults/broken_share" not in row, "no episode has ended"
    board.handle(("episodes", "sampler-0", [(20.0, 20, 0)] * 6))
    board.handle(("steps", "sampler-0", (400, 2)))
    board.handle(("steps", "sampler-1", (100, 0)))
    row = board.snapshot(2, 2, 2, 2.0)
    assert (row["faults/broken_episodes"], row["faults/broken_share"]) == (2, 0.25)
    board.handle(("episodes", "sampler-1", [(20.0, 20, 0)] * 998))
    row = board.snapshot(3, 3, 3, 3.0)
    assert (row["faults/broken_episodes"], row["faults/broken_share"]) == (2, 0.002), "of the last 1,000"
    other = Board()
    other.set_state(board.state())
    other.handle(("episodes", "sampler-1", [(20.0, 20, 0)]))
    row = other.snapshot(4, 4, 4, 4.0)
    assert (row["faults/broken_episodes"], row["faults/broken_share"]) == (2, 0.001)
    state = board.state()
    del state["broken"]  # of a checkpoint before there were broken episodes
    other = Board()
    other.set_state(state)
    assert other.snapshot(4, 4, 4, 4.0)["faults/broken_episodes"] == 0


def test_numbers_of_info_are_means_of_the_last_hundred_episodes():
    board = Board()
    board.handle(("episodes", "sampler-0", [(1.0, 2, 0, {"is_success": 0.0, "distance": 0.5})] * 50))
    board.handle(("episodes", "sampler-1", [(1.0, 2, 0, {"is_success": 1.0}), (1.0, 2, 0)] * 75))
    other = Board()
    other.set_state(board.state())
    for row in (board.snapshot(1, 1, 1, 1.0), other.snapshot(1, 1, 1, 1.0)):
        assert (row["info/is_success"], row["info/distance"]) == (0.75, 0.5)
    assert meaning("info/is_success") == meaning("info/a/b-3") == METRICS["info/<name>"].meaning
    board.handle(("episodes", "sampler-0", [(1.0, 2, 0, {f"number {i}": 1.0}) for i in range(1000)]))
    assert sum(name.startswith("info/") for name in board.snapshot(2, 2, 2, 2.0)) == 40


def test_learner_metrics_stay_until_the_next_message():
    board = Board()
    board.handle(("learner", "learner", {"losses/entropy": 1.5, "losses/value_loss": 2.0}))
    board.handle(("learner", "learner", {"losses/entropy": 0.5}))
    row = board.snapshot(1, 1, 1, 1.0)
    assert (row["losses/entropy"], row["losses/value_loss"]) == (0.5, 2.0)


def test_board_gives_equal_rows_for_equal_messages():
    def rows_of_a_board():
        board = Board()
        board.handle(("episodes", "sampler-0", [(0.1, 3, 0), (0.2, 4, 0)]))
        board.handle(("stages", "inference", {"wait": 0.3, "forward": 0.7}))
        return [board.snapshot(10, 40, 2, 0.7), board.snapshot(20, 80, 3, 1.1)]

    assert rows_of_a_board() == rows_of_a_board()


def test_console_line_has_speed_return_lag_bottleneck_percent_and_time_left():
    row = {
        "charts/SPS": 50_000.0, "charts/FPS": 200_000.0, "charts/episodic_return": 12.345, "lag/mean": 1.5,
        "lag/p95": 3.0, "stage/sampler/wait": 0.7, "stage/sampler/env_step": 0.3, "stage/learner/update": 1.0,
        "faults/total": 2.0, "charts/frames": 8e6,
    }  # fmt: skip
    line = console_line(row, Stop(env_steps=10_000_000), 2_500_000, 50.0)
    assert line == (
        "2.5M steps | 50k steps/s | 200k frames/s | return 12.35 | lag 1.5 (p95 3) updates | "
        "busy sampler 30% learner 100% (learner-bound) | faults 2 | 25%, 2 min 30 s left"
    )
    assert "frames/s" not in console_line({**row, "charts/FPS": 50_000.0}, Stop(), 1, 1.0)


def test_console_line_of_agents_names_both_kinds_of_steps():
    row = {
        "charts/SPS": 3000.0,
        "charts/FPS": 3000.0,
        "charts/environment_SPS": 1000.0,
        "charts/environment_steps": 5e5,
    }
    line = console_line(row, Stop(env_steps=3_000_000), 1_500_000, 50.0)
    assert line.startswith("1.5M agent steps (500k env steps) | 3k agent steps/s (1k env steps/s)")
    assert line.endswith("50%, 8 min 20 s left")


def test_board_measures_the_speed_of_environments_with_several_agents():
    board = Board(env_steps=600, seconds=10.0, environment_steps=220)
    rows = []
    for steps, seconds in ((300, 12.0), (400, 14.0)):
        board.handle(("learner", "learner", {"charts/environment_steps": steps}))
        rows.append(board.snapshot(3 * steps, 3 * steps, 1, seconds))
    assert [row["charts/SPS"] for row in rows] == [150.0, 150.0]
    assert [row["charts/environment_SPS"] for row in rows] == [40.0, 50.0], "the first row is of this launch alone"
    unknown = Board(env_steps=600, seconds=10.0)
    unknown.handle(("learner", "learner", {"charts/environment_steps": 300}))
    assert "charts/environment_SPS" not in unknown.snapshot(900, 900, 1, 12.0)
    assert "charts/environment_SPS" not in Board().snapshot(10, 10, 1, 1.0)


@pytest.mark.parametrize(("share", "text"), [(0.0, None), (0.0004, "0.04%"), (0.05, "5%"), (0.333, "33%"), (1, "100%")])
def test_console_line_has_the_share_of_broken_episodes_if_there_are_any(share, text):
    line = console_line({"faults/broken_share": share, "faults/broken_episodes": 7.0}, Stop(), 1, 1.0)
    assert ("broken" in line) == (text is not None)
    assert text is None or f"broken {text} of episodes" in line


def test_time_left_is_of_the_stop_rule_that_is_reached_first():
    row = {"charts/SPS": 10.0, "charts/FPS": 10.0}
    assert console_line(row, Stop(env_steps=1000, seconds=60.0), 500, 50.0).endswith("83%, 10 s left")
    assert console_line(row, Stop(env_steps=1000, seconds=600.0), 500, 50.0).endswith("50%, 50 s left")
    assert "left" not in console_line({}, Stop(env_steps=1000), 0, 0.0)  # no speed yet
    assert "%" not in console_line(row, Stop(env_steps=0), 500, 50.0)


def test_console_line_of_the_board_equals_the_function():
    board = Board()
    row = board.snapshot(500, 500, 1, 50.0)
    assert board.console_line(row, Stop()) == console_line(row, Stop(), 500, 50.0)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (999, "999"), (999.7, "1k"), (12_345_678, "12.3M"), (2e9, "2G"), (-1500, "-1.5k")],
)
def test_human_shortens_large_numbers(value, text):
    assert human(value) == text


def test_duration_uses_two_units():
    assert [duration(s) for s in (0.4, 59.9, 3599, 3700)] == ["0 s", "1 min 00 s", "59 min 59 s", "1 h 01 min"]


def test_board_rows_are_python_floats():
    board = Board()
    board.handle(("episodes", "sampler-0", [(1, 2, 0)]))
    row = board.snapshot(1, 1, 1, 1.0)
    assert all(type(value) is float and math.isfinite(value) for value in row.values())


def test_board_and_writers_do_not_import_torch():
    code = "import sys, sfactory.monitor.board, sfactory.monitor.writers; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_each_of_several_tasks_has_its_return_and_the_same_weight():
    board = Board(tasks={"atari/pong": (-20.7, 14.6), "atari/boxing": (0.1, 12.1)})
    board.handle(("episodes", "sampler-0", [(14.6, 9, 0)] * 3 + [(0.1, 1, 1)] * 90))
    row = board.snapshot(1, 1, 1, 1.0)
    assert row["charts/episodic_return"] == pytest.approx((14.6 + 0.1) / 2)
    assert row["charts/episodic_return/atari/pong"] == pytest.approx(14.6)
    assert row["charts/human_normalized/atari/pong"] == pytest.approx(1.0)
    assert row["charts/human_normalized/atari/boxing"] == pytest.approx(0.0)
    assert row["charts/human_normalized"] == pytest.approx(0.5)
    assert meaning("charts/episodic_return/atari/pong") == METRICS["charts/episodic_return/<task>"].meaning
    other = Board(tasks={"atari/pong": (-20.7, 14.6), "atari/boxing": (0.1, 12.1)})
    other.set_state(board.state())
    assert other.snapshot(1, 1, 1, 1.0) == row


@pytest.mark.parametrize("boxing", [None, (0.1, 12.1)])
def test_board_has_no_human_score_of_several_tasks_before_all_of_them_have_one(boxing):
    board = Board(tasks={"atari/pong": (-20.7, 14.6), "atari/boxing": boxing})
    board.handle(("episodes", "sampler-0", [(14.6, 9, 0)]))
    row = board.snapshot(1, 1, 1, 1.0)
    assert row["charts/human_normalized/atari/pong"] == pytest.approx(1.0)
    assert "charts/human_normalized" not in row
    board.handle(("episodes", "sampler-0", [(0.1, 1, 1)]))
    assert ("charts/human_normalized" in board.snapshot(2, 2, 2, 2.0)) == (boxing is not None)


def test_board_reports_the_spread_of_the_last_hundred_returns_by_task():
    board = Board()
    board.handle(("episodes", "sampler-0", [(9e9, 1, 0)] + [(2.0, 1, 0), (6.0, 1, 0)] * 50))
    row = board.snapshot(1, 1, 1, 1.0)
    assert [row[f"charts/episodic_return_{name}"] for name in ("std", "min", "max")] == [2.0, 2.0, 6.0]
    board = Board(tasks={"atari/pong": None, "atari/boxing": None})
    board.handle(("episodes", "sampler-0", [(1.0, 1, 0), (5.0, 1, 1), (7.0, 1, 1)]))
    row = board.snapshot(1, 1, 1, 1.0)
    spread = [(row[f"charts/episodic_return_{n}/atari/boxing"]) for n in ("std", "min", "max")]
    assert spread == [1.0, 5.0, 7.0]
    assert "charts/episodic_return_std" not in row
    assert "one of several tasks: highest" in meaning("charts/episodic_return_max/atari/boxing")


def test_one_task_has_no_metric_of_its_own_and_no_human_score_without_reference():
    board = Board(tasks={"minatar/breakout": None})
    board.handle(("episodes", "sampler-0", [(5.0, 9, 0)]))
    row = board.snapshot(1, 1, 1, 1.0)
    assert {name for name in row if name.startswith("charts/epis")} == {
        "charts/episodic_return", "charts/episodic_length", "charts/episodic_return_std",
        "charts/episodic_return_min", "charts/episodic_return_max",
    }  # fmt: skip
    assert not [name for name in row if "human" in name]


def test_board_makes_a_row_of_the_episodes_it_is_given():
    board, episodes = Board(), Episodes()
    board.handle(("episodes", "sampler-0", [(500.0, 9, 0)] * 100))
    episodes.add([(2.0, 3, 0), (4.0, 5, 0)])
    row = board.snapshot(1, 1, 1, 1.0, episodes)
    assert (row["charts/episodic_return"], row["charts/episodic_length"], row["charts/games"]) == (3.0, 4.0, 2.0)


def test_evaluation_is_in_one_row_only_and_kept_by_state():
    board = Board()
    scores = {"eval/episodic_return": 7.0, "eval/iqm": 6.5, "eval/env_steps": 100.0}
    board.handle(("eval", "evaluator", scores))
    other = Board()
    other.set_state(board.state())
    assert other.evaluated == board.evaluated == 100
    for one in (board, other):
        row = one.snapshot(120, 120, 1, 1.0)
        assert {name: value for name, value in row.items() if name.startswith("eval/")} == scores
        assert not [name for name in one.snapshot(140, 140, 2, 2.0) if name.startswith("eval/")]
