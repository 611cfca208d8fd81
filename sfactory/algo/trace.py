"""Advantages and value targets from one batch of trajectories.

Legend: T steps, B lanes, time-major. Row t holds the observation's value at t, the action taken there and its outcome.
With next-step autoreset ``next_value[t] = V(obs[t+1])`` is the value of the true successor, which may be the final
observation of the episode.

    nonterminal_t = 1 - terminated_t                    no bootstrap after a termination
    cont_t        = 1 - (terminated_t or truncated_t)   the trace stops at every end of an episode
    rho_t         = policy at the start of the update / behavior, of the action taken
    delta_t       = reward_t + gamma * nonterminal_t * next_value_t - value_t

``valid`` is False on reset rows (the environment ignored the action there). On those rows rho, delta, the accumulator
and the advantage are *set* to zero, never multiplied by zero: their contents, infinities included, affect no other
row. All inputs except the booleans are float32 or float64; the outputs have the same dtype.

Advantages are UNWEIGHTED. The weight min(pg_rho_bar, rho) (leaky V-trace: mixed with rho) is returned separately and
applied at most once (`weight_rule.check_weights`); torchbeast's ``pg_advantages`` is ``weight * advantage``.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

LOG_RHO_LIMIT = 20.0  # exp(20) = 5e8: above every clip in use, and its square does not overflow float32


class TraceInput(NamedTuple):
    """Rows of one batch, all [T, B]; see the legend of this module."""

    reward: Tensor
    """float, the reward that is learned from (scaled and clipped)."""
    value: Tensor
    """float, V(obs[t])."""
    next_value: Tensor
    """float, V(obs[t+1]); not read after a termination."""
    terminated: Tensor
    """bool, the episode ended by the environment's rules: no bootstrap."""
    truncated: Tensor
    """bool, the episode was cut off: bootstrap, but the trace stops."""
    valid: Tensor
    """bool, False on reset rows."""
    log_rho: Tensor
    """float, log policy at the start of the update minus log behavior."""


class Trace(NamedTuple):
    """Result of a trace; no tensor carries a gradient."""

    target: Tensor
    """[T, B] value target; equal to ``value`` on reset rows, so the error there is zero."""
    advantage: Tensor
    """[T, B] unweighted advantage, zero on reset rows."""
    weight: Tensor
    """[T, B] min(pg_rho_bar, rho), mixed with rho by leaky V-trace; ones for gae."""
    effective_lambda: Tensor
    """[] mean of the trace coefficient c over valid rows: off-policy V-trace shortens lambda by itself."""


@torch.no_grad()
def gae(rows: TraceInput, *, gamma: float, trace_lambda: float, **unused: Any) -> Trace:
    """Generalised advantage estimation (Schulman et al. 2016, arXiv 1506.02438, eq. 16).

        advantage_t = delta_t + gamma * lambda * cont_t * advantage_{t+1},    target_t = value_t + advantage_t

    Differs from the paper by distinguishing terminations (no bootstrap) and truncations (bootstrap, trace stops).

    Args:
        rows: log_rho is not used, GAE assumes on-policy data.
        gamma: discount.
        trace_lambda: 0 = one-step TD error, 1 = whole return minus value.
    """
    delta = _delta(rows, gamma)
    decay = _decay(rows, gamma * trace_lambda)
    advantage = _accumulate(delta, decay)
    value = rows.value
    coefficient = torch.full_like(value, trace_lambda)
    return Trace(value + advantage, advantage, torch.ones_like(value), _mean(coefficient, rows.valid))


