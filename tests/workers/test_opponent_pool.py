"""The pool of opponents: who is admitted, who leaves, ratings, and what a resume finds."""

import json
import math
import os

import numpy as np
import pytest
import torch

import sfactory
from sfactory.algo.ratings import expected_score
from sfactory.envs import make_spec
from sfactory.errors import CheckpointError
from sfactory.run.checkpoint import STATE, Contents, candidates, read
from sfactory.run.checkpoint_writer import save
from sfactory.run.lock import LOCK, lock_folder
from sfactory.run.opponent_rules import check_self_play
from sfactory.run.pool_files import RATINGS, is_pool_state, member_path, pool_dir
from sfactory.shm.trajectory import CURRENT
from sfactory.workers.opponent_pool import OpponentPool, outside
from sfactory.workers.shared import RunSpec

GAME = "envpool/TicTacToe-v1"
ENTRY = {"number": 5, "name": "", "rating": 1, "wins": 0, "draws": 0, "losses": 0, "retired": False}
SPEC = make_spec(GAME, {})


class Announced:
    """Keeps what was published last."""

    numbers = ()

    def write(self, numbers):
        self.numbers = numbers[1 : 1 + int(numbers[0])].astype(int).tolist()


def contents(env_steps):
    return Contents({"env_steps": env_steps, "updates": 1}, {"model": {"w": torch.full((2,), float(env_steps))}})


@pytest.fixture
def build(tmp_path):
    def pool(**settings):
        config = sfactory.make_config(GAME, selfplay={"share": 0.5, "every": 1000, "games": 4, "pool": 3, **settings})
        logged = []
        made = OpponentPool(RunSpec(config, SPEC, str(tmp_path), 0), Announced(), logged.append)
        made.logged = logged
        return made

    return pool


def folders_of(tmp_path):
    return {int(path.name) for path in pool_dir(tmp_path).iterdir() if path.name != RATINGS}


def play(pool, *outcomes, against=0):
    """Let games end in a slot of one environment, one after the other."""
    steps = len(outcomes)
    outcome, player = np.full((steps, 2), np.nan, np.float32), np.full((steps + 1, 2), CURRENT)
    for t, result in enumerate(outcomes):
        seat = t % 2
        outcome[t, seat], player[t, 1 - seat] = result, against
    pool.count([(0, 0)], {"outcome": outcome[None, None], "player": player[None, None]})


def test_pool_writes_nothing_into_the_folder_of_another_run(build, tmp_path):
    os.close(lock_folder(tmp_path))
    pool = build()
    (tmp_path / LOCK).write_text("1")  # as if another folder were in its place
    pool.admit(contents(1000))
    pool.write_ratings()
    assert not pool_dir(tmp_path).exists()
    assert len(pool.logged) == 2
    assert all("another run is in the place of" in line for line in pool.logged)


def test_pool_admits_after_every_steps_or_after_enough_games_that_are_won(build):
    pool = build(admit=0.6)
    assert not pool.due(999)
    assert pool.due(1000)
    pool.admit(contents(1000))
    assert pool.announced.numbers == [1000]
    play(pool, 1, 1, 1, against=1000)
    assert not pool.due(1100), "three of four games"
    play(pool, -1, against=1000)
    assert pool.due(1100), "0.75 is above 0.6"
    play(pool, -1, against=1000)
    assert not pool.due(1100), "0.5 of the last four"
    assert pool.due(2000)
    play(pool, 1, 1, 1, 1, against=1000)
    pool.admit(contents(1200))
    assert not pool.due(1300), "these games were played before the admission"
    play(pool, 1, 0, 1, 0, against=1000)
    assert pool.due(1300), "draws are worth a half: 0.75"
    assert not pool.due(1200), "nothing was trained since"


def test_pool_has_no_random_weights_first_unless_asked(build):
    assert not build().due(0)
    assert build().playing == []


def test_pool_rates_games_with_elo_and_counts_results_by_opponent(build):
    pool = build()
    pool.admit(contents(1000))
    pool.admit(contents(2000))
    play(pool, 1, against=1000)
    member = pool.opponents[1000]
    assert (pool.rating, member.rating) == (1008.0, 992.0)
    gain = 16 * (0 - expected_score(1008.0, 992.0))
    play(pool, -1, against=1000)
    assert pool.rating == pytest.approx(1008 + gain)
    play(pool, 0, 1, 1, against=2000)
    assert (member.wins, member.draws, member.losses) == (1, 0, 1)
    newer = pool.opponents[2000]
    assert (newer.wins, newer.draws, newer.losses) == (2, 1, 0)
    row = pool.row()
    assert row["selfplay/games"] == 5
    assert row["selfplay/score"] == pytest.approx((0 + 0.5 + 1 + 1) / 4)  # of the last four
    assert (row["selfplay/wins"], row["selfplay/draws"], row["selfplay/losses"]) == (0.5, 0.25, 0.25)
    assert row["selfplay/elo"] == pool.rating
    assert row["selfplay/elo_best_opponent"] == max(member.rating, newer.rating)
    pool.admit(contents(3000))
    assert pool.opponents[3000].rating == pool.rating


