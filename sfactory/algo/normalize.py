"""Running and EWMA moments. The only classes of this room with state; they hold tensors, never wait for the
device, and change their tensors in place: an update that was recorded once finds them where they were.

Legend: [..., *S] any leading axes over values of shape S; ``valid`` masks the leading axes. All moments are
float64: sums over 10^9 samples do not fit float32. Variances are of the population (divided by the count).
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


def masked_mean(x: Tensor, valid: Tensor) -> Tensor:
    """[] mean of x [...] over rows where valid [...] (bool); 0 if there is none. Garbage elsewhere does not
    matter."""
    return x.masked_fill(~valid, 0.0).sum() / valid.sum().clamp(min=1)


def masked_moments(
    x: Tensor, valid: Tensor | None, shape: Sequence[int] = ()
) -> tuple[Tensor, Tensor, Tensor]:
    """x [..., *shape], valid [...] -> mean [*shape], variance [*shape], count [], all float64."""
    rows = x.detach().reshape(-1, *shape).double()
    if valid is None:
        count = torch.tensor(rows.shape[0], dtype=torch.float64, device=x.device)
        keep = None
    else:
        keep = valid.reshape(-1, *(1 for _ in shape))
        count = keep.sum().double()
        rows = rows.masked_fill(~keep, 0.0)
    safe = count.clamp(min=1.0)
    mean = rows.sum(0) / safe
    deviation = rows - mean
    if keep is not None:
        deviation = deviation.masked_fill(~keep, 0.0)
    return mean, deviation.square().sum(0) / safe, count


class Moments:
    """Mean and variance of everything seen so far, merged batch by batch (Chan et al. 1979, eq. 1.5)."""

    def __init__(self, shape: Sequence[int] = (), device: torch.device | str = "cpu") -> None:
        self.shape = tuple(shape)
        self.mean = torch.zeros(self.shape, dtype=torch.float64, device=device)
        self.var = torch.ones(self.shape, dtype=torch.float64, device=device)
        self.count = torch.zeros((), dtype=torch.float64, device=device)

    @torch.no_grad()
    def update(self, x: Tensor, valid: Tensor | None = None) -> None:
        """Take in x [..., *shape] where valid [...] (all of it if None). A batch without a valid row changes
        nothing."""
        self.merge(*masked_moments(x, valid, self.shape))

    @torch.no_grad()
    def merge(self, mean: Tensor, var: Tensor, count: Tensor) -> None:
        """Take in the moments of another set: mean, var [*shape], count []."""
        total = self.count + count
        share = count / total.clamp(min=1.0)  # 0 for an empty batch; 1 for the first, forgetting var = 1
        delta = mean - self.mean
        self.var.copy_((1.0 - share) * self.var + share * var + share * (1.0 - share) * delta.square())
        self.mean.copy_(self.mean + share * delta)
        self.count.copy_(total)

    def state_dict(self) -> dict[str, Tensor]:
        return {"mean": self.mean, "var": self.var, "count": self.count}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        for name in ("mean", "var", "count"):
            getattr(self, name).copy_(state[name].view(getattr(self, name).shape))  # never broadcast


class EwmaMoments:
    """Advantage normaliser averaged over updates (arXiv 2110.00641; openai/ppo-ewma `EwmaMoments`, ddof 0).

        w <- decay * w + n,   s <- decay * s + n * mean,   q <- decay * q + n * (var + mean^2)
        mean = s / w,         var = q / w - mean^2

    The current batch is in before it is normalised. decay 0 normalises every update by itself; a span of k
    updates is decay = 1 - 2 / (1 + k).
    """

    def __init__(self, decay: float = 0.0, device: torch.device | str = "cpu") -> None:
        if not 0.0 <= decay < 1.0:
            raise ValueError(f"decay of the advantage normaliser is {decay}, expected 0 <= decay < 1")
        self.decay = decay
        self._sums = torch.zeros(3, dtype=torch.float64, device=device)  # w, s, q

    @torch.no_grad()
    def update(self, mean: Tensor, var: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
        """Moments of a batch, [] each -> averaged mean [] and variance []."""
        batch = count * torch.stack([torch.ones_like(mean), mean, var + mean.square()])
        # A batch that is not finite is skipped by whoever learns from it; it must not be remembered for ever.
        self._sums.copy_(torch.where(torch.isfinite(batch).all(), self.decay * self._sums + batch, self._sums))
        w, s, q = self._sums.unbind(0)
        average = s / w.clamp(min=1e-30)
        return average, (q / w.clamp(min=1e-30) - average.square()).clamp(min=0.0)

    @torch.no_grad()
    def normalize(self, advantage: Tensor, valid: Tensor) -> Tensor:
        """(advantage - mean) / (std + 1e-8), in the dtype of ``advantage`` [...]; 0 on reset rows. Updates
        first."""
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
    """Value targets of mean 0 and variance 1 while the value itself stays what it was (PopArt: van Hasselt et al. 2016,
    arXiv 1602.07714; Hessel et al. 2018, arXiv 1809.04474).

    The head learns (target - mean) / std. When the moments move, its last layer is corrected by what `update`
    answers, so that mean + std * output does not jump.
    """

    def __init__(self, decay: float = 0.99, device: torch.device | str = "cpu") -> None:
        self.moments = EwmaMoments(decay, device)
        self.mean = torch.zeros((), dtype=torch.float64, device=device)
        self.std = torch.ones((), dtype=torch.float64, device=device)

    def value(self, output: Tensor) -> Tensor:
        """What the head says [...] -> value in units of reward."""
        return output * self.std.to(output.dtype) + self.mean.to(output.dtype)

    def output(self, value: Tensor) -> Tensor:
        """The inverse: value [...] -> what the head should say."""
        return (value - self.mean.to(value.dtype)) / self.std.to(value.dtype)

    @torch.no_grad()
    def update(self, target: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        """Take in targets [...] where valid; returns (factor, shift) [] for the head:
        output <- factor * output + shift."""
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
    """decay of `EwmaMoments` that averages over about ``span`` updates: 1 - 2 / (1 + span); span 1 is decay
    0."""
    return 1.0 - 2.0 / (1.0 + span)


def discounted_return(reward: Tensor, ended: Tensor, valid: Tensor, start: Tensor, *, gamma: float) -> Tensor:
    """The running return whose variance scales rewards: R_t = reward_t + gamma * R_{t-1}, begun anew after an
    end.

    Forward in time, as in gym's `NormalizeReward` (openai/ppo-ewma runs the same filter).

    Args: reward [T, B]; ended (terminated or truncated), valid [T, B] bool; start [B] the value before row 0.
    Returns: [T, B]; 0 on reset rows.
    """
    keep = torch.full_like(reward, gamma).masked_fill_(~valid, 0.0)
    reward = reward.masked_fill(~valid, 0.0)
    alive = (~ended).to(reward.dtype)
    rows, carried = [], start
    for t in range(reward.shape[0]):
        now = torch.addcmul(reward[t], keep[t], carried)
        rows.append(now)
        carried = now * alive[t]
    return torch.stack(rows)


class RewardScale:
    """Rewards divided by the standard deviation of the running discounted return, all history, clipped.

    The sampler carries the running return, the learner owns its variance. `update` belongs after the last
    optimizer step of an update and before publication, so one update sees one scale.
    """

    def __init__(self, eps: float = 1e-8, limit: float = 10.0, device: torch.device | str = "cpu") -> None:
        self.eps, self.limit = eps, limit
        self.moments = Moments((), device)

    @property
    def scale(self) -> Tensor:
        """[] float64, 1 / sqrt(var + eps); 1 before anything was seen."""
        return (self.moments.var + self.eps).rsqrt()

    @torch.no_grad()
    def update(self, running_return: Tensor, valid: Tensor) -> None:
        """running_return, valid [T, B]: see `discounted_return`."""
        self.moments.update(running_return, valid)

    @torch.no_grad()
    def __call__(self, reward: Tensor) -> Tensor:
        """reward [...] -> scaled and clipped to +-limit, same dtype."""
        return (reward * self.scale.to(reward.dtype)).clamp(-self.limit, self.limit)

    def state_dict(self) -> dict[str, Tensor]:
        return self.moments.state_dict()

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.moments.load_state_dict(state)
