"""Panel as text: equal snapshots give equal pictures, at every width and height."""

import re
import time
from dataclasses import replace
from pathlib import Path

import pytest
from rich.cells import cell_len

from sfactory.config import Stop
from sfactory.monitor.panel import ReturnHistory, Snapshot, keep_stage_times, render
from sfactory.monitor.panel.snapshot import MAX_POINTS, return_trend
from sfactory.monitor.table import meaning

GOLDEN = Path(__file__).parent.parent / "golden" / "panel"
ROW = {
    "charts/SPS": 52_300.0, "charts/FPS": 209_200.0, "charts/updates": 812.0, "charts/frames": 14.8e6,
    "charts/episodic_return": 12.345, "charts/episodic_length": 431.7, "charts/games": 8123.0,
    "charts/learning_rate": 2.5e-4, "losses/policy_loss": -0.0123, "losses/value_loss": 0.314, "losses/entropy": 1.234,
    "losses/approx_kl": 0.0112, "losses/clipfrac": 0.214, "losses/explained_variance": 0.87, "losses/grad_norm": 0.41,
    "lag/mean": 1.52, "lag/p95": 3.0, "lag/max": 4.0, "lag/seconds": 0.11, "offpolicy/ess": 0.913,
    "offpolicy/kl_behavior_proximal": 0.021, "queue/ready": 3.0, "queue/free": 2.0, "queue/inference_batch": 96.0,
    "queue/sampler_wait_ms": 1.25, "queue/inference_wait_ms": 0.5, "queue/learner_wait_ms": 0.03,
    "stage/sampler/wait": 0.70, "stage/sampler/env_step": 0.27, "stage/sampler/write": 0.03,
    "stage/inference/wait": 0.40, "stage/inference/look": 0.02, "stage/inference/gather": 0.08,
    "stage/inference/forward": 0.35, "stage/inference/answer": 0.15, "stage/learner/wait": 0.01,
    "stage/learner/batch": 0.03, "stage/learner/update": 0.955, "stage/learner/publish": 0.005,
    "system/cpu": 91.0, "system/memory": 23.4, "faults/total": 1.0,
}  # fmt: skip
HISTORY = tuple((37_000.0 * i, 0.7 * i, 12.5 - 12.0 * 0.97**i + 0.3 * (i % 3)) for i in range(101))


def snapshot(**changes):
    fields = dict(
        row=ROW, env_steps=3_700_000, seconds=70.9, stop=Stop(env_steps=10_000_000), name="pong_s1_20261121-155458",
        env="atari/pong", protocol="dqn", mode="async", device="cuda:0", history=HISTORY, checkpoint=(3_500_000, 12.0),
        faults=("sampler-0 exited (killed by SIGKILL); restarted",), roofline=61_500.0, slots=8,
    )  # fmt: skip
    return Snapshot(**{**fields, **changes})


def lines(*args, **kwargs):
    return render(*args, **kwargs).plain.split("\n")


def field_text(label, width=200, **changes):
    """Text after a label."""
    text = render(snapshot(**changes), width).plain
    found = re.search(rf"(?:^|[│ ] ){label} +(.*?)\s*(?:│|$)", text, re.MULTILINE)
    return found[1] if found else None


def test_panel_example_has_only_names_of_the_table():
    assert [meaning(name) for name in ROW]


def test_panel_of_agents_names_both_kinds_of_steps_wherever_it_shows_any():
    steps = {"charts/environment_steps": 1.85e6, "charts/environment_SPS": 26_150.0, "charts/FPS": ROW["charts/SPS"]}
    row = {**ROW, **steps}
    for width in (40, 80, 120, 200):
        text = render(snapshot(row=row), width).plain
        assert "52.3k agent steps/s" in text
        assert "3.7M of 10M agent steps" in text
        assert not re.search(r"(?<!agent)(?<!env) steps\b", text), text
    assert field_text("speed", row=row) == "52.3k agent steps/s   85% roofline   812 updates"
    assert "26.1k env steps/s   1.85M env steps" in text
    assert "length 431.7 env steps" in field_text("return", row=row)
    assert "at 3.5M agent steps, " in text
    assert "96 rows/forward" in render(snapshot(row=row), 100).plain
    assert render(snapshot(row=row), 60, 3).plain.startswith("faults 1 · 52.3k agent steps/s")


@pytest.mark.parametrize("width", [40, 80, 120, 200])
def test_panel_picture_equals_the_golden_file(width):
    assert render(snapshot(), width).plain + "\n" == (GOLDEN / f"{width}.txt").read_text()


