"""Slopes of the loss by formula equal what autograd computes, for every option."""

import itertools

import pytest
import torch

from sfactory.algo.closed_form import has_slopes, loss_slopes, pack, unpack
from sfactory.algo.loss import total_loss
from sfactory.algo.surrogates.ratios import SurrogateInput
from sfactory.algo.surrogates.registry import SURROGATES

torch.set_num_threads(1)
SHAPE = (5, 400)
BASE = {
    "objective": "decoupled",
    "behavior_weight": "surrogate",
    "clip": 0.2,
    "dual_clip": 0.0,
    "weight_cap": 100.0,
    "value_coef": 0.5,
    "value_clip": 0.0,
    "entropy_coef": 0.01,
}
OPTIONS = {
    "objective": ("decoupled", "ppo"),
    "behavior_weight": ("surrogate", "trace", "none", "twice"),
    "clip": (0.0, 0.2, 1.5),
    "dual_clip": (0.0, 1.5),
    "weight_cap": (0.0, 1.3, 100.0),
}
GRID = [dict(zip(OPTIONS, values, strict=True)) for values in itertools.product(*OPTIONS.values())]


def drawn(spread=0.5):
    """Inputs of one minibatch in float64, a tenth of the rows reset."""
    g = torch.Generator().manual_seed(0)

    def normal(scale):
        return scale * torch.randn(SHAPE, generator=g, dtype=torch.float64)

    behavior = -torch.rand(SHAPE, generator=g, dtype=torch.float64)
    proximal = behavior + normal(spread)
    return {
        "behavior": behavior,
        "proximal": proximal,
        "log_prob": proximal + normal(spread),
        "advantage": normal(1.0),
        "weight": torch.rand(SHAPE, generator=g, dtype=torch.float64),
        "value": normal(1.0),
        "old_value": normal(1.0),
        "target": normal(1.0),
        "entropy": normal(1.0),
        "valid": torch.rand(SHAPE, generator=g) > 0.1,
    }


def by_autograd(x, o):
    """Slopes in log_prob, entropy and value."""
    log_prob, entropy, value = (x[name].clone().requires_grad_() for name in ("log_prob", "entropy", "value"))
    surrogate = SURROGATES[o["objective"]](
        SurrogateInput(log_prob, x["proximal"], x["behavior"], x["advantage"], x["weight"], x["valid"]),
        behavior_weight=o["behavior_weight"],
        **{name: o[name] for name in ("clip", "dual_clip", "weight_cap")},
    )
    rest = {name: o[name] for name in ("value_coef", "entropy_coef", "value_clip")}
    loss = total_loss(surrogate, value, x["target"], entropy, x["valid"], old_value=x["old_value"], **rest)
    return torch.autograd.grad(loss.total, (log_prob, entropy, value))


def by_formula(x, o, fixed=True, num_valid=None):
    packed = pack(
        behavior=x["behavior"],
        proximal=x["proximal"] if fixed else None,
        advantage=x["advantage"],
        weight=x["weight"],
        value=x["old_value"],
        target=x["target"],
        valid=x["valid"],
        behavior_weight=o["behavior_weight"],
    )
    rows = unpack(packed)
    assert (rows.proximal is not None) == fixed
    return loss_slopes(
        x["log_prob"], x["value"], rows.proximal if fixed else x["proximal"], rows, num_valid=num_valid, **o
    )


def assert_equal(x, **changed):
    o = BASE | changed
    for name, mine, expected in zip(("log_prob", "entropy", "value"), by_formula(x, o), by_autograd(x, o), strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-10, atol=1e-14, msg=lambda text, n=name: f"{n}, {o}: {text}")


@pytest.mark.parametrize("objective", OPTIONS["objective"])
def test_loss_slopes_equal_autograd_for_every_option_of_the_surrogate(objective):
    x = drawn()
    for options in GRID:
        if options["objective"] == objective:
            assert_equal(x, **options)


