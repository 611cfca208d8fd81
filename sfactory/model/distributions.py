"""Action distributions as pure functions of their parameters.

An action is a flat dict of leaves (Tuple and Dict action spaces have several). In the joint distribution the leaves,
and the heads or dimensions within a leaf, are independent.

Legend: [...] any leading axes, K parameters, N noise columns. Both are ordered like the leaves:

    discrete leaf, sizes (k1, k2, ...)   logits k1 + k2 + ...            one noise column per head
    box leaf, sizes (d,)                 d means, then d log stds        one noise column per dimension

Noise is uniform in [0, 1) and drawn by the caller, so that an action depends on (parameters, noise) and not on the rest
of its batch. Probabilities are computed in float32 for narrower parameters, and in float64 for float64. Box actions are
not squashed by default: the density is that of the sample, and the environment clips it to its bounds. With ``squash``
the environment receives tanh of the sample, scaled to its bounds (`envs.bounded`); the sample u is stored, and
densities and entropies are those of the action:

    log p(a) = log N(u) - sum log(h (1 - tanh(u)^2)),   h half the width of the bounds (SAC, arXiv 1801.01290, app. C)
"""

import functools
import math
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

MASKED_LOGIT = -1e9  # of a masked action; finite, so p is exactly 0 and 0 * log p is 0; -inf would give NaN
UNIFORM_MAX = 1.0 - 2.0**-24  # the float32 below 1
UNIFORM_MIN = 2.0**-25  # half a step of a 24-bit uniform: normal quantiles stay within +-5.4
HALF_LOG_2PI = 0.5 * math.log(2.0 * math.pi)
NODES = 24  # of Gauss-Hermite quadrature: the entropy of a squashed action has an error below 1e-2 up to a std of 3


