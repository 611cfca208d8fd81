"""Matches: results that are known, balanced seats, players that stay in their seats, and own memory and settings."""

import json
import math
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from match_envs import Absent, Highest, Lucky, Masked, Nim
from pettingzoo.utils.conversions import turn_based_aec_to_parallel

from sfactory.envs import EnvFault, Episode, Step, make_spec
from sfactory.envs.agent_group import AgentGroup
from sfactory.play.episodes import group_factory, play, split_seats
from sfactory.play.match import MatchResult, RandomPlayer, Score, Table, outcomes
from sfactory.play.policy import Actor


class Names:
    """Always plays one number."""

    def __init__(self, number):
        self.number = number

    def __call__(self, obs, first, rows):
        return {"action": np.full(len(rows), self.number)}


class Perfect:
    """Plays Nim without a mistake: leaves a multiple of 4 if it can, else takes 1."""

    def __call__(self, obs, first, rows):
        stones = obs["obs/observation"][rows].argmax(axis=1)
        return {"action": np.maximum(stones % 4, 1) - 1}


def nim():
    return turn_based_aec_to_parallel(Nim())


def spec_of(env):
    return AgentGroup(env, 1, [0], name="game").spec


def matched(env, player, opponent, episodes=60, num_envs=8, max_steps=1000, seed=0):
    """Play; returns the episodes and their outcomes, all of them 1, 0 or -1 for `player`."""
    table = Table(num_envs)
    table.set_players(spec_of(env), player, opponent)

    def make(count, first_env):
        return AgentGroup(env, count, range(seed + first_env, seed + first_env + count), name="game")

    played = play(make, table, episodes, max_steps, num_envs=num_envs, seating=table)
    assert len(played.seats) == len(played.agent_returns) == episodes
    return played, outcomes(np.array(played.agent_returns), np.array(played.seats)).outcomes


def random_player(env, number):
    return RandomPlayer(spec_of(env), 0, number)


# -- results -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("own", "other", "outcome"), [(2, 1, 1), (0, 1, -1), (1, 1, 0)])
@pytest.mark.parametrize("players", [2, 3, 5])
def test_match_counts_wins_losses_and_draws_of_players_whose_numbers_decide(own, other, outcome, players):
    played, results = matched(lambda: Highest(players), Names(own), Names(other))
    assert results.tolist() == [outcome] * 60
    assert sorted(Counter(played.seats)) == list(range(players))


def test_match_of_equal_players_is_even_although_the_seat_decides_every_episode():
    played, results = matched(nim, Perfect(), Perfect())
    assert [1 - 2 * seat for seat in played.seats] == results.tolist()  # the first player wins
    assert results.sum() == 0


def test_match_of_random_players_has_the_score_that_the_rules_give():
    """In `Masked` the first player draws one time in four and else loses, if legal numbers are equally likely."""
    played, results = matched(
        lambda: Masked(rounds=1), random_player(Masked, 0), random_player(Masked, 1), 2000, num_envs=64
    )
    assert played.faults == 0
    first = results[np.array(played.seats) == 0]
    assert set(first) == {-1, 0}
    assert np.mean(first == 0) == pytest.approx(0.25, abs=0.05)
    assert np.mean(results) == pytest.approx(0.0, abs=0.05)


def test_match_against_random_play_respects_the_masks_of_a_turn_based_game():
    played, results = matched(nim, Perfect(), random_player(nim, 1), 200)
    assert played.faults == 0
    assert np.mean(results) > 0.8


