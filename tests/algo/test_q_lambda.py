"""Targets of Q(lambda) against worked numbers and against their definition."""

import json
from pathlib import Path

import pytest
import torch
from test_trace import DTYPES, column, random_rows

from sfactory.algo.q_lambda import q_lambda_targets
from sfactory.algo.trace import TraceInput

VECTORS = json.loads((Path(__file__).parent / "vectors.json").read_text())


@pytest.mark.parametrize(("dtype", "tol"), DTYPES)
@pytest.mark.parametrize("case", VECTORS["pqn_lambda_returns"])
def test_targets_agree_with_the_reference_numbers(case, dtype, tol):
    best = column([*case["max_q"], case["last_max_q"]], dtype)
    ended = column(case["dones"], torch.bool)
    rows = TraceInput(
        reward=column(case["rewards"], dtype),
        value=best[:-1],
        next_value=best[1:],
        terminated=ended,
        truncated=torch.zeros_like(ended),
        valid=torch.ones_like(ended),
        log_rho=torch.full_like(best[1:], torch.nan),
    )
    got = q_lambda_targets(rows, gamma=case["gamma"], trace_lambda=case["lam"])
    assert got.dtype == dtype
    torch.testing.assert_close(got, column(case["targets"], dtype), rtol=tol, atol=tol)


def slow(rows, gamma, lam):
    """G by its definition, one lane at a time, as a mixture of n-step returns in Python floats.

    The weights of the n-step returns are (1 - lambda) lambda^(n-1); the longest possible one has the rest.
    """
    steps, lanes = rows["reward"].shape
    target = rows["value"].clone()
    for b in range(lanes):
        row = {name: x[:, b].tolist() for name, x in rows.items()}
        for s in range(steps):
            if not row["valid"][s]:
                continue
            returns, reward, t = [], 0.0, s
            while True:
                reward += gamma ** (t - s) * row["reward"][t]
                bootstrap = 0.0 if row["terminated"][t] else gamma ** (t - s + 1) * row["next_value"][t]
                returns.append(reward + bootstrap)
                if row["terminated"][t] or row["truncated"][t] or t + 1 == steps or not row["valid"][t + 1]:
                    break
                t += 1
            weights = [(1 - lam) * lam**n for n in range(len(returns) - 1)]
            weights.append(lam ** (len(returns) - 1))
            target[s, b] = sum(w * x for w, x in zip(weights, returns, strict=True))
    return target


@pytest.mark.parametrize("lam", [0.0, 0.65, 1.0])
def test_targets_equal_a_mixture_of_returns_of_all_lengths(lam):
    rows = random_rows(seed=4)
    rows["next_value"] = torch.cat([rows["value"][1:], rows["next_value"][-1:]])  # q of the next row, at ends too
    assert rows["truncated"].any()
    assert not rows["valid"].all()
    got = q_lambda_targets(TraceInput(**rows), gamma=0.97, trace_lambda=lam)
    torch.testing.assert_close(got, slow(rows, 0.97, lam), rtol=1e-10, atol=1e-10)


def test_contents_of_reset_rows_have_no_influence():
    rows = random_rows(seed=5)
    expected = q_lambda_targets(TraceInput(**rows), gamma=0.9, trace_lambda=0.8)
    changed = {name: x.clone() for name, x in rows.items()}
    changed["reward"][~rows["valid"]] = torch.nan
    changed["next_value"][~rows["valid"]] = torch.inf
    got = q_lambda_targets(TraceInput(**changed), gamma=0.9, trace_lambda=0.8)
    assert torch.equal(got, expected)