class ActionLeafLike(Protocol):
    """One leaf of the action space in an environment's specification."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> Any: ...
    @property
    def kind(self) -> str: ...  # "discrete" or "box"
    @property
    def sizes(self) -> tuple[int, ...]: ...  # discrete: categories per head; box: (dimensions,)


class _Part(NamedTuple):
    """Columns of one leaf in parameters and noise."""

    name: str
    shape: tuple[int, ...]
    discrete: bool
    sizes: tuple[int, ...]
    params: slice
    noise: slice
    log_span: float | None
    """Squashed boxes: sum over dimensions of log((high - low) / 2); None: not squashed."""


class ActionDistribution:
    """Joint distribution over the leaves of ``actions``; holds sizes, no tensors.

    Raises ValueError for a leaf that is neither discrete nor box, and for ``squash`` with infinite bounds.
    """

    def __init__(self, actions: Mapping[str, ActionLeafLike], squash: bool = False) -> None:
        self.parts: list[_Part] = []
        k = n = 0
        for name, leaf in actions.items():
            sizes = tuple(int(size) for size in leaf.sizes)
            discrete = leaf.kind == "discrete"
            if not discrete and leaf.kind != "box":
                raise ValueError(f"action {name}: kind is {leaf.kind!r}, expected discrete or box")
            params = sum(sizes) if discrete else 2 * sizes[0]
            noise = len(sizes) if discrete else sizes[0]
            shape = tuple(leaf.shape)
            spans = slice(k, k + params), slice(n, n + noise)
            log_span = _log_span(leaf) if squash and not discrete else None
            self.parts.append(_Part(name, shape, discrete, sizes, *spans, log_span))
            k, n = k + params, n + noise
        if not self.parts:
            raise ValueError("an action needs at least one leaf, got none")
        self.num_params, self.num_noise = k, n
        first = self.parts[0]
        self._single = len(self.parts) == 1 and first.discrete and len(first.sizes) == 1
        self.discrete = all(part.discrete for part in self.parts)
        """Whether no leaf is a box: entropies are positive."""

    def sample(self, params: Tensor, noise: Tensor) -> dict[str, Tensor]:
        """Sample actions: params [..., K], noise [..., N] in [0, 1) -> name -> [..., *leaf.shape], int64 or float32.

        Discrete heads invert their distribution function: the same noise gives the same action for nearby policies. A
        category of probability 0 is never selected, at either end of the noise. Boxes: mean + std * normal quantile.
        """
        return self.sample_and_log_prob(params, noise)[0]

    def sample_and_log_prob(self, params: Tensor, noise: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """As `sample`, with the joint log-probability [...] of the sample: the hot path of inference."""
        params = at_least_single(params)
        if self._single:
            part = self.parts[0]
            log_p = torch.log_softmax(params, -1)
            index = _invert(log_p, noise)
            selected = index.squeeze(-1).view((*params.shape[:-1], *part.shape))
            return {part.name: selected}, log_p.gather(-1, index).squeeze(-1)
        action: dict[str, Tensor] = {}
        total: Tensor | None = None
        for part in self.parts:
            values, uniform = params[..., part.params], noise[..., part.noise]
            if part.discrete:
                indices: list[Tensor] = []
                log_prob: Tensor | None = None
                for head, log_p in enumerate(_heads(values, part)):
                    index = _invert(log_p, uniform[..., head : head + 1])
                    indices.append(index)
                    log_prob = _plus(log_prob, log_p.gather(-1, index).squeeze(-1))
                flat = torch.cat(indices, -1)
            else:
                mean, log_std = values.chunk(2, -1)
                # float32 quantiles have an error of 1e-6, far below the noise.
                z = torch.special.ndtri(uniform.clamp(UNIFORM_MIN, UNIFORM_MAX).to(mean.dtype))
                flat = mean + log_std.exp() * z
                log_prob = _box_log_prob(part, flat, mean, log_std)
            action[part.name] = flat.view((*params.shape[:-1], *part.shape))
            assert log_prob is not None
            total = _plus(total, log_prob)
        assert total is not None
        return action, total

    def log_prob(self, params: Tensor, action: Mapping[str, Tensor]) -> Tensor:
        """Joint log-probability [...]: params [..., K], action name -> [..., *leaf.shape]."""
        return self._log_prob_entropy(params, action, with_entropy=False)[0]

    def log_prob_entropy(self, params: Tensor, action: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Joint log-probability [...] and entropy [...] from one log_softmax: the hot path of training."""
        return self._log_prob_entropy(params, action, with_entropy=True)

    def entropy(self, params: Tensor) -> Tensor:
        """Entropy [...] of params [..., K], summed over heads and dimensions (differential for boxes)."""
        params = at_least_single(params)
        total = None
        for part in self.parts:
            values = params[..., part.params]
            if part.discrete:
                for log_p in _heads(values, part):
                    total = _plus(total, _entropy(log_p))
            else:
                total = _plus(total, _box_entropy(part, *values.chunk(2, -1)))
        assert total is not None
        return total

    def kl(self, p: Tensor, q: Tensor) -> Tensor:
        """Exact KL(p || q) [...] of p, q [..., K]; not changed by squashing both."""
        p, q = at_least_single(p), at_least_single(q)
        total = None
        for part in self.parts:
            a, b = p[..., part.params], q[..., part.params]
            if part.discrete:
                for log_a, log_b in zip(_heads(a, part), _heads(b, part), strict=True):
                    total = _plus(total, (log_a.exp() * (log_a - log_b)).sum(-1))
            else:
                (mean_a, log_std_a), (mean_b, log_std_b) = a.chunk(2, -1), b.chunk(2, -1)
                gap = log_std_a - log_std_b
                ratio = torch.exp(2.0 * gap) + ((mean_a - mean_b) * torch.exp(-log_std_b)).square()
                total = _plus(total, (0.5 * (ratio - 1.0) - gap).sum(-1))
        assert total is not None
        return total

    def score_square(self, params: Tensor, action: Mapping[str, Tensor]) -> Tensor:
        """Squared norm [...] of the derivative of `log_prob` with respect to params [..., K].

        A head: 1 - 2 pi(a) + sum of pi^2. A dimension of a box, squashed or not: (z / std)^2 + (z^2 - 1)^2, with
        z = (sample - mean) / std.
        """
        params = at_least_single(params)
        total = None
        for part in self.parts:
            values = params[..., part.params]
            taken = action[part.name].reshape(*params.shape[:-1], -1)
            if part.discrete:
                for head, log_p in enumerate(_heads(values, part)):
                    p = log_p.exp()
                    of_action = p.gather(-1, taken[..., head : head + 1].long()).squeeze(-1)
                    total = _plus(total, 1.0 - 2.0 * of_action + p.square().sum(-1))
            else:
                mean, log_std = values.chunk(2, -1)
                inv_std = torch.exp(-log_std)
                z = (taken - mean) * inv_std
                total = _plus(total, ((z * inv_std).square() + (z.square() - 1.0).square()).sum(-1))
        assert total is not None
        return total

    def mode(self, params: Tensor) -> dict[str, Tensor]:
        """Most likely action: params [..., K] -> name -> [..., *leaf.shape]."""
        action = {}
        for part in self.parts:
            values = params[..., part.params]
            if part.discrete:
                indices = [log_p.argmax(-1, keepdim=True) for log_p in _heads(at_least_single(values), part)]
                flat = torch.cat(indices, -1)
            else:
                flat = at_least_single(values).chunk(2, -1)[0]
            action[part.name] = flat.reshape((*params.shape[:-1], *part.shape))
        return action

    def shortfall(self, params: Tensor, action: Mapping[str, Tensor]) -> Tensor:
        """How much worse than the most likely action an action is, [...]: the difference of log-probabilities, nats."""
        return self.log_prob(params, self.mode(params)) - self.log_prob(params, action)

    def _log_prob_entropy(
        self, params: Tensor, action: Mapping[str, Tensor], *, with_entropy: bool
    ) -> tuple[Tensor, Tensor]:
        params = at_least_single(params)
        lead = params.shape[:-1]
        log_prob = entropy = None
        for part in self.parts:
            values = params[..., part.params] if len(self.parts) > 1 else params
            taken = action[part.name].reshape(*lead, -1)
            if part.discrete:
                taken = taken.long()
                for head, log_p in enumerate(_heads(values, part)):
                    index = taken[..., head : head + 1]
                    log_prob = _plus(log_prob, log_p.gather(-1, index).squeeze(-1))
                    if with_entropy:
                        entropy = _plus(entropy, _entropy(log_p))
            else:
                mean, log_std = values.chunk(2, -1)
                log_prob = _plus(log_prob, _box_log_prob(part, taken, mean, log_std))
                if with_entropy:
                    entropy = _plus(entropy, _box_entropy(part, mean, log_std))
        assert log_prob is not None
        return log_prob, log_prob if entropy is None else entropy