def test_pool_keeps_members_of_all_ages_and_files_of_those_that_left(build, tmp_path):
    pool = build(pool=3)
    for steps in (1000, 2000, 2100, 5000):
        pool.admit(contents(steps))
    assert pool.announced.numbers == [1000, 2100, 5000], "the neighbours of 2000 are 1,100 apart, those of 2100 3,000"
    assert member_path(tmp_path, 2000).is_dir(), "its games go on"
    for steps in (6000, 7000, 8000, 9000):
        pool.admit(contents(steps))
    assert len(pool.announced.numbers) == 3
    assert {1000, 9000} <= set(pool.announced.numbers)
    play(pool, 1, against=1000)
    pool.delete_unused()
    assert folders_of(tmp_path) == set(pool.opponents)
    assert len(pool.opponents) == 6


def test_pool_forgets_the_members_that_left_first_not_the_oldest_ones(build, tmp_path):
    pool, left = build(pool=4), []
    for steps in range(1000, 31_000, 1000):
        before = pool.announced.numbers or ()
        pool.admit(contents(steps))
        left += sorted(set(before) - set(pool.announced.numbers))
        play(pool, 1, against=steps)
        pool.delete_unused()
        assert set(left[-4:]) <= set(pool.opponents), "as many others have not left after them"
        assert folders_of(tmp_path) == set(pool.opponents)
    assert left != sorted(left), "some left after newer ones"
    assert len(pool.opponents) == 8


def test_pool_knows_a_member_until_no_game_with_it_goes_on(build, tmp_path):
    pool = build(pool=1)
    for steps in (1000, 2000, 3000, 4000):
        pool.admit(contents(steps))
    play(pool, 1, against=1000)
    pool.delete_unused()
    assert set(pool.opponents) == {1000, 3000, 4000}, "a row of a slot has 1000, so its game may go on"
    assert folders_of(tmp_path) == {1000, 3000, 4000}
    assert pool.opponents[1000].wins == 1
    play(pool, 1, against=4000)
    pool.delete_unused()
    assert folders_of(tmp_path) == set(pool.opponents) == {3000, 4000}


def checkpoint_of(pool, env_steps):
    state = {"env_steps": env_steps, "updates": 1, "seconds": 1.0, "selfplay": pool.state_dict()}
    return Contents(state, {"model": {"w": torch.zeros(2)}})


def test_pool_keeps_the_files_that_the_newest_checkpoints_know(build, tmp_path):
    pool = build(pool=1)
    pool.checkpoints_kept = 2
    for steps in (1000, 2000, 3000):
        pool.admit(contents(steps))
        save(tmp_path, checkpoint_of(pool, steps), keep=10)
    for steps in (4000, 5000):
        pool.admit(contents(steps))
        play(pool, 1, against=steps)
    assert set(pool.opponents) == {4000, 5000}
    pool.delete_unused()
    assert folders_of(tmp_path) == {1000, 2000, 3000, 4000, 5000}, "the newest two checkpoints know the first three"
    for steps in (6000, 7000):
        pool.admit(contents(steps))
        play(pool, 1, against=steps)
        save(tmp_path, checkpoint_of(pool, steps), keep=10)
    pool.delete_unused()
    assert folders_of(tmp_path) == {5000, 6000, 7000}
    (candidates(tmp_path)[0] / STATE).write_text("{")
    pool.admit(contents(8000))
    play(pool, 1, against=8000)
    pool.delete_unused()
    assert folders_of(tmp_path) == {5000, 6000, 7000, 8000}, "what a checkpoint knows cannot be read, so nothing goes"


@pytest.mark.parametrize("damaged", [0, 1])
def test_pool_of_a_run_that_was_killed_after_members_were_forgotten_can_be_resumed(build, tmp_path, damaged):
    pool = build(pool=1)
    for steps in (1000, 2000, 3000, 4000):
        pool.admit(contents(steps))
        play(pool, 1, against=steps)
        save(tmp_path, checkpoint_of(pool, steps), keep=10)
        pool.delete_unused()
    for steps in (5000, 6000):
        pool.admit(contents(steps))
        play(pool, 1, against=steps)
    known = read(candidates(tmp_path)[damaged]).state["selfplay"]
    resumed = build(pool=1)
    resumed.load_state_dict(known)
    assert set(resumed.opponents) == {one["number"] for one in known["opponents"]}
    assert not {5000, 6000} & folders_of(tmp_path)


