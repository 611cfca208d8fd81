"""Derivatives of action distributions by formula equal what autograd computes."""

import pytest
import torch

from sfactory.envs import ActionLeaf
from sfactory.model.distribution_gradient import HeadGradient, has_gradient
from sfactory.model.distributions import MASKED_LOGIT, ActionDistribution

torch.set_num_threads(1)
BOX = ActionLeaf((3,), "float32", "box", (3,), (-1.0,) * 3, (1.0,) * 3)
SPACES = {
    "one head": {"action": ActionLeaf((), "int64", "discrete", (5,))},
    "heads": {"action": ActionLeaf((2,), "int64", "discrete", (3, 4))},
    "box": {"action": BOX},
    "mixture": {
        "reach": BOX,
        "press": ActionLeaf((), "int64", "discrete", (4,)),
        "turn": ActionLeaf((1,), "float32", "box", (1,), (-1.0,), (1.0,)),
        "pick": ActionLeaf((2,), "int64", "discrete", (2, 3)),
    },
}


def drawn(space, shape=(4, 30)):
    distribution = ActionDistribution(SPACES[space])
    g = torch.Generator().manual_seed(0)
    params = torch.randn(*shape, distribution.num_params, generator=g, dtype=torch.float64)
    action = distribution.sample(params, torch.rand(*shape, distribution.num_noise, generator=g))
    slopes = [torch.randn(shape, generator=g, dtype=torch.float64) for _ in range(2)]
    return distribution, params, action, slopes


@pytest.mark.parametrize("shape", [(7,), (4, 30)])
@pytest.mark.parametrize("space", SPACES)
def test_head_gradient_equals_autograd(space, shape):
    distribution, params, action, slopes = drawn(space, shape)
    leaf = params.clone().requires_grad_()
    outputs = distribution.log_prob_entropy(leaf, action)
    (expected,) = torch.autograd.grad(outputs, leaf, slopes)
    head = HeadGradient(distribution, params, action)
    torch.testing.assert_close(head.log_prob, outputs[0].detach(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(head(*slopes), expected, rtol=1e-10, atol=1e-13)


def test_head_gradient_of_masked_logits_is_zero():
    distribution, params, action, slopes = drawn("one head")
    masked = torch.zeros_like(params, dtype=torch.bool)
    masked[..., 1] = True
    masked[0] = True  # one action is left
    masked[0].scatter_(-1, action["action"][0].unsqueeze(-1), False)
    masked.scatter_(-1, action["action"].unsqueeze(-1), False)
    leaf = params.masked_fill(masked, MASKED_LOGIT).requires_grad_()
    (expected,) = torch.autograd.grad(distribution.log_prob_entropy(leaf, action), leaf, slopes)
    gradient = HeadGradient(distribution, leaf.detach(), action)(*slopes)
    torch.testing.assert_close(gradient, expected, rtol=1e-10, atol=1e-13)
    assert not gradient[masked].any()


def test_head_gradient_exists_unless_a_box_is_squashed():
    assert all(has_gradient(ActionDistribution(space)) for space in SPACES.values())
    assert not has_gradient(ActionDistribution(SPACES["box"], squash=True))
    assert not has_gradient(ActionDistribution(SPACES["mixture"], squash=True))
    assert has_gradient(ActionDistribution(SPACES["heads"], squash=True)), "nothing to squash"
