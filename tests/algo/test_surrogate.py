"""Policy objectives: reference losses and gradients, the behavior weight, reset rows, options."""

import itertools
import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sfactory.algo.surrogates.options import MASK_USES, USES, Options, reads_proximal, unused_options, users
from sfactory.algo.surrogates.ratios import SurrogateInput
from sfactory.algo.surrogates.registry import SURROGATES
from sfactory.algo.trace import TRACES
from sfactory.algo.weight_rule import BEHAVIOR_WEIGHTS, NO_OWN_WEIGHT, check_weights
from sfactory.config import Config

torch.set_num_threads(1)
decoupled, impala, ppo = (SURROGATES[name] for name in ("decoupled", "impala", "ppo"))
VECTORS = json.loads((Path(__file__).parent / "vectors.json").read_text())
DTYPES = [(torch.float64, 1e-10), (torch.float32, 2e-5)]


def make(log_prob, proximal, behavior, advantage, dtype=torch.float64, weight=None, valid=None, **more):
    """SurrogateInput from lists or tensors; log_prob is a leaf with gradient."""
    log_prob, proximal, behavior, advantage = (
        torch.as_tensor(x, dtype=dtype).clone() for x in (log_prob, proximal, behavior, advantage)
    )
    log_prob.requires_grad_()
    weight = torch.ones_like(proximal) if weight is None else weight
    valid = torch.ones_like(proximal, dtype=torch.bool) if valid is None else valid
    return SurrogateInput(log_prob, proximal, behavior, advantage, weight, valid, **more)


def gradient(loss: Tensor, x: SurrogateInput) -> Tensor:
    return torch.autograd.grad(loss.sum(), x.log_prob)[0]


def random_input(seed: int, n: int = 64, **more) -> SurrogateInput:
    g = torch.Generator().manual_seed(seed)
    behavior = -2.0 * torch.rand(n, generator=g, dtype=torch.float64)
    proximal = behavior + 0.4 * torch.randn(n, generator=g, dtype=torch.float64)
    log_prob = proximal + 0.4 * torch.randn(n, generator=g, dtype=torch.float64)
    advantage = torch.randn(n, generator=g, dtype=torch.float64)
    critic = torch.randn(3, n, generator=g, dtype=torch.float64)
    return make(log_prob, proximal, behavior, advantage, **{**needed(*critic), **more})


def needed(value: Tensor, action_value: Tensor, median: Tensor) -> dict[str, Tensor]:
    """What some objectives need besides the ratios."""
    one = torch.ones((), dtype=value.dtype)
    prefix = torch.full_like(value, 0.5)
    return dict(
        annealing=2.0 * one, dual=0.5 * one, prefix=prefix, value=value, action_value=action_value, median=median
    )


@pytest.mark.parametrize(("dtype", "tol"), DTYPES)
@pytest.mark.parametrize("cap", [None, 100.0])
def test_decoupled_ppo_agrees_with_the_reference_loss_and_gradient(cap, dtype, tol) -> None:
    cases = VECTORS["decoupled_ppo"]["cases"]
    names = ("logp", "logp_prox", "logp_behav", "adv")
    x = make(*([case[name] for case in cases] for name in names), dtype=dtype)
    out = decoupled(x, clip=0.2, weight_cap=cap)
    suffix = "" if cap is None else "_imp_max_100"
    loss = torch.tensor([case["loss" + suffix] for case in cases], dtype=dtype)
    torch.testing.assert_close(out.loss, loss, rtol=tol, atol=tol)
    slope = torch.tensor([case["dloss_dlogp" + suffix] for case in cases], dtype=dtype)
    tol = max(tol, 2e-8)  # the reference gradients are central differences
    torch.testing.assert_close(gradient(out.loss, x), slope, rtol=tol, atol=tol)
    assert out.clipped.tolist() == [case["clipped"] for case in cases]
    mean = VECTORS["decoupled_ppo"]["mean_loss" + suffix]
    torch.testing.assert_close(out.loss.mean().item(), mean, rtol=tol, atol=tol)


