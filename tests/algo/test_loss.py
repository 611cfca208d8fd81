"""The loss of a minibatch, its diagnostics, normalizers, batch scaling rules and schedules."""

import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sfactory.algo.loss import diagnostics, effective_sample_size, explained_variance, total_loss
from sfactory.algo.normalize import (
    EwmaMoments,
    Moments,
    RewardScale,
    decay_from_span,
    masked_moments,
)
from sfactory.algo.scaling import rescale
from sfactory.algo.schedule import SCHEDULES, ScheduleState
from sfactory.algo.surrogates.ratios import Surrogate, SurrogateInput
from sfactory.algo.surrogates.registry import SURROGATES

torch.set_num_threads(1)
VECTORS = json.loads((Path(__file__).parent / "vectors.json").read_text())
N = 40


def random_minibatch(seed: int) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    batch = {n: torch.randn(N, generator=g, dtype=torch.float64) for n in ("loss", "value", "target", "old_value")}
    batch["entropy"] = torch.rand(N, generator=g, dtype=torch.float64)
    batch["valid"] = torch.rand(N, generator=g) < 0.7
    return batch


@given(seed=st.integers(0, 10**6), value_clip=st.sampled_from([None, 0.3]))
@settings(max_examples=20, deadline=None)
def test_total_loss_is_the_mean_over_valid_rows(seed: int, value_clip: float | None) -> None:
    b = random_minibatch(seed)
    surrogate = Surrogate(b["loss"], b["valid"])
    arguments = b["value"], b["target"], b["entropy"]
    options = dict(value_coef=0.5, entropy_coef=0.01, old_value=b["old_value"], value_clip=value_clip)
    out = total_loss(surrogate, *arguments, b["valid"], **options)
    rows = [i for i in range(N) if b["valid"][i]]
    value = 0.0
    for i in rows:
        v, g, o = (b[n][i].item() for n in ("value", "target", "old_value"))
        clipped = v if value_clip is None else o + min(max(v - o, -value_clip), value_clip)
        value += max((v - g) ** 2, (clipped - g) ** 2) / len(rows)
    policy = sum(b["loss"][i].item() for i in rows) / len(rows)
    entropy = sum(b["entropy"][i].item() for i in rows) / len(rows)
    assert out.policy.item() == pytest.approx(policy)
    assert out.value.item() == pytest.approx(value)
    assert out.entropy.item() == pytest.approx(entropy)
    assert out.total.item() == pytest.approx(policy + 0.5 * value - 0.01 * entropy)


def test_total_losses_of_parts_add_up_to_that_of_the_minibatch() -> None:
    b = random_minibatch(1)
    b["valid"][:13] = False  # the first part has no valid row

    def losses(rows: slice, num_valid: torch.Tensor | None) -> torch.Tensor:
        x = {name: column[rows] for name, column in b.items()}
        surrogate = Surrogate(x["loss"], x["valid"])
        options = dict(value_coef=0.5, entropy_coef=0.01, num_valid=num_valid)
        return torch.stack(total_loss(surrogate, x["value"], x["target"], x["entropy"], x["valid"], **options))

    parts = [losses(rows, b["valid"].sum()) for rows in (slice(0, 13), slice(13, 20), slice(20, N))]
    torch.testing.assert_close(sum(parts), losses(slice(0, N), None), rtol=1e-12, atol=1e-14)


def test_total_loss_has_no_gradient_from_reset_rows() -> None:
    b = random_minibatch(0)
    value = b["value"].clone().requires_grad_()
    target = torch.where(b["valid"], b["target"], float("inf"))
    loss = torch.where(b["valid"], b["loss"], float("nan"))
    out = total_loss(
        Surrogate(loss, b["valid"]), value, target, b["entropy"], b["valid"], value_coef=1.0, entropy_coef=0
    )
    out.total.backward()
    assert out.total.isfinite()
    assert value.grad is not None
    assert value.grad.isfinite().all()
    assert not value.grad[~b["valid"]].any()


def test_total_loss_is_zero_without_a_valid_row() -> None:
    b = random_minibatch(0)
    none = torch.zeros(N, dtype=torch.bool)
    out = total_loss(
        Surrogate(b["loss"], none), b["value"], b["target"], b["entropy"], none, value_coef=1, entropy_coef=1
    )
    assert out.total.item() == 0.0
    assert effective_sample_size(b["loss"], none).item() == 0.0
    assert explained_variance(b["value"], b["target"], none).isfinite()


def test_total_loss_with_value_clip_requires_old_value() -> None:
    b = random_minibatch(0)
    with pytest.raises(ValueError, match="old_value"):
        total_loss(
            Surrogate(b["loss"], b["valid"]), b["value"], b["target"], b["entropy"], b["valid"],
            value_coef=1, entropy_coef=0, value_clip=0.2,
        )  # fmt: skip


def test_effective_sample_size_agrees_with_the_reference() -> None:
    case = VECTORS["ess"]
    log_w = torch.tensor([*case["log_w"], 50.0], dtype=torch.float64)
    valid = torch.tensor([True] * 4 + [False])
    assert effective_sample_size(log_w, valid).item() == pytest.approx(case["ratio"], abs=1e-10)
    shifted = effective_sample_size(log_w.float() + 500.0, valid)
    assert shifted.item() == pytest.approx(case["ratio"], rel=1e-4)