def test_panel_render_is_deterministic():
    assert render(snapshot(), 120) == render(snapshot(), 120)
    assert render(snapshot(), 120).spans == render(snapshot(), 120).spans


STRANGE = {"env": "名前/環境" * 9, "faults": ("💥" * 99,)}


@pytest.mark.parametrize("changes", [{}, {"row": {}}, {"row": {"charts/SPS": 0.0}}, STRANGE])
def test_panel_fits_every_terminal_size(changes):
    for width in (*range(1 + len(changes) % 2, 60, 2), 80, 109, 110, 164, 165, 219, 220, 300):
        for height in (1, 2, 4, 5, 6, 9, 15, 23, 40):
            drawn = lines(snapshot(**changes), width, height)
            assert 1 <= len(drawn) <= height
            assert {cell_len(line) for line in drawn} == {min(width, 220)}


def test_the_full_panel_with_a_fault_fits_80_columns_and_24_lines():
    text = render(snapshot(), 80, 23).plain
    for word in ("steps/s", "frames/s", "roofline", "left", "return", "learner-bound", "slots", "lag", "ESS", "faults",
                 "checkpoint"):  # fmt: skip
        assert word in text


def test_panel_has_the_share_of_broken_episodes_if_there_are_any():
    assert "broken" not in render(snapshot(row={**ROW, "faults/broken_share": 0.0}), 120).plain
    assert field_text("faults", row={**ROW, "faults/broken_share": 0.333}).startswith("1   33% of episodes broken")


def test_panel_keeps_the_main_fields_when_lines_are_few():
    text = render(snapshot(), 80, 8).plain
    for word in ("52.3k steps/s", "37%", "left", "12.35", "learner-bound", "faults"):
        assert word in text
    for height in range(8, 30):
        assert "checkpoint at 3.5M" in render(snapshot(), 80, height).plain
    assert lines(snapshot(), 80, 3) == [
        "faults 1 · 52.3k steps/s · return 12.35 · 37% · 2 min 00 s left · learner-bound".ljust(80)
    ]


def test_panel_in_ascii_has_the_same_shape():
    for width in (40, 80, 200):
        plain = lines(snapshot(), width, ascii_only=True)
        assert "".join(plain).isascii()
        assert [len(line) for line in plain] == [len(line) for line in lines(snapshot(), width)]


def test_panel_removes_control_characters_from_messages():
    text = render(snapshot(faults=("boom\x1b[2J\rgone\x07",), name="a\nb"), 80).plain
    assert not re.search("[\x00-\x09\x0b-\x1f]", text)
    assert "boom [2J gone" in text


def test_panel_shows_speed_as_a_share_of_a_known_roofline():
    assert field_text("speed") == "52.3k steps/s   209k frames/s   85% roofline"
    assert field_text("speed", roofline=None) == "52.3k steps/s   209k frames/s   812 updates"
    fewer = {**ROW, "charts/FPS": 52_300.0}
    assert field_text("speed", 80, roofline=None, row=fewer) == "52.3k steps/s   812 updates   roofline: sfactory bench"
    assert "roofline" not in field_text("speed", 80, roofline=None, row=fewer, state="finished")
    assert "frames/s" not in field_text("speed", row={**ROW, "charts/FPS": 52_300.0})


def test_panel_shows_what_is_replayed_and_how_old_it_is():
    assert field_text("replayed") is None
    row = {**ROW, "replay/share": 0.5, "replay/age": 2.49, "replay/memory_mb": 1234.5}
    assert field_text("replayed", row=row) == "50%   age 2.5 updates   1,234 MB"
    assert field_text("replayed", row={**ROW, "replay/share": 0.0, "replay/memory_mb": 3.0}) is None


def test_panel_times_advance_between_rows_of_a_running_run():
    at = re.search(r"(\S+ min \S+ s|\S+ s) left   after (.*?) *│", render(snapshot(), 80).plain)
    later = re.search(r"(\S+ min \S+ s|\S+ s) left   after (.*?) *│", render(snapshot(since=4.0), 80).plain)
    assert at.groups() == ("2 min 00 s", "1 min 11 s")
    assert later.groups() == ("1 min 56 s", "1 min 15 s")
    assert "checkpoint at 3.5M steps, 16 s ago" in render(snapshot(since=4.0), 80).plain
    over = render(snapshot(since=4.0, state="finished"), 80).plain
    assert "after 1 min 11 s" in over
    assert "left" not in over
    assert "finished · async" in over