def vtrace(rows: TraceInput, *, leak: float = 1.0, **options: float) -> Trace:
    """V-trace (Espeholt et al. 2018, arXiv 1802.01561, eq. 1 and remark 2), in its linear-time form.

        acc_t       = rho^_t * delta_t + gamma * cont_t * c_t * acc_{t+1},   c_t = lambda * min(c_bar, rho_t)
        target_t    = value_t + acc_t
        advantage_t = delta_t + gamma * cont_t * lambda * acc_{t+1}             (unweighted)

    With lambda = 1, ``weight * advantage`` equals the result of scalable_agent and torchbeast. Differs from them by
    lambda, by bootstrapping truncations, and by returning the weight separately. With lambda < 1 the advantage
    bootstraps from ``lambda * target_{t+1} + (1 - lambda) * V_{t+1}``, as in rlax, so that on-policy V-trace *is* GAE.
    With rho_bar = c_bar = 1 the unweighted advantage is Retrace(lambda) (arXiv 1606.02647).

    Args:
        rows: one batch.
        gamma, trace_lambda: as in `gae`.
        rho_bar: selects *what* is learned (infinity: V of the policy; towards 0: V of the behavior).
        c_bar: selects how fast.
        pg_rho_bar: clip of the returned weight.
        leak: not used, see `leaky_vtrace`.
    """
    return leaky_vtrace(rows, leak=1.0, **options)


@torch.no_grad()
def leaky_vtrace(
    rows: TraceInput,
    *,
    gamma: float,
    trace_lambda: float,
    leak: float,
    rho_bar: float = 1.0,
    c_bar: float = 1.0,
    pg_rho_bar: float = 1.0,
) -> Trace:
    """Leaky V-trace (Zahavy et al. 2020, arXiv 2002.12928), as rlax's `leaky_vtrace_td_error_and_advantage`.

    `vtrace` with every min(b, rho), that of the returned weight included, replaced by
    ``(1 - leak) * rho + leak * min(b, rho)``. 1 is plain V-trace, 0 importance sampling without clipping. Differs from
    rlax by one ``leak`` for all three weights and by a c_bar other than 1.
    """
    rho = _rho(rows)
    delta = _delta(rows, gamma)
    coefficient = trace_lambda * _leaky_min(rho, c_bar, leak)
    discount = _decay(rows, gamma)
    acc = _accumulate(_leaky_min(rho, rho_bar, leak) * delta, discount * coefficient)
    advantage = torch.addcmul(delta, discount, _next(acc), value=trace_lambda)
    weight = _leaky_min(rho, pg_rho_bar, leak)
    return Trace(rows.value + acc, advantage, weight, _mean(coefficient, rows.valid))


@torch.no_grad()
def retrace(
    rows: TraceInput,
    *,
    gamma: float,
    trace_lambda: float,
    rho_bar: float = 1.0,
    pg_rho_bar: float = 1.0,
    **unused: Any,
) -> Trace:
    """Retrace (Munos et al. 2016, arXiv 1606.02647; coefficients as in Daley et al. 2023, arXiv 2301.11321).

        target_s    = value_s + sum_t gamma^(t-s) * beta_st * delta_t,   beta_ss = min(rho_bar, rho_s)
        advantage_s =           sum_t gamma^(t-s) * beta_st * delta_t,   beta_ss = 1
        beta_st     = lambda * min(1, rho_t) * beta_s,t-1

    The advantage has the papers' (action-value) form. The target is the same rule for state values, which is not in the
    papers: its first step needs a weight too. With rho_bar = 1 both are V-trace with rho_bar = c_bar = 1. Another
    rho_bar weighs the first step only, where V-trace weighs every temporal difference with it.
    """
    rho = _rho(rows)
    coefficient = trace_lambda * rho.clamp(max=1.0)
    discount = _decay(rows, gamma)
    advantage = _accumulate(_delta(rows, gamma), discount * _next(coefficient))
    target = torch.addcmul(rows.value, rho.clamp(max=rho_bar), advantage)
    return Trace(target, advantage, rho.clamp(max=pg_rho_bar), _mean(coefficient, rows.valid))


