"""A whole actor-critic network of the user's own."""

import numpy as np
import pytest
import torch
from torch import nn

import sfactory
from sfactory import pickled
from sfactory.envs import make_spec
from sfactory.errors import SettingError
from sfactory.learning.network import build_model
from sfactory.model.own_network import OwnNetwork
from sfactory.native.network import unsupported


class Shared(nn.Module):
    """One layer for both heads."""

    def __init__(self, shapes, *, outputs):
        super().__init__()
        (shape,) = shapes.values()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(int(np.prod(shape)), 16), nn.Tanh())
        self.actor, self.critic = nn.Linear(16, outputs), nn.Linear(16, 1)

    def forward(self, obs):
        (leaf,) = obs.values()
        x = self.body(leaf.float())
        return self.actor(x), self.critic(x)


class NoValue(Shared):
    def forward(self, obs):
        return super().forward(obs)[0]


def built(env, network, **sections):
    config = sfactory.make_config(env, model={"network": network}, **sections)
    return build_model(config, make_spec(config.env.name)), config


def test_own_network_computes_logits_and_value():
    model, _ = built("gymnasium/CartPole-v1", Shared)
    obs = torch.randn(5, 4)
    out = model({"obs": obs})
    x = model.trunk.network.body(obs)
    torch.testing.assert_close(out.params, model.trunk.network.actor(x))
    torch.testing.assert_close(out.value, model.trunk.network.critic(x).squeeze(-1))
    assert out.median is None
    rows = model.unroll({"obs": obs.view(5, 1, 4)}, torch.zeros(5, 1, dtype=torch.bool))
    torch.testing.assert_close(rows.value.flatten(), out.value)


def test_own_network_gets_a_standard_deviation_for_continuous_numbers():
    model, _ = built("gymnasium/Pendulum-v1", Shared)
    out = model({"obs": torch.randn(5, 3)})
    assert out.params.shape == (5, 2)
    assert model.log_std.shape == (1,)
    assert torch.equal(out.params[:, 1], model.log_std.detach().expand(5))


def test_own_network_is_computed_by_torch():
    model, _ = built("gymnasium/CartPole-v1", Shared)
    assert isinstance(model, OwnNetwork)
    assert unsupported(model) == "the network OwnNetwork"


def test_own_network_that_returns_no_value_is_refused_with_the_shapes():
    model, _ = built("gymnasium/CartPole-v1", NoValue)
    with pytest.raises(
        SettingError, match=r"forward returned .*expected the outputs of the actor \(5, 2\) and the value"
    ):
        model({"obs": torch.randn(5, 4)})


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"model": {"core": "gru"}}, "model.core gru and model.network"),
        ({"normalize": {"value_targets": True}}, "normalize.value-targets true and model.network"),
        ({"algorithm": {"name": "ppg"}}, "algorithm.name ppg and model.network"),
    ],
)
def test_own_network_excludes_settings_that_need_our_layers(sections, message):
    name = pickled.name_of(Shared, "model.network")
    merged = {**sections, "model": {**sections.get("model", {}), "network": name}}
    with pytest.raises(ValueError, match=message):
        sfactory.make_config("gymnasium/CartPole-v1", **merged)