@pytest.mark.envpool
def test_match_of_native_games_counts_the_draws_of_random_play_without_an_illegal_move():
    """Random tic-tac-toe: who begins wins 58.5 %, the other 28.8 %, and 12.7 % are drawn."""
    task, table = "envpool/TicTacToe-v1", Table(64)
    spec = make_spec(task)
    table.set_players(spec, RandomPlayer(spec, 0, 0), RandomPlayer(spec, 0, 1))
    played = play(group_factory(task, 0, {}), table, 2000, 100, num_envs=64, seating=table)
    results = outcomes(np.array(played.agent_returns), np.array(played.seats)).outcomes
    assert (played.faults, len(results)) == (0, 2000)
    assert np.mean(results == 0) == pytest.approx(0.127, abs=0.025)
    assert np.mean(results) == pytest.approx(0.0, abs=0.07)
    assert Counter(played.seats) == {0: 1000, 1: 1000}


def test_outcomes_compare_with_the_mean_of_the_other_seats_without_rounding():
    returns = np.array([[0.3, 0.1, 0.2, 0.6], [0.3, 0.1, 0.2, 0.6], [3.0, 1.0, 3.0, 2.0], [1.0, 1.0, 1.0, 1.0]])
    found = outcomes(returns, np.array([3, 2, 3, 0]))
    assert found.returns.tolist() == [0.6, 0.2, 2.0, 1.0]
    assert found.opponent_returns == pytest.approx([0.2, 1 / 3, 7 / 3, 1.0])
    assert found.outcomes.tolist() == [1, -1, -1, 0]
    equal = outcomes(np.full((1, 4), 0.1), np.array([1]))
    assert equal.opponent_returns[0] != equal.returns[0], "the mean is rounded"
    assert equal.outcomes.tolist() == [0]


# -- seats ---------------------------------------------------------------------------------------------------


@given(st.integers(1, 300), st.integers(1, 40), st.integers(1, 7))
def test_split_seats_are_balanced_over_all_episodes_and_in_every_environment(episodes, envs, seats):
    shares = split_seats(episodes, envs, seats)
    lengths = [len(share) for share in shares]
    assert sum(lengths) == episodes
    assert max(lengths) - min(lengths) <= 1
    everywhere = [seat for share in shares for seat in share]
    assert set(everywhere) <= set(range(seats))
    for share in [*shares, everywhere]:
        counts = [share.count(seat) for seat in range(seats)]
        assert max(counts) - min(counts) <= 1


def test_match_plays_every_seat_equally_often_in_every_environment():
    seen = []

    class Seen(Table):
        def begin(self, env, seat):
            seen.append((env, seat))
            super().begin(env, seat)

    table = Seen(6)
    table.set_players(spec_of(lambda: Highest(3)), Names(1), Names(1))
    played = play(
        lambda n, first: AgentGroup(lambda: Highest(3), n, range(n), name="game"),
        table, 54, 100, num_envs=6, seating=table,
    )  # fmt: skip
    assert Counter(played.seats) == {0: 18, 1: 18, 2: 18}
    assert Counter(seen) == {(env, seat): 3 for env in range(6) for seat in range(3)}


class Watched:
    """Plays legal random actions; records the rows that it acted in, step by step."""

    def __init__(self, spec, number, log):
        self.player, self.number, self.log = RandomPlayer(spec, 0, number), number, log

    def __call__(self, obs, first, rows):
        self.log.append((self.number, first.copy(), rows.copy()))
        return self.player(obs, first, rows)


@pytest.mark.parametrize("env", [Lucky, nim, lambda: Lucky(4)], ids=["together", "turns", "four"])
def test_players_never_change_within_an_episode_and_act_only_when_it_is_their_turn(env):
    log, spec = [], spec_of(env)
    matched(env, Watched(spec, 0, log), Watched(spec, 1, log), 50, num_envs=5)
    agents, owner, changes = spec.rows, {}, 0
    for number, first, rows in log:
        begins = first.reshape(-1, agents).all(axis=1)
        if number == 0:
            for game in np.flatnonzero(begins).tolist():
                changes += any([owner.pop((game, seat), None) is not None for seat in range(agents)])
        for row in rows.tolist():
            assert owner.setdefault(divmod(row, agents), number) == number
    assert changes >= 45
    for (_, first, own), (_, _, others) in zip(log[::2], log[1::2], strict=True):
        assert not set(own) & set(others)
        assert len(own) + len(others) <= len(first) / (agents if env is nim else 1)


