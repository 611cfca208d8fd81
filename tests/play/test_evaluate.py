"""An evaluation plays exactly the games that were asked for, without preferring short ones."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from sfactory.envs import EnvFault, Episode, Step
from sfactory.monitor.statistics import bootstrap, iqm
from sfactory.play.episodes import ENVS, FAULTS, play, share, torch_policy
from sfactory.play.evaluate import Evaluation, Evaluations


class FakeGroup:
    """Environment `number` plays games of `length(number)` steps with reward 1; next-step autoreset."""

    def __init__(self, num_envs, first_env, length, breaks=()):
        self.numbers = list(range(first_env, first_env + num_envs))
        self.length, self.breaks, self.closed = length, breaks, False

    def reset(self):
        self.t = np.zeros(len(self.numbers), int)
        self.over = np.zeros(len(self.numbers), bool)
        return {"obs": self.t[:, None].astype(np.float32)}

    def step(self, action):
        assert action["action"].shape == (len(self.numbers),)
        valid, ends, episodes, faults = ~self.over, np.zeros(len(self.numbers), bool), [], []
        for i, number in enumerate(self.numbers):
            if self.over[i]:
                self.over[i], self.t[i] = False, 0
                continue
            self.t[i] += 1
            if number in self.breaks and self.t[i] == 2:
                faults.append(EnvFault(i, "broken"))
                valid[i], self.t[i] = False, 0
            elif self.t[i] == self.length(number):
                ends[i] = self.over[i] = True
                episodes.append(Episode(i, float(self.t[i]), int(self.t[i])))
        reward = valid.astype(np.float32)
        obs = {"obs": self.t[:, None].astype(np.float32)}
        return Step(obs, reward, ends, np.zeros_like(ends), valid, ~valid, tuple(episodes), tuple(faults))

    def close(self):
        self.closed = True


def run(episodes, length=lambda number: 5, max_steps=1000, breaks=()):
    groups = []

    def make(num_envs, first_env):
        groups.append(FakeGroup(num_envs, first_env, length, breaks))
        return groups[-1]

    def policy(obs, first):
        return {"action": np.zeros(len(first), int)}

    games = play(make, policy, episodes, max_steps)
    assert all(group.closed for group in groups)
    return games, groups


@pytest.mark.parametrize("episodes", [1, 3, ENVS, ENVS + 1, 100])
def test_exactly_n_games_are_played(episodes):
    games, groups = run(episodes, lambda number: 2 + number % 7)
    assert len(games.returns) == len(games.lengths) == episodes
    assert len(groups) == 1
    assert games.returns == [float(length) for length in games.lengths]


def test_short_games_are_not_preferred():
    """Half of the environments play 2 steps, half 50. The first 64 games that end anywhere would all be short."""
    games, _ = run(2 * ENVS, lambda number: 2 if number % 2 else 50)
    assert np.mean(games.returns) == 26.0


def test_shares_are_even_and_complete():
    assert share(10, 4) == [3, 3, 2, 2]
    assert sum(share(100, ENVS)) == 100


def test_a_game_without_end_counts_with_its_return_so_far_and_is_reported():
    games, groups = run(ENVS * 2, lambda number: 10**9 if number == 0 else 5, max_steps=20)
    assert games.capped == 1
    assert sorted(games.lengths)[-1] == 20
    assert len(games.returns) == ENVS * 2
    assert len(groups) == 2  # what was left of the capped environment's share went to a fresh one
    assert groups[1].numbers == [ENVS]


def test_a_game_that_ends_at_the_cap_is_whole():
    games, _ = run(4, lambda number: 20, max_steps=20)
    assert (games.capped, games.lengths) == (0, [20] * 4)


def test_a_broken_environment_costs_its_game_and_is_replaced():
    games, groups = run(ENVS, breaks={0, 3})
    assert games.faults == 2
    assert len(games.returns) == ENVS
    assert set(games.returns) == {5.0}
    assert groups[1].numbers == [ENVS, ENVS + 1]


def test_environments_that_always_break_end_the_evaluation():
    with pytest.raises(RuntimeError, match="broke"):
        run(3 * FAULTS, breaks=range(10**6))


def test_iqm_leaves_out_a_quarter_at_each_end():
    scores = np.array([1000.0, 1, 2, 3, 4, 5, 6, -1000])
    assert iqm(scores) == pytest.approx(3.5)
    assert iqm(np.array([1.0, 2.0, 9.0])) == pytest.approx(4.0)  # int(0.25 * 3) = 0: nothing to leave out
    np.testing.assert_allclose(iqm(np.stack([scores, scores + 1]), axis=1), [3.5, 4.5])


def test_the_interval_covers_the_mean_as_often_as_it_says():
    draws = np.random.default_rng(0)
    hits = 0
    for trial in range(200):
        low, high = bootstrap([draws.normal(size=50)], np.mean, resamples=300, seed=trial)
        hits += low < 0.0 < high
    assert 0.88 <= hits / 200 <= 0.99


def test_the_bootstrap_is_stratified():
    """Two tasks of constant scores: within a task there is nothing to resample, so the interval is a point."""
    low, high = bootstrap([np.zeros(10), np.full(10, 100.0)], np.mean)
    assert low == high == 50.0
    low, high = bootstrap([np.concatenate([np.zeros(10), np.full(10, 100.0)])], np.mean)
    assert high - low > 20.0


def evaluation(**changes):
    fields = dict(
        env="x/y", protocol="x/y sticky 0.1", greedy=False, seed=0, max_steps=100, env_steps=5000,
        returns=(1.0, 2.0, 3.0), lengths=(10, 20, 30), capped=0, faults=0,
    )  # fmt: skip
    return Evaluation(**{**fields, **changes})


def test_the_report_says_protocol_and_how_actions_were_chosen():
    text = evaluation().report()
    assert "sampled" in text
    assert "greedy" not in text
    assert "x/y sticky 0.1" in text
    assert "mean      2.00" in text
    assert "capped" not in text
    assert "faults" not in text
    text = evaluation(greedy=True, capped=2, faults=1).report()
    assert "greedy" in text
    assert "sampled" not in text
    assert "2 of 3 games reached 100 steps" in text
    assert "1 games were lost" in text


def test_a_score_is_compared_with_a_human_only_if_no_game_was_cut():
    whole, cut = evaluation(reference=(0.0, 4.0)), evaluation(reference=(0.0, 4.0), capped=1)
    assert whole.statistics["human_normalized"] == 0.5
    assert "human     0.500" in whole.report()
    assert "human" not in cut.report()
    assert Evaluations((whole, whole)).sentence == "6 games of 2 tasks, median human-normalised score 0.500"
    assert Evaluations((whole, cut)).sentence == "6 games of 2 tasks, mean returns 2.00, 2.00"


def test_json_holds_everything():
    row = json.loads(json.dumps(evaluation().as_dict()))
    assert row["returns"] == [1.0, 2.0, 3.0]
    assert row["episodes"] == 3
    assert row["mean"] == 2.0
    assert row["mean_low"] <= row["mean"] <= row["mean_high"]
    assert row["length"] == 20.0


class FakeModel:
    """Two actions, the second four times as likely; the state counts the steps since `first`."""

    def __init__(self):
        import torch

        from sfactory.envs import ActionLeaf
        from sfactory.model.distributions import ActionDistribution

        self.torch = torch
        self.distribution = ActionDistribution({"action": ActionLeaf((), "int64", "discrete", (2,))})
        self.states = []

    def __call__(self, obs, state, first):
        torch, count = self.torch, len(first)
        state = torch.zeros(count, 1) if state is None else state
        state = torch.where(first[:, None], torch.zeros_like(state), state) + 1
        self.states.append(state[:, 0].tolist())
        params = torch.tensor([0.2, 0.8]).log().expand(count, 2)
        return SimpleNamespace(params=params, value=torch.zeros(count), state=state)


def act(policy, count, first=False):
    obs = {"obs": np.zeros((count, 1), np.float32)}
    return policy(obs, np.full(count, first))["action"]


def test_greedy_takes_the_likeliest_and_sampling_samples():
    assert act(torch_policy(FakeModel(), True, 0), 1000).tolist() == [1] * 1000
    share_of_ones = act(torch_policy(FakeModel(), False, 0), 4000).mean()
    assert 0.77 < share_of_ones < 0.83


def test_the_same_seed_samples_the_same_actions():
    a, b, c = (act(torch_policy(FakeModel(), False, seed), 100).tolist() for seed in (1, 1, 2))
    assert a == b != c


def test_memory_is_kept_between_steps_and_begun_anew_with_new_environments():
    model = FakeModel()
    policy = torch_policy(model, True, 0)
    for count in (2, 2, 3):
        act(policy, count)
    assert model.states == [[1, 1], [2, 2], [1, 1, 1]]
