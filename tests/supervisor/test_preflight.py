"""Checks before a run: what the settings ask of an environment."""

import pytest

import sfactory
from sfactory.algo.surrogates.options import DISCRETE_ONLY
from sfactory.envs import ActionLeaf, EnvSpec
from sfactory.errors import NoCheckpointError
from sfactory.supervisor.preflight import check_algorithm, check_continuous, check_objective
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


def test_check_continuous_refuses_a_deviation_of_actions_that_have_none():
    config = sfactory.make_config("classic/cartpole", model={"log_std_init": -1.0})
    with pytest.raises(ValueError, match=r"^model.log-std-init -1 has no effect: my/env has no continuous act"):
        check_continuous(config, EnvSpec("my/env", {}, {"go": GO}))
    check_continuous(config, EnvSpec("my/env", {}, {"go": GO, "push": PUSH}))
    check_continuous(sfactory.make_config("classic/cartpole"), EnvSpec("my/env", {}, {"go": GO}))


def test_train_refuses_a_setting_of_continuous_actions_without_them_and_a_resume_does_not(tmp_path):
    sections = {"run": {"mode": "lockstep"}, "stop": {"env_steps": 100}, "model": {"log_std_init": -1.0}}
    config = sfactory.make_config("classic/cartpole", **sections)
    with pytest.raises(ValueError, match=r"model.log-std-init -1 has no effect"):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    with pytest.raises(NoCheckpointError):
        train(config, tmp_path / "run", resume=True)


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
