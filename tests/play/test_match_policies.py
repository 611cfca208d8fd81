"""Matches between policies of runs: known results, each policy as its own run made it, refusals."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from match_envs import Highest
from match_runs import write_run
from safetensors.torch import load_file, save_file

import sfactory
from sfactory.config.parsing import RawValue
from sfactory.envs import EnvError, Leaf
from sfactory.envs.agent_group import AgentGroup
from sfactory.errors import CheckpointError, CommandError, Exit
from sfactory.play.evaluate import changed_config, chosen_checkpoint
from sfactory.play.match import load_player, match
from sfactory.run import checkpoint
from sfactory.run.checkpoint_writer import _write_manifest

GAME = "pettingzoo/match_envs:Highest"


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two runs of the same game whose policies differ in every way that a policy can."""
    folder = tmp_path_factory.mktemp("runs")
    plain = {"core": "none", "hidden": [8], "separate": False}
    write_run(folder / "a", GAME, 0, 200, model=plain, normalize={"obs": False})
    memory = {"core": "gru", "core_size": 8, "hidden": [16], "activation": "tanh", "separate": False}
    other = {"agent_id": True, "settings": {"rounds": 4}}
    write_run(folder / "b", GAME, 300, model=memory, normalize={"obs": True}, env=other)
    return folder


def newest(run):
    return chosen_checkpoint(run, "newest")


def always(run, number, folder):
    """A copy of a run whose policy always plays one number."""
    return edited(run, folder, lambda bias: bias.fill_(-50).__setitem__(number, 50))


def edited(run, folder, edit, **parameters):
    """A copy of a run whose policy does not look at anything. edit: changes the bias [K] of its last layer in place."""
    shutil.copytree(run, folder)
    path = newest(folder)
    weights = load_file(path / "model.safetensors")
    weights["policy_head.weight"].zero_()
    edit(weights["policy_head.bias"])
    for name, value in parameters.items():
        weights[name].fill_(value)
    save_file(weights, path / "model.safetensors")
    sign(path)
    return folder


def sign(path):
    """Write the manifest again after a file was changed."""
    (path / "manifest.json").unlink()
    _write_manifest(path)


def played(run, opponent, changes=(), **options):
    """Result of a match, in this process. opponent: a folder, or `random`."""
    path = None if opponent == "random" else newest(opponent)
    return match(newest(run), path, str(opponent), dict(changes), **options).run()


def test_match_of_policies_with_known_numbers_is_won_drawn_and_lost_in_every_seat(runs, tmp_path):
    two, one = always(runs / "a", 2, tmp_path / "two"), always(runs / "b", 1, tmp_path / "one")
    won, lost = played(two, one, episodes=20), played(one, two, episodes=20)
    assert (won.outcomes, lost.outcomes) == ((1,) * 20, (-1,) * 20)
    assert won.returns == (3.0,) * 20
    assert lost.opponent_returns == (4.0,) * 20, "the environment is that of the run, which has four rounds"
    assert (won.env_steps, won.opponent_env_steps) == (lost.opponent_env_steps, lost.env_steps)
    assert [sum(score) for score in won.by_seat.values()] == [10, 10]
    assert won.agents == ("p0", "p1")
    drawn = played(one, always(runs / "a", 1, tmp_path / "same"), episodes=10)
    assert drawn.score().draws == 10


def test_match_against_random_play_has_the_score_that_the_rules_give(runs, tmp_path):
    result = played(always(runs / "a", 2, tmp_path / "two"), "random", episodes=600, num_envs=100)
    wins, draws, losses = result.score()
    assert (losses, result.opponent_env_steps, set(result.lengths)) == (0, None, {3})
    assert draws / 600 == pytest.approx(1 / 27, abs=0.025)
    assert np.mean(result.opponent_returns) == pytest.approx(1.0, abs=0.1)
    assert wins + draws == 600


def test_match_with_the_same_policy_in_all_seats_is_even(runs):
    result = played(runs / "a", runs / "a", episodes=600, num_envs=100)
    found = result.as_dict()
    assert found["score_low"] < 0.5 < found["score_high"]
    assert min(result.score().wins, result.score().losses) > 40


def test_match_draws_the_actions_of_both_policies_independently(runs, tmp_path):
    """Both name any number with the same probability: with common noise every round would be drawn."""
    uniform = edited(runs / "a", tmp_path / "uniform", lambda bias: bias.zero_())
    once = {"env.settings.rounds": RawValue(1)}
    wins, draws, losses = played(uniform, uniform, once, episodes=600, num_envs=100).score()
    assert [wins / 600, draws / 600, losses / 600] == pytest.approx([1 / 3] * 3, abs=0.08)


