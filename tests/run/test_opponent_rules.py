"""Which policies may be opponents: code that their settings name, their game, and how they act."""

import pytest
from match_runs import write_run

import sfactory
from sfactory.envs import EnvError, make_spec
from sfactory.errors import CommandError, Exit
from sfactory.run.opponent_rules import check_self_play, opponent_code


def test_opponent_code_of_a_stranger_is_refused(tmp_path):
    config = sfactory.make_config("envpool/TicTacToe-v1", model={"encoder": "strange_module:Net"})
    with pytest.raises(CommandError, match=r"selfplay.opponents: .*strange_module:Net; this user has not") as caught:
        with opponent_code(tmp_path, config):
            raise AssertionError("the code would be imported")
    assert caught.value.exit_code == Exit.USAGE
    assert "--trust" not in str(caught.value), "no option of train allows it"


def test_opponent_code_passes_on_errors_of_what_is_done_with_it(tmp_path):
    config = sfactory.make_config("envpool/TicTacToe-v1")
    with pytest.raises(CommandError, match="of the body"), opponent_code(tmp_path, config):
        raise CommandError(Exit.USAGE, "of the body")


# -- settings of two runs ------------------------------------------------------------------------------------


def checked(tmp_path, theirs, ours, game="Highest"):
    """Check a run with the settings `theirs` as opponent of a run with `ours`."""
    target = f"pettingzoo/match_envs:{game}"
    run = write_run(tmp_path / "rival", target, 100, **theirs)
    config = sfactory.make_config(target, selfplay={"share": 0.5, "opponents": str(run)}, **ours)
    check_self_play(config, make_spec(target, config.env.options))


def test_check_self_play_takes_a_rival_of_the_same_game(tmp_path):
    checked(tmp_path, {"model": {"hidden": [8]}}, {"model": {"hidden": [16]}})


def test_check_self_play_refuses_a_rival_of_another_game_and_names_it(tmp_path):
    message = r"agents p0, p1, p2, but selfplay\.opponents .*rival was trained with p0, p1"
    with pytest.raises(EnvError, match=message) as caught:
        checked(tmp_path, {}, {"env": {"settings": {"players": 3}}})
    assert caught.value.exit_code == Exit.USAGE
    message = r"Highest: obs obs \[2\] float32, acting \[\] bool, but selfplay\.opponents .*rival was trained with "
    (tmp_path / "more").mkdir()
    with pytest.raises(EnvError, match=message + r"obs \[2\] float32, agent_id \[2\] bool, acting \[\] bool"):
        checked(tmp_path / "more", {"env": {"agent_id": True}}, {})


@pytest.mark.parametrize("theirs", [True, False])
def test_check_self_play_refuses_a_rival_whose_actions_are_squashed_in_another_way(tmp_path, theirs):
    """The sampler maps the actions of all seats by the setting of its own run."""
    word = str(theirs).lower()
    with pytest.raises(ValueError, match=rf"rival: its model\.squash is {word}, .*; use --model\.squash {word}$"):
        checked(tmp_path, {"model": {"squash": theirs}}, {"model": {"squash": not theirs}}, "Weights")
