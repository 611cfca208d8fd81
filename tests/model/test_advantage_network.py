"""The network of DAE: a number for every action beside the policy, and what trains which trunk."""

import pytest
import torch

from sfactory.envs import ActionLeaf, Leaf
from sfactory.model.actor_critic import ActorCritic
from sfactory.model.advantage_network import AdvantageNetwork
from sfactory.model.distribution_gradient import has_gradient
from sfactory.model.distributions import MASKED_LOGIT, ActionDistribution
from sfactory.model.further_columns import WithAdvantages
from sfactory.native.network import unsupported

torch.set_num_threads(1)
OBS = {"obs": Leaf((5,), "float32")}
DISCRETE = {"action": ActionLeaf((), "int64", "discrete", (3,))}
SEVERAL = {"keys": ActionLeaf((2,), "int64", "discrete", (2, 4))}
BOX = {"push": ActionLeaf((2,), "float32", "box", (2,))}


def test_the_further_columns_change_no_probability():
    plain, further = ActionDistribution(DISCRETE), WithAdvantages(DISCRETE)
    assert further.num_params == 6
    assert has_gradient(plain)
    assert not has_gradient(further)
    g = torch.Generator().manual_seed(0)
    params, other, f = torch.randn(3, 7, 3, generator=g)
    noise = torch.rand(7, 1, generator=g)
    wide, wide_other = (torch.cat([x, torch.full((7, 3), torch.nan)], -1) for x in (params, other))
    action, log_prob = plain.sample_and_log_prob(params, noise)
    found, found_log_prob = further.sample_and_log_prob(wide, noise)
    assert torch.equal(found["action"], action["action"])
    assert torch.equal(further.mode(wide)["action"], plain.mode(params)["action"])
    assert torch.equal(found_log_prob, log_prob)
    assert torch.equal(further.log_prob_entropy(wide, action)[1], plain.entropy(params))
    assert torch.equal(further.entropy(wide), plain.entropy(params))
    assert torch.equal(further.kl(wide, wide_other), plain.kl(params, other))
    assert torch.equal(further.score_square(wide, action), plain.score_square(params, action))
    assert torch.equal(further.log_probs(wide), params.log_softmax(-1))
    assert torch.equal(further.advantages(torch.cat([params, f], -1)), f)
    assert further.of_action(f, action).tolist() == [f[n, a].item() for n, a in enumerate(action["action"])]


@pytest.mark.parametrize("actions", [SEVERAL, BOX, {**DISCRETE, **BOX}], ids=["two heads", "box", "two leaves"])
def test_advantages_of_other_actions_than_one_choice_are_refused(actions):
    with pytest.raises(ValueError, match="advantages of all actions need one discrete action"):
        AdvantageNetwork(OBS, actions)


def trained_by(model, output):
    """First parts of the names of the parameters that an output depends on."""
    gradients = torch.autograd.grad(output.sum(), list(model.parameters()), allow_unused=True)
    named = zip(model.named_parameters(), gradients, strict=True)
    return {name.partition(".")[0] for (name, _), g in named if g is not None and g.any()}


@pytest.mark.parametrize("separate", [False, True])
def test_advantages_train_the_trunk_of_the_values(separate):
    torch.manual_seed(0)
    model = AdvantageNetwork(OBS, DISCRETE, separate=separate, hidden=(16,))
    obs = {"obs": torch.randn(9, 5)}
    trunk = "critic" if separate else "trunk"
    assert trained_by(model, model(obs).params[:, 3:].square()) == {trunk, "advantage_head"}
    assert trained_by(model, model(obs).value) == {trunk, "value_head"}
    assert trained_by(model, model(obs).params[:, :3].square()) == {"trunk", "policy_head"}


def test_policy_and_value_are_those_of_the_actor_critic():
    torch.manual_seed(0)
    plain, model = ActorCritic(OBS, DISCRETE), AdvantageNetwork(OBS, DISCRETE)
    model.load_state_dict(plain.state_dict(), strict=False)
    obs = {"obs": torch.randn(9, 5)}
    expected, found = plain(obs), model(obs)
    assert torch.equal(found.params[:, :3], expected.params)
    assert torch.equal(found.value, expected.value)
    assert unsupported(model) == "the network AdvantageNetwork"


def test_a_mask_is_for_the_policy_alone():
    torch.manual_seed(0)
    leaves = {**OBS, "mask": Leaf((3,), "int8")}
    model = AdvantageNetwork(leaves, DISCRETE, mask="mask")
    obs = {"obs": torch.randn(2, 5), "mask": torch.tensor([[1, 0, 1], [0, 0, 0]], dtype=torch.int8)}
    params = model(obs).params
    assert (params[:, :3] == MASKED_LOGIT).tolist() == [[False, True, False], [True, True, True]]
    assert (params[:, 3:].abs() < 10).all()
    f, log_probs = model.distribution.advantages(params), model.distribution.log_probs(params)
    assert log_probs.exp()[0, 1] == 0
    assert f.isfinite().all()


def test_advantages_keep_their_units_when_the_values_are_rescaled():
    torch.manual_seed(0)
    model = AdvantageNetwork(OBS, DISCRETE)
    obs = {"obs": torch.randn(9, 5)}
    before = model(obs).params[:, 3:]
    model.rescale_value(torch.tensor(2.0), torch.tensor(-3.0))
    torch.testing.assert_close(model(obs).params[:, 3:], 2.0 * before - 3.0)
