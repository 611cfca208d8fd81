"""Traces against published definitions, and the identities they must satisfy."""

import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sfactory.algo.trace import (
    TRACES,
    Trace,
    TraceInput,
    gae,
    leaky_vtrace,
    rbis,
    recursive_retrace,
    retrace,
    truncated_is,
    vtrace,
)

torch.set_num_threads(1)
VECTORS = json.loads((Path(__file__).parent / "vectors.json").read_text())
DTYPES = [(torch.float64, 1e-10), (torch.float32, 2e-5)]
ROWS = TraceInput._fields


def column(x: list[float], dtype: torch.dtype) -> Tensor:
    return torch.tensor(x, dtype=dtype).unsqueeze(1)


def from_vector(inputs: dict, dtype: torch.dtype) -> dict[str, Tensor]:
    """[T, 1] rows of one case of vectors.json."""
    rows = {
        "reward": column(inputs["rewards"], dtype),
        "value": column(inputs["values"], dtype),
        "next_value": column(inputs["next_values"], dtype),
        "terminated": column(inputs["terminated"], torch.bool),
        "truncated": column(inputs["truncated"], torch.bool),
        "log_rho": column(inputs["log_rho"], dtype),
    }
    return {**rows, "valid": torch.ones_like(rows["terminated"])}


def random_rows(seed: int, steps: int = 17, lanes: int = 5, ends: float = 0.12) -> dict[str, Tensor]:
    """[T, B] rows with episode ends and the reset rows after them; ratios on both sides of every clip."""
    g = torch.Generator().manual_seed(seed)

    def normal(scale: float = 1.0) -> Tensor:
        return scale * torch.randn(steps, lanes, generator=g, dtype=torch.float64)

    end = torch.rand(steps, lanes, generator=g)
    rows = {
        "reward": normal(),
        "value": normal(),
        "next_value": normal(),
        "terminated": end < ends,
        "truncated": (end > ends) & (end < 2 * ends),
        "log_rho": normal(0.7),
    }
    valid = torch.ones(steps, lanes, dtype=torch.bool)
    for t in range(1, steps):
        valid[t] = ~((rows["terminated"] | rows["truncated"])[t - 1] & valid[t - 1])
    valid[:, 0] = True  # life losses: the row after such an end is an ordinary one, so only the end cuts the trace
    for name in ("terminated", "truncated"):
        rows[name] &= valid
    return {**rows, "valid": valid}


PAIRS = {  # beta_s,t-1, rho, lambda, s, t, whether the target has it -> beta_st; the definitions of 2301.11321
    "rbis": lambda beta, rho, lam, s, t, of_values: min(lam ** (t - s), rho[t] * beta),
    "retrace": lambda beta, rho, lam, s, t, of_values: beta * lam * min(1.0, rho[t]),
    "recursive_retrace": lambda beta, rho, lam, s, t, of_values: lam * min(1.0, rho[t] * beta),
    "truncated_is": lambda beta, rho, lam, s, t, of_values: (
        lam ** (t - s) * min(1.0, math.prod(rho[s if of_values else s + 1 : t + 1]))
    ),
}


def slow(
    kind: str, rows: dict[str, Tensor], *, gamma: float, lam: float, rho_bar=1.0, c_bar=1.0, pg_rho_bar=1.0, leak=1.0
) -> Trace:
    """The definitions as sums over pairs (s, t), one lane and one pair at a time, in Python floats."""
    steps, lanes = rows["reward"].shape
    target, advantage, weight = torch.zeros(3, steps, lanes, dtype=torch.float64)
    for b in range(lanes):
        row = {name: rows[name][:, b].tolist() for name in ROWS}
        valid = row["valid"]
        rho = [math.exp(min(max(x, -20.0), 20.0)) if v else 0.0 for x, v in zip(row["log_rho"], valid, strict=True)]
        cont = [v and not (a or z) for a, z, v in zip(row["terminated"], row["truncated"], valid, strict=True)]
        delta = []
        for t in range(steps):
            bootstrap = 0.0 if row["terminated"][t] else row["next_value"][t]
            delta.append(row["reward"][t] + gamma * bootstrap - row["value"][t] if valid[t] else 0.0)

        def clipped(x: float, bound: float) -> float:
            return (1 - leak) * x + leak * min(bound, x)

        for s in range(steps):
            v_sum = a_sum = 0.0
            v_beta, a_beta = min(rho_bar, rho[s]), 1.0
            for t in range(s, steps):
                alive = all(cont[s:t]) and valid[s]
                if kind in PAIRS:
                    if t > s:
                        v_beta, a_beta = (
                            PAIRS[kind](beta, rho, lam, s, t, of_values)
                            for beta, of_values in ((v_beta, True), (a_beta, False))
                        )
                    weights = v_beta, a_beta
                elif kind == "gae":
                    weights = lam ** (t - s), lam ** (t - s)
                else:
                    v = clipped(rho[t], rho_bar) * math.prod(lam * clipped(rho[i], c_bar) for i in range(s, t))
                    a = math.prod(lam * clipped(rho[i], c_bar) for i in range(s + 1, t))
                    weights = v, 1.0 if t == s else lam * a * clipped(rho[t], rho_bar)
                v_sum += gamma ** (t - s) * alive * weights[0] * delta[t]
                a_sum += gamma ** (t - s) * alive * weights[1] * delta[t]
            target[s, b], advantage[s, b] = row["value"][s] + v_sum, a_sum
            weight[s, b] = 1.0 if kind == "gae" else clipped(rho[s], pg_rho_bar)
    return Trace(target, advantage, weight, torch.zeros(()))