@pytest.mark.parametrize(("dtype", "tol"), DTYPES)
def test_a3po_losses_agree_with_the_reference(dtype, tol) -> None:
    for case in VECTORS["a3po"]:
        x = make([case["logp"]], [case["areal"]["logp_prox"]], [case["logp_behav"]], [case["adv"]], dtype=dtype)
        out = decoupled(x, clip=case["eps"], weight_cap=None)
        expected = torch.tensor([case["areal"]["loss"]], dtype=dtype)
        torch.testing.assert_close(out.loss, expected, rtol=tol, atol=tol)
        slope = torch.tensor([case["areal"]["dloss_dlogp"]], dtype=dtype)
        torch.testing.assert_close(gradient(out.loss, x), slope, rtol=max(tol, 2e-8), atol=max(tol, 2e-8))


@pytest.mark.parametrize(("dtype", "tol"), DTYPES)
@pytest.mark.parametrize("case", VECTORS["extra_surrogates"], ids=lambda c: f"{c['logp']}|{c['logp_old']}|{c['adv']}")
def test_coupled_objectives_agree_with_their_reference(case, dtype, tol) -> None:
    tol = max(tol, 5e-9)  # central differences again
    numbers = [case["logp"]], [case["logp_old"]], [case["logp_old"]], [case["adv"]]
    dppo = -min(case["ratio"], 20.0) * case["adv"] * case["dppo_tv"]["keep"]
    for name, options, slope, loss in (
        ("cispo", {"clip": 0.28}, case["cispo"]["grad"], None),
        ("topr", {}, case["topr"]["grad"], None),
        ("sapo", {}, case["sapo"]["grad"], case["sapo"]["loss"]),
        ("mhpo", {}, case["mhpo"]["grad"], case["mhpo"]["loss"]),
        ("dppo_tv", {"clip": 0.15, "weight_cap": 20.0}, dppo, None),
        ("r2vpo", {}, case["r2vpo"]["lagrangian_grad"], None),
        ("bpo", {"clip": 0.3}, case["bpo"]["grad"], case["bpo"]["loss"]),
    ):
        x = make(*numbers, dtype=dtype)
        quarter = torch.full_like(x.advantage, 0.25)  # value and median of the reference
        more = needed(quarter, x.advantage + quarter, quarter)
        x = x._replace(**{**more, "dual": torch.ones((), dtype=dtype)})
        out = SURROGATES[name](x, **options)
        expected = torch.tensor([slope], dtype=dtype)
        torch.testing.assert_close(gradient(out.loss, x), expected, rtol=tol, atol=tol, msg=name)
        if loss is not None:
            torch.testing.assert_close(out.loss.detach(), torch.tensor([loss], dtype=dtype), rtol=tol, atol=tol)


def slow_decoupled(log_prob: float, proximal: float, behavior: float, adv: float, clip: float, dual: float) -> float:
    """-w_b min(r A, clip(r) A), for A < 0 at most -dual A w_b."""
    r, w_b = math.exp(log_prob - proximal), math.exp(proximal - behavior)
    loss = -w_b * min(r * adv, min(max(r, 1 - clip), 1 + clip) * adv)
    return min(loss, -dual * adv * w_b) if adv < 0 else loss


@given(seed=st.integers(0, 10**6), clip=st.floats(0.05, 0.5), dual=st.floats(1.1, 4.0))
@settings(max_examples=20, deadline=None)
def test_decoupled_ppo_equals_its_product_form(seed: int, clip: float, dual: float) -> None:
    x = random_input(seed, n=20)
    out = decoupled(x, clip=clip, dual_clip=dual, weight_cap=None).loss.detach()
    rows = zip(*(t.tolist() for t in (x.log_prob.detach(), x.proximal, x.behavior, x.advantage)), strict=True)
    expected = torch.tensor([slow_decoupled(*row, clip, dual) for row in rows], dtype=torch.float64)
    torch.testing.assert_close(out, expected)


