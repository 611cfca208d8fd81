"""Objectives against slow twins: one sample at a time, plain Python, written like the papers."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_surrogate import gradient, random_input

from sfactory.algo.surrogates.options import Options
from sfactory.algo.surrogates.registry import SURROGATES

torch.set_num_threads(1)
FREE = {"weight_cap": None}


def sign(x: float) -> float:
    return math.copysign(1.0, x) if x else 0.0


class Sample:
    """One row: log-probabilities, ratios, advantage and what some objectives need."""

    def __init__(self, x, i):
        self.logp, self.adv = float(x.log_prob[i].detach()), float(x.advantage[i])
        proximal, behavior = float(x.proximal[i]), float(x.behavior[i])
        self.r, self.w_b = math.exp(self.logp - proximal), math.exp(proximal - behavior)
        self.w = math.exp(self.logp - behavior)
        self.policy, self.proximal = math.exp(self.logp), math.exp(proximal)
        self.prefix, self.dual = float(x.prefix[i]), float(x.dual)
        self.value, self.q, self.median = float(x.value[i]), float(x.action_value[i]), float(x.median[i])


def dispo(s, o):
    low, high = (o.weight_low, o.weight_high) if s.adv > 0 else (o.weight_low_negative, o.weight_high_negative)
    slope = -min(max(s.w, low), high) * s.adv
    return slope * s.logp, slope


def rec(s, o, low, high):
    outward = s.r > high if s.adv >= 0 else s.r < low
    slope = 0.0 if outward else -(s.w if o.ratio_weight else s.w_b) * s.adv
    return slope * s.logp, slope


def rec_ring(s, o):
    inside = abs(s.r - 1) <= o.clip
    pulled_back = s.r <= 1 - o.outer_low if s.adv >= 0 else s.r >= 1 + o.outer_high
    slope = -(s.w if o.ratio_weight else s.w_b) * s.adv if inside or pulled_back else 0.0
    return slope * s.logp, slope


def opmd(s, o):
    log_r = math.log(s.r)
    return (
        -s.w_b * s.adv * s.logp + o.log_ratio_coef * log_r**2,
        -s.w_b * s.adv + 2 * o.log_ratio_coef * log_r,
    )


def asymre(s, o):
    slope = -s.w_b * (s.adv + o.baseline_shift)
    return slope * s.logp, slope


def geppo(s, o):
    bounded = min(max(s.w, s.w_b - o.clip), s.w_b + o.clip)
    clipped = bounded * s.adv < s.w * s.adv
    return -min(s.w * s.adv, bounded * s.adv), 0.0 if clipped else -s.w * s.adv


def dppo_kl(s, o):
    p, q = s.proximal, s.policy
    kl = p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))
    outward = q > p if s.adv > 0 else q < p
    slope = 0.0 if outward and kl > o.clip else -s.w * s.adv
    return slope * s.logp, slope


def minpro(s, o):
    slope = -s.w * s.prefix * s.adv
    return slope * s.logp, slope


def r2vpo(s, o):
    loss = -s.w * s.adv + s.dual * s.w_b * (s.r - 1) ** 2
    return loss, -s.w * s.adv + 2 * s.dual * s.w_b * (s.r - 1) * s.r


def bpo(s, o):
    center = s.median if o.median_head else s.value
    above = min(max((s.q - center) / o.target_temperature, -10.0), 10.0)
    target = 1 - o.clip + 2 * o.clip / (1 + math.exp(-above))
    gap = s.q - s.value
    return s.w_b * abs((s.r - target) * gap), s.w * sign((s.r - target) * gap) * gap


TWINS = {
    "dispo": dispo,
    "rec_one_side": lambda s, o: rec(s, o, 1 - o.clip, 1 + o.clip),
    "rec_wide": lambda s, o: rec(s, o, 1 - o.outer_low, 1 + o.outer_high),
    "rec_ring": rec_ring,
    "opmd": opmd,
    "asymre": asymre,
    "geppo": geppo,
    "dppo_kl": dppo_kl,
    "minpro": minpro,
    "r2vpo": r2vpo,
    "bpo": bpo,
}
OTHERS = {  # a second set of options of each
    "dispo": {"weight_low": 0.9, "weight_high": 1.1, "weight_low_negative": 0.8, "weight_high_negative": 1.2},
    "rec_one_side": {"ratio_weight": False, "clip": 0.1},
    "rec_wide": {"ratio_weight": False, "outer_low": 0.3, "outer_high": 0.4},
    "rec_ring": {"ratio_weight": False, "outer_low": 0.4, "outer_high": 0.5, "clip": 0.1},
    "opmd": {"log_ratio_coef": 2.0},
    "asymre": {"baseline_shift": 1.5},
    "geppo": {"clip": 0.05},
    "dppo_kl": {"clip": 0.02},
    "minpro": {},
    "r2vpo": {},
    "bpo": {"median_head": False, "clip": 0.4, "target_temperature": 0.7},
}


@pytest.mark.parametrize("name", list(TWINS))
@given(seed=st.integers(0, 10**6))
@settings(max_examples=15, deadline=None)
def test_objective_equals_its_slow_twin(name: str, seed: int) -> None:
    for options in ({}, OTHERS[name]):
        x = random_input(seed, n=40)
        x = x._replace(prefix=x.behavior.abs() + 0.1)
        if name == "dppo_kl":  # probabilities that differ enough
            x.log_prob.data.clamp_(max=-0.05)
            x = x._replace(proximal=x.proximal.clamp(max=-0.05))
        out = SURROGATES[name](x, **FREE, **options)
        found = [TWINS[name](Sample(x, i), Options(**options)) for i in range(40)]
        loss, slope = (torch.tensor(column).double() for column in zip(*found, strict=True))
        torch.testing.assert_close(out.loss.detach(), loss)
        torch.testing.assert_close(gradient(out.loss, x), slope)


def test_rec_with_its_weight_has_the_gradient_of_ppo() -> None:
    x = random_input(seed=1)
    one, other = (gradient(SURROGATES[name](x, **FREE).loss, x) for name in ("rec_one_side", "decoupled"))
    torch.testing.assert_close(one, other)
    assert (one == 0).any()


def test_geppo_is_ppo_where_the_behavior_weight_is_one() -> None:
    x = random_input(seed=2)
    x = x._replace(proximal=x.behavior)
    one, other = (SURROGATES[name](x, **FREE).loss for name in ("geppo", "decoupled"))
    torch.testing.assert_close(one, other)


def test_ring_keeps_far_samples_that_pull_the_policy_back_and_no_others() -> None:
    base = torch.tensor([-1.0, -1.0, -1.0, -1.0]).double()
    r = torch.tensor([0.1, 0.1, 0.6, 4.0]).double()
    x = random_input(seed=3, n=4)._replace(proximal=base, behavior=base)
    x.log_prob.data.copy_(base + r.log())
    x = x._replace(advantage=torch.tensor([1.0, -1.0, 1.0, -1.0]).double())
    out = SURROGATES["rec_ring"](x)
    assert (gradient(out.loss, x) != 0).tolist() == [True, False, False, True]
    assert out.clipped.tolist() == [False, True, True, False]


def test_bpo_pulls_a_ratio_back_that_is_beyond_its_target() -> None:
    """PPO's clip only stops pushing there."""
    x = random_input(seed=4, n=2)
    base = torch.full((2,), -1.0).double()
    x = x._replace(
        proximal=base, behavior=base, advantage=torch.ones(2).double(), value=torch.zeros(2).double(),
        action_value=torch.ones(2).double(), median=torch.zeros(2).double(),
    )  # fmt: skip
    x.log_prob.data.copy_(base + torch.tensor([1.1, 2.0]).double().log())  # targets of 1.2
    slope = gradient(SURROGATES["bpo"](x).loss, x)
    torch.testing.assert_close(slope, torch.tensor([-1.1, 2.0]).double())
    assert gradient(SURROGATES["decoupled"](x).loss, x).tolist() == [pytest.approx(-1.1), 0.0]


