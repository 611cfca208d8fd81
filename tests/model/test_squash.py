"""Squashed box actions: the density is that of the action the environment receives."""

import numpy as np
import pytest
import torch

from sfactory.envs import ActionLeaf, EnvError, EnvSpec, bounded
from sfactory.model.distributions import ActionDistribution

LOW, HIGH = (-2.0, 0.0), (4.0, 1.0)
ACTIONS = {"action": ActionLeaf((2,), "float32", "box", (2,), LOW, HIGH)}
ONE = {"action": ActionLeaf((1,), "float32", "box", (1,), (-2.0,), (4.0,))}


@pytest.mark.parametrize(("mean", "log_std"), [(0.0, 0.0), (0.3, -2.0), (1.0, 0.5)])
def test_squashed_density_integrates_to_one_over_the_bounds_and_matches_the_entropy(mean, log_std):
    distribution = ActionDistribution(ONE, squash=True)
    params = torch.tensor([mean, log_std], dtype=torch.float64)
    # Integrate over the actions, [-2, 4], the density of the sample that belongs to each.
    nodes, weights = (torch.from_numpy(x) for x in np.polynomial.legendre.leggauss(500))
    u = torch.atanh(nodes)[:, None]
    log_p = distribution.log_prob(params.expand(len(u), 2), {"action": u})
    assert float((3 * weights * log_p.exp()).sum()) == pytest.approx(1.0, abs=1e-3)
    expected = float(-(3 * weights * log_p.exp() * log_p).sum())
    assert float(distribution.entropy(params)) == pytest.approx(expected, abs=3e-3)


@pytest.mark.parametrize("log_std", [-1.0, 0.0, 1.1])
def test_squashed_entropy_agrees_with_its_estimate_from_samples_and_has_a_gradient(log_std):
    distribution = ActionDistribution(ACTIONS, squash=True)
    params = torch.tensor([0.5, -1.5, log_std, log_std], dtype=torch.float64, requires_grad=True)
    noise = torch.rand(400_000, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    _, log_prob = distribution.sample_and_log_prob(params.detach().expand(len(noise), 4), noise)
    entropy = distribution.entropy(params)
    assert float(entropy.detach()) == pytest.approx(float(-log_prob.mean()), abs=0.02)
    entropy.backward()
    assert params.grad[1] > 0  # the mean is moved away from the bound; an unsquashed entropy has no such gradient
    plain = ActionDistribution(ACTIONS)
    (gradient,) = torch.autograd.grad(plain.entropy(params), params)
    assert gradient[1] == 0


def test_squashed_ratios_and_divergences_equal_those_of_the_normal():
    squashed, plain = ActionDistribution(ACTIONS, squash=True), ActionDistribution(ACTIONS)
    g = torch.Generator().manual_seed(1)
    p, q = torch.randn(50, 4, generator=g), torch.randn(50, 4, generator=g)
    action = squashed.sample(p, torch.rand(50, 2, generator=g))
    ratio = squashed.log_prob(p, action) - squashed.log_prob(q, action)
    assert torch.allclose(ratio, plain.log_prob(p, action) - plain.log_prob(q, action), atol=1e-4)
    assert torch.equal(squashed.kl(p, q), plain.kl(p, q))


def test_bounded_scales_squashed_actions_to_the_bounds():
    spec = EnvSpec("x/y", {}, ACTIONS)
    squashed = bounded(spec, squash=True)
    action = squashed({"action": np.array([[0.0, 0.0], [99.0, -99.0]], np.float32)})["action"]
    assert action.tolist() == [[1.0, 0.5], [4.0, 0.0]]
    assert action.dtype == np.float32
    action = {"action": np.array([[9.0, 9.0]], np.float32)}
    assert bounded(spec, squash=False)(action) is action  # groups clip


def test_squash_requires_continuous_actions_with_finite_bounds():
    with pytest.raises(EnvError, match=r"x/y: model.squash needs bounds, and action has none"):
        bounded(EnvSpec("x/y", {}, {"action": ActionLeaf((1,), "float32", "box", (1,), (-np.inf,), (1.0,))}), True)
    with pytest.raises(EnvError, match="is for continuous actions"):
        bounded(EnvSpec("x/y", {}, {"action": ActionLeaf((), "int64", "discrete", (3,))}), True)
    with pytest.raises(ValueError, match="finite bounds"):
        ActionDistribution({"action": ActionLeaf((1,), "float32", "box", (1,), (-np.inf,), (1.0,))}, squash=True)