def test_match_does_not_prefer_short_episodes_in_any_seat():
    """Half of the episodes have 1 round, half have 30. The first 400 that end would nearly all be short."""
    played, _ = matched(Lucky, Names(1), Names(1), 400, num_envs=32)
    for seat in (0, 1):
        lengths = [n for n, own in zip(played.lengths, played.seats, strict=True) if own == seat]
        assert len(lengths) == 200
        assert 12 < np.mean(lengths) < 19


def test_match_counts_a_capped_episode_with_its_returns_so_far():
    played, results = matched(lambda: Highest(rounds=1000), Names(2), Names(0), 6, num_envs=4, max_steps=7)
    assert (played.capped, played.lengths) == (6, [7] * 6)
    assert results.tolist() == [1] * 6
    assert Counter(played.seats) == {0: 3, 1: 3}


@pytest.mark.parametrize("max_steps", [100, 2])
def test_match_and_play_with_an_agent_that_never_comes(max_steps):
    """Its return is 0 in a match, and it is not in the mean over the agents that took part, also of a cut episode."""
    played, results = matched(lambda: Absent(3), Names(1), Names(1), 6, num_envs=2, max_steps=max_steps)
    points = min(3, max_steps)
    assert [one.tolist() for one in played.agent_returns] == [[points, points, 0.0]] * 6
    assert played.returns == [points] * 6
    assert results.tolist() == [-1 if seat == 2 else 1 for seat in played.seats]
    assert played.capped == (6 if max_steps == 2 else 0)


class Failing:
    """Native games of 3 steps with 2 agents: in one step the first environment fails, and all are reset."""

    def __init__(self, games, fails_in_step):
        self.time, self.fails_in_step, self.calls = np.zeros(games, int), fails_in_step, 0

    def reset(self):
        self.time[:] = 0
        rows = 2 * len(self.time)
        return {"obs": np.zeros((rows, 2), np.float32), "acting": np.ones(rows, bool)}

    def step(self, action):
        self.calls += 1
        over, never = self.time == 3, np.zeros(2 * len(self.time), bool)
        self.time += 1
        self.time[over] = 0
        if self.calls == self.fails_in_step:
            none = np.zeros(len(never), np.float32)
            return Step(self.reset(), none, never, never, never, ~never, (), (EnvFault(0, "broken"),))
        first, ends = np.repeat(over, 2), np.repeat(self.time == 3, 2)
        episodes = tuple(Episode(i, 1.5, 3) for i, time in enumerate(self.time) if time == 3)
        obs = {"obs": np.zeros((len(never), 2), np.float32), "acting": ~first}
        reward = np.where(first, 0, np.tile([0.25, 0.75], len(over))).astype(np.float32)
        return Step(obs, reward, ends, never, ~first, first, episodes, ())

    def close(self):
        pass


def test_match_forgets_what_was_played_before_native_code_reset_all_environments():
    """The other environment's episode begins again, in the same seat; the share of the failed one goes to a new one."""
    table = Table(2)
    table.set_players(spec_of(Highest), Names(0), Names(0))
    played = play(lambda count, first: Failing(count, 0 if first else 2), table, 4, 100, num_envs=2, seating=table)
    assert played.faults == 1
    assert [one.tolist() for one in played.agent_returns] == [[0.75, 2.25]] * 4
    assert Counter(played.seats) == {0: 2, 1: 2}


# -- memory and noise ----------------------------------------------------------------------------------------


class Counting:
    """A network whose recurrent state is the number of its actions in the episode."""

    state_size = 1

    def __init__(self):
        import torch

        from sfactory.envs import ActionLeaf
        from sfactory.model.distributions import ActionDistribution

        self.torch = torch
        self.distribution = ActionDistribution({"action": ActionLeaf((), "int64", "discrete", (3,))})

    def __call__(self, obs, state, first):
        state = self.torch.where(first[:, None], self.torch.zeros_like(state), state) + 1
        return SimpleNamespace(params=self.torch.zeros(len(first), 3), state=state)