@torch.no_grad()
def truncated_is(
    rows: TraceInput,
    *,
    gamma: float,
    trace_lambda: float,
    rho_bar: float = 1.0,
    pg_rho_bar: float = 1.0,
    **unused: Any,
) -> Trace:
    """Truncated importance sampling (as in Daley et al. 2023, arXiv 2301.11321).

        beta_st = lambda^(t-s) * min(1, product of rho_i over i = s+1..t), in the target over i = s..t

    beta_ss and the two forms are as in `retrace`. The product is clipped, not its factors, so that a trace that was cut
    can grow back to lambda^(t-s). The cost is O(T^2 B), in T vector operations.
    """
    log_rho = rows.log_rho.clamp(-LOG_RHO_LIMIT, LOG_RHO_LIMIT).masked_fill(~rows.valid, 0.0)

    def betas(first: Tensor) -> Iterator[Tensor]:
        # As logarithms: a product of T ratios may exceed every number of float32.
        product = torch.stack([log_rho, torch.zeros_like(log_rho)])
        for offset in range(1, len(log_rho)):
            product = product[:, :-1] + log_rho[offset:]
            yield product.clamp(max=0.0).exp_().mul_(trace_lambda**offset)

    return _sum_of_pairs(rows, betas, gamma, rho_bar, pg_rho_bar, trace_lambda * _rho(rows).clamp(max=1.0))


@torch.no_grad()
def recursive_retrace(
    rows: TraceInput,
    *,
    gamma: float,
    trace_lambda: float,
    rho_bar: float = 1.0,
    pg_rho_bar: float = 1.0,
    **unused: Any,
) -> Trace:
    """Recursive Retrace (as in Daley et al. 2023, arXiv 2301.11321).

        beta_st = lambda * min(1, rho_t * beta_s,t-1)

    beta_ss and the two forms are as in `retrace`. A large ratio restores a trace to lambda, however long ago s was: on
    old data it may be longer than that of GAE. The cost is O(T^2 B), in T vector operations.
    """
    rho = _rho(rows)

    def betas(beta: Tensor) -> Iterator[Tensor]:
        for offset in range(1, len(rho)):
            beta = (beta[:, :-1] * rho[offset:]).clamp_(max=1.0).mul_(trace_lambda)
            yield beta

    return _sum_of_pairs(rows, betas, gamma, rho_bar, pg_rho_bar, trace_lambda * rho.clamp(max=1.0))


@torch.no_grad()
def rbis(
    rows: TraceInput,
    *,
    gamma: float,
    trace_lambda: float,
    rho_bar: float = 1.0,
    pg_rho_bar: float = 1.0,
    **unused: Any,
) -> Trace:
    """Recency-bounded importance sampling (Daley et al. 2023, arXiv 2301.11321).

        target_s    = value_s + sum_t gamma^(t-s) * beta_st * delta_t,   beta_ss = min(rho_bar, rho_s)
        advantage_s =           sum_t gamma^(t-s) * beta_st * delta_t,   beta_ss = 1
        beta_st     = min(lambda^(t-s), rho_t * beta_s,t-1)

    A trace that was cut by a small ratio can grow back, so it is never shorter than Retrace. The advantage has the
    paper's (action-value) form. The target is the same rule for state values, which is not in the paper: its first step
    needs a weight too. There is no linear recursion; the cost is O(T^2 B), in T vector operations.
    ``effective_lambda`` is the mean one-step coefficient min(lambda, rho_t).
    """
    rho = _rho(rows)

    def betas(beta: Tensor) -> Iterator[Tensor]:
        for offset in range(1, len(rho)):
            beta = (beta[:, :-1] * rho[offset:]).clamp(max=trace_lambda**offset)
            yield beta

    return _sum_of_pairs(rows, betas, gamma, rho_bar, pg_rho_bar, rho.clamp(max=trace_lambda))


TRACES: dict[str, Callable[..., Trace]] = {
    "gae": gae,
    "vtrace": vtrace,
    "leaky_vtrace": leaky_vtrace,
    "retrace": retrace,
    "truncated_is": truncated_is,
    "recursive_retrace": recursive_retrace,
    "rbis": rbis,
}
"""Signature: (rows, *, gamma, trace_lambda, rho_bar, c_bar, pg_rho_bar, leak), unused ones are ignored."""