def test_decoupled_ppo_gradient_is_the_total_weight_where_not_clipped() -> None:
    x = random_input(seed=1, n=500)
    r, w = torch.exp(x.log_prob - x.proximal).detach(), torch.exp(x.log_prob - x.behavior).detach()
    clipped = ((r > 1.2) & (x.advantage > 0)) | ((r < 0.8) & (x.advantage < 0))
    assert 50 < clipped.sum() < 450
    slope = gradient(decoupled(x, clip=0.2).loss, x)
    torch.testing.assert_close(slope, torch.where(clipped, 0.0, -w * x.advantage))


def test_decoupled_equals_ppo_if_proximal_equals_behavior() -> None:
    x = random_input(seed=2)
    x = x._replace(proximal=x.behavior)
    for options in ({}, {"dual_clip": 2.0}, {"clip": 0.1}):
        a, b = decoupled(x, **options), ppo(x, **options)
        torch.testing.assert_close(a.loss, b.loss)
        torch.testing.assert_close(gradient(a.loss, x), gradient(b.loss, x))


def test_weight_cap_keeps_a_gradient_of_the_size_of_the_cap() -> None:
    x = make([0.0], [-1.0], [-9.0], [-1.0])
    assert gradient(decoupled(x, weight_cap=50.0).loss, x).item() == pytest.approx(50.0)


def test_impala_applies_the_trace_weight_once() -> None:
    weight = torch.full((64,), 0.5, dtype=torch.float64)
    x = random_input(seed=3, weight=weight)
    torch.testing.assert_close(gradient(impala(x, behavior_weight="trace").loss, x), -0.5 * x.advantage)
    torch.testing.assert_close(gradient(impala(x, behavior_weight="none").loss, x), -x.advantage)


@pytest.mark.parametrize("name", ["decoupled", "is_pg", "decoupled_kl", "mdpo"])
def test_behavior_weight_is_counted_as_often_as_the_choice_says(name: str) -> None:
    """At r = 1 the gradient is -A times w_b^(times counted)."""
    g = torch.Generator().manual_seed(0)
    behavior = -torch.rand(50, generator=g, dtype=torch.float64)
    proximal = behavior + 0.3 * torch.randn(50, generator=g, dtype=torch.float64)
    w_b = torch.exp(proximal - behavior)
    for choice, times in {"none": 0, "surrogate": 1, "trace": 1, "twice": 2}.items():
        x = make(proximal, proximal, behavior, torch.ones(50), weight=w_b)
        out = SURROGATES[name](x, behavior_weight=choice)
        torch.testing.assert_close(gradient(out.loss, x), -(w_b**times), msg=f"{name} {choice}")


TRACE_NAMES, PROXIMAL_NAMES = list(TRACES), ["behavior", "recompute", "ewma", "interpolate", "snapshot"]


def rejection(*arguments: str) -> str:
    """Error message of check_weights, empty if the combination is accepted."""
    try:
        check_weights(*arguments)
    except ValueError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("choice", ["surrogate", "trace", "none", "twice"])