def test_loss_slopes_equal_autograd_where_weights_leave_the_range_of_exponentials():
    """Log ratios of up to 60: every bound of an exponent is reached on both sides."""
    x = drawn(spread=20.0)
    for options in GRID:
        if options["clip"]:  # with a clip of 0 and no cap, the bounds of both exponents are the same number: a tie
            assert_equal(x, **options)


@pytest.mark.parametrize("value_clip", [0.0, 0.5])
@pytest.mark.parametrize(("value_coef", "entropy_coef"), [(0.5, 0.01), (2.0, 0.0), (0.0, 1.0)])
def test_loss_slopes_equal_autograd_for_every_option_of_the_other_terms(value_clip, value_coef, entropy_coef):
    assert_equal(drawn(), value_clip=value_clip, value_coef=value_coef, entropy_coef=entropy_coef)


@pytest.mark.parametrize("dual_clip", [0.0, 2.0])
@pytest.mark.parametrize("clip", [0.0, 0.2])
def test_loss_slopes_equal_autograd_on_policy_where_both_arguments_of_the_maximum_are_equal(clip, dual_clip):
    """All three policies and both values are the same, as in the first minibatch of an update on fresh data."""
    x = drawn(spread=0.0)
    assert_equal(x | {"old_value": x["value"]}, clip=clip, dual_clip=dual_clip, value_clip=0.2)


def test_loss_slopes_give_the_whole_slope_to_one_argument_of_a_tie_outside_the_clip():
    x = drawn()
    x |= {name: torch.zeros(1, dtype=torch.float64) for name in x if name != "valid"}
    x |= {
        "valid": torch.ones(1, dtype=torch.bool),
        "value": torch.ones(1).double(),
        "target": 0.5 * torch.ones(1).double(),
    }
    o = BASE | {"value_clip": 1e-30}  # held at 0: both errors are 0.5, of opposite sign
    assert float(by_formula(x, o).value) == 2.0 * float(by_autograd(x, o)[2]) == 0.5


def test_loss_slopes_ignore_what_reset_rows_hold():
    x = drawn()
    reset = ~x["valid"]
    garbage = {
        name: x[name].masked_fill(reset, torch.nan)
        for name in ("behavior", "proximal", "advantage", "weight", "target")
    }
    o = BASE | {"behavior_weight": "trace"}
    for mine, expected in zip(by_formula(x | garbage, o), by_formula(x, o), strict=True):
        assert torch.equal(mine, expected)
        assert not mine[reset].any()
    none = x | {"valid": torch.zeros(SHAPE, dtype=torch.bool)}
    assert all(not slope.any() for slope in by_formula(none, o))


def test_loss_slopes_are_not_finite_where_an_input_is_not():
    for name in ("log_prob", "behavior", "proximal", "advantage"):
        x = drawn()
        x[name][0, 0], x["valid"][0, 0] = torch.nan, True
        assert by_formula(x, BASE).log_prob[0, 0].isnan(), name


def test_loss_slopes_take_a_proximal_policy_that_changes_within_the_update():
    x, o = drawn(), BASE | {"behavior_weight": "none"}
    for mine, expected in zip(by_formula(x, o, fixed=False), by_autograd(x, o), strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-10, atol=1e-14)


def test_loss_slopes_of_a_part_of_a_minibatch_are_those_of_its_rows_in_the_minibatch():
    x = drawn()
    x["valid"][:, :100] = False
    for rows in (slice(0, 100), slice(100, 150), slice(150, None)):
        part = {name: column[:, rows] for name, column in x.items()}
        for mine, expected in zip(by_formula(part, BASE, num_valid=x["valid"].sum()), by_formula(x, BASE), strict=True):
            assert torch.equal(mine, expected[:, rows])


def test_has_slopes_of_decoupled_and_ppo_only():
    assert [name for name in SURROGATES if has_slopes(name)] == ["ppo", "decoupled"]
