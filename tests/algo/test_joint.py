"""Metrics of all rows from numbers of their parts, against the metrics of all rows."""

import math

import pytest
import torch

from sfactory.algo import joint
from sfactory.algo.loss import effective_sample_size, explained_variance

PARTS = slice(0, 3), slice(3, 4), slice(4, 12)  # the second has no valid row


@pytest.fixture
def rows():
    g = torch.Generator().manual_seed(1)
    valid = torch.rand(5, 12, generator=g) < 0.7
    valid[:, PARTS[1]] = False
    return torch.randn(5, 12, generator=g), torch.randn(5, 12, generator=g), valid


def of_parts(function, *tensors):
    return torch.stack([function(*(x[:, part] for x in tensors)) for part in PARTS])


@pytest.mark.parametrize("shift", [0.0, 80.0, -200.0])
def test_sample_size_of_parts_is_that_of_all_rows_without_overflow(rows, shift):
    log_w, _, valid = rows
    log_w = 2.0 * log_w + shift * (torch.arange(12) > 6)  # weights of one part are larger by a factor of up to e^200
    log_w[:, PARTS[1]] = math.nan
    expected = float(effective_sample_size(log_w, valid))
    found = joint.sample_size(of_parts(joint.weight_sums, log_w, valid))
    assert float(found) == pytest.approx(expected, rel=1e-5)
    own = [float(effective_sample_size(log_w[:, part], valid[:, part])) for part in PARTS[::2]]
    assert not min(own) <= expected <= max(own) or abs(sum(own) / 2 - expected) > 0.01, "it is no mean of theirs"


@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_fit_of_parts_is_that_of_all_rows_and_large_means_do_not_cancel(rows, offset):
    value, noise, valid = rows
    target = value + 0.5 * noise + offset + 3.0 * (torch.arange(12) > 6)  # another mean in one part
    value = value + offset
    found = joint.fit(of_parts(joint.fit_moments, value, target, valid))
    assert float(found) == pytest.approx(float(explained_variance(value, target, valid)), abs=1e-3 if offset else 1e-6)


def test_means_of_parts_are_weighted_by_their_valid_rows(rows):
    x, _, valid = rows

    def mean(x, valid):
        return x.masked_fill(~valid, 0.0).sum() / valid.sum()  # NaN without a row

    def numbers(x, valid):
        return joint.row_mean(mean(x, valid), valid)

    assert float(joint.whole_mean(of_parts(numbers, x, valid))) == pytest.approx(float(mean(x, valid)), rel=1e-5)
    root = float(mean(x.square(), valid).sqrt())
    assert float(joint.root_mean(of_parts(numbers, x.square(), valid))) == pytest.approx(root, rel=1e-5)
    assert float(joint.largest(torch.tensor([[1.0], [3.0], [2.0]]))) == 3.0


def test_joint_metrics_without_any_valid_row_are_those_of_a_batch_without_one(rows):
    x, y, none = rows[0], rows[1], torch.zeros(5, 12, dtype=torch.bool)
    assert float(joint.sample_size(of_parts(joint.weight_sums, x, none))) == float(effective_sample_size(x, none)) == 0
    assert float(joint.fit(of_parts(joint.fit_moments, x, y, none))) == float(explained_variance(x, y, none))


def test_joint_metrics_of_rows_that_are_not_finite_are_not_finite(rows):
    x, y, valid = rows
    y = y.masked_fill(torch.arange(12) == 2, math.nan)
    assert valid[:, 2].any()
    assert math.isnan(float(joint.sample_size(of_parts(joint.weight_sums, y, valid))))
    assert math.isnan(float(joint.fit(of_parts(joint.fit_moments, x, y, valid))))