def test_actor_of_rows_keeps_a_memory_for_every_row_and_clears_it_where_an_episode_begins():
    actor = Actor(Counting(), 0)

    def act(rows, *begins):
        first = np.isin(np.arange(4), begins)
        found = actor.of_rows({"obs": np.zeros((4, 1), np.float32)}, first, np.array(rows, int), False)
        assert len(found.get("action", ())) == len(rows)
        return actor.state[:, 0].tolist()

    assert act([0, 2], 0, 1, 2, 3) == [1, 0, 1, 0]
    assert act([1, 2]) == [1, 1, 2, 0]
    assert act([]) == [1, 1, 2, 0]
    assert act([1], 2) == [1, 2, 0, 0]  # row 2 begins while it waits
    assert act([2, 3], 3) == [1, 2, 1, 1]
    assert act([], 0, 1) == [0, 0, 1, 1]


def test_players_have_a_memory_of_their_own_that_ends_with_the_episode():
    """Each of the two players acts 3 times in every episode of `Highest`, whatever seats they had before."""
    actors = []

    class Remembering:
        def __init__(self, number):
            self.actor, self.seen = Actor(Counting(), 0, number), []
            actors.append(self)

        def __call__(self, obs, first, rows):
            action = self.actor.of_rows(obs, first, rows, False)
            self.seen += self.actor.state[rows, 0].tolist()
            return action

    matched(Highest, Remembering(0), Remembering(1), 40, num_envs=4)
    assert [Counter(one.seen) for one in actors] == [{1.0: 40, 2.0: 40, 3.0: 40}] * 2


@pytest.mark.parametrize("core", ["none", "gru", "lstm"])
def test_actor_of_rows_computes_what_the_whole_batch_would(core):
    import torch

    import sfactory
    from sfactory.learning.network import build_model

    model = {"core": core, "separate": False, "hidden": [8], **({"core_size": 8} if core != "none" else {})}
    config = sfactory.make_config("classic/cartpole", model=model)
    model = build_model(config, spec_of(nim)).eval()
    generator, rng = torch.Generator().manual_seed(0), np.random.default_rng(0)
    for parameter in model.parameters():
        parameter.data.normal_(generator=generator)
    part, whole = Actor(model, 0), Actor(model, 0)
    for t in range(20):
        acting, first = rng.random(6) < 0.5, rng.random(6) < (0.2 if t else 2)
        obs = {
            "obs/observation": rng.random((6, 11), np.float32), "obs/action_mask": np.ones((6, 3), np.int8),
            "acting": acting,
        }  # fmt: skip
        rows, expected = np.flatnonzero(acting), whole(obs, first, True)["action"]
        found = part.of_rows(obs, first, rows, True)
        assert found.get("action", np.zeros(0, int)).tolist() == expected[rows].tolist()
        if core != "none":
            torch.testing.assert_close(part.state, whole.state, atol=1e-4, rtol=0)


def test_players_of_a_match_draw_independent_noise_from_one_seed():
    def actions(seed, player):
        actor = Actor(Counting(), seed, player)
        actor.state = actor.model.torch.zeros(50, 1)
        return actor({"obs": np.zeros((50, 1), np.float32)}, np.ones(50, bool), False)["action"].tolist()

    assert actions(0, 0) != actions(0, 1) != actions(1, 1)
    assert actions(0, 1) == actions(0, 1)
    assert np.mean(np.equal(actions(0, 0), actions(0, 1))) < 0.6


def test_random_player_draws_other_actions_with_another_seed():
    obs, spec = {"obs": np.zeros((50, 2), np.float32), "acting": np.ones(50, bool)}, spec_of(Highest)
    first, again, other = (
        RandomPlayer(spec, seed, 1)(obs, np.zeros(50, bool), np.arange(40))["action"].tolist() for seed in (1, 1, 2)
    )
    assert first == again != other
    assert len(first) == 40