class Normal:
    """K = 1: the mean of a unit normal."""

    def kl(self, p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
        return 0.5 * (p - q).square().squeeze(-1)


def test_diagnostics_agree_with_trestored_definitions() -> None:
    cases = VECTORS["decoupled_ppo"]["cases"]
    names = ("logp", "logp_prox", "logp_behav", "adv")
    log_prob, proximal, behavior, adv = (torch.tensor([c[n] for c in cases] + [9.0]).double() for n in names)
    valid = torch.tensor([True] * len(cases) + [False])
    value, target = torch.arange(7.0).double(), torch.tensor([0.0, 1, 2, 3, 4, 6, 99]).double()
    x = SurrogateInput(log_prob.requires_grad_(), proximal, behavior, adv, torch.ones_like(adv), valid)
    out = diagnostics(
        x, SURROGATES["decoupled"](x), value, target, rho_bar=2.0, c_bar=1.0, effective_lambda=torch.tensor(0.9)
    )
    assert all(y.ndim == 0 and not y.requires_grad for y in out.values())
    assert out["approx_kl"].item() == pytest.approx(VECTORS["decoupled_ppo"]["approx_kl"])
    assert out["clipfrac"].item() == pytest.approx(VECTORS["decoupled_ppo"]["clipfrac"])
    rho = torch.exp(log_prob - behavior)[:6]
    assert out["rho_clip_fraction"].item() == pytest.approx((rho > 2.0).double().mean().item())
    assert out["c_clip_fraction"].item() == pytest.approx((rho > 1.0).double().mean().item())
    expected = 1 - (target - value)[:6].var(correction=0) / target[:6].var(correction=0)
    assert out["explained_variance"].item() == pytest.approx(expected.item())
    assert out["kl_proximal_policy"].item() == out["approx_kl"].item()
    d = (proximal - behavior)[:6]
    assert out["kl_behavior_proximal"].item() == pytest.approx((d.exp() - 1 - d).mean().item())
    assert out["effective_lambda"].item() == pytest.approx(0.9)

    params = torch.arange(7.0).double().unsqueeze(-1)
    x = x._replace(params=params, proximal_params=params + 1, behavior_params=params + 3, distribution=Normal())
    out = diagnostics(x, SURROGATES["decoupled"](x), value, target)
    assert out["kl_proximal_policy"].item() == pytest.approx(0.5)
    assert out["kl_behavior_proximal"].item() == pytest.approx(2.0)


@given(seed=st.integers(0, 10**6), shape=st.sampled_from([(), (3,), (2, 2)]))
@settings(max_examples=20, deadline=None)
def test_moments_equal_those_of_all_data_at_once(seed: int, shape: tuple[int, ...]) -> None:
    g = torch.Generator().manual_seed(seed)
    moments, kept = Moments(shape), []
    for i in range(4):
        x = 100.0 + (i + 1) * torch.randn(5, 4, *shape, generator=g)
        valid = torch.rand(5, 4, generator=g) < (0.6 if i != 2 else 0.0)
        moments.update(torch.where(valid.view(5, 4, *(1 for _ in shape)), x, float("nan")), valid)
        kept.append(x[valid])
    everything = torch.cat(kept).double()
    if len(everything) == 0:
        return
    torch.testing.assert_close(moments.mean, everything.mean(0))
    torch.testing.assert_close(moments.var, everything.var(0, correction=0))
    assert moments.count.item() == len(everything)
    restored = Moments(shape)
    restored.load_state_dict(moments.state_dict())
    assert torch.equal(restored.var, moments.var)


def test_ewma_moments_agree_with_the_reference() -> None:
    case = VECTORS["ewma_advantage_moments"]
    moments = EwmaMoments(case["decay"])
    for batch, expected in zip(case["updates_mean_var_count"], case["moments"], strict=True):
        out = moments.update(*(torch.tensor(x, dtype=torch.float64) for x in batch))
        assert [x.item() for x in out] == pytest.approx(expected, abs=1e-10)


def test_ewma_moments_with_decay_zero_normalise_each_update_separately() -> None:
    moments = EwmaMoments(0.0)
    g = torch.Generator().manual_seed(0)
    for scale in (1.0, 1000.0):
        advantage, valid = scale * torch.randn(30, 8, generator=g) + 5.0, torch.rand(30, 8, generator=g) < 0.8
        out = moments.normalize(torch.where(valid, advantage, float("inf")), valid)
        assert out.dtype == torch.float32
        mean, var, _ = masked_moments(out, valid)
        assert mean.item() == pytest.approx(0.0, abs=1e-5)
        assert var.item() == pytest.approx(1.0, abs=1e-5)
        assert not out[~valid].any()
    assert decay_from_span(1.0) == 0.0


def test_reward_scale_is_the_inverse_spread_of_the_running_return() -> None:
    g = torch.Generator().manual_seed(0)
    reward, ended = torch.randn(50, 4, generator=g), torch.rand(50, 4, generator=g) < 0.1
    valid = torch.cat([torch.ones(1, 4, dtype=torch.bool), ~ended[:-1]])
    running = torch.zeros(50, 4)
    for b in range(4):
        carried = 0.0
        for t in range(50):
            carried = 0.9 * carried + reward[t, b].item() if valid[t, b] else 0.0
            running[t, b] = carried
            carried = 0.0 if ended[t, b] else carried
    scale = RewardScale()
    assert scale(torch.tensor([2.0])).item() == pytest.approx(2.0)
    scale.update(running, valid)
    assert scale.scale.item() == pytest.approx(1.0 / running[valid].double().std(correction=0).item(), rel=1e-6)
    assert scale(torch.tensor([1e9])).item() == 10.0
    restored = RewardScale()
    restored.load_state_dict(scale.state_dict())
    assert torch.equal(restored.scale, scale.scale)


@pytest.mark.parametrize("row", VECTORS["batch_size_rules"]["rows"], ids=lambda r: f"c={r['c']}")
def test_rescale_by_hiltons_rules_agrees_with_the_reference(row: dict) -> None:
    reference = {name: VECTORS["batch_size_rules"]["reference"][name] for name in ("lr", "beta1", "beta2")}
    given = {**reference, "center_of_mass": 8.0, "advantage_span": 1.0, "gamma": 0.99}
    out = rescale(given, row["c"])
    for name in reference:
        assert out.settings[name] == pytest.approx(row[name], rel=1e-10), name
    assert out.settings["center_of_mass"] == pytest.approx(row["com_prox"])
    assert out.settings["advantage_span"] == pytest.approx(row["adv_span"])
    assert out.settings["gamma"] == 0.99
    assert {r.name for r in out.rows} == {n for n in given if out.settings[n] != given[n]}


def test_rescale_divides_the_batch_by_the_factor() -> None:
    given = {"envs_per_group": 32, "forced_lag": 4, "minibatches": 8, "lr": 1e-3}
    smaller = rescale(given, 4.0)
    assert smaller.settings == {"envs_per_group": 8, "forced_lag": 16, "minibatches": 8, "lr": 5e-4}
    larger = rescale(given, 0.25)
    assert larger.settings == {"envs_per_group": 128, "forced_lag": 1, "minibatches": 8, "lr": 2e-3}
    other = rescale(given, 0.25, "more_minibatches")
    assert other.settings == {"envs_per_group": 128, "forced_lag": 1, "minibatches": 32, "lr": 1e-3}
    assert rescale(given, 1.0) == (given, [], [])


def test_rescale_rejects_fractional_counts_and_warns_about_broken_assumptions() -> None:
    with pytest.raises(ValueError, match=r"envs_per_group 6 becomes 1\.5"):
        rescale({"envs_per_group": 6}, 4.0)
    with pytest.raises(ValueError, match="expected a positive number"):
        rescale({}, 0.0)
    with pytest.raises(ValueError, match="expected one of hilton"):
        rescale({}, 2.0, "linear")
    warnings = " ".join(rescale({"epochs": 3, "adam_eps": 1e-5, "advantage_span": 1.0}, 0.25).warnings)
    assert "one epoch" in warnings
    assert "adam_eps" in warnings
    assert "advantage_span" in warnings


@given(c=st.sampled_from([2.0, 4.0, 16.0]))
@settings(max_examples=3, deadline=None)
def test_rescale_by_the_inverse_factor_restores_the_settings(c: float) -> None:
    given = {
        "lr": 1e-3,
        "beta1": 0.9,
        "beta2": 0.999,
        "center_of_mass": 8.0,
        "envs_per_group": 64,
    }
    scaled = rescale(given, c).settings
    assert rescale(scaled, 1.0 / c).settings == pytest.approx(given)


def test_schedules_return_the_documented_rates() -> None:
    state = ScheduleState(initial_lr=1e-3, progress=0.25, kl=0.0, ess=0.25, kl_target=0.01)
    assert SCHEDULES["constant"](1.0, state) == 1e-3
    assert SCHEDULES["linear"](1.0, state) == pytest.approx(7.5e-4)
    assert SCHEDULES["linear"](1.0, state._replace(progress=1.5)) == 0.0
    assert SCHEDULES["ess"](1.0, state) == pytest.approx(5e-4)
    scale = SCHEDULES["ess"](1.0, state._replace(ess=VECTORS["ess"]["ratio"])) / 1e-3
    assert scale == pytest.approx(VECTORS["ess"]["vcpo_sqrt_lr_scale"])
    adaptive = SCHEDULES["kl_adaptive"]
    assert adaptive(1e-3, state) == pytest.approx(1.5e-3)
    assert adaptive(1e-3, state._replace(kl=0.01)) == 1e-3
    for bad in (0.03, math.inf, math.nan):
        assert adaptive(1e-3, state._replace(kl=bad)) == pytest.approx(1e-3 / 1.5)
    assert adaptive(1e-2, state) == 1e-2
    assert adaptive(1e-6, state._replace(kl=1.0)) == 1e-6
