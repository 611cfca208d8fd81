import itertools
import math

import numpy as np
import pytest
import torch

from sfactory.algo.loss import total_loss
from sfactory.algo.proximal import interpolate_log_prob
from sfactory.algo.surrogates.ratios import SurrogateInput
from sfactory.algo.surrogates.registry import SURROGATES
from sfactory.envs import ActionLeaf
from sfactory.model.distributions import ActionDistribution
from sfactory.native.head import LossColumns, NativeActor, NativeLoss

N = 400
ACTIONS = {
    "one head": {"action": ActionLeaf((), "int64", "discrete", (5,))},
    "several heads": {
        "a": ActionLeaf((2,), "int64", "discrete", (2, 3)),
        "b": ActionLeaf((), "int64", "discrete", (4,)),
    },
    "box": {"action": ActionLeaf((3,), "float32", "box", (3,))},
}


def columns(distribution, seed=0):
    """Random columns of a batch; ratios far inside and outside of every bound, and rows that are not valid."""
    g = torch.Generator().manual_seed(seed)
    params = torch.randn(N, distribution.num_params, generator=g)
    action = distribution.sample(params, torch.rand(N, distribution.num_noise, generator=g))
    log_prob = distribution.log_prob(params, action)

    def near(scale):
        return log_prob + scale * torch.randn(N, generator=g)

    found = LossColumns(
        action=action,
        behavior=near(0.5).where(torch.rand(N, generator=g) < 0.9, near(30.0)),
        advantage=torch.randn(N, generator=g),
        weight=torch.rand(N, generator=g),
        target=torch.randn(N, generator=g),
        old_value=torch.randn(N, generator=g),
        valid=torch.rand(N, generator=g) < 0.9,
        proximal=near(0.2),
        lag=None,
    )
    return params, torch.randn(N, generator=g), found


def native_loss(distribution, objective="decoupled", behavior_weight="surrogate", **options):
    clip, cap = options.get("clip", 0.2), options.get("weight_cap", 100.0)
    if objective == "ppo":
        behavior_weight = {"surrogate": "none", "twice": "trace"}.get(behavior_weight, behavior_weight)
    return NativeLoss(
        distribution,
        anchor_is_behavior=behavior_weight in ("surrogate", "twice"),
        weighted=behavior_weight in ("trace", "twice"),
        log_interval=(math.log1p(-clip) if clip < 1.0 else -math.inf, math.log1p(clip)),
        log_cap=math.log(cap),
        log_dual_clip=math.log(options["dual_clip"]) if options.get("dual_clip") else 0.0,
        value_clip=options.get("value_clip", 0.0),
        value_coef=0.7,
        entropy_coef=options.get("entropy_coef", 0.03),
    )


def autograd(distribution, params, value, c, index, objective="decoupled", behavior_weight="surrogate", **options):
    """Gradients in float64 by the functions of `sfactory.algo`."""
    value_clip, entropy_coef = options.pop("value_clip", 0.0), options.pop("entropy_coef", 0.03)
    params, value = params.double().requires_grad_(), value.double().requires_grad_()
    rows = {name: x if x is None or name == "action" else x[index] for name, x in c._asdict().items()}
    d = {name: x.double() if x is not None and name not in ("action", "valid") else x for name, x in rows.items()}
    action = {name: x[index].double() if x.is_floating_point() else x[index] for name, x in c.action.items()}
    log_prob, entropy = distribution.log_prob_entropy(params, action)
    proximal = d["proximal"] if d["lag"] is None else interpolate_log_prob(log_prob, d["behavior"], d["lag"])
    x = SurrogateInput(log_prob, proximal, d["behavior"], d["advantage"], d["weight"], d["valid"])
    surrogate = SURROGATES[objective](x, behavior_weight=behavior_weight, **options)
    terms = total_loss(
        surrogate, value, d["target"], entropy, d["valid"],
        value_coef=0.7, entropy_coef=entropy_coef, old_value=d["old_value"], value_clip=value_clip or None,
    )  # fmt: skip
    return torch.autograd.grad(terms.total, [params, value])


def check(actions, index=None, change=lambda c: c, proximal_by_row=False, **options):
    distribution = ActionDistribution(ACTIONS[actions])
    params, value, c = columns(distribution)
    c = change(c)
    index = torch.randperm(N, generator=torch.Generator().manual_seed(3))[:150] if index is None else index
    loss = native_loss(distribution, **options)
    by_row = c.proximal[index].contiguous() if proximal_by_row else None
    loss.bind(c._replace(proximal=None) if proximal_by_row else c)
    params, value = params[index].contiguous(), value[index].contiguous()
    found = loss.gradient(index, params, value, by_row)
    expected = autograd(distribution, params, value, c, index, **options)
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine.double(), theirs, rtol=2e-4, atol=2e-5 * float(theirs.abs().max()))
    return found


@pytest.mark.parametrize("actions", ACTIONS)
@pytest.mark.parametrize(
    ("objective", "behavior_weight"),
    list(itertools.product(["decoupled", "ppo"], ["surrogate", "trace", "none", "twice"])),
)
def test_native_loss_has_the_gradient_of_autograd_for_every_behavior_weight(actions, objective, behavior_weight):
    check(actions, objective=objective, behavior_weight=behavior_weight)