@pytest.mark.parametrize(("dtype", "tol"), DTYPES)
@pytest.mark.parametrize("case", VECTORS["gae"], ids=lambda c: f"{c['name']}-{c['lam']}")
def test_gae_agrees_with_the_reference_numbers(case: dict, dtype: torch.dtype, tol: float) -> None:
    out = gae(TraceInput(**from_vector(case["inputs"], dtype)), gamma=case["inputs"]["gamma"], trace_lambda=case["lam"])
    assert out.advantage.dtype == out.target.dtype == dtype
    torch.testing.assert_close(out.advantage, column(case["advantages"], dtype), rtol=tol, atol=tol)
    torch.testing.assert_close(out.target, column(case["returns"], dtype), rtol=tol, atol=tol)


@pytest.mark.parametrize(("dtype", "tol"), DTYPES)
@pytest.mark.parametrize("case", VECTORS["vtrace"], ids=lambda c: f"{c['name']}-{c['lam']}-{c['rho_bar']:g}")
def test_vtrace_agrees_with_the_reference_numbers(case: dict, dtype: torch.dtype, tol: float) -> None:
    out = vtrace(
        TraceInput(**from_vector(case["inputs"], dtype)),
        gamma=case["inputs"]["gamma"],
        trace_lambda=case["lam"],
        rho_bar=case["rho_bar"],
        c_bar=case["c_bar"],
        pg_rho_bar=case["pg_rho_bar"],
    )
    for got, expected in (
        (out.target, "vs"),
        (out.advantage, "advantages_unweighted"),
        (out.advantage * out.weight, "pg_advantages"),
    ):
        torch.testing.assert_close(got, column(case[expected], dtype), rtol=tol, atol=tol)


@pytest.mark.parametrize(("dtype", "tol"), DTYPES)
@pytest.mark.parametrize(
    ("kind", "trace"),
    [
        ("retrace", vtrace),
        ("retrace", retrace),
        ("truncated_is", truncated_is),
        ("recursive_retrace", recursive_retrace),
        ("rbis", rbis),
    ],
)
def test_traces_weigh_td_errors_as_published(kind: str, trace, dtype: torch.dtype, tol: float) -> None:
    """One TD error of 1 at step t shows the weight beta[s][t] in the advantage of step s. V-trace(lambda, 1,
    1) is Retrace there."""
    case = next(c for c in VECTORS["trace_weights_action_value_form"] if c["kind"] == kind)
    steps = len(case["log_rho"])
    zero, no = torch.zeros(steps, steps, dtype=dtype), torch.zeros(steps, steps, dtype=torch.bool)
    log_rho = column(case["log_rho"], dtype).expand(steps, steps)
    reward = torch.eye(steps, dtype=dtype)  # lane t has its error at step t
    out = trace(TraceInput(reward, zero, zero, no, no, ~no, log_rho), gamma=1.0, trace_lambda=case["lam"])
    torch.testing.assert_close(out.advantage, torch.tensor(case["beta"], dtype=dtype), rtol=tol, atol=tol)