def test_bpo_trains_its_median_head_towards_the_median() -> None:
    """The minimum of the critic's loss over a constant is where half of the values are above it."""
    values = torch.tensor([-30.0, -20.0, 1.0, 20.0, 3000.0]).double()
    x = random_input(seed=5, n=5)._replace(action_value=values, value=torch.zeros(5).double())
    median = torch.zeros((), dtype=torch.float64, requires_grad=True)
    for _ in range(400):
        out = SURROGATES["bpo"](x._replace(median=median.expand(5)))
        (slope,) = torch.autograd.grad(out.critic.sum(), median)
        median.data -= 0.2 * slope
    assert median.item() == pytest.approx(1.0, abs=0.01)
    assert SURROGATES["bpo"](x, median_head=False).critic is None


def test_bpo_loss_of_the_policy_has_no_gradient_in_the_critic() -> None:
    x = random_input(seed=6)
    heads = [x.value.clone().requires_grad_(), x.median.clone().requires_grad_()]
    out = SURROGATES["bpo"](x._replace(value=heads[0], median=heads[1]))
    assert torch.autograd.grad(out.loss.sum(), heads, retain_graph=True, allow_unused=True) == (None, None)
    of_value, of_median = torch.autograd.grad(out.critic.sum(), heads, allow_unused=True)
    assert of_value is None
    assert of_median.all()