@pytest.mark.parametrize("actions", ACTIONS)
@pytest.mark.parametrize(
    "options",
    [
        {"clip": 0.02},
        {"clip": 1.5},
        {"weight_cap": 1.1},
        {"dual_clip": 1.5},
        {"dual_clip": 3.0, "weight_cap": 2.0},
        {"value_clip": 0.3},
        {"entropy_coef": 0.0},
    ],
    ids=str,
)
def test_native_loss_has_the_gradient_of_autograd_for_every_option(actions, options):
    check(actions, **options)


@pytest.mark.parametrize("actions", ACTIONS)
def test_native_loss_takes_the_proximal_policy_by_row_and_by_lag(actions):
    check(actions, proximal_by_row=True)
    check(actions, change=lambda c: c._replace(proximal=None, lag=torch.arange(N).remainder(4).float()))


def test_native_loss_of_rows_that_are_not_valid_is_zero():
    params_grad, value_grad = check("box", change=lambda c: c._replace(valid=torch.zeros(N, dtype=torch.bool)))
    assert not params_grad.any()
    assert not value_grad.any()


def test_native_loss_reads_nothing_of_rows_that_are_not_valid():
    def poison(c):
        return c._replace(
            **{name: getattr(c, name).masked_fill(~c.valid, torch.nan) for name in ("advantage", "target", "weight")}
        )

    check("one head", change=poison)


@pytest.mark.parametrize("column", ["advantage", "behavior", "proximal", "target", "old_value"])
def test_native_loss_passes_on_what_is_not_finite(column):
    distribution = ActionDistribution(ACTIONS["one head"])
    params, value, c = columns(distribution)
    broken = getattr(c, column).clone()
    broken[c.valid.nonzero()[0]] = torch.nan
    loss = native_loss(distribution, value_clip=0.3)
    loss.bind(c._replace(**{column: broken}))
    gradients = loss.gradient(None, params, value)
    assert not all(gradient.isfinite().all() for gradient in gradients)


def test_native_loss_of_logits_that_are_masked_is_finite():
    distribution = ActionDistribution(ACTIONS["one head"])
    params, value, c = columns(distribution)
    params[:, 4] = -1e9
    c = c._replace(action={"action": c.action["action"].clamp(max=3)})
    loss = native_loss(distribution)
    loss.bind(c)
    index = torch.arange(N)
    found = loss.gradient(index, params, value)
    expected = autograd(distribution, params, value, c, index)
    torch.testing.assert_close(found[0].double(), expected[0], rtol=2e-4, atol=1e-7)
    assert not found[0][:, 4].any()


def actor(distribution, places):
    """An actor and its fields, with `places` rows filled with NaN and -7."""
    fields = {"noise": np.zeros((places, distribution.num_noise), np.float32)}
    fields |= {name: np.full(places, np.nan, np.float32) for name in ("log_prob", "value")}
    fields["params"] = np.full((places, distribution.num_params), np.nan, np.float32)
    for part in distribution.parts:
        fields[part.name] = np.full((places, *part.shape), -7, np.int64 if part.discrete else np.float32)
    return NativeActor(distribution, fields), fields


@pytest.mark.parametrize("actions", ACTIONS)
def test_native_actor_chooses_the_actions_of_the_distribution_and_writes_its_rows_only(actions):
    distribution = ActionDistribution(ACTIONS[actions])
    g = torch.Generator().manual_seed(5)
    params, value = torch.randn(N, distribution.num_params, generator=g), torch.randn(N, generator=g)
    native, fields = actor(distribution, 2 * N)
    rows = np.random.default_rng(1).permutation(2 * N)[:N]
    noise = torch.rand(N, distribution.num_noise, generator=g)
    noise[0], noise[1] = 0.0, 1.0 - 2.0**-24
    fields["noise"][rows] = noise.numpy()
    native.act(torch.from_numpy(rows), N, params, value)
    expected, log_prob = distribution.sample_and_log_prob(params, noise)
    for name, action in expected.items():
        np.testing.assert_allclose(fields[name][rows], action.numpy(), rtol=1e-5, atol=2e-6)
    np.testing.assert_allclose(fields["log_prob"][rows], log_prob.numpy(), rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(fields["params"][rows], params.numpy())
    np.testing.assert_array_equal(fields["value"][rows], value.numpy())
    others = np.setdiff1d(np.arange(2 * N), rows)
    assert np.isnan(fields["log_prob"][others]).all()
    assert all((fields[name][others] == -7).all() for name in expected)


def test_native_actor_never_chooses_a_category_of_probability_zero():
    distribution = ActionDistribution({"action": ActionLeaf((), "int64", "discrete", (4,))})
    params = torch.tensor([[-1e9, 0.0, 1.0, -1e9]]).repeat(3, 1)
    native, fields = actor(distribution, 3)
    fields["noise"][:, 0] = [0.0, 0.5, 1.0 - 2.0**-24]
    native.act(torch.arange(3), 3, params, torch.zeros(3))
    assert set(fields["action"].tolist()) <= {1, 2}


def test_normal_quantile_of_the_native_actor_is_that_of_torch():
    distribution = ActionDistribution({"action": ActionLeaf((1,), "float32", "box", (1,))})
    uniform = torch.cat([torch.linspace(0, 1 - 2.0**-24, N - 20), 2.0 ** -torch.arange(5.0, 25.0)])
    native, fields = actor(distribution, N)
    fields["noise"][:, 0] = uniform.numpy()
    native.act(torch.arange(N), N, torch.zeros(N, 2), torch.zeros(N))
    exact = torch.special.ndtri(uniform.double().clamp(2.0**-25, 1 - 2.0**-24))
    np.testing.assert_allclose(fields["action"][:, 0], exact.numpy(), rtol=2e-6, atol=2e-6)
