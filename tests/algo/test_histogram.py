"""HL-Gauss: the targets of bins and their loss, against the normal distribution of Python's own library."""

import itertools
import math
from statistics import NormalDist

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sfactory.algo.histogram import gaussian_bins, histogram_error, outside_fraction
from sfactory.algo.loss import total_loss
from sfactory.algo.surrogates.ratios import Surrogate
from sfactory.model.histogram_head import HistogramHead, ValueBins

RANGES = [(-10.0, 10.0, 151, 0.75), (-1.0, 3.0, 7, 2.0), (0.0, 100.0, 51, 0.3)]


def slow_bins(target, low, high, bins, sigma):
    """Probabilities of the bins [M] of one target: a normal distribution without what is outside the range."""
    width = (high - low) / bins
    normal = NormalDist(min(max(target, low), high), sigma * width)
    edges = [low + width * number for number in range(bins + 1)]
    whole = normal.cdf(high) - normal.cdf(low)
    return [(normal.cdf(b) - normal.cdf(a)) / whole for a, b in itertools.pairwise(edges)]


@pytest.mark.parametrize(("low", "high", "bins", "sigma"), RANGES)
def test_gaussian_bins_are_the_probabilities_of_a_normal_distribution(low, high, bins, sigma):
    """Inside the range, at its ends and outside of it."""
    middle, span = (low + high) / 2, high - low
    targets = [low - span, low, low + 0.01 * span, middle - 0.123, middle, high - 0.2 * span, high, high + 5.0]
    found = gaussian_bins(torch.tensor(targets, dtype=torch.float64), low=low, high=high, bins=bins, sigma=sigma)
    assert found.shape == (len(targets), bins)
    for row, target in zip(found.tolist(), targets, strict=True):
        assert row == pytest.approx(slow_bins(target, low, high, bins, sigma), abs=1e-12)
        assert sum(row) == pytest.approx(1.0)


@given(seed=st.integers(0, 10**6))
@settings(max_examples=20, deadline=None)
def test_histogram_error_and_its_gradient_are_the_slow_ones(seed):
    """The gradient of the cross-entropy in a logit is the network's probability less that of the target."""
    g = torch.Generator().manual_seed(seed)
    low, high, bins, sigma = RANGES[seed % len(RANGES)]
    logits = (3.0 * torch.randn(2, 4, bins, generator=g)).double().requires_grad_()
    target = (low + (high - low) * (2.0 * torch.rand(2, 4, generator=g) - 0.5)).double()
    valid = torch.rand(2, 4, generator=g) < 0.7
    error = histogram_error(logits, target, valid, low=low, high=high, sigma=sigma)
    (gradient,) = torch.autograd.grad(error.sum(), logits)
    for place in [(t, b) for t in range(2) for b in range(4)]:
        if not valid[place]:
            assert error[place] == 0
            assert (gradient[place] == 0).all()
            continue
        wanted = slow_bins(float(target[place]), low, high, bins, sigma)
        exps = logits[place].exp().tolist()
        probabilities = [x / sum(exps) for x in exps]
        entropy = -sum(q * math.log(p) for q, p in zip(wanted, probabilities, strict=True))
        assert error[place].item() == pytest.approx(entropy, rel=1e-9)
        slope = [p - q for p, q in zip(probabilities, wanted, strict=True)]
        assert gradient[place].tolist() == pytest.approx(slope, abs=1e-12)


def test_histogram_error_does_not_read_the_targets_of_reset_rows():
    logits = torch.randn(3, 5, generator=torch.Generator().manual_seed(0), requires_grad=True)
    target, valid = torch.tensor([0.3, torch.nan, torch.inf]), torch.tensor([True, False, False])
    error = histogram_error(logits, target, valid, low=-1.0, high=1.0, sigma=0.75)
    error.sum().backward()
    assert error[1:].tolist() == [0.0, 0.0]
    assert torch.isfinite(logits.grad).all()
    assert logits.grad[0].any()


def test_histogram_error_of_a_valid_target_that_is_no_number_is_none_either():
    """The step is skipped and counted then."""
    logits, valid = torch.zeros(2, 5), torch.ones(2, dtype=torch.bool)
    error = histogram_error(logits, torch.tensor([torch.nan, 0.0]), valid, low=-1.0, high=1.0, sigma=0.75)
    assert error.isnan().tolist() == [True, False]


@pytest.mark.parametrize(("low", "high", "bins", "sigma"), [(-10.0, 10.0, 151, 0.75), (-2.0, 30.0, 64, 1.0)])
def test_expectation_of_the_target_is_the_value_inside_the_range(low, high, bins, sigma):
    """Nearer to an end than the distribution reaches, it is less than a bin away from the value."""
    head, width = HistogramHead(1, ValueBins(low, high, bins)), (high - low) / bins
    inside = torch.linspace(low + 4 * sigma * width, high - 4 * sigma * width, 301)
    ends = torch.tensor([low, low + 0.1 * width, high - 0.1 * width, high])
    for targets, tolerance in ((inside, 2e-3 * width), (ends, width)):
        found = head.expected(gaussian_bins(targets, low=low, high=high, bins=bins, sigma=sigma).log())
        torch.testing.assert_close(found, targets, rtol=0, atol=tolerance)


def test_targets_outside_count_as_the_nearest_end_and_are_counted():
    targets = torch.tensor([-7.0, -1.0, 0.0, 1.0, 1.5, 9.0])
    found = gaussian_bins(targets, low=-1.0, high=1.0, bins=9, sigma=0.75)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[4], found[3])
    assert not torch.equal(found[2], found[3])
    valid = torch.tensor([True, True, True, True, True, False])
    assert outside_fraction(targets, valid, low=-1.0, high=1.0).item() == pytest.approx(2 / 5)
    assert outside_fraction(targets, torch.zeros(6, dtype=torch.bool), low=-1.0, high=1.0) == 0


def test_total_loss_takes_another_error_of_the_value_in_place_of_the_squared_one():
    valid = torch.tensor([True, True, False, True])
    zeros = torch.zeros(4)
    surrogate = Surrogate(zeros, torch.zeros(4, dtype=torch.bool))
    error = torch.tensor([1.0, 2.0, 50.0, 6.0])
    given = (surrogate, zeros, zeros + 9.0, zeros, valid)
    loss = total_loss(*given, value_coef=0.5, entropy_coef=0.0, value_error=error)
    assert (loss.value, loss.total) == (3.0, 1.5)
    with pytest.raises(ValueError, match="squared error only"):
        total_loss(*given, value_coef=0.5, entropy_coef=0.0, value_error=error, old_value=zeros, value_clip=0.2)
