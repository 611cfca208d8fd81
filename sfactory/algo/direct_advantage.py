"""Direct advantage estimation: advantages of all actions, learned by regression on whole trajectories.

Pan et al. 2022, arXiv 2109.06093; without the on-policy condition: Pan & Schoelkopf 2024, arXiv 2402.12874, here with
B = 0, that is without their model of the transitions.

Legend: T steps, B lanes, k actions. Rows are in the order of the agent's actions, as in `trace`, whose ends of episodes
are those of this module: no bootstrap after a termination, a bootstrap after a truncation and at the end of the rows.
Reset rows affect no other row.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from sfactory.algo.trace import TraceInput


class Backup(NamedTuple):
    """What the regression needs of the rewards; no tensor carries a gradient."""

    returns: Tensor
    """[T, B] discounted rewards until the episode or the rows end, with the bootstraps; 0 on reset rows."""
    decay: Tensor
    """[T, B] gamma lambda where the sum goes on in the next row, else 0."""


class PolicyLoss(NamedTuple):
    """Loss of a policy by the advantages of all actions."""

    loss: Tensor
    """[...] per row."""
    clipped: Tensor
    """[...] probability, under the proximal policy, of an action whose ratio is outside [1 - clip, 1 + clip]."""


def centered(advantages: Tensor, log_probs: Tensor) -> Tensor:
    """Subtract from f(s, .) its mean under a policy, so that the policy's mean advantage is 0 in every state.

    advantages, log_probs [..., k] -> [..., k]. The mean is part of the gradient. Actions of probability 0 do not count.
    """
    return advantages - (log_probs.exp() * advantages).sum(-1, keepdim=True)


@torch.no_grad()
def backup(rows: TraceInput, *, gamma: float, trace_lambda: float = 1.0) -> Backup:
    """Discounted rewards and bootstraps of all rows.

        returns_t = r_t + gamma (lambda returns_{t+1} + (1 - lambda) V(x_{t+1}))    within an episode
        returns_t = r_t + gamma V(x_{t+1})                                          before a truncation, in the last row
        returns_t = r_t                                                             before a termination

    The papers have lambda = 1. rows: value and log_rho are not used.
    """
    valid = rows.valid
    ends = rows.terminated | rows.truncated | ~valid
    goes_on = ~ends
    goes_on[:-1] &= valid[1:]  # an action whose outcome is not known, see `own_time`: the one before it bootstraps
    goes_on[-1] = False
    share = torch.ones_like(rows.reward).masked_fill(goes_on, 1.0 - trace_lambda)
    bootstrap = share * rows.next_value.masked_fill(rows.terminated, 0.0)
    own = torch.add(rows.reward, bootstrap, alpha=gamma).masked_fill(~valid, 0.0)
    decay = torch.zeros_like(own).masked_fill(goes_on, gamma * trace_lambda)
    return Backup(discounted_sum(own, decay), decay)


def discounted_sum(x: Tensor, decay: Tensor) -> Tensor:
    """y_t = x_t + decay_t y_{t+1}, y_T = 0; [T, B] each. Differentiable with respect to x."""
    result: Tensor = _DiscountedSum.apply(x, decay)  # type: ignore[no-untyped-call]
    return result


def errors(found: Backup, advantage: Tensor, value: Tensor, valid: Tensor) -> Tensor:
    """Errors [T, B] of the multi-step regression, 0 on reset rows; the loss is the mean of their squares.

        error_t = sum over s >= t of gamma^(s-t) (r_s - A(x_s, a_s)) + gamma^n V_start(x_{t+n}) - V(x_t)

    until the episode or the rows end n rows later (2109.06093, eq. 13; 2402.12874 with B = 0); with lambda < 1 the
    mean of that over all n, n of them weighted by (1 - lambda) lambda^(n-1). The bootstrap has the values at the start
    of the update. No importance ratio: where the action was not that of the policy, A is what it
    cost. Exact if transitions are deterministic or the data on policy.

    found: in the units of `value`. advantage: of the actions taken, centered, on reset rows anything. value: of x_t.
    """
    own = advantage.masked_fill(~valid, 0.0)
    return (found.returns - discounted_sum(own, found.decay) - value).masked_fill(~valid, 0.0)


def expected_clipped(
    log_probs: Tensor, proximal: Tensor, advantages: Tensor, *, clip: float, dual_clip: float | None = None
) -> PolicyLoss:
    """PPO's loss in expectation over all actions, by their probability under the proximal policy.

        - sum over a of proximal(a) min(r_a A_a, clip(r_a, 1 - clip, 1 + clip) A_a),   r_a = policy(a) / proximal(a)

    The action that was taken does not matter, so no weight corrects for the policy that took it. log_probs, proximal,
    advantages [..., k]; only log_probs carries a gradient. dual_clip: bound on the loss of actions with a negative
    advantage, in multiples of it; None or 0: off.
    """
    p, q, a = log_probs.exp(), proximal.detach().exp(), advantages.detach()
    low, high = max(1.0 - clip, 0.0) * q, (1.0 + clip) * q
    gain = torch.minimum(p * a, torch.minimum(torch.maximum(p, low), high) * a)
    if dual_clip:
        gain = torch.where(a < 0, torch.maximum(gain, dual_clip * q * a), gain)
    outside = ((p < low) | (p > high)) & (q > 0)
    return PolicyLoss(-gain.sum(-1), (q * outside).sum(-1))


@torch.no_grad()
def mean_square(advantages: Tensor, log_probs: Tensor) -> Tensor:
    """Mean square of the advantages of a state under a policy: advantages, log_probs [..., k] -> [...]."""
    return (log_probs.exp() * advantages.square()).sum(-1)


class _DiscountedSum(torch.autograd.Function):
    """`discounted_sum`; the gradient is the same recursion forward in time: g_t = dy_t + decay_{t-1} g_{t-1}."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, decay: Tensor) -> Tensor:
        ctx.save_for_backward(decay)
        y = x.clone()
        rows, factors = y.unbind(0), decay.unbind(0)
        for t in range(len(rows) - 2, -1, -1):
            rows[t].addcmul_(factors[t], rows[t + 1])
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (decay,) = ctx.saved_tensors
        g = gradients[0].clone()
        rows, factors = g.unbind(0), decay.unbind(0)
        for t in range(1, len(rows)):
            rows[t].addcmul_(factors[t - 1], rows[t - 1])
        return g, None