@pytest.mark.parametrize("kind", ["gae", "vtrace", *PAIRS])
@pytest.mark.parametrize("lam", [0.0, 0.9, 1.0])
@pytest.mark.parametrize("rho_bar", [0.8, 2.0])
def test_trace_equals_its_definition_as_a_sum(kind: str, lam: float, rho_bar: float) -> None:
    rows = random_rows(seed=int(10 * lam))
    options = dict(rho_bar=rho_bar, c_bar=0.7, pg_rho_bar=1.3)
    out = TRACES[kind](TraceInput(**rows), gamma=0.97, trace_lambda=lam, **options)
    expected = slow(kind, rows, gamma=0.97, lam=lam, **options)
    torch.testing.assert_close(out.target, expected.target, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(out.advantage, expected.advantage, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(out.weight, expected.weight, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("leak", [0.0, 0.4, 1.0])
def test_leaky_vtrace_equals_its_definition_and_leaks_the_weight_too(leak: float) -> None:
    rows = random_rows(seed=3)
    options = dict(gamma=0.9, leak=leak, rho_bar=1.1, c_bar=0.8, pg_rho_bar=1.2)
    out = leaky_vtrace(TraceInput(**rows), trace_lambda=0.9, **options)
    expected = slow("vtrace", rows, lam=0.9, **options)
    for name in ("target", "advantage", "weight"):
        torch.testing.assert_close(getattr(out, name), getattr(expected, name), rtol=1e-10, atol=1e-10, msg=name)


def test_leaky_vtrace_at_its_limits_is_vtrace_and_importance_sampling() -> None:
    rows = TraceInput(**random_rows(seed=3))
    options = dict(gamma=0.9, trace_lambda=0.9)
    unclipped = vtrace(rows, rho_bar=1e9, c_bar=1e9, pg_rho_bar=1e9, **options)
    for got, expected in zip(leaky_vtrace(rows, leak=0.0, **options), unclipped, strict=True):
        torch.testing.assert_close(got, expected)
    for got, expected in zip(leaky_vtrace(rows, leak=1.0, **options), vtrace(rows, **options), strict=True):
        assert torch.equal(got, expected)


def test_vtrace_does_not_read_the_leak_of_leaky_vtrace() -> None:
    rows, options = TraceInput(**random_rows(seed=3)), dict(gamma=0.9, trace_lambda=0.9)
    for got, expected in zip(TRACES["vtrace"](rows, leak=0.3, **options), vtrace(rows, **options), strict=True):
        assert torch.equal(got, expected)


@given(seed=st.integers(0, 10**6), lam=st.floats(0.0, 1.0), gamma=st.floats(0.0, 1.0))
@settings(max_examples=25, deadline=None)
def test_every_trace_equals_gae_on_policy(seed: int, lam: float, gamma: float) -> None:
    rows = random_rows(seed, steps=9, lanes=3)
    rows["log_rho"] = torch.zeros_like(rows["log_rho"])
    expected = gae(TraceInput(**rows), gamma=gamma, trace_lambda=lam)
    for name, options in {"vtrace": {}, "leaky_vtrace": {"leak": 0.5}, **{name: {} for name in PAIRS}}.items():
        out = TRACES[name](TraceInput(**rows), gamma=gamma, trace_lambda=lam, **options)
        torch.testing.assert_close(out.target, expected.target, rtol=1e-11, atol=1e-11)
        torch.testing.assert_close(out.advantage, expected.advantage, rtol=1e-11, atol=1e-11)


@given(seed=st.integers(0, 10**6))
@settings(max_examples=15, deadline=None)
@pytest.mark.parametrize("kind", list(TRACES))
def test_trace_ignores_the_contents_of_reset_rows(kind: str, seed: int) -> None:
    rows = random_rows(seed, steps=11, lanes=4, ends=0.2)
    options = dict(gamma=0.95, trace_lambda=0.9, leak=0.7)
    clean = TRACES[kind](TraceInput(**rows), **options)
    dirty = dict(rows)
    g = torch.Generator().manual_seed(seed)
    poison = torch.tensor([float("nan"), float("inf"), -float("inf"), 1e30], dtype=torch.float64)
    for name in ("log_rho", "reward"):
        garbage = poison[torch.randint(4, rows[name].shape, generator=g)]
        dirty[name] = torch.where(rows["valid"], rows[name], garbage)
    # next_value of a termination or a reset row is not read either
    unread = rows["terminated"] | ~rows["valid"]
    dirty["next_value"] = torch.where(unread, torch.full_like(rows["next_value"], float("nan")), rows["next_value"])
    out = TRACES[kind](TraceInput(**dirty), **options)
    for got, expected in zip(out, clean, strict=True):
        assert torch.equal(got, expected)
    assert not out.advantage[~rows["valid"]].any()
    assert torch.equal(out.target[~rows["valid"]], rows["value"][~rows["valid"]])
    if kind != "gae":
        assert not out.weight[~rows["valid"]].any()


@pytest.mark.parametrize("kind", list(TRACES))
def test_trace_of_several_episodes_in_one_slot_equals_each_alone(kind: str) -> None:
    rows = random_rows(seed=8, steps=24, lanes=1, ends=0.1)
    options = dict(gamma=0.95, trace_lambda=0.9, leak=0.6)
    whole = TRACES[kind](TraceInput(**rows), **options)
    ended = (rows["terminated"] | rows["truncated"])[:, 0].nonzero().flatten().tolist()
    assert len(ended) >= 3, "the seed should end a few episodes"
    start = 0
    for stop in [t + 1 for t in ended] + [24]:
        alone = TRACES[kind](TraceInput(*(rows[name][start:stop] for name in ROWS)), **options)
        torch.testing.assert_close(whole.advantage[start:stop], alone.advantage, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(whole.target[start:stop], alone.target, rtol=1e-12, atol=1e-12)
        start = stop


@pytest.mark.parametrize("kind", list(TRACES))
def test_trace_stops_at_a_failed_row_and_bootstraps_the_row_before(kind: str) -> None:
    rows = random_rows(seed=1, steps=8, lanes=2, ends=0.0)
    rows["valid"][4] = False
    options = dict(gamma=0.9, trace_lambda=0.95, leak=0.6)
    whole = TRACES[kind](TraceInput(**rows), **options)
    before = TRACES[kind](TraceInput(*(rows[name][:4] for name in ROWS)), **options)
    torch.testing.assert_close(whole.advantage[:4], before.advantage, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("lam", [0.8, 1.0])
def test_retrace_is_vtrace_with_both_clips_at_one(lam: float) -> None:
    rows, options = TraceInput(**random_rows(seed=9)), dict(gamma=0.95, trace_lambda=lam, pg_rho_bar=1.4)
    for got, expected in zip(retrace(rows, **options), vtrace(rows, **options), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


def test_traces_that_can_grow_back_are_never_shorter_than_retrace() -> None:
    rows = random_rows(seed=10, steps=12, lanes=6, ends=0.0)
    zero = torch.zeros_like(rows["value"])
    rows |= {"reward": zero.clone(), "value": zero, "next_value": zero}
    rows["reward"][-1] = 1.0  # the only TD error: the advantage of row s is beta_s,T-1
    found = {name: TRACES[name](TraceInput(**rows), gamma=1.0, trace_lambda=0.9).advantage for name in PAIRS}
    for name in ("rbis", "truncated_is", "recursive_retrace"):
        assert (found[name] >= found["retrace"] - 1e-12).all(), name
        assert (found[name] > found["retrace"] + 1e-3).any(), name
    bound = 0.9 ** torch.arange(11, -1, -1, dtype=torch.float64).unsqueeze(1)
    assert (found["rbis"] <= bound + 1e-12).all()
    assert (found["truncated_is"] <= bound + 1e-12).all()
    assert (found["recursive_retrace"] > bound + 1e-3).any(), "it forgets how long ago s was"


def test_truncated_is_keeps_the_product_of_ratios_beyond_float32() -> None:
    """Ten ratios of e^20 and then ten of e^-20 have a product of 1; float32 would overflow on the way."""
    steps = 21
    log_rho = torch.tensor([0.0, *[20.0] * 10, *[-20.0] * 10]).unsqueeze(1)
    zero, no = torch.zeros(steps, 1), torch.zeros(steps, 1, dtype=torch.bool)
    reward = zero.clone()
    reward[-1] = 1.0
    out = truncated_is(TraceInput(reward, zero, zero, no, no, ~no, log_rho), gamma=1.0, trace_lambda=1.0)
    torch.testing.assert_close(out.advantage[0], torch.ones(1))
    torch.testing.assert_close(out.target[0], torch.ones(1))


def rlax_leaky_vtrace(reward, value, next_value, discount, rho, lam, alpha, clip_rho, clip_pg_rho):
    """`leaky_vtrace_td_error_and_advantage` of rlax for one sequence, as it stands there, in Python floats.

    rho and c are mixed in the errors, and rho again, with its own clip, in the policy gradient's advantage.
    """
    c = [lam * ((1 - alpha) * x + alpha * min(1.0, x)) for x in rho]
    weight = [(1 - alpha) * x + alpha * min(clip_rho, x) for x in rho]
    errors, acc = [0.0] * len(rho), 0.0
    for t in reversed(range(len(rho))):
        acc = weight[t] * (reward[t] + discount[t] * next_value[t] - value[t]) + discount[t] * c[t] * acc
        errors[t] = acc
    targets = [e + v for e, v in zip(errors, value, strict=True)]
    q = [lam * target + (1 - lam) * v for target, v in zip(targets[1:], value[1:], strict=True)] + [next_value[-1]]
    q = [r + d * x for r, d, x in zip(reward, discount, q, strict=True)]
    pg_weight = [(1 - alpha) * x + alpha * min(clip_pg_rho, x) for x in rho]
    return targets, [w * (x - v) for w, x, v in zip(pg_weight, q, value, strict=True)]


@pytest.mark.parametrize("leak", [0.0, 0.3, 1.0])
def test_leaky_vtrace_equals_the_formula_of_rlax_policy_weight_included(leak: float) -> None:
    rows = random_rows(seed=11, steps=9, lanes=1, ends=0.0)
    rows["terminated"][4] = True
    rows["next_value"] = torch.cat([rows["value"][1:], rows["next_value"][-1:]])
    out = leaky_vtrace(
        TraceInput(**rows), gamma=0.95, trace_lambda=0.9, leak=leak, rho_bar=1.3, c_bar=1.0, pg_rho_bar=1.1
    )
    columns = {name: rows[name][:, 0].tolist() for name in ("reward", "value", "next_value")}
    discount = (0.95 * (~rows["terminated"][:, 0])).tolist()
    rho = rows["log_rho"][:, 0].exp().tolist()
    targets, advantages = rlax_leaky_vtrace(
        **columns, discount=discount, rho=rho, lam=0.9, alpha=leak, clip_rho=1.3, clip_pg_rho=1.1
    )
    torch.testing.assert_close(out.target, column(targets, torch.float64))
    torch.testing.assert_close(out.weight * out.advantage, column(advantages, torch.float64))


def test_unclipped_vtrace_is_per_decision_importance_sampling() -> None:
    """With lambda = 1 and no clip the target is the importance-weighted return (Precup et al. 2000)."""
    rows = random_rows(seed=5, steps=6, lanes=2, ends=0.0)
    rows["next_value"] = torch.cat([rows["value"][1:], rows["next_value"][-1:]])
    out = vtrace(TraceInput(**rows), gamma=0.9, trace_lambda=1.0, rho_bar=1e12, c_bar=1e12)
    returns, rho = rows["next_value"][-1], rows["log_rho"].exp()
    # V drops out of the sum only in expectation; sample by sample its control variate (1 - rho) V remains.
    for t in reversed(range(6)):
        returns = rho[t] * (rows["reward"][t] + 0.9 * returns) + (1 - rho[t]) * rows["value"][t]
        torch.testing.assert_close(out.target[t], returns)


@given(k=st.floats(0.1, 10.0))
@settings(max_examples=10, deadline=None)
def test_trace_advantages_scale_with_rewards_and_values(k: float) -> None:
    rows = random_rows(seed=2)
    scaled = {n: k * x if n in ("reward", "value", "next_value") else x for n, x in rows.items()}
    for name, trace in TRACES.items():
        out = trace(TraceInput(**rows), gamma=0.9, trace_lambda=0.9, leak=0.5)
        big = trace(TraceInput(**scaled), gamma=0.9, trace_lambda=0.9, leak=0.5)
        torch.testing.assert_close(big.advantage, k * out.advantage, msg=name)


def test_trace_effective_lambda_is_the_mean_coefficient() -> None:
    rows = random_rows(seed=4)
    valid, rho = rows["valid"], rows["log_rho"].exp()
    out = vtrace(TraceInput(**rows), gamma=0.9, trace_lambda=0.9, c_bar=1.0)
    torch.testing.assert_close(out.effective_lambda, (0.9 * rho.clamp(max=1.0))[valid].mean())
    assert out.effective_lambda < 0.9  # off-policy V-trace shortens lambda
    torch.testing.assert_close(
        gae(TraceInput(**rows), gamma=0.9, trace_lambda=0.9).effective_lambda, torch.tensor(0.9, dtype=torch.float64)
    )


def test_trace_is_finite_for_enormous_ratios_in_float32() -> None:
    rows = {n: x.float() if x.is_floating_point() else x for n, x in random_rows(seed=6).items()}
    rows["log_rho"] = 1000.0 * rows["log_rho"].sign()
    for trace in TRACES.values():
        out = trace(TraceInput(**rows), gamma=0.99, trace_lambda=0.95, leak=1.0)
        assert all(x.isfinite().all() for x in out)


def test_trace_results_carry_no_gradient() -> None:
    rows = random_rows(seed=7)
    rows["value"].requires_grad_()
    for trace in TRACES.values():
        out = trace(TraceInput(**rows), gamma=0.99, trace_lambda=0.95, leak=1.0)
        assert not any(x.requires_grad for x in out)