def test_check_weights_accepts_only_combinations_with_the_right_power_of_the_weight(choice: str) -> None:
    """Every combination is either rejected or, with r = 1 at the start of an update, has the selected power of w_b."""
    accepted = 0
    behavior, start = torch.tensor([-1.0]).double(), torch.tensor([-0.7]).double()
    for trace, proximal, name in itertools.product(TRACE_NAMES, PROXIMAL_NAMES, SURROGATES):
        message = rejection(trace, proximal, name, choice)
        if message:
            assert "\n" not in message
            assert "use " in message
            continue
        accepted += 1
        # a proximal policy that is not the start of the update is at -0.8; the ratio compensates for it
        center = {"behavior": behavior, "recompute": start}.get(proximal, torch.tensor([-0.8]).double())
        weight = torch.ones(1).double() if trace == "gae" else torch.exp(start - behavior)
        x = make(start, center, behavior, [-1e-3], weight=weight)  # A < 0 and r >= 1: no clip acts
        zero, one = torch.zeros(1).double(), torch.ones(1).double()
        x = x._replace(**{**needed(zero, x.advantage, zero), "prefix": one, "dual": torch.zeros(()).double()})
        slope = gradient(SURROGATES[name](x, behavior_weight=choice, clip=10.0, kl_coef=0.0).loss, x) / 1e-3
        if name in ("sapo", "mhpo", "topr", "cispo", "opmd", "asymre"):
            continue  # their gates change the size, or they have no ratio
        w, r = math.exp(0.3), torch.exp(start - center).item()
        expected = {"surrogate": w, "trace": w, "twice": w * w, "none": r}[choice]
        if choice == "none" and name in ("impala",):
            expected = 1.0
        assert slope.item() == pytest.approx(expected), (trace, proximal, name)
    assert accepted > 3


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("gae", "recompute", "ppo", "trace"), "gae has no weight"),
        (("vtrace", "ewma", "ppo", "trace"), "proximal=recompute"),
        (("vtrace", "interpolate", "decoupled", "trace"), "proximal=recompute"),
        (("vtrace", "behavior", "ppo", "trace"), "second time"),
        (("gae", "recompute", "ppo", "surrogate"), "surrogate=decoupled"),
        (("gae", "behavior", "ppo", "none"), "behavior_weight=surrogate"),
        (("vtrace", "recompute", "impala", "surrogate"), "behavior_weight=trace"),
        (("gae", "recompute", "ppo", "never"), "expected one of"),
        (("vtrace", "recompute", "minpro", "trace"), "behavior_weight=surrogate"),
        (("gae", "recompute", "minpro", "none"), "minpro corrects by policy / behavior itself"),
    ],
)
def test_check_weights_errors_name_a_valid_alternative(arguments: tuple[str, str, str, str], word: str) -> None:
    with pytest.raises(ValueError, match=word):
        check_weights(*arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        ("gae", "recompute", "decoupled", "surrogate"),
        ("vtrace", "ewma", "decoupled", "surrogate"),
        ("gae", "behavior", "ppo", "surrogate"),
        ("vtrace", "recompute", "ppo", "trace"),
        ("vtrace", "behavior", "ppo", "twice"),
        ("vtrace", "recompute", "impala", "trace"),
        ("gae", "recompute", "ppo", "none"),
    ],
)
def test_check_weights_accepts_valid_combinations(arguments: tuple[str, str, str, str]) -> None:
    check_weights(*arguments)


@pytest.mark.parametrize("choice", BEHAVIOR_WEIGHTS)
@pytest.mark.parametrize("name", list(SURROGATES))
def test_reads_proximal_says_whether_another_proximal_policy_changes_the_gradient(name: str, choice: str) -> None:
    slopes = []
    for shift in (0.0, 0.7):
        x = random_input(seed=8)
        x = x._replace(proximal=x.proximal + shift)
        slopes.append(gradient(SURROGATES[name](x, behavior_weight=choice, weight_cap=2.0).loss, x))
    if not (name == "minpro" and choice != "surrogate"):  # which the weight rule refuses
        assert reads_proximal(name, "none", choice) != torch.equal(*slopes)
    assert reads_proximal(name, "erc", choice), "the mask compares entropies with it"