def test_pool_of_one_has_the_newest_policy(build):
    pool = build(pool=1)
    for steps in (1000, 2000, 3000):
        pool.admit(contents(steps))
        assert pool.announced.numbers == [steps]


def test_pool_member_is_a_checkpoint_of_its_policy(build, tmp_path):
    build().admit(contents(1000))
    found = read(member_path(tmp_path, 1000), ("model", "optimizer"))
    assert found.parts["model"]["w"].tolist() == [1000.0, 1000.0]
    assert found.parts["optimizer"] == {}
    ratings = json.loads((pool_dir(tmp_path) / RATINGS).read_text())
    assert [one["number"] for one in ratings["opponents"]] == [1000]


def test_pool_that_cannot_be_written_is_reported_and_tried_again_later(build, tmp_path):
    pool = build()
    bad = Contents({"env_steps": 1000}, {"model": {"w": torch.tensor([math.nan])}})
    pool.admit(bad)
    assert "not in the pool: model is not finite" in pool.logged[0]
    assert pool.playing == []
    assert not pool.due(1500)
    assert pool.due(2000)


def test_pool_goes_on_from_a_checkpoint_and_forgets_later_members(build, tmp_path):
    pool = build()
    pool.admit(contents(1000))
    play(pool, 1, 0, -1, 1, 1, against=1000)
    saved = json.loads(json.dumps(pool.state_dict()))
    pool.admit(contents(2000))
    (pool_dir(tmp_path) / ".000000003000.12").mkdir()  # left by a crash
    resumed = build()
    resumed.load_state_dict(saved)
    resumed.announce()
    assert resumed.announced.numbers == [1000]
    assert resumed.state_dict() == saved
    assert not member_path(tmp_path, 2000).exists()
    assert {path.name for path in pool_dir(tmp_path).iterdir()} == {"000000001000", RATINGS}
    smaller = build(pool=1)
    smaller.load_state_dict(saved)
    assert len(smaller.playing) == 1


def test_pool_with_a_missing_member_cannot_be_resumed(build, tmp_path):
    pool = build()
    pool.admit(contents(1000))
    state = pool.state_dict()
    member_path(tmp_path, 1000).rename(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match="000000001000 is missing"):
        build().load_state_dict(state)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("rating", "high"),
        ("games", -1),
        ("recent", [0.3]),
        ("recent", None),
        ("opponents", {}),
        ("admitted_at", None),
        ("opponents", [{"number": 1}]),
        ("opponents", [ENTRY | {"number": True}]),
    ],
)
def test_pool_state_of_a_stranger_is_checked(build, name, value):
    state = build().state_dict()
    assert is_pool_state(state)
    with pytest.raises(CheckpointError, match="no usable selfplay"):
        build().load_state_dict(state | {name: value})


def test_pool_counts_opponents_of_other_runs_by_name(build):
    pool = build(opponents="runs/a, runs/b")
    assert [one.number for one in pool.playing] == [outside(0), outside(1)] == [-2, -3]
    play(pool, 1, -1, 0, against=outside(1))
    assert pool.row()["selfplay/score/runs/b"] == 0.5
    assert "selfplay/score/runs/a" not in pool.row()
    state = pool.state_dict()
    resumed = build(opponents="runs/b,runs/c")
    resumed.load_state_dict(state)
    assert (resumed.opponents[outside(0)].name, resumed.opponents[outside(0)].wins) == ("runs/b", 1)
    assert resumed.opponents[outside(1)].wins == 0


def test_self_play_needs_two_agents_and_a_share_for_opponents():
    config = sfactory.make_config("classic/cartpole", selfplay={"share": 0.5})
    with pytest.raises(ValueError, match="two agents or more; gymnasium/CartPole-v1 has one"):
        check_self_play(config, make_spec(config.env.name, {}))
    with pytest.raises(ValueError, match=r"selfplay.opponents runs/a has no effect without selfplay.share above 0"):
        sfactory.make_config(GAME, selfplay={"opponents": "runs/a"})


def test_opponents_of_other_runs_are_checked_before_the_start(tmp_path):
    config = sfactory.make_config(GAME, selfplay={"share": 0.5, "opponents": str(tmp_path / "no")})
    with pytest.raises(CheckpointError, match="no"):
        check_self_play(config, SPEC)
