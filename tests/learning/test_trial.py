"""A network of the user's own is tried before a run begins."""

import numpy as np
import pytest
import torch
from torch import nn

import sfactory
from sfactory.envs import Leaf, make_spec
from sfactory.errors import SettingError
from sfactory.learning.trial import _rows, try_own_network


class Good(nn.Module):
    """A sound encoder."""

    def __init__(self, shape, *, hidden, activation):
        super().__init__()
        self.out_size = 8
        self.layer = nn.Linear(torch.Size(shape).numel(), 8)

    def forward(self, obs):
        return self.layer(obs.float().flatten(1)).tanh()


class NoArguments(nn.Module):
    def __init__(self):
        super().__init__()


class NoModule:
    def __init__(self, shape, **_):
        pass


class NoSize(Good):
    def __init__(self, shape, **settings):
        super().__init__(shape, **settings)
        del self.out_size


class SizeIsText(Good):
    def __init__(self, shape, **settings):
        super().__init__(shape, **settings)
        self.out_size = "8"


class Raises(Good):
    def forward(self, obs):
        raise RuntimeError("mine")


class Quits(Good):
    def forward(self, obs):
        raise SystemExit(3)


class Narrow(Good):
    def forward(self, obs):
        return super().forward(obs)[:, :3]


class OfTheBatch(Good):
    def forward(self, obs):
        x = super().forward(obs)
        return x - x.mean(0)


class OtherInTraining(Good):
    def forward(self, obs):
        return super().forward(obs) * (0.5 if self.training else 1.0)


class Noisy(Good):
    def forward(self, obs):
        x = super().forward(obs)
        return x + torch.randn_like(x)


class Frozen(Good):
    def forward(self, obs):
        return super().forward(obs).detach()


SAME = "returns other numbers for the same observation {}: the policy that is trained would not be the one that acts"
WRONG = {
    NoArguments: "unexpected keyword argument 'hidden'; it is called as NoArguments((4,), hidden=(64, 64), activation=",
    NoModule: "expected a torch.nn.Module, got NoModule",
    NoSize: "its attribute out_size is missing; expected the number of features",
    SizeIsText: "its attribute out_size is '8'; expected the number of features",
    Raises: "RuntimeError: mine ({file}, line ",
    Quits: "SystemExit: 3 ({file}, line ",
    Narrow: "forward of Narrow returned (3, 3); expected the features (3, 8)",
    OfTheBatch: SAME.format("when other rows are in the batch"),
    OtherInTraining: SAME.format("in training mode"),
    Noisy: SAME.format("when it is called again"),
}


def tried(env, **model):
    config = sfactory.make_config(env, model=model)
    try_own_network(config, make_spec(config.env.name))


@pytest.mark.parametrize("encoder", WRONG, ids=lambda encoder: encoder.__name__)
def test_trial_refuses_an_encoder_that_cannot_train_with_the_reason(encoder):
    with pytest.raises(SettingError) as caught:
        tried("classic/cartpole", encoder=encoder)
    message = str(caught.value)
    assert WRONG[encoder].replace("{file}", __file__) in message
    assert message.startswith("model.encoder")
    assert message.endswith("see docs/extending.md")
    assert "\n" not in message


@pytest.mark.parametrize("encoder", [OfTheBatch, OtherInTraining, Noisy])
def test_trial_compares_small_means_beside_a_large_standard_deviation(encoder):
    """The logarithm of the deviation is -2 in every row; the means are near 0.01 before training."""
    with pytest.raises(SettingError, match="returns other numbers for the same observation"):
        tried("gymnasium/Pendulum-v1", encoder=encoder, log_std_init=-2.0)


def test_trial_names_a_class_that_does_not_exist():
    with pytest.raises(SettingError, match=r"^model\.encoder test_trial:Absent: test_trial has no Absent \(.*\)$"):
        tried("classic/cartpole", encoder="test_trial:Absent")


@pytest.mark.parametrize("env", ["classic/cartpole", "minatar/breakout", "gymnasium/Pendulum-v1", "memory/cartpole"])
def test_trial_accepts_a_sound_encoder(env):
    tried(env, encoder=Good)


class Both(nn.Module):
    """A sound network."""

    def __init__(self, shapes, *, outputs):
        super().__init__()
        self.body = nn.Linear(torch.Size(shapes["obs"]).numel(), 16)
        self.actor, self.critic = nn.Linear(16, outputs), nn.Linear(16, 1)

    def forward(self, obs):
        x = self.body(obs["obs"].float().flatten(1)).tanh()
        return self.actor(x), self.critic(x)


class BothOfTheBatch(Both):
    def forward(self, obs):
        actor, value = super().forward(obs)
        return actor - actor.mean(0), value


class BothWithout(nn.Module):
    def __init__(self):
        super().__init__()


class OneOutput(Both):
    def forward(self, obs):
        return super().forward(obs)[0]


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (BothWithout, "unexpected keyword argument 'outputs'; it is called as BothWithout({'obs': (4,)}, outputs=2)"),
        (OneOutput, "forward returned (3, 2); expected the outputs of the actor (3, 2) and the value (3,)"),
        (BothOfTheBatch, SAME.format("when other rows are in the batch")),
    ],
)
def test_trial_refuses_a_network_that_cannot_train_with_the_reason(network, message):
    with pytest.raises(SettingError) as caught:
        tried("classic/cartpole", network=network)
    assert message in str(caught.value)


@pytest.mark.parametrize("env", ["classic/cartpole", "gymnasium/Pendulum-v1"])
def test_trial_accepts_a_sound_network(env):
    tried(env, network=Both)


@pytest.mark.parametrize(
    ("leaf", "low", "high"),
    [
        (Leaf((50,), "uint8"), 0, 255),
        (Leaf((50,), "bool"), 0, 1),
        (Leaf((50,), "int64"), 0, 0),
        (Leaf((50,), "int64", (3.0,), (9.0,)), 3, 9),
        (Leaf((2,), "float32", (-0.1, 5.0), (0.1, float("inf"))), -0.1, float("inf")),
    ],
)
def test_trial_uses_observations_within_their_bounds(leaf, low, high):
    rows = _rows(leaf, np.random.default_rng(0))
    assert rows.dtype == leaf.dtype
    assert rows.shape == (3, *leaf.shape)
    assert rows.min() >= np.float32(low)
    assert rows.max() <= high


def test_number_in_place_of_a_class_is_refused_with_what_is_expected():
    with pytest.raises(SettingError, match=r"^model\.encoder: 3 is no name, class or function$"):
        sfactory.make_config("classic/cartpole", model={"encoder": 3})