@pytest.mark.parametrize("name", list(SURROGATES))
@pytest.mark.parametrize("choice", ["surrogate", "trace"])
def test_surrogate_loss_and_gradient_ignore_reset_rows(name: str, choice: str) -> None:
    for value in (float("inf"), -float("inf"), float("nan"), 1e30):
        x = random_input(seed=5)
        valid = torch.arange(64) % 3 > 0
        dirty = {
            field: torch.where(valid, getattr(x, field), value)
            for field in ("proximal", "behavior", "advantage", "weight")
        }
        x = x._replace(valid=valid)
        y = x._replace(**dirty)
        clean, out = (SURROGATES[name](z, behavior_weight=choice) for z in (x, y))
        assert torch.equal(out.loss, clean.loss)
        assert not out.loss[~valid].any()
        slope = gradient(out.loss, y)
        assert torch.equal(slope, gradient(clean.loss, x))
        assert not slope[~valid].any()


@pytest.mark.parametrize("name", list(SURROGATES))
def test_surrogate_is_finite_for_distant_policies_in_float32(name: str) -> None:
    corner = torch.tensor([-200.0, -50.0, 0.0, 50.0])
    log_prob, proximal, behavior, adv = (
        t.flatten() for t in torch.meshgrid(corner, corner, corner, torch.tensor([-1.0, 1.0]), indexing="ij")
    )
    x = make(log_prob, proximal, behavior, adv, dtype=torch.float32)
    x = x._replace(**needed(torch.zeros_like(adv), adv, torch.zeros_like(adv)))
    out = SURROGATES[name](x)
    assert out.loss.isfinite().all()
    assert gradient(out.loss, x).isfinite().all()


@pytest.mark.parametrize("name", list(SURROGATES))
def test_surrogate_does_not_depend_on_the_order_of_samples(name: str) -> None:
    x = random_input(seed=9)
    order = torch.randperm(64, generator=torch.Generator().manual_seed(0))
    y = SurrogateInput(*(t[order] if isinstance(t, Tensor) and t.dim() else t for t in x))
    torch.testing.assert_close(SURROGATES[name](y).loss, SURROGATES[name](x).loss[order], rtol=0, atol=0)


class Bernoulli:
    """K = 1: one logit."""

    discrete = True

    def kl(self, p: Tensor, q: Tensor) -> Tensor:
        p, q = (torch.distributions.Bernoulli(logits=x.squeeze(-1)) for x in (p, q))
        return torch.distributions.kl_divergence(p, q)

    def entropy(self, params: Tensor) -> Tensor:
        return torch.distributions.Bernoulli(logits=params.squeeze(-1)).entropy()


@pytest.mark.parametrize(("name", "reverse"), [("decoupled_kl", False), ("mdpo", True)])
def test_kl_penalty_is_exact_if_both_distributions_are_known(name: str, reverse: bool) -> None:
    params = torch.linspace(-1, 1, 64).double().unsqueeze(-1).requires_grad_()
    center = torch.zeros(64, 1).double()
    x = random_input(seed=4)
    y = x._replace(params=params, proximal_params=center, distribution=Bernoulli())
    kl = Bernoulli().kl(params, center) if reverse else Bernoulli().kl(center, params)
    policy = -torch.exp(x.log_prob - x.behavior) * x.advantage
    torch.testing.assert_close(SURROGATES[name](y, kl_coef=3.0, kl_anneal=False).loss, policy + 3.0 * kl)
    half = 0.5 * (x.log_prob - x.proximal).square()
    torch.testing.assert_close(SURROGATES[name](x, kl_coef=3.0, kl_anneal=False).loss, policy + 3.0 * half)


def test_mdpo_divides_its_coefficient_by_the_share_of_the_run_that_is_left() -> None:
    x = random_input(seed=4)._replace(annealing=torch.tensor(4.0).double())
    plain, annealed = (SURROGATES["mdpo"](x, kl_coef=0.5, kl_anneal=anneal).loss for anneal in (False, True))
    torch.testing.assert_close(annealed, SURROGATES["mdpo"](x, kl_coef=2.0, kl_anneal=False).loss)
    assert not torch.equal(plain, annealed)


