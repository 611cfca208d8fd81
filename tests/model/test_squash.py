"""Squashed box actions: the density is that of what the environment gets."""

import numpy as np
import pytest
import torch

from sfactory.envs import ActionLeaf, EnvError, EnvSpec, bounded
from sfactory.model.distributions import ActionDistribution

LOW, HIGH = (-2.0, 0.0), (4.0, 1.0)
ACTIONS = {"action": ActionLeaf((2,), "float32", "box", (2,), LOW, HIGH)}
ONE = {"action": ActionLeaf((1,), "float32", "box", (1,), (-2.0,), (4.0,))}


@pytest.mark.parametrize(("mean", "log_std"), [(0.0, 0.0), (0.3, -2.0), (1.0, 0.5)])
def test_the_density_is_that_of_the_action_and_the_entropy_its_own(mean, log_std):
    distribution = ActionDistribution(ONE, squash=True)
    params = torch.tensor([mean, log_std], dtype=torch.float64)
    # An integral over the actions themselves, [-2, 4], of what log_prob says of the sample that leads to each.
    nodes, weights = (torch.from_numpy(x) for x in np.polynomial.legendre.leggauss(500))
    u = torch.atanh(nodes)[:, None]
    log_p = distribution.log_prob(params.expand(len(u), 2), {"action": u})
    assert float((3 * weights * log_p.exp()).sum()) == pytest.approx(1.0, abs=1e-3)
    surprise = float(-(3 * weights * log_p.exp() * log_p).sum())
    assert float(distribution.entropy(params)) == pytest.approx(surprise, abs=3e-3)


@pytest.mark.parametrize("log_std", [-1.0, 0.0, 1.1])
def test_entropy_agrees_with_its_estimate_from_samples_and_has_a_gradient(log_std):
    distribution = ActionDistribution(ACTIONS, squash=True)
    params = torch.tensor([0.5, -1.5, log_std, log_std], dtype=torch.float64, requires_grad=True)
    noise = torch.rand(400_000, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    _, log_prob = distribution.sample_and_log_prob(params.detach().expand(len(noise), 4), noise)
    entropy = distribution.entropy(params)
    assert float(entropy.detach()) == pytest.approx(float(-log_prob.mean()), abs=0.02)
    entropy.backward()
    assert params.grad[1] > 0  # the mean is drawn back from the edge, which an unsquashed entropy never does
    plain = ActionDistribution(ACTIONS)
    (gradient,) = torch.autograd.grad(plain.entropy(params), params)
    assert gradient[1] == 0


def test_ratios_and_divergences_are_those_of_the_normal_under_it():
    squashed, plain = ActionDistribution(ACTIONS, squash=True), ActionDistribution(ACTIONS)
    g = torch.Generator().manual_seed(1)
    p, q = torch.randn(50, 4, generator=g), torch.randn(50, 4, generator=g)
    action = squashed.sample(p, torch.rand(50, 2, generator=g))
    ratio = squashed.log_prob(p, action) - squashed.log_prob(q, action)
    assert torch.allclose(ratio, plain.log_prob(p, action) - plain.log_prob(q, action), atol=1e-4)
    assert torch.equal(squashed.kl(p, q), plain.kl(p, q))


def test_what_the_environment_gets_fills_the_bounds_and_never_leaves_them():
    spec = EnvSpec("x/y", {}, ACTIONS)
    squashed = bounded(spec, squash=True)
    given = squashed({"action": np.array([[0.0, 0.0], [99.0, -99.0]], np.float32)})["action"]
    assert given.tolist() == [[1.0, 0.5], [4.0, 0.0]]
    assert given.dtype == np.float32
    action = {"action": np.array([[9.0, 9.0]], np.float32)}
    assert bounded(spec, squash=False)(action) is action  # groups clip


def test_squashing_is_refused_where_it_makes_no_sense():
    with pytest.raises(EnvError, match=r"x/y: model.squash needs bounds, and action has none"):
        bounded(EnvSpec("x/y", {}, {"action": ActionLeaf((1,), "float32", "box", (1,), (-np.inf,), (1.0,))}), True)
    with pytest.raises(EnvError, match="is for continuous actions"):
        bounded(EnvSpec("x/y", {}, {"action": ActionLeaf((), "int64", "discrete", (3,))}), True)
    with pytest.raises(ValueError, match="finite bounds"):
        ActionDistribution({"action": ActionLeaf((1,), "float32", "box", (1,), (-np.inf,), (1.0,))}, squash=True)
