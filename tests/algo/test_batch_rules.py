"""Rules over a whole batch against slow twins: M2PO's and ERC's masks, MinPRO's prefix, BAPO's bounds, R2VPO's dual."""

import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_surrogate import random_input

from sfactory.algo.surrogates import batch_rules
from sfactory.algo.surrogates.dual import DualVariable
from sfactory.algo.surrogates.options import Options
from sfactory.algo.surrogates.ratios import Surrogate
from sfactory.algo.surrogates.registry import SURROGATES
from sfactory.envs import ActionLeaf
from sfactory.model.distributions import ActionDistribution

torch.set_num_threads(1)
VECTORS = json.loads((Path(__file__).parent / "vectors.json").read_text())
DISCRETE = {"action": ActionLeaf((), "int64", "discrete", (3,))}
BOX = {"action": ActionLeaf((2,), "float32", "box", (2,), (-1.0, -1.0), (1.0, 1.0))}


def slow_second_moment(log_weight: list[float], valid: list[bool], bound: float) -> list[bool]:
    """Drop the sample with the largest square, again and again."""
    left = [i for i, counts in enumerate(valid) if counts]
    while len(left) > 1 and not sum(log_weight[i] ** 2 for i in left) / len(left) < bound:
        left.remove(max(left, key=lambda i: (log_weight[i] ** 2, -i)))
    return [i in left for i in range(len(valid))]


def test_m2po_mask_agrees_with_the_reference() -> None:
    case = VECTORS["m2po_mask"]
    log_weight = torch.tensor(case["log_ratios"]).double()
    keep = batch_rules.within_second_moment(log_weight, torch.ones(len(log_weight)).bool(), case["tau"])
    assert keep.tolist() == case["keep"]


