"""The one comparison of the spaces of a policy with those of an environment."""

from dataclasses import replace

import pytest

from sfactory.envs import ActionLeaf, EnvError, EnvSpec, Leaf, make_spec
from sfactory.errors import CheckpointError, Exit
from sfactory.run.recorded_spec import check_same_spaces, recorded_spec, spec_entry

GAME = EnvSpec(
    "a/game",
    {"board": Leaf((3, 3), "bool"), "action_mask": Leaf((9,), "bool"), "acting": Leaf((), "bool")},
    {"action": ActionLeaf((), "int64", "discrete", (9,))},
    mask="action_mask",
    agents=("x", "o"),
    acting="acting",
)
TORQUE = ActionLeaf((2,), "float32", "box", (2,), (-1.0, -1.0), (1.0, 1.0))


def refusal(trained, spec, **options):
    with pytest.raises(EnvError) as error:
        check_same_spaces(trained, spec, **options)
    assert error.value.exit_code == Exit.USAGE
    return str(error.value)


def test_check_same_spaces_names_both_spaces_and_the_policy():
    acrobot, cartpole = make_spec("gymnasium/Acrobot-v1"), make_spec("gymnasium/CartPole-v1")
    check_same_spaces(acrobot, acrobot)
    assert refusal(acrobot, cartpole) == (
        "gymnasium/CartPole-v1: obs obs [4] float32, but the policy was trained with obs [6] float32"
    )
    assert refusal(acrobot, replace(acrobot, actions=cartpole.actions), who="runs/a") == (
        "gymnasium/Acrobot-v1: actions action of [2], but runs/a was trained with action of [3]"
    )


@pytest.mark.parametrize(
    ("leaf", "text"),
    [
        (replace(TORQUE, shape=(2, 1)), "actions action [2, 1] float32, but"),
        (replace(TORQUE, kind="discrete", dtype="int64", sizes=(4, 4)), "actions action [2] of [4, 4], but"),
        (replace(TORQUE, dtype="float64"), "actions action [2] float64, but"),
    ],
)
def test_check_same_spaces_says_how_actions_differ(leaf, text):
    spec = EnvSpec("a/robot", {"obs": Leaf((2,), "float32")}, {"action": TORQUE})
    assert text in refusal(spec, replace(spec, actions={"action": leaf}))


def test_check_same_spaces_does_not_look_at_bounds_and_order_of_observations():
    """A policy is loaded with the spec of its own run, which has both."""
    board = Leaf((3, 3), "bool", (0.0,), (1.0,))
    obs = {"acting": GAME.obs["acting"], "action_mask": GAME.obs["action_mask"], "board": board}
    check_same_spaces(GAME, replace(GAME, obs=obs), same_game=True)


def test_check_same_spaces_of_a_game_compares_agents_and_bounds_of_actions():
    other = replace(GAME, agents=("o", "x"))
    check_same_spaces(GAME, other)
    assert refusal(GAME, other, same_game=True).endswith("agents o, x, but the policy was trained with x, o")
    alone = replace(GAME, agents=())
    assert refusal(alone, GAME, same_game=True).endswith("agents x, o, but the policy was trained with none")
    spec = EnvSpec("a/robot", {"obs": Leaf((2,), "float32")}, {"action": TORQUE})
    wide = replace(spec, actions={"action": replace(TORQUE, high=(1.0, 3.0))})
    check_same_spaces(spec, wide)
    check_same_spaces(wide, wide, same_game=True)
    expected = "from -1 to 1, -1 to 3, but the policy was trained with action [2] float32 from -1 to 1"
    assert refusal(spec, wide, same_game=True).endswith(expected)
    turned = replace(spec, actions={"action": replace(TORQUE, high=(3.0, 1.0))})
    assert "from -1 to 3, -1 to 1, but" in refusal(wide, turned, same_game=True)


def test_check_same_spaces_explains_a_mask_that_the_policy_does_not_read():
    without = replace(GAME, mask="", obs={n: leaf for n, leaf in GAME.obs.items() if n != "action_mask"})
    text = refusal(without, GAME, who="runs/x")
    assert text.startswith("a/game says which actions are allowed, in action_mask, and runs/x was trained without it")
    assert "obs board [3, 3] bool, acting [] bool, but" in refusal(GAME, without)


def test_recorded_spec_is_that_of_the_entry_and_none_for_earlier_versions():
    assert recorded_spec(spec_entry(GAME)) == GAME
    assert recorded_spec({}) is None
    with pytest.raises(CheckpointError, match=r"the environment's spec in state\.json cannot be used"):
        recorded_spec({"spec": {"name": 3}})
