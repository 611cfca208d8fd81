"""Action values as the parameters of an epsilon-greedy policy, and the network that computes them."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from sfactory.envs import ActionLeaf, Leaf
from sfactory.model.actor_critic import ActorCritic
from sfactory.model.distributions import MASKED_LOGIT, UNIFORM_MAX
from sfactory.model.epsilon_greedy import EpsilonGreedy
from sfactory.model.q_network import QNetwork
from sfactory.native.network import unsupported

torch.set_num_threads(1)
ACTIONS = {"action": ActionLeaf((), "int64", "discrete", (4,))}
GRID = Leaf((10, 10, 4), "bool")
VALUES = [[0.5, 2.0, -1.0, 1.0], [MASKED_LOGIT, 0.0, MASKED_LOGIT, -3.0], [1.0, 1.0, 1.0, 1.0]]


def params(epsilon):
    values = torch.tensor(VALUES)
    return torch.cat([values, torch.full((len(values), 1), epsilon)], -1)


@pytest.mark.parametrize("epsilon", [0.0, 0.1, 1.0])
def test_probabilities_are_epsilon_among_possible_actions_and_the_rest_for_the_best(epsilon):
    rest, e = 1.0 - epsilon, epsilon
    expected = torch.tensor(
        [
            [e / 4, rest + e / 4, e / 4, e / 4],
            [0.0, rest + e / 2, 0.0, e / 2],
            [rest + e / 4, e / 4, e / 4, e / 4],  # the first of equals
        ]
    )
    torch.testing.assert_close(EpsilonGreedy(ACTIONS).log_probs(params(epsilon)).exp(), expected)


@pytest.mark.parametrize("epsilon", [0.0, 0.3])
def test_samples_have_these_frequencies_and_their_own_log_probability(epsilon):
    policy, noise = EpsilonGreedy(ACTIONS), (torch.arange(4000) + 0.5) / 4000
    many = params(epsilon)[:, None].expand(-1, len(noise), -1)
    action, log_prob = policy.sample_and_log_prob(many, noise.view(1, -1, 1).expand(len(many), -1, 1))
    p = policy.log_probs(params(epsilon)).exp()
    for row in range(len(p)):
        counts = torch.bincount(action["action"][row], minlength=4)
        torch.testing.assert_close(counts / len(noise), p[row], rtol=0, atol=1e-3)
    torch.testing.assert_close(log_prob, p.log().gather(-1, action["action"]))
    torch.testing.assert_close(policy.log_prob(many, action), log_prob)
    assert torch.isfinite(policy.log_prob(many, {"action": torch.zeros_like(action["action"])})).all()


@pytest.mark.parametrize("noise", [0.0, UNIFORM_MAX])
def test_impossible_actions_are_never_selected_at_the_ends_of_the_noise(noise):
    action = EpsilonGreedy(ACTIONS).sample(params(1.0), torch.full((3, 1), noise))["action"]
    assert action[1] in (1, 3)


def test_entropy_and_kl_are_those_of_the_policy():
    policy, one, other = EpsilonGreedy(ACTIONS), params(0.2), params(0.6)
    p, q = (torch.distributions.Categorical(policy.log_probs(x).exp()) for x in (one, other))
    torch.testing.assert_close(policy.entropy(one), p.entropy())
    expected = torch.distributions.kl_divergence(
        *(torch.distributions.Categorical(x.probs.clamp(min=1e-30)) for x in (p, q))
    )
    torch.testing.assert_close(policy.kl(one, other), expected)


def test_the_best_action_is_that_of_the_highest_value_whatever_epsilon():
    policy = EpsilonGreedy(ACTIONS)
    assert policy.mode(params(1.0))["action"].tolist() == [1, 1, 0]
    close = torch.tensor([[0.01, 0.01 + 1e-9, 0.0, 0.0, 0.5]])  # log_softmax would round the difference away
    assert policy.mode(close)["action"].tolist() == [1]
    taken = {"action": torch.tensor([0, 3, 1])}
    assert policy.value(params(0.5), taken).tolist() == [0.5, -3.0, 1.0]
    assert policy.shortfall(params(0.5), taken).tolist() == [1.5, 3.0, 0.0]


@pytest.mark.parametrize(
    "actions",
    [
        {"a": ActionLeaf((2,), "int64", "discrete", (2, 3))},
        {"a": ActionLeaf((), "int64", "discrete", (2,)), "b": ActionLeaf((), "int64", "discrete", (3,))},
        {"a": ActionLeaf((2,), "float32", "box", (2,))},
    ],
)
def test_several_choices_are_refused(actions):
    with pytest.raises(ValueError, match="one discrete action"):
        EpsilonGreedy(actions)


def test_network_returns_values_epsilon_and_the_largest_value():
    model = QNetwork({"obs": GRID}, ACTIONS, encoder="minatar", layer_norm=True, epsilon=0.25)
    obs = {"obs": torch.rand(7, 10, 10, 4) < 0.3}
    out = model(obs)
    assert out.params.shape == (7, 5)
    assert (out.params[:, -1] == 0.25).all()
    assert torch.equal(out.value, out.params[:, :4].max(-1).values)
    (gradient,) = torch.autograd.grad(out.params[:, 1].sum(), model.q_head.bias)
    assert gradient.tolist() == [0.0, 7.0, 0.0, 0.0]
    unrolled = model.unroll({"obs": obs["obs"].view(7, 1, 10, 10, 4)}, torch.zeros(7, 1, dtype=torch.bool))
    torch.testing.assert_close(unrolled.params[:, 0], out.params)


def test_epsilon_is_published_with_the_weights():
    one, two = (QNetwork({"obs": GRID}, ACTIONS, encoder="minatar", epsilon=e) for e in (0.7, 0.1))
    flat = torch.empty(one.flat_size())
    one.write_flat(flat)
    two.read_flat(flat)
    assert two.epsilon == one.epsilon == torch.tensor(0.7)
    assert "epsilon" in one.state_dict()


def test_masked_actions_have_no_value_unless_all_are_masked():
    leaves = {"obs": Leaf((3,), "float32"), "mask": Leaf((4,), "int8")}
    model = QNetwork(leaves, ACTIONS, mask="mask")
    mask = torch.tensor([[1, 0, 1, 0], [0, 0, 0, 0]])
    out = model({"obs": torch.randn(2, 3), "mask": mask})
    assert (out.params[0, :4] == MASKED_LOGIT).tolist() == [False, True, False, True]
    assert (out.params[1] > MASKED_LOGIT).all()
    assert out.value.abs().max() < 100.0


@pytest.mark.parametrize("encoder", ["minatar", "mlp", "nature", "cnn", "impala"])
def test_layer_norm_is_before_every_activation(encoder):
    """Scaling the weights of a normalized layer changes nothing."""
    torch.manual_seed(0)
    shape = {"minatar": (10, 10, 4), "mlp": (6,)}.get(encoder, (1, 36, 36))
    leaf = Leaf(shape, "bool" if encoder == "minatar" else "float32")
    model = ActorCritic({"obs": leaf}, ACTIONS, encoder=encoder, hidden=(32, 16), layer_norm=True).eval()
    obs = {"obs": torch.rand(5, *shape) < 0.3 if encoder == "minatar" else torch.rand(5, *shape)}
    layers = 0
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
        before = model(obs).params
        for name, module in model.trunk.named_modules():
            if isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and encoder != "impala"):
                layers += 1
                for parameter in module.parameters():
                    parameter.mul_(100.0)  # so that the epsilon of LayerNorm does not matter either
                scaled = model(obs).params
                for parameter in module.parameters():
                    parameter.div_(100.0)
                torch.testing.assert_close(scaled, before, rtol=0, atol=2e-3, msg=name)
    assert layers == {"minatar": 3, "mlp": 2, "nature": 5, "cnn": 5, "impala": 2}[encoder]


def test_layer_norm_of_a_picture_is_over_the_channels_of_a_place():
    torch.manual_seed(0)
    model = ActorCritic({"obs": GRID}, ACTIONS, encoder="minatar", hidden=(), layer_norm=True)
    encoder, obs = model.trunk.encoders[0], torch.rand(3, 10, 10, 4) < 0.3
    x = functional.conv2d(obs.float().permute(0, 3, 1, 2), encoder.conv.weight, encoder.conv.bias)
    expected = torch.empty(3, 8, 8, 16)
    for y in range(8):
        for z in range(8):
            place = x[:, :, y, z]
            mean, var = place.mean(1, keepdim=True), place.var(1, correction=0, keepdim=True)
            expected[:, y, z] = ((place - mean) / (var + 1e-5).sqrt()).relu()
    torch.testing.assert_close(encoder(obs), expected.flatten(1), rtol=1e-4, atol=1e-5)


def test_native_kernels_leave_these_networks_to_torch():
    assert unsupported(QNetwork({"obs": GRID}, ACTIONS, encoder="minatar")) == "the network QNetwork"
    model = ActorCritic({"obs": GRID}, ACTIONS, encoder="minatar", layer_norm=True)
    assert unsupported(model) == "layer normalization"


def test_epsilon_greedy_has_no_gradient_of_its_log_probability():
    with pytest.raises(NotImplementedError, match="no derivative"):
        EpsilonGreedy(ACTIONS).score_square(params(0.2), {"action": torch.zeros(1, dtype=torch.int64)})
