"""Checks before a run: what the settings ask of an environment."""

import pytest

import sfactory
from sfactory.algo.surrogates.options import DISCRETE_ONLY
from sfactory.envs import ActionLeaf, EnvSpec
from sfactory.supervisor.preflight import check_algorithm, check_objective
from sfactory.supervisor.train import train

GO = ActionLeaf((), "int64", "discrete", (3,))
PUSH = ActionLeaf((2,), "float32", "box", (2,), (-1.0, -1.0), (1.0, 1.0))


@pytest.mark.parametrize("name", DISCRETE_ONLY)
def test_check_objective_refuses_continuous_actions_of_objectives_of_probabilities(name):
    with pytest.raises(ValueError) as caught:
        check_objective(name, EnvSpec("my/env", {}, {"go": GO, "push": PUSH}))
    assert str(caught.value) == (
        f"surrogate.objective {name} needs discrete actions: it bounds the change of probabilities, and my/env has "
        "continuous actions (push); use decoupled or ppo"
    )
    check_objective(name, EnvSpec("my/env", {}, {"go": GO}))
    check_objective("decoupled", EnvSpec("my/env", {}, {"push": PUSH}))


@pytest.mark.parametrize("name", DISCRETE_ONLY)
def test_train_refuses_an_objective_of_probabilities_before_it_writes_anything(tmp_path, name):
    surrogate = {"objective": name}
    config = sfactory.make_config("classic/pendulum", run={"mode": "lockstep"}, surrogate=surrogate)
    with pytest.raises(ValueError, match=f"{name} needs discrete actions"):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("actions", "shown"),
    [
        ({"push": PUSH}, "push box;"),
        ({"go": GO, "push": PUSH}, "go discrete, push box;"),
        ({"keys": ActionLeaf((2,), "int64", "discrete", (2, 3))}, "keys discrete of 2 parts;"),
    ],
)
@pytest.mark.parametrize(("algorithm", "learned"), [("pqn", "values"), ("dae", "advantages")])
def test_check_algorithm_refuses_to_learn_of_more_than_one_choice(actions, shown, algorithm, learned):
    with pytest.raises(ValueError, match=rf"algorithm\.name {algorithm} needs one discrete action") as caught:
        check_algorithm(algorithm, EnvSpec("my/env", {}, actions))
    assert f"whose {learned} it learns, and my/env has {shown} use actor_critic" in str(caught.value)
    check_algorithm(algorithm, EnvSpec("my/env", {}, {"go": GO}))
    check_algorithm("actor_critic", EnvSpec("my/env", {}, actions))
