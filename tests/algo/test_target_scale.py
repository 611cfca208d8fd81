"""TargetScale (PopArt): the units of the head change, the value does not."""

import pytest
import torch
from torch import nn

from sfactory.algo.normalize import TargetScale

torch.set_num_threads(1)


def test_target_scale_gives_mean_0_and_variance_1_over_valid_rows():
    scale, valid = TargetScale(decay=0.0), torch.ones(8, 50, dtype=torch.bool)
    target = 300.0 + 70.0 * torch.randn(8, 50, generator=torch.Generator().manual_seed(0))
    valid[3] = False
    target[3] = 1e9  # reset rows are ignored
    scale.update(target, valid)
    scaled = scale.output(target)[valid]
    assert float(scaled.mean()) == pytest.approx(0.0, abs=1e-3)
    assert float(scaled.std(correction=0)) == pytest.approx(1.0, abs=1e-3)
    assert torch.allclose(scale.value(scale.output(target[valid])), target[valid], atol=1e-2)


def test_target_scale_update_keeps_the_value_of_a_corrected_head():
    scale, head, x = TargetScale(decay=0.9), nn.Linear(5, 1).double(), torch.randn(20, 5).double()
    for k in range(6):
        before = scale.value(head(x))
        with torch.no_grad():
            factor, shift = scale.update(100.0 * k + (1 + k) * torch.randn(4, 30), torch.ones(4, 30, dtype=torch.bool))
            head.weight.mul_(factor)
            head.bias.mul_(factor).add_(shift)
        assert torch.allclose(scale.value(head(x)), before, rtol=1e-9, atol=1e-7)
        assert float(scale.std) != 1.0


def test_target_scale_accepts_equal_targets_and_batches_without_valid_rows():
    scale = TargetScale()
    for target, valid in ((torch.full((2, 3), 7.0), True), (torch.full((2, 3), 7.0), False)):
        factor, shift = scale.update(target, torch.full((2, 3), valid))
        assert torch.isfinite(factor)
        assert torch.isfinite(shift)
    assert float(scale.mean) == pytest.approx(7.0)


def test_target_scale_restores_its_state():
    one, two = TargetScale(), TargetScale()
    one.update(5.0 + torch.randn(4, 4), torch.ones(4, 4, dtype=torch.bool))
    two.load_state_dict(one.state_dict())
    target, valid = torch.randn(4, 4), torch.ones(4, 4, dtype=torch.bool)
    assert [x.item() for x in one.update(target, valid)] == [x.item() for x in two.update(target, valid)]
    assert torch.equal(one.value(target), two.value(target))