def test_panel_shows_the_age_of_an_old_row():
    assert "no row for" not in render(snapshot(since=20.0), 80).plain
    assert "no row for 45 s" in render(snapshot(since=45.0), 80).plain
    assert "starting   workers are loading, 7 s so far" in render(snapshot(row={}, since=7.0), 80).plain


def test_panel_leaves_out_missing_and_non_finite_numbers():
    assert "entropy" not in field_text("losses", row={**ROW, "losses/entropy": None})
    assert field_text("losses", row={**ROW, "losses/entropy": float("nan")}).startswith("explained 0.87")
    assert field_text("pipeline", row={"charts/SPS": 1.0}) == "no stage times yet"
    assert field_text("return", row={"charts/SPS": 1.0}) == "no episode completed yet"
    assert field_text("checkpoint", checkpoint=None) == "none yet"


def test_panel_shows_stage_shares_and_marks_the_bottleneck():
    assert re.fullmatch(r"━+╸?─+  30%  env_step 27% · write 3%", field_text("sampler"))
    assert re.fullmatch(r"━+╸?─+  60%  forward 35% · answer 15%", field_text("inference"))
    text = render(snapshot(), 200)
    color = {text.plain[span.start : span.end].strip(): span.style for span in text.spans}
    assert (color["learner"], color["sampler"], color["learner-bound"]) == ("yellow", "cyan", "bold yellow")


def test_panel_counts_and_draws_slots():
    assert field_text("slots", width=80) == "■■■■■■□□   3 full  3 in use  2 free   96 envs/forward"
    assert field_text("slots", width=80, slots=800) == "3 full  795 in use  2 free   96 envs/forward"


def test_panel_shows_the_return_of_each_task():
    row = {**ROW, "charts/episodic_return/atari/pong": 14.6, "charts/episodic_return/atari/boxing": 0.1}
    assert "atari/pong 14.6   atari/boxing 0.1" in render(snapshot(row=row), 80).plain
    assert field_text("return", row={**ROW, "charts/human_normalized": 0.5}).endswith("human-normalized 0.500")
    assert field_text("return", stop=Stop(target_return=18.0)).startswith("12.35 of 18 ")


def test_return_trend_is_the_slope_of_the_last_quarter():
    rising = [(i, 2.0 * i, 0.0 if i < 30 else i - 29.0) for i in range(40)]
    change, seconds = return_trend(rising)
    assert (change, seconds) == (pytest.approx(9.0), 18.0)
    assert return_trend([(i, 2.0 * i, -value) for i, _, value in rising])[0] == pytest.approx(-9.0)
    assert return_trend([(i, 2.0 * i, 5.0) for i in range(40)]) == (0.0, 18.0)
    assert return_trend(rising[:4]) is None
    assert "▲ +" in field_text("return")
    assert "▼ -" in field_text("return", history=tuple((i, s, -r) for i, s, r in HISTORY))


def test_panel_curve_spans_lowest_to_highest_return():
    drawn = lines(snapshot(history=tuple((i, i, float(i)) for i in range(66))), 80)
    (top,) = (line for line in drawn if line.startswith("│         65 "))
    (bottom,) = (line for line in drawn if line.startswith("│          0 "))
    assert top[12:-2].strip().endswith("█")
    assert bottom[13] == "▁"
    assert "█" not in "".join(lines(snapshot(history=HISTORY[:1]), 80))


def test_return_history_is_limited_and_keeps_start_and_spacing():
    history = ReturnHistory()
    for i in range(10_000):
        history.add(i, i, {"charts/episodic_return": float(i)})
    assert MAX_POINTS / 2 <= len(history.points) <= MAX_POINTS
    assert history.points[0] == (0.0, 0.0, 0.0)
    assert history.points[-1][2] > 9_900
    gaps = {b[0] - a[0] for a, b in zip(history.points, history.points[1:], strict=False)}
    assert len(gaps) == 1


def test_keep_stage_times_keeps_the_last_times_of_each_worker_kind():
    sampler = {"stage/sampler/wait": 0.1, "queue/sampler_wait_ms": 3.0}
    learner = {"stage/learner/wait": 1.0, "charts/SPS": 2.0}
    before = {**sampler, "stage/learner/wait": 0.5, "stage/learner/save": 0.5, "charts/games": 1.0}
    assert keep_stage_times(before, learner) == {**sampler, **learner}


def test_panel_render_takes_less_than_5_ms():
    render(snapshot(), 200)
    best = min(_seconds(lambda: render(replace(snapshot(), since=1.0), 200, 50)) for _ in range(20))
    assert best < 0.005


def _seconds(do):
    started = time.process_time()
    do()
    return time.process_time() - started
