"""The value head with bins: its value, what it adds to a network, and how it follows a change of units."""

import pytest
import torch

from sfactory.envs import ActionLeaf, Leaf
from sfactory.model.actor_critic import ActorCritic
from sfactory.model.histogram_head import HistogramHead, ValueBins
from sfactory.native.network import unsupported

torch.set_num_threads(1)
OBS = {"obs": Leaf((5,), "float32")}
ACTIONS = {"action": ActionLeaf((), "int64", "discrete", (3,))}
BINS = ValueBins(-10.0, 10.0, 151)


def make(bins=BINS, **settings):
    torch.manual_seed(0)
    return ActorCritic(OBS, ACTIONS, value_bins=bins, **settings)


def test_value_is_the_mean_of_the_centers_of_the_bins():
    bins = ValueBins(-3.0, 5.0, 4)
    head = HistogramHead(2, bins).double()
    logits = torch.randn(6, 7, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    p = logits.exp() / logits.exp().sum(-1, keepdim=True)
    expected = -2.0 * p[..., 0] + 0.0 * p[..., 1] + 2.0 * p[..., 2] + 4.0 * p[..., 3]
    torch.testing.assert_close(head.expected(logits), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("core", ["none", "gru"])
@pytest.mark.parametrize("separate", [False, True])
def test_network_with_bins_has_their_logits_beside_the_value(core, separate):
    if separate and core != "none":
        return
    model = make(core=core, core_size=8 if core != "none" else 0, separate=separate)
    obs, first = {"obs": torch.randn(4, 6, 5)}, torch.zeros(4, 6, dtype=torch.bool)
    out = model.unroll(obs, first)
    assert out.value_logits.shape == (4, 6, 151)
    assert out.value.shape == (4, 6)
    torch.testing.assert_close(out.value, model.value_head.expected(out.value_logits))
    assert out.value.abs().max() < 0.5, "nearly uniform at first: the middle of the range"
    state, values = None, []
    for t in range(4):
        one = model({"obs": obs["obs"][t]}, state, first[t])
        state = one.state
        values.append(one.value)
    torch.testing.assert_close(torch.stack(values), out.value, rtol=1e-5, atol=1e-5)
    assert model.unroll(obs, first).median is None
    assert make(None).unroll(obs, first).value_logits is None


def test_flat_weights_and_the_saved_ones_have_no_constants_of_the_bins():
    model, other = make(), make()
    assert model.flat_size() == sum(x.numel() for x in model.parameters())
    assert not [name for name in model.state_dict() if "offsets" in name]
    with torch.no_grad():
        model.value_head.weight.normal_()
    flat = torch.empty(model.flat_size())
    model.write_flat(flat)
    other.read_flat(flat)
    obs = {"obs": torch.randn(9, 5)}
    assert torch.equal(model(obs).value, other(obs).value)


def test_native_kernels_leave_a_network_with_bins_to_torch():
    assert unsupported(make(None)) == ""
    assert unsupported(make()) == "a value head with bins"


def test_value_of_a_network_moves_with_its_bins():
    model = make(ValueBins(-4.0, 10.0, 151))
    with torch.no_grad():
        model.value_head.weight.normal_()
    obs = {"obs": torch.randn(9, 5)}
    before = model(obs).value
    model.rescale_finished_value(20.0, 7.0)
    torch.testing.assert_close(model(obs).value, 20.0 * before + 7.0, rtol=1e-5, atol=1e-4)
    plain = make(None)
    before = plain(obs).value
    plain.rescale_finished_value(20.0, 7.0)
    torch.testing.assert_close(plain(obs).value, 20.0 * before + 7.0, rtol=1e-5, atol=1e-4)
