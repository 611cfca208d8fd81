"""The network and the training step in plain torch."""

import pytest
import torch

from sfactory.config import Config, LossConfig, Model, Optim, with_settings
from sfactory.config.parsing import build
from sfactory.config.presets import target_layers
from sfactory.envs import ActionLeaf, EnvSpec, Leaf, make_spec
from sfactory.learning.network import build_model
from sfactory.model.distributions import ActionDistribution
from sfactory.tools.plain_torch import PlainTorch, flops_per_row, plain_network

MIXED = EnvSpec(
    "mixed",
    {"obs": Leaf((5,), "float32")},
    {
        "move": ActionLeaf((2,), "float32", "box", (2,), (-1.0, -1.0), (1.0, 1.0)),
        "keys": ActionLeaf((2,), "int64", "discrete", (3, 4)),
        "turn": ActionLeaf((1,), "float32", "box", (1,), (-1.0,), (1.0,)),
        "shot": ActionLeaf((), "int64", "discrete", (2,)),
    },
)


def preset(target):
    config = build(*target_layers(target), {})
    return config, make_spec(config.env.tasks[0], config.env.options)


@pytest.mark.parametrize("target", ["minatar/breakout", "atari/pong", "mujoco/hopper", "classic/cartpole"])
def test_plain_network_has_the_parameters_of_the_model(target):
    config, spec = preset(target)
    own = sum(x.numel() for name, x in build_model(config, spec).named_parameters() if name != "log_std")
    assert sum(x.numel() for x in plain_network(config, spec).parameters()) == own


def test_plain_network_is_none_without_a_plain_form():
    assert plain_network(*preset("memory/tmaze")) is None
    config, spec = preset("classic/cartpole")
    assert plain_network(with_settings(config, {"model.value_head": "hl_gauss"}), spec) is None


def test_plain_torch_has_the_probabilities_and_entropies_of_the_policy():
    plain = PlainTorch(Config(), MIXED, 6)
    with torch.no_grad():
        plain.log_std.copy_(torch.tensor([-0.3, 0.4, 0.2]))
    params, _ = plain.outputs(slice(0, 6))
    log_prob, entropy = plain.log_prob_entropy(params, plain.actions)
    move, keys, turn, shot = params.split((2, 7, 1, 2), -1)
    stds = plain.log_std.expand(6, 3)
    full = torch.cat([move, stds[:, :2], keys, turn, stds[:, 2:], shot], -1)
    expected = ActionDistribution(MIXED.actions).log_prob_entropy(full, plain.actions)
    torch.testing.assert_close((log_prob, entropy), expected)


@pytest.mark.parametrize("target", ["minatar/breakout", "mujoco/hopper", "classic/pendulum"])
def test_plain_torch_training_step_changes_every_parameter(target):
    """The loss reaches the whole network and the standard deviation, picked rows and all."""
    config, spec = preset(target)
    plain = PlainTorch(config, spec, 32)
    before = [x.detach().clone() for x in plain.parameters]
    assert plain.training_step(16) == 16
    assert plain.training_step(16) == 16
    assert all((x != old).any() for x, old in zip(plain.parameters, before, strict=True))


def test_plain_torch_training_step_learns_the_value_targets():
    torch.manual_seed(1)
    config = Config(model=Model(hidden=(32,)), loss=LossConfig(value_coef=100.0), optim=Optim(lr=1e-2))
    plain = PlainTorch(config, MIXED, 64)
    errors = []
    for _ in range(100):
        errors.append((plain.outputs(plain.order)[1] - plain.target[plain.order]).square().mean().item())
        plain.training_step(64)
    assert errors[-1] < 0.8 * errors[0]


def test_flops_per_row_are_those_of_the_layers():
    forward, training = flops_per_row(*preset("minatar/breakout"))
    convolution, hidden, heads = 2 * 64 * 16 * 9 * 4, 2 * 1024 * 128, 2 * 128 * 7
    assert forward == convolution + hidden + heads
    assert training == 3 * forward - convolution, "no gradient of the observation"


def test_flops_per_row_count_the_layers_of_sfactory():
    """They use a library of their own for large batches; memory/tmaze has a GRU."""
    config, spec = preset("memory/tmaze")
    config = with_settings(config, {"model.hidden": (256, 256)})
    forward, training = flops_per_row(config, spec)
    weights = sum(x.numel() for x in build_model(config, spec).parameters() if x.dim() == 2)
    assert forward == pytest.approx(2 * weights, rel=0.05)
    assert 2 * forward < training < 3.01 * forward