def test_match_squashes_the_actions_of_a_policy_as_its_own_run_does(tmp_path):
    """Of numbers from 0 to 5, 0 becomes 2.5 if it is squashed, and 1 stays 1 if it is not."""
    for name, squash in (("squashed", True), ("plain", False)):
        write_run(tmp_path / name, "pettingzoo/match_envs:Weights", 100, model={"squash": squash, "hidden": [8]})
    middle = edited(tmp_path / "squashed", tmp_path / "middle", lambda bias: bias.fill_(0), log_std=-20)
    one = edited(tmp_path / "plain", tmp_path / "one", lambda bias: bias.fill_(1), log_std=-20)
    assert played(middle, one, episodes=4).outcomes == (1,) * 4
    assert played(one, middle, episodes=4).outcomes == (-1,) * 4
    assert played(middle, "random", episodes=4, num_envs=2).capped == 0


def test_match_is_repeatable_bit_for_bit_with_its_seed(runs):
    first, again, other = (played(runs / "a", runs / "b", episodes=50, seed=seed) for seed in (1, 1, 2))
    assert first == again
    assert first.outcomes != other.outcomes
    greedy = [played(runs / "a", runs / "b", episodes=8, greedy=True, seed=seed) for seed in (1, 2)]
    assert replace(greedy[0], seed=2) == greedy[1]


@pytest.mark.parametrize("name", ["a", "b"])
def test_players_of_a_match_act_as_their_own_run_would(runs, name):
    """With its own network, memory, normalizer and number of the agent, whatever the match's environment shows."""
    path, policy = newest(runs / name), sfactory.load_policy(runs / name)
    weights = load_file(path / "model.safetensors")
    assert ("obs_mean_obs" in weights) == (name == "b")
    spec = AgentGroup(Highest, 1, [0], name="game", agent_id=True).spec
    config, _ = changed_config(path, {})
    player, env_steps = load_player(path, config, spec, "x", greedy=True, seed=0, player=0)
    assert env_steps == policy.env_steps
    assert ("agent_id" in player.leaves) == (name == "b")
    rng = np.random.default_rng(0)
    seen = set()
    for t in range(12):
        obs = rng.random((8, 2), np.float32) * 4
        leaves = {"obs": obs, "agent_id": np.tile(np.eye(2, dtype=bool), (4, 1)), "acting": np.ones(8, bool)}
        first = np.full(8, t == 0)
        expected = policy.act(obs, first, agent=[0, 1] * 4)
        assert player(leaves, first, np.arange(8))["action"].tolist() == expected.tolist()
        seen |= set(expected.tolist())
    assert len(seen) > 1


def test_match_says_what_either_policy_was_trained_with(runs):
    assert played(runs / "a", runs / "b", episodes=2).changes == (
        f"env.settings.rounds its default, {runs / 'b'} was trained with 4",
    )
    changed = played(runs / "a", runs / "a", {"env.settings.rounds": RawValue(7)}, episodes=2)
    assert changed.lengths == (7, 7)
    assert changed.changes == (
        "env.settings.rounds 7, trained with its default",
        f"env.settings.rounds 7, {runs / 'a'} was trained with its default",
    )
    assert played(runs / "a", "random", episodes=2).changes == ()


def test_match_is_played_against_an_earlier_checkpoint_and_a_member_of_a_pool(runs, tmp_path):
    """A member of a pool has the files of a checkpoint, but nothing in its optimizer's."""
    run = always(runs / "a", 1, tmp_path / "run")
    earlier = checkpoint.candidates(run)[-1]
    assert earlier != newest(run)
    assert played(run, earlier, episodes=2).opponent_env_steps == int(earlier.name)
    member = always(runs / "a", 2, tmp_path / "two")
    pool = run / "pool" / "000000000123"
    shutil.copytree(newest(member), pool)
    save_file({}, pool / "optimizer.safetensors")
    sign(pool)
    assert played(run, pool, episodes=6).outcomes == (-1,) * 6


# -- refusals ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cartpole(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("single") / "run", "classic/cartpole", 100)


def test_match_refuses_an_environment_with_one_agent_and_several_environments(runs, cartpole):
    with pytest.raises(EnvError, match=r"CartPole-v1 has one agent; a match needs .* two or more") as error:
        played(cartpole, "random")
    assert error.value.exit_code == Exit.USAGE
    job = match(newest(runs / "a"), None, "random", {})
    two = replace(job.config, env=replace(job.config.env, name=f"{GAME},pettingzoo/match_envs:Lucky"))
    with pytest.raises(ValueError, match="one environment, and the run has 2"):
        replace(job, config=two)
    with pytest.raises(ValueError, match="episodes must be >= 1"):
        replace(job, episodes=0)
    with pytest.raises(ValueError, match="seed must be >= 0, got -1"):
        replace(job, seed=-1)
    with pytest.raises(ValueError, match=r"env\.info-keys: a match reports no numbers of info"):
        sfactory.play_match(runs / "a", "random", env={"info_keys": ["x"]})


