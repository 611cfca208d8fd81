"""The loss of one minibatch and its diagnostics.

Shapes: [...] is [N] or [T, b], the same for all. Every mean is over valid rows with one denominator,
sum(valid), at least 1 (for a part of a minibatch, `total_loss` takes that of the minibatch). Nothing here synchronises
with the device: all results are 0-dim tensors.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from sfactory.algo.surrogates.ratios import LOG_WEIGHT_LIMIT, Surrogate, SurrogateInput


class Loss(NamedTuple):
    """Parts of the loss of one minibatch."""

    total: Tensor
    """[] policy + value_coef * (value + critic) - entropy_coef * entropy; the tensor to differentiate. critic: the mean
    of `Surrogate.critic`, if there is one."""
    policy: Tensor
    """[] mean surrogate."""
    value: Tensor
    """[] mean squared error of the value (no factor 1/2, as in openai/ppo-ewma), or the mean of ``value_error``."""
    entropy: Tensor
    """[] mean entropy of the policy; the loss raises it."""


def total_loss(
    surrogate: Surrogate,
    value: Tensor,
    target: Tensor,
    entropy: Tensor,
    valid: Tensor,
    *,
    value_coef: float,
    entropy_coef: float | Tensor,
    old_value: Tensor | None = None,
    value_clip: float | None = None,
    value_error: Tensor | None = None,
    num_valid: Tensor | None = None,
) -> Loss:
    """Sum of policy, value and entropy loss (Schulman et al. 2017, arXiv 1707.06347, eq. 9, signs of a loss).

    Args:
        surrogate: per-sample policy loss [...].
        value, target, entropy: [...] float.
        valid: [...] bool.
        old_value: [...] value at the start of the update, required with value_clip.
        value_clip: distance from old_value beyond which the value gains nothing from moving:
            max((v - g)^2, (v_old + clip(v - v_old) - g)^2), as in OpenAI baselines. None or 0: plain squared error.
        value_error: [...] another loss of the value, in place of the squared error; not with value_clip.
        num_valid: [] valid rows of the minibatch, if these rows are a part of it: the means divide by them, so that the
            losses of the parts add up to that of the minibatch. None: these rows are the minibatch.

    Raises:
        ValueError: value_clip without old_value, or with value_error.
    """
    reset = ~valid
    if value_clip and value_error is not None:
        raise ValueError("value_clip is defined for the squared error only, not for value_error")
    if value_error is None:
        error = (value - target).masked_fill(reset, 0.0).square()
    else:
        error = value_error.masked_fill(reset, 0.0)
    if value_clip:
        if old_value is None:
            raise ValueError("value_clip requires old_value, the value at the start of the update")
        clipped = old_value + (value - old_value).clamp(-value_clip, value_clip)
        error = torch.maximum(error, (clipped - target).masked_fill(reset, 0.0).square())
    count = (valid.sum() if num_valid is None else num_valid).clamp(min=1)
    policy_loss = surrogate.loss.masked_fill(reset, 0.0).sum() / count
    value_loss = error.sum() / count
    mean_entropy = entropy.masked_fill(reset, 0.0).sum() / count
    total = policy_loss + value_coef * value_loss - entropy_coef * mean_entropy
    if surrogate.critic is not None:
        total = total + value_coef * (surrogate.critic.masked_fill(reset, 0.0).sum() / count)
    return Loss(total, policy_loss, value_loss, mean_entropy)


@torch.no_grad()
def diagnostics(
    x: SurrogateInput,
    surrogate: Surrogate,
    value: Tensor,
    target: Tensor,
    *,
    rho_bar: float = 1.0,
    c_bar: float = 1.0,
    log_rho: Tensor | None = None,
    effective_lambda: Tensor | None = None,
) -> dict[str, Tensor]:
    """Name -> []: distances between the three policies and effects of the clips. About 60 small operations.

        approx_kl             0.5 * mean (log r)^2, of policy over proximal (openai/ppo-ewma)
        clipfrac              share of samples with r outside the clip
        ess                   (sum w)^2 / (N sum w^2) of w = policy / behavior: 1 on-policy, 1/N one sample
        kl_behavior_proximal  KL(behavior || proximal): distance of the data from the trust region
        kl_proximal_policy    KL(proximal || policy): distance covered by this update
        rho_clip_fraction     share of rho above rho_bar; c_clip_fraction the same for c_bar
        explained_variance    1 - var(target - value) / var(target)
        effective_lambda      as returned by the trace (omitted if None)

    KLs are exact if both distributions are known. Otherwise KL(behavior || proximal) is estimated by the unbiased,
    non-negative mean(e^d - 1 - d) with d = log proximal/behavior over the actions of behavior, and
    KL(proximal || policy) by 0.5 (log r)^2.

    Args:
        x: the minibatch, [...].
        surrogate: result of the objective, [...].
        value, target: [...].
        rho_bar, c_bar: bounds of the reported clip fractions.
        log_rho: [...] the trace's log rho; None: that of the current policy.
        effective_lambda: [] of the trace.
    """
    reset = ~x.valid
    count = x.valid.sum().clamp(min=1)

    def mean(y: Tensor) -> Tensor:
        return y.masked_fill(reset, 0.0).sum() / count

    log_prob = x.log_prob.masked_fill(reset, 0.0)
    behavior = x.behavior.masked_fill(reset, 0.0)
    proximal = x.proximal.masked_fill(reset, 0.0)
    half_square = 0.5 * mean((log_prob - proximal).square())
    log_w = log_prob - behavior
    rho = log_w if log_rho is None else log_rho
    rho = rho.clamp(-LOG_WEIGHT_LIMIT, LOG_WEIGHT_LIMIT).exp()
    exact_behavior, exact_policy = _exact_kls(x)

    results = {
        "approx_kl": half_square,
        "clipfrac": mean(surrogate.clipped.to(value.dtype)),
        "ess": effective_sample_size(log_w, x.valid),
        "kl_behavior_proximal": mean(_estimated_kl(proximal - behavior) if exact_behavior is None else exact_behavior),
        "kl_proximal_policy": half_square if exact_policy is None else mean(exact_policy),
        "rho_clip_fraction": mean((rho > rho_bar).to(value.dtype)),
        "c_clip_fraction": mean((rho > c_bar).to(value.dtype)),
        "explained_variance": explained_variance(value, target, x.valid),
    }
    if effective_lambda is not None:
        results["effective_lambda"] = effective_lambda
    return results


def _exact_kls(x: SurrogateInput) -> tuple[Tensor | None, Tensor | None]:
    """KL(behavior || proximal) and KL(proximal || policy), [...] each; None where a distribution is not known."""
    if x.distribution is None or x.proximal_params is None:
        return None, None
    behavior = None if x.behavior_params is None else x.distribution.kl(x.behavior_params, x.proximal_params)
    return behavior, None if x.params is None else x.distribution.kl(x.proximal_params, x.params)


def _estimated_kl(log_ratio: Tensor) -> Tensor:
    """e^d - 1 - d per sample, d = log_ratio bounded by LOG_WEIGHT_LIMIT; its mean is unbiased and not negative."""
    d = log_ratio.clamp(-LOG_WEIGHT_LIMIT, LOG_WEIGHT_LIMIT)
    return torch.expm1(d) - d


@torch.no_grad()
def effective_sample_size(log_w: Tensor, valid: Tensor) -> Tensor:
    """[] (sum w)^2 / (N sum w^2) over valid rows, in (0, 1] (Kish 1965); 0 if no row is valid.

    log_w [...], valid [...] bool. Shifted by the largest log weight, so it cannot overflow.
    """
    log_w = log_w.masked_fill(~valid, -torch.inf)
    w = torch.exp(log_w - log_w.max().clamp(min=-1e30))  # clamp: without a valid row this is -inf - -inf
    return w.sum().square() / (valid.sum() * w.square().sum()).clamp(min=1e-30)


@torch.no_grad()
def explained_variance(value: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """[] 1 - var(target - value) / var(target) over valid rows; 1 is perfect, 0 is a constant prediction."""
    reset = ~valid
    count = valid.sum().clamp(min=1)

    def variance(y: Tensor) -> Tensor:
        y = y.masked_fill(reset, 0.0)
        return (y - y.sum() / count).masked_fill(reset, 0.0).square().sum() / count

    return 1.0 - variance(target - value) / variance(target).clamp(min=1e-12)
