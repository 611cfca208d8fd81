"""The optimal baseline: its formula, the variance it promises, and the norms of scores."""

import pytest
import torch

from sfactory.algo.baseline import baseline_means, optimal_baseline
from sfactory.envs import ActionLeaf
from sfactory.model.distributions import ActionDistribution

torch.set_num_threads(1)
BOX = ActionLeaf((2,), "float32", "box", (2,), (-1.0, -1.0), (1.0, 1.0))
ACTIONS = {
    "discrete": {"action": ActionLeaf((), "int64", "discrete", (4,))},
    "several": {"action": ActionLeaf((2,), "int64", "discrete", (3, 2))},
    "box": {"action": BOX},
    "mixed": {"go": ActionLeaf((), "int64", "discrete", (3,)), "push": BOX},
}


@pytest.mark.parametrize("squash", [False, True])
@pytest.mark.parametrize("kind", ACTIONS)
def test_score_square_is_the_squared_norm_of_the_gradient_by_autograd(kind, squash):
    distribution = ActionDistribution(ACTIONS[kind], squash=squash)
    g = torch.Generator().manual_seed(2)
    params = torch.randn(7, distribution.num_params, generator=g, dtype=torch.float64).requires_grad_()
    action = distribution.sample(params.detach(), torch.rand(7, distribution.num_noise, generator=g).double())
    action = {name: leaf.double() if leaf.is_floating_point() else leaf for name, leaf in action.items()}
    (gradient,) = torch.autograd.grad(distribution.log_prob(params, action).sum(), params)
    found = distribution.score_square(params.detach(), action)
    torch.testing.assert_close(found, gradient.square().sum(-1))


def test_score_square_ignores_masked_categories():
    distribution = ActionDistribution(ACTIONS["discrete"])
    action = {"action": torch.tensor([1])}
    masked, small = (
        torch.tensor([[0.3, -0.2, 0.9, -1e9]]),
        ActionDistribution({"action": ActionLeaf((), "int64", "discrete", (3,))}),
    )
    torch.testing.assert_close(distribution.score_square(masked, action), small.score_square(masked[:, :3], action))


def rows(n=4000):
    g = torch.Generator().manual_seed(3)
    logits = torch.tensor([[1.5, 0.0, -2.0]]).expand(n, 3).double()
    distribution = ActionDistribution({"action": ActionLeaf((), "int64", "discrete", (3,))})
    action = distribution.sample(logits.float(), torch.rand(n, 1, generator=g))
    advantage = torch.tensor([1.0, 4.0, -7.0]).double()[action["action"]] + 0.3 * torch.randn(n, generator=g).double()
    weight = torch.exp(0.5 * torch.randn(n, generator=g)).double()
    valid = torch.rand(n, generator=g) < 0.9
    leaves = torch.nn.functional.one_hot(action["action"], 3).double() - logits.softmax(-1)  # d log pi / d logits
    return advantage, weight, distribution.score_square(logits, action), valid, leaves


def variance(advantage, weight, valid, gradients, b):
    """Mean square of the rows' gradients: their mean does not depend on b in expectation."""
    return float(((weight * (advantage - b))[:, None] * gradients)[valid].square().sum(-1).mean())


def test_optimal_baseline_is_the_weighted_mean_of_the_definition():
    advantage, weight, score, valid, _ = rows(50)
    above = sum(weight[i] ** 2 * score[i] * advantage[i] for i in range(50) if valid[i])
    below = sum(weight[i] ** 2 * score[i] for i in range(50) if valid[i])
    found = optimal_baseline(baseline_means(advantage, weight, score, valid))
    assert float(found) == pytest.approx(float(above / below))


def test_optimal_baseline_has_less_variance_than_every_other_constant():
    advantage, weight, score, valid, gradients = rows()
    best = float(optimal_baseline(baseline_means(advantage, weight, score, valid)))
    at_best = variance(advantage, weight, valid, gradients, best)
    for other in (best - 0.3, best + 0.3, 0.0, float(advantage[valid].mean())):
        assert variance(advantage, weight, valid, gradients, other) > at_best


def test_optimal_baseline_of_equal_scores_and_weights_is_the_mean():
    advantage = torch.tensor([1.0, 2.0, 6.0, 99.0])
    valid = torch.tensor([True, True, True, False])
    found = optimal_baseline(baseline_means(advantage, torch.ones(4), torch.full((4,), 0.7), valid))
    assert float(found) == pytest.approx(3.0)


def test_optimal_baseline_ignores_reset_rows_and_is_zero_without_rows():
    advantage, weight, score, valid, _ = rows(50)
    dirty = [torch.where(valid, x, torch.tensor(float("nan")).double()) for x in (advantage, weight, score)]
    assert torch.equal(baseline_means(*dirty, valid), baseline_means(advantage, weight, score, valid))
    none = torch.zeros(50, dtype=torch.bool)
    assert float(optimal_baseline(baseline_means(advantage, weight, score, none))) == 0.0


def test_means_of_two_halves_pool_to_those_of_the_whole():
    """As several learners pool them, with their numbers of rows."""
    advantage, weight, score, valid, _ = rows(60)
    halves = [
        baseline_means(*(x[part] for x in (advantage, weight, score, valid))) for part in (slice(20), slice(20, 60))
    ]
    counts = [valid[:20].sum(), valid[20:].sum()]
    pooled = (halves[0] * counts[0] + halves[1] * counts[1]) / sum(counts)
    torch.testing.assert_close(pooled, baseline_means(advantage, weight, score, valid))