def _rho(rows: TraceInput) -> Tensor:
    """[T, B] ratios in [e^-20, e^20], exactly 0 on reset rows even if log_rho is NaN there."""
    return rows.log_rho.clamp(-LOG_RHO_LIMIT, LOG_RHO_LIMIT).exp().masked_fill(~rows.valid, 0.0)


def _delta(rows: TraceInput, gamma: float) -> Tensor:
    """[T, B] TD errors, 0 on reset rows."""
    next_value = rows.next_value.masked_fill(rows.terminated, 0.0)
    delta = torch.add(rows.reward, next_value, alpha=gamma).sub_(rows.value)
    return delta.masked_fill_(~rows.valid, 0.0)


def _decay(rows: TraceInput, factor: float) -> Tensor:
    """[T, B] ``factor`` where the trace continues to the next row, else 0."""
    return torch.full_like(rows.value, factor).masked_fill_(rows.terminated | rows.truncated | ~rows.valid, 0.0)


def _accumulate(delta: Tensor, decay: Tensor) -> Tensor:
    """[T, B] acc_t = delta_t + decay_t * acc_{t+1}, acc_T = 0, written over ``delta``.

    One fused call per row and nothing else in the loop: 2-3 us per row on a CPU (T = 32, B = 64: 0.1 ms in all).
    """
    rows, factors = delta.unbind(0), decay.unbind(0)
    acc = rows[-1]
    for t in range(len(rows) - 2, -1, -1):
        acc = rows[t].addcmul_(factors[t], acc)
    return delta


def _sum_of_pairs(
    rows: TraceInput,
    betas: Callable[[Tensor], Iterator[Tensor]],
    gamma: float,
    rho_bar: float,
    pg_rho_bar: float,
    coefficient: Tensor,
) -> Trace:
    """Traces without a linear recursion, target_s - value_s and advantage_s = sum_t gamma^(t-s) * beta_st * delta_t.

    betas: for beta_ss it yields the beta_s,s+1, then beta_s,s+2 and so on: [2, T - offset, B], row 0 for the target and
    row 1 for the advantage. coefficient: [T, B] of one step, for the effective lambda.
    """
    valid = rows.valid
    rho = _rho(rows)
    delta = _delta(rows, gamma)
    discount = _decay(rows, gamma)  # zero at ends, so products stay zero
    length = rho.shape[0]
    # Both forms are computed together: [2, T, B], row 0 for the target, row 1 for the advantage.
    first = torch.stack([rho.clamp(max=rho_bar), valid.to(rho.dtype)])
    alive = torch.ones_like(rho)  # gamma^(t-s) times "no end between s and t"
    total = first * delta
    for offset, beta in enumerate(betas(first), 1):
        stop = length - offset
        alive = alive[:stop] * discount[offset - 1 : length - 1]
        total[:, :stop].addcmul_(beta, alive * delta[offset:])
    target, advantage = total.unbind(0)
    target = torch.where(valid, rows.value + target, rows.value)
    advantage = advantage.masked_fill(~valid, 0.0)
    return Trace(target, advantage, rho.clamp(max=pg_rho_bar), _mean(coefficient, valid))


def _next(acc: Tensor) -> Tensor:
    """[T, B] acc_{t+1}, with 0 after the last row: there is no data beyond the bootstrap value."""
    return torch.cat([acc[1:], torch.zeros_like(acc[:1])])


def _leaky_min(rho: Tensor, bound: float, leak: float) -> Tensor:
    """[T, B] (1 - leak) * rho + leak * min(bound, rho)."""
    clipped = rho.clamp(max=bound)
    return clipped if leak == 1.0 else torch.lerp(rho, clipped, leak)


def _mean(x: Tensor, valid: Tensor) -> Tensor:
    """[] mean of x over valid rows, 0 if there are none."""
    return x.masked_fill(~valid, 0.0).sum() / valid.sum().clamp(min=1)
