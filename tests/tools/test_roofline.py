"""The roofline: reference loops outside sfactory's code, and the sum of their costs."""

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
def test_plain_network_has_the_parameters_of_the_model(target):
    config, spec = preset(target)
    own = sum(x.numel() for name, x in build_model(config, spec).named_parameters() if name != "log_std")
    assert sum(x.numel() for x in plain_network(config, spec).parameters()) == own


def test_plain_network_is_none_without_a_plain_form():
    config, spec = preset("memory/tmaze")
    assert plain_network(config, spec) is None
    found = roofline(config, spec, 1, seconds=0.1)
    assert found.training.how.startswith("the network itself")
    assert "through sfactory's group" in found.environment.how


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("minatar/asterix", {}),
        ("gymnasium/CartPole-v1", {}),
        ("gymnasium/Hopper-v5", {}),
        ("atari/pong", {"protocol": "machado"}),
    ],
)
def test_raw_loop_steps_every_environment(name, settings):
    step = raw_loop(name, 3, 1, settings)
    assert [step() for _ in range(300)] == [3] * 300


@pytest.mark.envpool
def test_envpool_raw_loop_steps_every_environment():
    step = raw_loop("envpool/CartPole-v1", 3, 1, {})
    assert [step() for _ in range(100)] == [3] * 100


def test_roofline_does_not_depend_on_the_speed_of_sfactory(monkeypatch):
    def never(*args, **kwargs):
        raise AssertionError("the roofline used sfactory's own environments or networks")

    config, spec = preset("minatar/breakout")
    monkeypatch.setattr(module, "make_group", never)
    monkeypatch.setattr(module, "build_model", never)
    assert roofline(config, spec, 1, seconds=0.3).steps_per_second > 100


def test_roofline_adds_costs_and_counts_only_the_environment_beside_a_gpu():
    cost = [Cost(seconds, "") for seconds in (2e-6, 4e-6, 14e-6)]
    assert Roofline(2, *cost, "", "cpu").steps_per_second == pytest.approx(100_000)
    assert Roofline(2, *cost, "", "cuda").steps_per_second == pytest.approx(1_000_000)


def test_roofline_measures_no_network_on_the_cpu_beside_a_gpu(monkeypatch):
    monkeypatch.setattr("sfactory.tools.roofline._network_costs", lambda *unused, **also: pytest.fail("measured"))
    config, spec = preset("minatar/breakout")
    found = roofline(config, spec, 2, "cuda", seconds=0.3)
    assert found.steps_per_second == pytest.approx(2 / found.environment.seconds)


def test_roofline_training_cost_counts_the_passes_of_an_update(monkeypatch):
    """Epochs times forward and backward, and one forward pass over the batch if there are several optimizer steps."""
    config = Config(
        env=Env(name="gymnasium/CartPole-v1"), sampling=Sampling(envs_per_group=4), model=Model(hidden=(8,)),
        batch=BatchConfig(epochs=3, minibatches=2),
    )  # fmt: skip
    spec = make_spec("gymnasium/CartPole-v1")
    monkeypatch.setattr(module, "environment_cost", lambda *a: Cost(1.0, ""))

    def costs(*args, backward, bf16):
        return [Cost(10.0 if backward else 2.0, "slow"), Cost(7.0 if backward else 1.0, "fast")]

    monkeypatch.setattr(module, "_network_costs", costs)
    assert roofline(config, spec, 2).training.seconds == 3 * 7.0 + 1.0
    once = Config(env=config.env, sampling=config.sampling, model=config.model)
    assert roofline(once, spec, 2).training.seconds == 7.0
    assert roofline(once, spec, 2).seconds == 1.0 + 1.0 + 7.0


@pytest.mark.parametrize(("slow", "best"), [(64, 8), (8, 64)])
def test_environment_cost_is_the_cheaper_of_two_group_sizes(monkeypatch, slow, best):
    """64 MuJoCo environments exceed the cache; 8 of ale-py need more calls."""

    def loop(task, num_envs, seed, settings):
        def step():
            time.sleep(1e-3 * num_envs if num_envs == slow else 1e-4 * num_envs)
            return num_envs

        return step

    monkeypatch.setattr(module, "raw_loop", loop)
    cost = module.environment_cost(Config(env=Env("minatar/breakout"), sampling=Sampling(envs_per_group=64)), 0.3)
    assert cost.seconds < 5e-4
    assert cost.how == f"its library alone, {best} environments"
