"""The turn-based games of envpool: a row for every player."""

import numpy as np
import pytest

from sfactory.envs import EnvError, EnvOptions, make_group


def moves(group, column):
    return {"action": np.full(group.rows, column)}


def rows(values):
    return np.asarray(values).astype(int).tolist()


def test_game_group_of_connect_four_gives_both_players_the_end_of_the_game():
    group = make_group("envpool/ConnectFour-v1", 2, [0, 5])
    assert group.spec.agents == ("player_0", "player_1")
    assert group.spec.obs["obs"].shape == (6, 7, 2)
    obs = group.reset()
    begins = group.current.copy()
    for turn in range(6):  # the player who begins fills column 0, the other one column 1
        assert rows(obs["acting"].reshape(2, 2).argmax(1)) == rows((begins + turn) % 2)
        step = group.step(moves(group, turn % 2))
        assert rows(step.valid.reshape(2, 2).argmax(1)) == rows((begins + turn) % 2)
        assert not step.first.any()
        assert not step.terminated.any()
        obs = step.obs
    end = group.step(moves(group, 0))
    assert end.terminated.all()
    assert rows(end.reward.reshape(2, 2)[[0, 1], begins]) == [1, 1]
    assert rows(end.reward.reshape(2, 2)[[0, 1], 1 - begins]) == [-1, -1]
    assert [(e.env, e.episodic_return, e.length) for e in end.episodes] == [(0, 0.0, 7), (1, 0.0, 7)]
    assert dict(end.infos)[0][f"return_player_{begins[0]}"] == 1.0
    assert not end.obs["acting"].any()
    reset = group.step(moves(group, 0))
    assert not reset.valid.any()
    assert reset.first.all()
    assert rows(reset.obs["acting"].reshape(2, 2).sum(1)) == [1, 1]
    assert not reset.obs["obs"].any()


def test_game_group_masks_full_columns_and_refuses_them():
    group = make_group("envpool/ConnectFour-v1", 1, [0])
    group.reset()
    for _ in range(6):
        step = group.step(moves(group, 3))
    assert rows(step.obs["action_mask"]) == [[1, 1, 1, 0, 1, 1, 1]] * 2
    fault = group.step(moves(group, 3))
    assert "illegal action [3]" in fault.faults[0].message
    assert fault.first.all()


@pytest.mark.parametrize("task", ["TicTacToe-v1", "Othello-v1", "Go9x9-v1", "Backgammon-v1", "KuhnPoker-v1"])
def test_game_group_plays_whole_games_with_legal_moves(task):
    group = make_group(f"envpool/{task}", 3, [1, 2, 3], EnvOptions(agent_id=True))
    obs, rng, episodes = group.reset(), np.random.default_rng(0), []
    assert obs["agent_id"].tolist() == [[True, False], [False, True]] * 3
    for _ in range(400):
        assert (obs["acting"].reshape(3, 2).sum(1) <= 1).all()
        noise = rng.random(obs["action_mask"].shape) * obs["action_mask"]
        step = group.step({"action": noise.argmax(1)})
        assert not step.faults
        obs, episodes = step.obs, [*episodes, *step.episodes]
    assert episodes
    assert all(abs(episode.episodic_return) < 1e-6 for episode in episodes)  # what one player wins, the other loses


def test_envpool_refuses_players_that_act_together():
    with pytest.raises(EnvError, match="act together"):
        make_group("envpool/IntersectionMultiAgent-v1", 1, [0])