@given(seed=st.integers(0, 10**6), bound=st.sampled_from([1e-9, 0.04, 0.5, 100.0]), rows=st.integers(1, 30))
@settings(max_examples=50, deadline=None)
def test_m2po_mask_equals_its_slow_twin(seed: int, bound: float, rows: int) -> None:
    g = torch.Generator().manual_seed(seed)
    log_weight = torch.randn(rows, generator=g).double()
    log_weight[rows // 2 :] = log_weight[: rows - rows // 2].clone()  # some are equal
    valid = torch.rand(rows, generator=g) < 0.7
    dirty = torch.where(valid, log_weight, 1e6)
    keep = batch_rules.within_second_moment(dirty.view(1, -1), valid.view(1, -1), bound)
    assert keep[0].tolist() == slow_second_moment(log_weight.tolist(), valid.tolist(), bound)


def test_m2po_mask_keeps_the_smallest_weight_whatever_the_bound_is() -> None:
    log_weight, valid = torch.tensor([3.0, -2.0, 5.0]), torch.ones(3).bool()
    assert batch_rules.within_second_moment(log_weight, valid, 1e-6).tolist() == [False, True, False]
    assert not batch_rules.within_second_moment(log_weight, ~valid, 1e-6).any()


def test_masked_samples_have_no_loss_and_the_others_keep_theirs() -> None:
    surrogate = Surrogate(torch.tensor([1.0, math.nan, 3.0]), torch.zeros(3).bool())
    masked = batch_rules.masked(surrogate, torch.tensor([True, False, True]))
    assert masked.loss.tolist() == [1.0, 0.0, 3.0]


@pytest.mark.parametrize("actions", [DISCRETE, BOX], ids=["discrete", "box"])
def test_erc_mask_keeps_samples_whose_entropy_stays_within_the_ratio(actions: dict) -> None:
    distribution = ActionDistribution(actions)
    params = torch.randn(200, distribution.num_params, generator=torch.Generator().manual_seed(0)).double()
    moved = params + 0.1 * torch.randn(params.shape, generator=torch.Generator().manual_seed(1)).double()
    x = random_input(seed=0, n=200, params=moved, proximal_params=params, distribution=distribution)
    expected = []
    for now, before in zip(moved.tolist(), params.tolist(), strict=True):
        if distribution.discrete:
            entropies = []
            for logits in (now, before):
                total = sum(map(math.exp, logits))
                p = [math.exp(logit) / total for logit in logits]
                entropies.append(-sum(q * math.log(q) for q in p))
            ratio = entropies[0] / entropies[1]
        else:  # differential entropies differ by the log standard deviations
            ratio = math.exp(sum(now[2:]) - sum(before[2:]))
        expected.append(0.95 < ratio < 1.05)
    assert 20 < sum(expected) < 180
    assert batch_rules.within_entropy_ratio(x, 0.95, 1.05).tolist() == expected


def test_erc_mask_keeps_a_sample_without_a_choice() -> None:
    distribution = ActionDistribution(DISCRETE)
    params = torch.tensor([[0.0, -1e9, -1e9]])
    x = random_input(seed=0, n=1, params=params, proximal_params=params, distribution=distribution)
    assert batch_rules.within_entropy_ratio(x, 0.95, 1.05).all()


@given(seed=st.integers(0, 10**6))
@settings(max_examples=30, deadline=None)
def test_minpro_prefix_equals_its_slow_twin(seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    steps, lanes = 7, 3
    log_rho = torch.randn(steps, lanes, generator=g).double()
    ended = torch.rand(steps, lanes, generator=g) < 0.2
    valid = torch.rand(steps, lanes, generator=g) < 0.9
    found = batch_rules.prefix_minimum(log_rho.masked_fill(~valid, 0.0), ended, valid)
    for lane in range(lanes):
        earlier: list[float] = []
        for step in range(steps):
            assert found[step, lane].item() == pytest.approx(min(earlier, default=1.0))
            earlier.append(math.exp(log_rho[step, lane]))
            if ended[step, lane] or not valid[step, lane]:
                earlier = []


def test_bapo_bounds_agree_with_the_reference() -> None:
    case = VECTORS["bapo_bounds"]
    r, advantage = torch.tensor(case["log_ratios"]).double().exp(), torch.tensor(case["adv"]).double()
    (low, high), (low_max, high_max), (_, high_step) = case["start"], case["maxima"], case["steps"]
    o = Options(
        balance=case["target"], bound_low=low, bound_high=high, bound_low_max=low_max, bound_high_max=high_max,
        bound_high_step=high_step,
    )  # fmt: skip
    lower, upper = batch_rules.balanced_bounds(r, advantage, o)
    assert (lower.item(), upper.item()) == (pytest.approx(case["lower"]), pytest.approx(case["upper"]))


def slow_bounds(r: list[float], advantage: list[float], o: Options) -> tuple[float, float]:
    """The search as published, with its small steps of the lower bound too."""

    def share(low: float, high: float) -> float:
        positive = sum(min(x, high) * a for x, a in zip(r, advantage, strict=True) if a >= 0)
        negative = -sum(max(x, low) * a for x, a in zip(r, advantage, strict=True) if a < 0)
        return positive / (negative + 1e-8) if negative > 0 else math.inf

    low, high = o.bound_low, o.bound_high
    while share(low, high) < o.balance and low < o.bound_low_max:
        low = min(low + 0.05, o.bound_low_max)
    while share(low, high) < o.balance and high < o.bound_high_max:
        high = min(high + o.bound_high_step, o.bound_high_max)
    return low, high


@given(seed=st.integers(0, 10**6), shift=st.floats(-0.3, 0.3), low=st.sampled_from([0.6, 0.95]))
@settings(max_examples=50, deadline=None)
def test_bapo_bounds_equal_their_slow_twin(seed: int, shift: float, low: float) -> None:
    g = torch.Generator().manual_seed(seed)
    r = (0.5 * torch.randn(20, generator=g)).double().exp()
    advantage = torch.randn(20, generator=g).double() + shift
    o = Options(bound_low=low)
    found = batch_rules.balanced_bounds(r, advantage, o)
    assert [x.item() for x in found] == pytest.approx(slow_bounds(r.tolist(), advantage.tolist(), o))


def test_bapo_is_ppo_within_the_bounds_that_it_finds() -> None:
    x = random_input(seed=2)
    out = SURROGATES["bapo"](x, weight_cap=None)
    low, high = (float(out.metrics[f"losses/bound_{name}"]) for name in ("low", "high"))
    r, w_b = (x.log_prob - x.proximal).exp().detach(), (x.proximal - x.behavior).exp()
    loss = -w_b * torch.minimum(r * x.advantage, r.clamp(low, high) * x.advantage)
    torch.testing.assert_close(out.loss.detach(), loss)
    assert torch.equal(out.clipped, (r < low) | (r > high))
    assert 0 < out.clipped.sum() < 64


def test_dual_variable_rises_while_the_constraint_is_broken_and_never_below_zero() -> None:
    dual = DualVariable(start=0.3, rate=2.0, target=0.1, device=torch.device("cpu"))
    taken, skipped = torch.zeros(()), torch.ones(())
    expected = 0.3
    for mean in (0.2, 0.5, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0):
        dual.observe(torch.tensor(mean))
        dual.step(dual.observed, taken)
        expected = max(0.0, expected + 2.0 * (mean - 0.1))
        assert dual.value.item() == pytest.approx(expected)
    assert dual.value.item() == 0.0
    for mean in (7.0, math.nan):
        dual.observe(torch.tensor(mean))
        dual.step(dual.observed, skipped)
        assert dual.value.item() == 0.0
    other = DualVariable(start=0.3, rate=2.0, target=0.1, device=torch.device("cpu"))
    dual.step(torch.tensor(1.0), taken)
    other.load_state_dict(dual.state_dict())
    assert other.value.item() == dual.value.item() == pytest.approx(1.8)
    other.reset()
    assert other.value.item() == 0.3
