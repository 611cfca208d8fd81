"""The network of PPG: an auxiliary value beside the parameters, and what trains which trunk."""

import pytest
import torch

from sfactory.envs import ActionLeaf, Leaf
from sfactory.model.actor_critic import ActorCritic
from sfactory.model.distribution_gradient import has_gradient
from sfactory.model.distributions import ActionDistribution
from sfactory.model.further_columns import WithFurtherColumn
from sfactory.model.phasic_network import PhasicNetwork
from sfactory.native.network import unsupported

torch.set_num_threads(1)
OBS = {"obs": Leaf((5,), "float32")}
DISCRETE = {"action": ActionLeaf((), "int64", "discrete", (3,))}
SEVERAL = {"keys": ActionLeaf((2,), "int64", "discrete", (2, 4)), "push": ActionLeaf((2,), "float32", "box", (2,))}


@pytest.mark.parametrize("actions", [DISCRETE, SEVERAL], ids=["one head", "several"])
def test_a_further_column_changes_nothing(actions):
    plain, further = ActionDistribution(actions), WithFurtherColumn(actions)
    assert further.num_params == plain.num_params + 1
    assert has_gradient(plain)
    assert not has_gradient(further)
    g = torch.Generator().manual_seed(0)
    params, other = (torch.randn(6, plain.num_params, generator=g) for _ in range(2))
    noise = torch.rand(6, plain.num_noise, generator=g)
    wide, wide_other = (torch.cat([x, torch.full((6, 1), torch.nan)], -1) for x in (params, other))
    action, log_prob = plain.sample_and_log_prob(params, noise)
    found, found_log_prob = further.sample_and_log_prob(wide, noise)
    for name, values in action.items():
        assert torch.equal(found[name], values)
        assert torch.equal(further.sample(wide, noise)[name], values)
        assert torch.equal(further.mode(wide)[name], plain.mode(params)[name])
    assert torch.equal(found_log_prob, log_prob)
    assert torch.equal(further.log_prob(wide, action), plain.log_prob(params, action))
    assert torch.equal(further.log_prob_entropy(wide, action)[1], plain.entropy(params))
    assert torch.equal(further.entropy(wide), plain.entropy(params))
    assert torch.equal(further.kl(wide, wide_other), plain.kl(params, other))


def trained_by(model, output):
    """Names of parameters that an output depends on."""
    gradients = torch.autograd.grad(output.sum(), list(model.parameters()), allow_unused=True)
    return {name for (name, _), g in zip(model.named_parameters(), gradients, strict=True) if g is not None and g.any()}


@pytest.mark.parametrize("separate", [False, True])
def test_values_train_the_trunk_of_the_policy_through_the_auxiliary_head_alone(separate):
    torch.manual_seed(0)
    model = PhasicNetwork(OBS, DISCRETE, separate=separate)
    obs = {"obs": torch.randn(9, 5)}

    def prefixes(output):
        return {name.partition(".")[0] for name in trained_by(model, output)}

    assert prefixes(model(obs).params[:, :-1].square()) == {"trunk", "policy_head"}
    assert prefixes(model(obs).params[:, -1]) == {"trunk", "auxiliary_head"}
    assert prefixes(model(obs).value) == ({"critic", "value_head"} if separate else {"value_head"})


@pytest.mark.parametrize("separate", [False, True])
def test_the_policy_and_the_value_are_those_of_the_actor_critic(separate):
    torch.manual_seed(0)
    plain = ActorCritic(OBS, SEVERAL, separate=separate)
    model = PhasicNetwork(OBS, SEVERAL, separate=separate)
    model.load_state_dict(plain.state_dict(), strict=False)
    obs = {"obs": torch.randn(9, 5)}
    expected, found = plain(obs), model(obs)
    assert torch.equal(found.params[:, :-1], expected.params)
    assert torch.equal(found.value, expected.value)
    assert unsupported(model) == "the network PhasicNetwork"


def test_both_value_heads_are_rescaled():
    torch.manual_seed(0)
    model = PhasicNetwork(OBS, DISCRETE)
    obs = {"obs": torch.randn(9, 5)}
    before = model(obs)
    model.rescale_value(torch.tensor(2.0), torch.tensor(-3.0))
    after = model(obs)
    torch.testing.assert_close(after.value, 2.0 * before.value - 3.0)
    torch.testing.assert_close(after.params[:, -1], 2.0 * before.params[:, -1] - 3.0)
    assert torch.equal(after.params[:, :-1], before.params[:, :-1])