# -- the result ----------------------------------------------------------------------------------------------


def result(**changes):
    fields = dict(
        env="x/y", protocol="x/y rules 2", opponent="runs/b", greedy=False, seed=3, max_steps=100, env_steps=5000,
        opponent_env_steps=700, agents=("left", "right", "judge"), seats=(0, 1, 0, 1), returns=(1.0, 1.0, 0.5, 0.0),
        opponent_returns=(0.0, 0.0, 0.5, 1.0), outcomes=(1, 1, 0, -1), lengths=(10, 20, 30, 40), capped=0, faults=0,
    )  # fmt: skip
    return MatchResult(**{**fields, **changes})


def test_match_result_has_scores_with_intervals_in_all_and_by_seat():
    found = result()
    assert found.score() == Score(2, 1, 1)
    assert found.by_seat == {"left": Score(1, 1, 0), "right": Score(1, 0, 1)}
    assert found.score(0) == Score(1, 1, 0)
    for none in ("left", 3, -1):
        with pytest.raises(ValueError, match=r"is none of 0 \(left\), 1 \(right\), 2 \(judge\); by_seat has"):
            found.score(none)
    values = json.loads(json.dumps(found.as_dict(), allow_nan=False))
    assert (values["wins"], values["draws"], values["losses"], values["episodes"]) == (2, 1, 1, 4)
    assert values["score"] == 0.625
    assert 0.2 < values["score_low"] < 0.625 < values["score_high"] < 0.95
    assert values["elo"] == pytest.approx(400 * math.log10(0.625 / 0.375))
    assert values["elo_low"] < 0 < values["elo"] < values["elo_high"]
    assert values["by_seat"]["left"]["score"] == 0.75
    assert found.sentence == "4 episodes against runs/b: 2 won, 1 drawn, 1 lost, score 0.625"


def test_match_result_of_a_player_that_always_wins_has_no_upper_bound():
    values = result(outcomes=(1,) * 4).as_dict()
    assert (values["score"], values["elo"], values["elo_high"]) == (1.0, None, None)
    assert 0 < values["elo_low"] < 100
    assert "Elo       +inf   95% interval +" in result(outcomes=(1,) * 4).report()
    assert "to +inf" in result(outcomes=(1,) * 4).report()
    lost = result(outcomes=(-1,) * 4)
    assert (lost.as_dict()["elo"], lost.as_dict()["elo_low"]) == (None, None)
    assert "Elo       -inf   95% interval -inf to -" in lost.report()


def test_match_report_says_what_was_played_and_what_happened():
    text = result(faults=1, capped=2, changes=("env.settings.a 1, runs/b was trained with 2",)).report()
    assert str(result()) == result().report()
    for line in (
        "4 episodes of x/y, sampled actions (as in training)",
        "policy    after 5,000 agent steps of training; seed 3",
        "against   runs/b, after 700 agent steps of training",
        "protocol  x/y rules 2; at most 100 env steps per episode",
        "result    2 won, 1 drawn, 1 lost",
        "return    0.62; the other seats 0.38",
        "length    25.0 env steps",
        "capped    2 of 4 episodes reached 100 steps",
        "faults    1 episodes were discarded after an environment failure and replaced: 20% of all; "
        "no return includes them",
        "changed   env.settings.a 1, runs/b was trained with 2",
    ):
        assert line in text.splitlines(), line
    assert "score     0.625   95% interval 0." in text
    assert "seat      left: 1 won, 1 drawn, 0 lost; score 0.750 (0." in text
    assert "judge" not in text
    assert "greedy" not in text
    assert "episodes may repeat each other" in result(greedy=True).report()
    against_random = result(opponent="random", opponent_env_steps=None, greedy=True).report()
    assert "against   random\n" in against_random
    assert "repeat" not in against_random