def test_options_are_named_like_their_settings() -> None:
    settings = Options.read(Config().surrogate)
    assert {name: value or 0 for name, value in settings.items()} == {
        name: value or 0 for name, value in Options._field_defaults.items()
    }
    fields = set(vars(Config().surrogate)) - {"objective", "behavior_weight", "mask"}
    assert fields == set(Options._fields)
    for name, mask in itertools.product(SURROGATES, MASK_USES):
        assert unused_options(name, mask, settings) == []  # every objective has the defaults


def test_every_option_is_read_by_an_objective_or_a_mask() -> None:
    assert set(USES) == set(SURROGATES)
    for option in set(Options._fields) - {"clip"}:
        assert users(option), option


@pytest.mark.parametrize("name", list(SURROGATES))
def test_surrogate_rejects_an_option_that_does_not_exist(name: str) -> None:
    for call in (
        lambda: SURROGATES[name](random_input(seed=0), clipp=0.1),
        lambda: unused_options(name, "none", {"clipp": 0.1}),
    ):
        with pytest.raises(ValueError, match="'clipp' does not exist, expected one of clip, dual_clip"):
            call()


OTHER = {
    "clip": 0.1, "dual_clip": 1.1, "weight_cap": 1.1, "kl_coef": 0.5, "kl_anneal": False, "log_ratio_coef": 1.0,
    "baseline_shift": 1.0, "outer_low": 0.3, "outer_high": 0.3, "ratio_weight": False, "weight_low": 1.0,
    "weight_high": 1.1, "weight_low_negative": 1.0, "weight_high_negative": 1.1, "gate_temperature": 2.0,
    "gate_temperature_negative": 2.0, "ratio_bound": 0.5, "hazard_shape": 1.0, "hazard_scale": 2.0,
    "hazard_shape_negative": 1.0, "hazard_scale_negative": 2.0, "balance": 0.5, "bound_low": 0.8, "bound_low_max": 0.65,
    "bound_high": 1.1, "bound_high_max": 1.25, "bound_high_step": 0.03,
    "target_temperature": 1.0, "median_head": False,
}  # fmt: skip
"""Another value of every option that a loss reads; the dual variable and the masks have the rest."""


def test_other_values_are_tried_for_every_option_of_a_loss() -> None:
    of_dual = {"variance_target", "dual_rate", "dual_start"}
    of_masks = {option for used in MASK_USES.values() for option in used}
    assert set(OTHER) == set(Options._fields) - of_dual - of_masks


@pytest.mark.sampled(5)
@pytest.mark.parametrize(("option", "value"), list(OTHER.items()), ids=list(OTHER))
@pytest.mark.parametrize("name", list(SURROGATES))
def test_unused_options_names_exactly_what_a_surrogate_does_not_use(name: str, option: str, value: float) -> None:
    same = True
    for number in range(80 if name == "bapo" else 1):  # in some the search of bapo ends half way
        x = random_input(seed=11)._replace(weight=torch.full((64,), 0.5, dtype=torch.float64))
        x = x._replace(advantage=x.advantage + 0.4 - 0.01 * number)
        a, b = SURROGATES[name](x, **{option: value}), SURROGATES[name](x)
        same &= torch.equal(a.loss, b.loss)
    if option in ("clip", *SURROGATES[name].uses):
        assert unused_options(name, "none", {option: value}) == []
        assert not same or option == "clip"  # clip also defines `clipped`
    else:
        assert same
        assert unused_options(name, "none", {option: value}) == [option]


@pytest.mark.parametrize("mask", [mask for mask, used in MASK_USES.items() if used])
def test_unused_options_knows_those_of_a_mask(mask: str) -> None:
    for option in MASK_USES[mask]:
        assert unused_options("decoupled", "none", {option: 0.5}) == [option]
        assert unused_options("decoupled", mask, {option: 0.5}) == []


def test_surrogates_without_a_weight_of_their_own_are_those_of_the_weight_rule() -> None:
    assert {name for name, entry in SURROGATES.items() if not entry.divides_by_behavior} == set(NO_OWN_WEIGHT)
