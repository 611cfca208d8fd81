"""Loss of PPG's auxiliary phase against numbers worked out by hand."""

import math

import pytest
import torch

from sfactory.algo.auxiliary import auxiliary_loss

AUXILIARY, VALUE, TARGET = [1.0, 2.0, 5.0], [0.0, 1.0, math.nan], [2.0, 0.0, math.nan]
DISTANCE, VALID = [0.5, 0.1, math.inf], [True, True, False]


def loss(**options):
    rows = (torch.tensor(x, requires_grad=x is AUXILIARY) for x in (AUXILIARY, VALUE, TARGET, DISTANCE))
    rows = list(rows)
    return auxiliary_loss(*rows, torch.tensor(VALID), clone_coef=2.0, **options), rows[0]


def test_loss_is_that_of_the_paper_over_valid_rows():
    found, auxiliary = loss()
    assert found.auxiliary.item() == pytest.approx(0.5 * (1 + 4) / 2)
    assert found.value.item() == pytest.approx(0.5 * (4 + 1) / 2)
    assert found.distance.item() == pytest.approx(0.3)
    assert found.total.item() == pytest.approx(1.25 + 1.25 + 2.0 * 0.3)
    (gradient,) = torch.autograd.grad(found.total, auxiliary)
    assert gradient.tolist() == [-0.5, 1.0, 0.0]


def test_parts_divide_by_the_rows_of_the_minibatch():
    found, _ = loss(num_valid=torch.tensor(8))
    assert found.total.item() == pytest.approx((2.5 + 2.5 + 2.0 * 0.6) / 8)


def test_a_minibatch_without_valid_rows_has_no_loss():
    nothing = torch.zeros(3)
    found = auxiliary_loss(nothing, nothing, nothing, nothing, torch.zeros(3, dtype=torch.bool), clone_coef=1.0)
    assert found.total == 0.0