def at_least_single(x: Tensor) -> Tensor:
    """float32 for narrower numbers; float64 stays."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def _plus(total: Tensor | None, term: Tensor) -> Tensor:
    return term if total is None else total + term


def _heads(logits: Tensor, part: _Part) -> list[Tensor]:
    """Logits [..., sum of sizes] of one leaf -> log-probabilities [..., size] of each head."""
    if len(part.sizes) == 1:
        return [torch.log_softmax(logits, -1)]
    return [torch.log_softmax(x, -1) for x in logits.split(list(part.sizes), -1)]


def _invert(log_p: Tensor, uniform: Tensor) -> Tensor:
    """Select a category: log_p [..., k], uniform [..., 1] -> [..., 1] int64, the categories below ``uniform``.

    The threshold is scaled by the rounded sum and strictly below it, so the last category with a nonzero probability is
    the last that can be selected; ``right`` skips categories of width zero. Noise of exactly 0 (once in 2^24 draws) is
    raised, or it could select a first category of probability e^-90.
    """
    below = log_p.exp().cumsum(-1)
    threshold = uniform.clamp(UNIFORM_MIN, UNIFORM_MAX).to(below.dtype) * below[..., -1:]
    index = torch.searchsorted(below, threshold, right=True)
    if index.is_cuda:
        # A parallel scan may round its sums differently and give a width to a category of probability 0.
        impossible = log_p.gather(-1, index.clamp_(max=log_p.shape[-1] - 1)) < -100.0
        index = torch.where(impossible, log_p.argmax(-1, keepdim=True), index)
    return index


def _entropy(log_p: Tensor) -> Tensor:
    """Entropy of a categorical distribution, [..., k] -> [...]."""
    return -(log_p.exp() * log_p).sum(-1)


def _gaussian_log_prob(x: Tensor, mean: Tensor, log_std: Tensor) -> Tensor:
    """Log-density of a diagonal normal, [..., d] -> [...]."""
    z = (x - mean) * torch.exp(-log_std)
    return (-0.5 * z.square() - log_std - HALF_LOG_2PI).sum(-1)


def _gaussian_entropy(log_std: Tensor) -> Tensor:
    """Entropy of a diagonal normal, [..., d] -> [...]."""
    return (log_std + (0.5 + HALF_LOG_2PI)).sum(-1)


def _log_span(leaf: ActionLeafLike) -> float:
    """Sum of log((high - low) / 2) over the dimensions of a box."""
    low, high = (getattr(leaf, name, ()) for name in ("low", "high"))
    spans = [0.5 * (b - a) for a, b in zip(low, high, strict=True)]
    if len(spans) != leaf.sizes[0] or not all(0.0 < span < math.inf for span in spans):
        raise ValueError(f"model.squash needs finite bounds of the action, got {low} to {high}")
    return sum(map(math.log, spans))


def _log_slope(u: Tensor) -> Tensor:
    """log(1 - tanh(u)^2), in a form without cancellation."""
    return 2.0 * (math.log(2.0) - u - torch.nn.functional.softplus(-2.0 * u))


def _box_log_prob(part: _Part, u: Tensor, mean: Tensor, log_std: Tensor) -> Tensor:
    """Log-density of the action that belongs to sample u, [..., d] -> [...]."""
    log_prob = _gaussian_log_prob(u, mean, log_std)
    return log_prob if part.log_span is None else log_prob - _log_slope(u).sum(-1) - part.log_span


def _box_entropy(part: _Part, mean: Tensor, log_std: Tensor) -> Tensor:
    """Entropy, [..., d] -> [...]. Squashed: of the normal + E[log slope] by quadrature, which has a gradient."""
    entropy = _gaussian_entropy(log_std)
    if part.log_span is None:
        return entropy
    nodes, weights = _quadrature(mean.dtype, mean.device)
    u = mean[..., None] + log_std.exp()[..., None] * nodes
    return entropy + (_log_slope(u) * weights).sum((-1, -2)) + part.log_span


@functools.cache
def _quadrature(dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """Nodes and weights [NODES] of the expectation under a standard normal.

    Cached, because recorded work must not contain an upload.
    """
    nodes, weights = np.polynomial.hermite_e.hermegauss(NODES)
    with torch.inference_mode(False):  # usable for training even if inference calls first
        return (
            torch.as_tensor(nodes, dtype=dtype, device=device),
            torch.as_tensor(weights / weights.sum(), dtype=dtype, device=device),
        )
