"""Flat parameters: the same parameters in one piece of memory."""

import copy

import pytest
import torch
from torch import nn

from sfactory.envs import ActionLeaf, Leaf
from sfactory.learning.flat import ALIGNMENT, FlatParameters
from sfactory.model.actor_critic import ActorCritic

torch.set_num_threads(1)
ACTIONS = {"action": ActionLeaf((), "int64", "discrete", (3,))}


def model_with_convolutions():
    torch.manual_seed(0)
    return ActorCritic({"obs": Leaf((4, 36, 36), "uint8")}, ACTIONS, encoder="nature", hidden=(8,))


def random_gradients(flat, seed, scale=1.0):
    draw = torch.Generator().manual_seed(seed)
    return [scale * torch.randn(parameter.shape, generator=draw) for parameter in flat.parameters]


def test_flat_parameters_keep_values_strides_and_identity():
    model = model_with_convolutions()
    before, parameters = copy.deepcopy(model), list(model.parameters())
    flat = FlatParameters(parameters)
    flat.set_gradients([random_gradients(flat, 0)])
    assert any(not parameter.is_contiguous() for parameter in parameters), "a convolution in channels-last memory"
    assert all(one is other for one, other in zip(parameters, model.parameters(), strict=True))
    for one, other in zip(parameters, before.parameters(), strict=True):
        assert torch.equal(one, other)
        assert one.stride() == other.stride() == one.grad.stride()
        assert one.data_ptr() % (4 * ALIGNMENT) == 0
        assert one.untyped_storage().data_ptr() == flat.values.untyped_storage().data_ptr()


def test_flat_parameters_stay_views_when_weights_are_loaded_and_a_copy_is_independent():
    model, other = model_with_convolutions(), model_with_convolutions()
    flat = FlatParameters(list(model.parameters()))
    with torch.no_grad():
        other.policy_head.weight.add_(1.0)
    model.load_state_dict(other.state_dict())
    weights = torch.empty(model.flat_size())
    copied = copy.deepcopy(model)
    flat.values.mul_(2.0)
    for one, expected, unchanged in zip(model.parameters(), other.parameters(), copied.parameters(), strict=True):
        assert torch.equal(one, 2.0 * expected)
        assert torch.equal(unchanged, expected)
    model.write_flat(weights)
    assert torch.equal(weights, 2.0 * torch.cat([x.flatten() for x in other.parameters()]))


def test_flat_parameters_sum_gradients_of_parts_in_place():
    flat = FlatParameters([nn.Parameter(torch.zeros(3, 5)), nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(4))])
    one, two = random_gradients(flat, 1), random_gradients(flat, 2)
    memory = flat.gradient.data_ptr()
    for _ in range(2):  # the second time replaces the first
        flat.set_gradients([[one[0], None, one[2]], [two[0], None, None]])
    first, second, third = flat.parameters
    assert torch.equal(first.grad, one[0] + two[0])
    assert second.grad is None
    assert torch.equal(third.grad, one[2])
    assert first.grad.data_ptr() == memory


@pytest.mark.parametrize("limit", [0.0, 0.5, 1e6])
def test_flat_parameters_clip_their_gradient_as_torch_does_to_the_bit(limit):
    flat = FlatParameters(list(model_with_convolutions().parameters()))
    gradients = random_gradients(flat, 3, scale=1e-2)
    theirs = [nn.Parameter(parameter.detach().clone()) for parameter in flat.parameters]
    for parameter, gradient in zip(theirs, gradients, strict=True):
        parameter.grad = torch.empty_like(parameter).copy_(gradient)
    flat.set_gradients([gradients])
    expected = nn.utils.clip_grad_norm_(theirs, limit or float("inf"))
    assert torch.equal(flat.clip_gradient(limit, by_parameter=True), expected)
    for mine, other in zip(flat.parameters, theirs, strict=True):
        assert torch.equal(mine.grad, other.grad)


def test_flat_parameters_have_one_norm_without_what_has_no_gradient():
    flat = FlatParameters([nn.Parameter(torch.zeros(20)), nn.Parameter(torch.zeros(3))])
    flat.set_gradients([[torch.ones(20), torch.full((3,), 7.0)]])
    flat.set_gradients([[torch.full((20,), 2.0), None]])
    assert float(flat.clip_gradient(0.0, by_parameter=False)) == pytest.approx(80.0**0.5)
    assert float(flat.clip_gradient(1.0, by_parameter=True)) == pytest.approx(80.0**0.5)
    assert float(flat.clip_gradient(0.0, by_parameter=False)) == pytest.approx(1.0)


def test_flat_parameters_write_nothing_between_the_parameters():
    flat = FlatParameters([nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(5))])
    flat.set_gradients([[torch.full((3,), torch.nan), torch.ones(5)]])
    assert flat.clip_gradient(1.0, by_parameter=False).isnan()
    outside = torch.ones(len(flat.gradient), dtype=torch.bool)
    for start in (0, ALIGNMENT):
        outside[start : start + 3] = False
    outside[ALIGNMENT : ALIGNMENT + 5] = False
    assert outside.any()
    assert not flat.gradient[outside].any()
    assert [(s.start, s.stop) for s in flat.stretches] == [(0, 3), (ALIGNMENT, ALIGNMENT + 5)]


def test_flat_parameters_are_float32_only():
    with pytest.raises(ValueError, match=r"parameters of torch.float32 on cpu, torch.float64 on cpu, expected float32"):
        FlatParameters([nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2, dtype=torch.float64))])
