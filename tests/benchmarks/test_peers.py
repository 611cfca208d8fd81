"""`benchmarks/peers.py` without the other libraries: speeds, presets, tables and the page."""

import sys

import peers
import pytest
from marks import LONGER_S, WARM_UP_S, Marks
from preset import PRESETS, preset
from published import SETTINGS, SOURCES

from sfactory.config.parsing import build
from sfactory.config.presets import target_layers


def marks(seconds, *pairs):
    found = Marks(seconds)
    for now, steps in pairs:
        found.add(now, steps)
    return found


def test_marks_measure_after_the_warm_up_for_the_given_seconds():
    run = marks(8.0, *((k, 100 * k) for k in range(1, 13)))
    assert not run.enough(12.0), "7 s are counted"
    run.add(13.0, 1300)
    assert run.enough(13.0)
    assert run.speed() == 100.0


def test_marks_of_a_slow_run_go_on_until_there_are_three_stretches():
    """A rollout takes 9 s here: 8 s would have one or two of them."""
    run = marks(8.0, *((9.0 * k, 2048 * k) for k in range(1, 5)))
    assert not run.enough(36.0)
    run.add(45.0, 2048 * 5)
    assert run.enough(45.0)
    assert run.speed() == pytest.approx(2048 / 9)


def test_marks_end_a_run_that_is_far_too_slow_and_name_the_problem():
    run = marks(8.0, (0.0, 1), (60.0, 2048))
    assert not run.enough(100.0)
    assert run.enough(WARM_UP_S + 8.1 + LONGER_S)
    with pytest.raises(RuntimeError, match="1 rollouts after the warm-up, 4 are needed"):
        run.speed()


def test_marks_speed_is_the_median_and_not_the_mean_of_the_stretches():
    pairs = [(0.0, 1), *((4.0 + k, 100 * k) for k in range(1, 6)), (30.0, 600)]
    assert marks(1.0, *pairs).speed() == 100.0


def test_marks_ignore_reports_without_new_steps():
    assert marks(1.0, (0.0, 0), (1.0, 5), (2.0, 5), (3.0, 9)).all == [(1.0, 5), (3.0, 9)]


@pytest.mark.parametrize("workload", list(PRESETS))
def test_preset_for_peers_has_the_numbers_of_the_preset(workload):
    config, found = build(*target_layers(PRESETS[workload]), {}), preset(workload)
    rows = config.sampling.num_envs * config.sampling.rollout_length
    assert found.envs * found.rollout_length == rows
    assert found.minibatch_rows == rows // config.batch.minibatches
    assert (found.epochs, found.minibatches) == (config.batch.epochs, config.batch.minibatches)
    assert found.env_steps == config.stop.env_steps
    sections = (config.trace, config.surrogate, config.loss, config.optim, config.model, config.normalize)
    names = ("gamma", "trace_lambda", "clip", "value_coef", "entropy_coef", "lr", "schedule", "eps", "max_grad_norm")
    for name in (*names, "entropy_final", "decay_share", "separate", "obs", "reward"):
        (expected,) = [getattr(section, name) for section in sections if hasattr(section, name)]
        assert found.values[name] == expected, name


def test_every_score_is_measured_with_settings_that_others_have_published():
    """A peer with our batches alone would be compared with what suits us."""
    for workload, (_, players) in peers.SCORES.items():
        commands = [command for name, command in players.items() if name != "sfactory"]
        sources = {command[command.index("--settings") + 1] for command in commands}
        assert sources & set(SOURCES), workload
        assert all((source, workload) in SETTINGS for source in sources - {"preset"}), workload
    assert {(source, workload) for source, workload in SETTINGS if workload not in peers.SCORES} == set()


@pytest.mark.parametrize("key", list(SETTINGS))
def test_published_settings_have_whole_minibatches(key):
    found = SETTINGS[key]
    rows = found.envs * found.ppo["n_steps"]
    assert rows % found.ppo["batch_size"] == 0
    assert found.steps >= rows


def test_peers_with_section_replaces_the_table_of_the_same_processor_only():
    page = "# Title\n\nText.\n"
    page = peers.with_section(page, "Speed, pong: AMD", "old")
    page = peers.with_section(page, "Speed, pong: Intel", "kept")
    page = peers.with_section(page, "Speed, pong: AMD 2", "another")
    page = peers.with_section(page, "Speed, pong: AMD", "new\n\n| a |\n")
    assert page == (
        "# Title\n\nText.\n\n## Speed, pong: AMD\n\nnew\n\n| a |\n\n## Speed, pong: Intel\n\nkept\n\n"
        "## Speed, pong: AMD 2\n\nanother\n"
    )


def test_peers_speed_rows_compare_with_the_fastest_peer_and_the_roofline():
    found = {peers.ROOFLINE: [100.0], "sfactory": [70.0, 80.0, 90.0], "sb3": [20.0], "sample-factory": [30.0, 50.0]}
    assert peers.speed_rows(found)[2:] == [
        "| torch, best batch, fp32 | 100 (100) |  |  |",
        "| sfactory | 80 (70, 80, 90) | 2.0 | 80 % |",
        "| sb3 | 20 (20) |  |  |",
        "| sample-factory | 40 (30, 50) |  |  |",
    ]
    assert peers.speed_rows({"sfactory": [70.0]})[2:] == ["| sfactory | 70 (70) |  |  |"], "nothing else ran"


def test_peers_in_turn_continues_after_a_failure_and_prints_every_value_at_once(capsys):
    order = []

    def measure(name, number):
        order.append((name, number))
        if name == "b" and number == 0:
            raise peers.PeerFailed("no such module")
        return float(number)

    assert peers.in_turn(["a", "b"], 2, measure) == {"a": [0.0, 1.0], "b": [1.0]}
    assert order == [("a", 0), ("b", 0), ("a", 1), ("b", 1)]
    assert capsys.readouterr().err.splitlines() == [
        "a, round 1: 0.0", "b, round 1: no such module", "a, round 2: 1.0", "b, round 2: 1.0",
    ]  # fmt: skip


def test_peers_peer_names_the_reason_of_a_failure(tmp_path):
    with pytest.raises(peers.PeerFailed, match=r"peers\.py setup"):
        peers.peer(["sb3", "breakout"], tmp_path)
    (tmp_path / "sb3" / "bin").mkdir(parents=True)
    (tmp_path / "sb3" / "bin" / "python").symlink_to(sys.executable)
    with pytest.raises(peers.PeerFailed, match="No module named"):
        peers.peer(["sb3", "breakout"], tmp_path)


def test_peers_score_text_says_that_a_score_was_not_reached():
    assert peers.score_text(float("inf"), 900.0) == "over 900"
    assert peers.score_text(12.34, 900.0) == "12.3"


def test_peers_published_command_names_no_folders():
    words = ["speed", "--into", "/somewhere", "--rounds", "5", "--write=page.md"]
    assert peers._without_folders(words) == ["speed", "--rounds", "5"]
