"""Running and exponentially averaged moments, and the normalizers built on them.

The classes hold tensors, never synchronize with the device, and change their tensors in place, so that a recorded
update (CUDA graph) reads and writes the same memory on every replay.

Legend: [..., *S] any leading axes over values of shape S; ``valid`` masks the leading axes. All moments are
float64: sums over 10^9 samples do not fit float32. Variances are of the population (divided by the count).
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


def masked_moments(x: Tensor, valid: Tensor | None, shape: Sequence[int] = ()) -> tuple[Tensor, Tensor, Tensor]:
    """Moments of one batch over valid rows.

    x [..., *shape], valid [...] or None (all) -> mean [*shape], variance [*shape], count [], all float64.
    """
    rows = x.detach().reshape(-1, *shape).double()
    if valid is None:
        count = torch.tensor(rows.shape[0], dtype=torch.float64, device=x.device)
        keep = None
    else:
        keep = valid.reshape(-1, *(1 for _ in shape))
        count = keep.sum().double()
        rows = rows.masked_fill(~keep, 0.0)
    divisor = count.clamp(min=1.0)
    mean = rows.sum(0) / divisor
    deviation = rows - mean
    if keep is not None:
        deviation = deviation.masked_fill(~keep, 0.0)
    return mean, deviation.square().sum(0) / divisor, count


class Moments:
    """Running mean and variance, merged batch by batch (Chan et al. 1979, eq. 1.5)."""

    def __init__(self, shape: Sequence[int] = (), device: torch.device | str = "cpu") -> None:
        self.shape = tuple(shape)
        self.mean = torch.zeros(self.shape, dtype=torch.float64, device=device)
        self.var = torch.ones(self.shape, dtype=torch.float64, device=device)
        self.count = torch.zeros((), dtype=torch.float64, device=device)

    @torch.no_grad()
    def update(self, x: Tensor, valid: Tensor | None = None) -> None:
        """Add x [..., *shape] where valid [...] (everywhere if None). A batch without a valid row has no effect."""
        self.merge(*masked_moments(x, valid, self.shape))

    @torch.no_grad()
    def merge(self, mean: Tensor, var: Tensor, count: Tensor) -> None:
        """Add the moments of another set: mean, var [*shape], count []. One that is not finite has no effect."""
        finite = torch.isfinite(mean).all() & torch.isfinite(var).all()
        mean, var = (torch.where(finite, new, old) for new, old in ((mean, self.mean), (var, self.var)))
        count = count * finite
        total = self.count + count
        share = count / total.clamp(
            min=1.0
        )  # 0 for an empty batch; 1 for the first, which replaces the initial var = 1
        delta = mean - self.mean
        self.var.copy_((1.0 - share) * self.var + share * var + share * (1.0 - share) * delta.square())
        self.mean.copy_(self.mean + share * delta)
        self.count.copy_(total)

    def state_dict(self) -> dict[str, Tensor]:
        return {"mean": self.mean, "var": self.var, "count": self.count}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        for name in ("mean", "var", "count"):
            getattr(self, name).copy_(
                state[name].view(getattr(self, name).shape)
            )  # view, so that a wrong shape is an error


class EwmaMoments:
    """Advantage normalizer, averaged over updates (arXiv 2110.00641; openai/ppo-ewma `EwmaMoments`, ddof 0).

        w <- decay * w + n,   s <- decay * s + n * mean,   q <- decay * q + n * (var + mean^2)
        mean = s / w,         var = q / w - mean^2

    The current batch is added before it is normalized. decay 0 normalizes every update separately; a span of k
    updates is decay = 1 - 2 / (1 + k).
    """

    def __init__(self, decay: float = 0.0, device: torch.device | str = "cpu") -> None:
        if not 0.0 <= decay < 1.0:
            raise ValueError(f"decay of the advantage normalizer is {decay}, expected 0 <= decay < 1")
        self.decay = decay
        self._sums = torch.zeros(3, dtype=torch.float64, device=device)  # w, s, q

    @torch.no_grad()
    def update(self, mean: Tensor, var: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
        """Moments of a batch, [] each -> averaged mean [] and variance []."""
        batch = count * torch.stack([torch.ones_like(mean), mean, var + mean.square()])
        # The optimizer skips a batch that is not finite; the sums skip it too, or they would never be finite again.
        self._sums.copy_(torch.where(torch.isfinite(batch).all(), self.decay * self._sums + batch, self._sums))
        w, s, q = self._sums.unbind(0)
        average = s / w.clamp(min=1e-30)
        var = (q / w.clamp(min=1e-30) - average.square()).clamp(min=0.0)
        return average, torch.where(w > 0, var, 1.0)  # before the first finite row nothing is scaled

    @torch.no_grad()
    def normalize(self, advantage: Tensor, valid: Tensor) -> Tensor:
        """(advantage - mean) / (std + 1e-8) after an update with this batch.

        advantage, valid [...] -> [...] in the dtype of ``advantage``, 0 on reset rows.
        """
        return self.standardize(advantage, valid, *self.update(*masked_moments(advantage, valid)))

    @staticmethod
    @torch.no_grad()
    def standardize(advantage: Tensor, valid: Tensor, mean: Tensor, var: Tensor) -> Tensor:
        """As `normalize`, with given moments []."""
        scaled = (advantage.double() - mean) / (var.sqrt() + 1e-8)
        return scaled.to(advantage.dtype).masked_fill(~valid, 0.0)

    def state_dict(self) -> dict[str, Tensor]:
        return {"sums": self._sums}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self._sums.copy_(state["sums"])


class TargetScale:
    """Scale value targets to mean 0 and variance 1 without changing the value (PopArt).

    van Hasselt et al. 2016, arXiv 1602.07714; Hessel et al. 2018, arXiv 1809.04474. The head learns
    (target - mean) / std. When the moments change, its last layer is corrected by the factor and shift that `update`
    returns, so that mean + std * output stays continuous.
    """

    def __init__(self, decay: float = 0.99, device: torch.device | str = "cpu") -> None:
        self.moments = EwmaMoments(decay, device)
        self.mean = torch.zeros((), dtype=torch.float64, device=device)
        self.std = torch.ones((), dtype=torch.float64, device=device)

    def value(self, output: Tensor) -> Tensor:
        """Output of the head [...] -> value in units of reward."""
        return output * self.std.to(output.dtype) + self.mean.to(output.dtype)

    def output(self, value: Tensor) -> Tensor:
        """The inverse: value [...] -> output of the head."""
        return (value - self.mean.to(value.dtype)) / self.std.to(value.dtype)

    @torch.no_grad()
    def update(self, target: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        """Add targets [...] where valid; return (factor, shift) [] for the head: output <- factor * output + shift."""
        return self.merge(*masked_moments(target, valid))

    @torch.no_grad()
    def merge(self, mean: Tensor, var: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
        """As `update`, from the moments [] of a batch of targets."""
        known = torch.isfinite(mean) & torch.isfinite(var) & (count > 0)
        mean, var = self.moments.update(mean, var, count)
        mean, std = torch.where(known, mean, self.mean), torch.where(known, var.sqrt().clamp(min=1e-4), self.std)
        factor, shift = self.std / std, (self.mean - mean) / std
        self.mean.copy_(mean)
        self.std.copy_(std)
        return factor, shift

    def state_dict(self) -> dict[str, Tensor]:
        return {**self.moments.state_dict(), "mean": self.mean, "std": self.std}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.moments.load_state_dict(state)
        self.mean.copy_(state["mean"])
        self.std.copy_(state["std"])


def decay_from_span(span: float) -> float:
    """Decay of `EwmaMoments` for an average over about ``span`` updates: 1 - 2 / (1 + span); span 1 is decay 0."""
    return 1.0 - 2.0 / (1.0 + span)


class RewardScale:
    """Divide rewards by the standard deviation of the running discounted return, then clip.

    The running return R_t = reward_t + gamma * R_{t-1} restarts after every end of an episode, as in gym's
    `NormalizeReward` (openai/ppo-ewma uses the same filter). The sampler computes it; the learner owns its variance
    over the whole run. Its moments are updated after the last optimizer step of an update and before publication, so
    that one update uses one scale.
    """

    def __init__(self, eps: float = 1e-8, limit: float = 10.0, device: torch.device | str = "cpu") -> None:
        self.eps, self.limit = eps, limit
        self.moments = Moments((), device)

    @property
    def scale(self) -> Tensor:
        """[] float64, 1 / sqrt(var + eps); 1 before the first update."""
        return (self.moments.var + self.eps).rsqrt()

    @torch.no_grad()
    def update(self, running_return: Tensor, valid: Tensor) -> None:
        """Add running_return [T, B] where valid [T, B]."""
        self.moments.update(running_return, valid)

    @torch.no_grad()
    def __call__(self, reward: Tensor) -> Tensor:
        """reward [...] -> scaled and clipped to +-limit, same dtype."""
        return (reward * self.scale.to(reward.dtype)).clamp(-self.limit, self.limit)

    def state_dict(self) -> dict[str, Tensor]:
        return self.moments.state_dict()

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.moments.load_state_dict(state)
