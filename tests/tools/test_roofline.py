"""The roofline is made of loops that are none of sfactory's own, and adds up."""

import time

import pytest

from sfactory.config import BatchConfig, Config, Env, Model, Sampling
from sfactory.config.parsing import build
from sfactory.config.presets import target_layers
from sfactory.envs import make_spec, raw_loop
from sfactory.learning.network import build_model
from sfactory.tools import roofline as module
from sfactory.tools.roofline import Cost, Roofline, plain_network, roofline


def preset(target):
    config = build(*target_layers(target), {})
    return config, make_spec(config.env.tasks[0], config.env.arguments)


@pytest.mark.parametrize("target", ["minatar/breakout", "atari/pong", "mujoco/hopper", "classic/cartpole"])
def test_the_plain_network_is_as_large_as_the_one_that_is_trained(target):
    config, spec = preset(target)
    own = sum(x.numel() for name, x in build_model(config, spec).named_parameters() if name != "log_std")
    assert sum(x.numel() for x in plain_network(config, spec).parameters()) == own


def test_what_has_no_plain_form_is_its_own_reference():
    config, spec = preset("memory/tmaze")
    assert plain_network(config, spec) is None
    found = roofline(config, spec, 1, seconds=0.1)
    assert found.training.how.startswith("the network itself")
    assert "own door" in found.environment.how


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("minatar/asterix", {}),
        ("gymnasium/CartPole-v1", {}),
        ("gymnasium/Hopper-v5", {}),
        ("atari/pong", {"protocol": "machado"}),
    ],
)
def test_the_raw_loop_steps_every_environment(name, settings):
    step = raw_loop(name, 3, 1, settings)
    assert [step() for _ in range(300)] == [3] * 300


@pytest.mark.envpool
def test_envpools_raw_loop_steps_every_environment():
    step = raw_loop("envpool/CartPole-v1", 3, 1, {})
    assert [step() for _ in range(100)] == [3] * 100


def test_a_slower_sfactory_does_not_raise_its_share(monkeypatch):
    def never(*args, **kwargs):
        raise AssertionError("the roofline looked at sfactory's own environments or networks")

    config, spec = preset("minatar/breakout")
    monkeypatch.setattr(module, "make_group", never)
    monkeypatch.setattr(module, "build_model", never)
    assert roofline(config, spec, 1, seconds=0.3).steps_per_second > 100


def test_costs_add_up_and_a_gpu_leaves_the_environment_alone():
    cost = [Cost(seconds, "") for seconds in (2e-6, 4e-6, 14e-6)]
    assert Roofline(2, *cost, "", "cpu").steps_per_second == pytest.approx(100_000)
    assert Roofline(2, *cost, "", "cuda").steps_per_second == pytest.approx(1_000_000)


def test_beside_a_gpu_no_network_is_measured_on_the_cores(monkeypatch):
    monkeypatch.setattr("sfactory.tools.roofline._network_costs", lambda *unused, **also: pytest.fail("measured"))
    config, spec = preset("minatar/breakout")
    found = roofline(config, spec, 2, "cuda", seconds=0.3)
    assert found.steps_per_second == pytest.approx(2 / found.environment.seconds)


def test_training_costs_what_the_update_does(monkeypatch):
    """Epochs times forward and backward, and one look at the batch where there are several optimizer steps."""
    config = Config(
        env=Env(name="gymnasium/CartPole-v1"), sampling=Sampling(envs_per_group=4), model=Model(hidden=(8,)),
        batch=BatchConfig(epochs=3, minibatches=2),
    )  # fmt: skip
    spec = make_spec("gymnasium/CartPole-v1")
    monkeypatch.setattr(module, "environment_cost", lambda *a: Cost(1.0, ""))

    def costs(*args, learn, bf16):
        return [Cost(10.0 if learn else 2.0, "slow"), Cost(7.0 if learn else 1.0, "fast")]

    monkeypatch.setattr(module, "_network_costs", costs)
    assert roofline(config, spec, 2).training.seconds == 3 * 7.0 + 1.0
    once = Config(env=config.env, sampling=config.sampling, model=config.model)
    assert roofline(once, spec, 2).training.seconds == 7.0
    assert roofline(once, spec, 2).seconds == 1.0 + 1.0 + 7.0


@pytest.mark.parametrize(("slow", "best"), [(64, 8), (8, 64)])
def test_the_environments_cost_is_that_of_few_or_of_many_whichever_is_less(monkeypatch, slow, best):
    """64 of MuJoCo's fall out of the cache, 8 of ale-py's are stepped in more calls."""

    def loop(task, num_envs, seed, settings):
        def step():
            time.sleep(1e-3 * num_envs if num_envs == slow else 1e-4 * num_envs)
            return num_envs

        return step

    monkeypatch.setattr(module, "raw_loop", loop)
    cost = module.environment_cost(Config(env=Env("minatar/breakout"), sampling=Sampling(envs_per_group=64)), 0.3)
    assert cost.seconds < 5e-4
    assert cost.how == f"its library alone, {best} environments"