def test_match_refuses_an_opponent_that_was_trained_with_other_spaces_and_names_both(runs, cartpole):
    message = r"obs obs \[2\] float32, acting \[\] bool, but .*run was trained with obs \[4\] float32"
    with pytest.raises(EnvError, match=message) as error:
        played(runs / "a", cartpole)
    assert error.value.exit_code == Exit.USAGE


def test_match_refuses_a_policy_without_the_mask_that_the_environment_has(runs):
    spec = AgentGroup(Highest, 1, [0], name="game").spec
    masked = replace(spec, mask="action_mask", obs={**spec.obs, "action_mask": Leaf((3,), "bool")})
    config, _ = changed_config(newest(runs / "a"), {})
    with pytest.raises(EnvError, match="which actions are allowed, in action_mask, and runs/x was trained without it"):
        load_player(newest(runs / "a"), config, masked, "runs/x", greedy=True, seed=0, player=1)
    other = replace(masked, obs={"more": Leaf((9,), "float32"), **masked.obs})
    with pytest.raises(EnvError, match=r"obs more \[9\] float32, obs .*, but runs/x was trained with obs"):
        load_player(newest(runs / "a"), config, other, "runs/x", greedy=True, seed=0, player=1)


def test_match_refuses_a_damaged_opponent(runs, tmp_path):
    damaged = always(runs / "a", 0, tmp_path / "damaged")
    for path in checkpoint.candidates(damaged):
        (path / "model.safetensors").write_bytes(b"x")
    with pytest.raises(CheckpointError) as error:
        sfactory.play_match(runs / "a", damaged)
    assert error.value.exit_code == Exit.NO_USABLE_CHECKPOINT


def test_play_match_refuses_code_of_an_opponent_that_this_user_did_not_train(runs, tmp_path):
    shutil.copytree(runs / "b", tmp_path / "b")
    file = tmp_path / "b" / "config.toml"
    text = file.read_text()
    assert 'encoder = "auto"' in text
    file.write_text(text.replace('encoder = "auto"', 'encoder = "stranger:Net"'))
    with pytest.raises(CommandError) as error:
        sfactory.play_match(runs / "a", tmp_path / "b")
    assert error.value.exit_code == Exit.USAGE
    assert "model.encoder stranger:Net" in str(error.value)
    assert f"sfactory eval {runs / 'a'} --against {tmp_path / 'b'} --trust" in str(error.value)


def test_play_match_plays_in_a_process_of_its_own_and_holds_both_checkpoints(runs, monkeypatch, forked):
    held = []
    monkeypatch.setattr(checkpoint, "_hold", lambda path, stack: held.append(path) or True)
    result = sfactory.play_match(runs / "a", str(runs / "b"), 6, seed=4, num_envs=2, env={"settings": {"rounds": 2}})
    assert held == [newest(runs / "a"), newest(runs / "b")]
    assert (len(result.outcomes), result.lengths, result.seed) == (6, (2,) * 6, 4)
    assert result == played(
        runs / "a", runs / "b", {"env.settings.rounds": RawValue(2)}, episodes=6, seed=4, num_envs=2
    )


# -- command -------------------------------------------------------------------------------------------------


def test_eval_against_passes_its_options_on_and_prints_the_result(runs, typed, monkeypatch):
    from sfactory import api

    seen, result = {}, played(runs / "a", "random", episodes=4)
    monkeypatch.setattr(api, "match_layer", lambda *words, **options: seen.update(options, words=words) or result)
    code, out, line = typed("eval", "r", "--against", "random", "--json", "--greedy", "--seed", 3, "--num-envs", 5)
    assert code == 0
    assert json.loads(out)["outcomes"] == list(result.outcomes)
    assert line == f"sfactory: evaluated (exit 0): {result.sentence}"
    assert seen == {
        "words": ("r", "random", {}, "newest", False),
        "greedy": True,
        "max_steps": 0,
        "seed": 3,
        "num_envs": 5,
    }
    typed("eval", "r", "--against", "s", "--trust", "--checkpoint", "best", "--episodes", 7, "--env.settings.x", 1)
    assert seen["episodes"] == 7
    assert seen["words"] == ("r", "s", {"env.settings.x": RawValue(1)}, "best", True)
    code, out, _ = typed("eval", "r", "--against", "random")
    assert out == result.report() + "\n"
    typed("eval", "r", "--against", "")
    assert seen["words"][1] == "", "an empty name is no evaluation"
    code, out, line = typed("eval", "r", "--against", "random", "--video", "a.mp4")
    assert (code, out) == (2, "")
    assert "a match is not recorded" in line


def test_eval_without_an_opponent_evaluates(typed, monkeypatch):
    from sfactory import api

    seen = {}

    def evaluate(*words, **options):
        seen.update(options)
        raise CommandError(Exit.USAGE, "enough")

    monkeypatch.setattr(api, "evaluate_layer", evaluate)
    typed("eval", "r", "--episodes", 7)
    assert seen["episodes"] == 7
    typed("eval", "r", "--video", "x.mp4")
    assert seen["video"] == Path("x.mp4")
