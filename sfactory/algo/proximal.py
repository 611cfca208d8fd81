"""Proximal policies: the center of the trust region of decoupled objectives.

Decoupled objectives: Hilton et al. 2021, arXiv 2110.00641. Legend: T steps, B lanes of the update's batch, b lanes of a
minibatch, K distribution parameters.

    behavior     the policy that selected the actions       coupled PPO: the region is as old as the data
    recompute    the policy at the start of this update     AReaL (arXiv 2505.24298)
    ewma         a bias-corrected average of the weights    PPO-EWMA (arXiv 2110.00641)
    interpolate  between behavior and policy, by lag        A-3PO (arXiv 2512.06547)
    snapshot     the weights of k updates ago, or those     version tracking, exact (arXiv 2605.12070)
                 that selected the actions, step by step

Call order of a provider: `begin_update` once per update before the first optimizer step, `log_prob` for each minibatch
(or each part of it), `after_step` after every optimizer step, `reset` when the policy was changed by something else (an
auxiliary phase, a loaded checkpoint). `log_prob` changes nothing, and its results are detached.

Only parameters are averaged or kept. Buffers (the observation normalizer) are those of the live model, so that all
policies of one update see the same inputs (openai/ppo-ewma shares them for the same reason).
"""

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

Weights = dict[str, Tensor]
Evaluate = Callable[[Weights], tuple[Tensor, Tensor]]
"""weights -> (log_prob [T, b] of the minibatch's actions, params [T, b, K]), without gradient."""


class Proximal(Protocol):
    """Provider of log pi_proximal for a minibatch."""

    recordable: bool
    """Whether every update runs the same operations on the same memory, as a CUDA graph requires."""

    def begin_update(self, model: nn.Module, start_log_prob: Tensor, start_params: Tensor) -> None:
        """Start an update. start_log_prob [T, B], start_params [T, B, K]: of the policy before the first step."""

    def log_prob(
        self, evaluate: Evaluate, lanes: Tensor | None, log_prob: Tensor, behavior: Tensor, lag: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """Evaluate the proximal policy on one minibatch.

        lanes [b] int64 or None for all; log_prob (policy), behavior, lag [T, b] -> proximal log_prob [T, b], params
        [T, b, K] or None if it has no distribution.
        """

    def fixed_log_prob(self, start_log_prob: Tensor, behavior: Tensor) -> Tensor | None:
        """What `log_prob` returns in every minibatch of an update, for the whole batch; None if it changes.

        start_log_prob [...]: of the policy before the first step; behavior [...] -> [...].
        """

    def after_step(self, model: nn.Module, skipped: Tensor) -> None:
        """Update the average, if there is one, after an optimizer step. skipped: [] 1.0 if it was not taken."""

    def reset(self, model: nn.Module) -> None:
        """Forget the past; start from the weights of ``model``."""

    def state_dict(self) -> dict[str, Tensor]:
        """Tensors to be saved; empty if stateless."""

    def wants(self, state: Mapping[str, Tensor]) -> bool:
        """Whether ``state`` was saved by a provider of this kind; the setting may have changed since."""

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state_dict` returned."""


def interpolate_log_prob(log_prob: Tensor, behavior: Tensor, lag: Tensor) -> Tensor:
    """Compute log pi_proximal of A-3PO (arXiv 2512.06547), in AReaL's convention for lag 0.

        log proximal = a * log behavior + (1 - a) * sg(log policy),   a = 1 / max(lag, 1)

    The paper has a = 0 at lag 0 (no trust region); AReaL has a = 1 (ordinary PPO), and so do we. The policy's part is
    detached, otherwise the gradient of the ratio would be scaled by a. ``lag`` counts *updates*; with optimizer steps
    instead the trust region would vanish. The resulting region of policy/behavior is [(1-clip)^lag, (1+clip)^lag]:
    wide, and centered at behavior.

    Args:
        log_prob, behavior: [...] float, of the actions taken. lag: [...] integer or float, at least 0.
    Returns: [...] detached.
    """
    share = lag.to(behavior.dtype).clamp(min=1.0).reciprocal()
    return torch.lerp(log_prob.detach(), behavior, share)


def decay_from_center_of_mass(center_of_mass: float) -> float:
    """beta = 1 - 1/(1 + com); com is the mean age of the average in optimizer steps (arXiv 2110.00641, sec. 4)."""
    return 1.0 - 1.0 / (1.0 + center_of_mass)


class Ewma:
    """Bias-corrected exponential average of tensors (arXiv 2110.00641; openai/ppo-ewma `EwmaModel`).

        W' = beta * W + 1,    mean <- mean + (x - mean) / W'

    equals sum_k beta^(t-k) x_k / sum_k beta^(t-k), where x_0 are the tensors passed to `reset`. It needs no warm-up,
    unlike torch's `AveragedModel`, whose first copy dominates for 1/(1-beta) steps.
    """

    def __init__(self, decay: float) -> None:
        if not 0.0 <= decay < 1.0:
            raise ValueError(f"decay of an average is {decay}, expected 0 <= decay < 1")
        self.decay = decay
        self.weight = torch.zeros((), dtype=torch.float64)  # W; a tensor, because updates may be recorded
        self.mean: list[Tensor] = []

    @torch.no_grad()
    def reset(self, tensors: Sequence[Tensor]) -> None:
        """Restart the average at ``tensors``."""
        self.mean = [x.detach().clone() for x in tensors]
        self.weight = torch.ones((), dtype=torch.float64, device=self.mean[0].device if self.mean else None)

    @torch.no_grad()
    def update(self, tensors: Sequence[Tensor], skipped: Tensor | None = None) -> None:
        """Add ``tensors`` (same shapes as in `reset`), unless ``skipped`` [] is 1.0; a value on the device."""
        grown = self.weight * self.decay + 1.0
        share = grown.reciprocal()
        if skipped is not None:
            taken = 1.0 - skipped.to(share.dtype)
            grown, share = torch.where(taken > 0, grown, self.weight), share * taken
        self.weight.copy_(grown)
        for mean, x in zip(self.mean, tensors, strict=True):
            mean.lerp_(x.detach(), share.to(mean.dtype))


class _Stateless:
    """Defaults of providers without state."""

    recordable = True

    def begin_update(self, model: nn.Module, start_log_prob: Tensor, start_params: Tensor) -> None:
        pass

    def fixed_log_prob(self, start_log_prob: Tensor, behavior: Tensor) -> Tensor | None:
        return None

    def after_step(self, model: nn.Module, skipped: Tensor) -> None:
        pass

    def reset(self, model: nn.Module) -> None:
        pass

    def state_dict(self) -> dict[str, Tensor]:
        return {}

    def wants(self, state: Mapping[str, Tensor]) -> bool:
        return False

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        pass


class BehaviorProximal(_Stateless):
    """The policy that selected the actions: decoupled objectives become coupled PPO."""

    def __init__(self, **unused: Any) -> None:
        pass

    def log_prob(
        self, evaluate: Evaluate, lanes: Tensor | None, log_prob: Tensor, behavior: Tensor, lag: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        return behavior.detach(), None

    def fixed_log_prob(self, start_log_prob: Tensor, behavior: Tensor) -> Tensor | None:
        return behavior


class InterpolateProximal(_Stateless):
    """A-3PO: `interpolate_log_prob`. No forward pass and no distribution, so KLs are estimated from the ratio."""

    def __init__(self, **unused: Any) -> None:
        pass

    def log_prob(
        self, evaluate: Evaluate, lanes: Tensor | None, log_prob: Tensor, behavior: Tensor, lag: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        return interpolate_log_prob(log_prob, behavior, lag), None


class RecomputeProximal(_Stateless):
    """The policy at the start of the update, fixed for all epochs; the learner computes it anyway."""

    def __init__(self, **unused: Any) -> None:
        self._log_prob: Tensor | None = None
        self._params: Tensor | None = None

    def begin_update(self, model: nn.Module, start_log_prob: Tensor, start_params: Tensor) -> None:
        self._log_prob, self._params = start_log_prob.detach(), start_params.detach()

    def log_prob(
        self, evaluate: Evaluate, lanes: Tensor | None, log_prob: Tensor, behavior: Tensor, lag: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        assert self._log_prob is not None, "log_prob before begin_update"
        assert self._params is not None
        if lanes is None:
            return self._log_prob, self._params
        return self._log_prob.index_select(1, lanes), self._params.index_select(1, lanes)

    def fixed_log_prob(self, start_log_prob: Tensor, behavior: Tensor) -> Tensor | None:
        return start_log_prob


class EwmaProximal(_Stateless):
    """Average of the weights over optimizer steps; it moves inside the update, as in openai/ppo-ewma.

    center_of_mass: mean age in optimizer steps; the published default is 8, the minibatches of one update.
    """

    def __init__(self, *, center_of_mass: float = 8.0, **unused: Any) -> None:
        self._average = Ewma(decay_from_center_of_mass(center_of_mass))
        self._names: list[str] = []

    def reset(self, model: nn.Module) -> None:
        self._names = [name for name, _ in model.named_parameters()]
        self._average.reset(list(model.parameters()))

    def begin_update(self, model: nn.Module, start_log_prob: Tensor, start_params: Tensor) -> None:
        if not self._names:  # the first update: theta_0 is the first term of the average
            self.reset(model)

    def log_prob(
        self, evaluate: Evaluate, lanes: Tensor | None, log_prob: Tensor, behavior: Tensor, lag: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        proximal, params = evaluate(self.weights)
        return proximal.detach(), params.detach()

    def after_step(self, model: nn.Module, skipped: Tensor) -> None:
        live = dict(model.named_parameters())
        # A checkpoint may order the names differently.
        self._average.update([live[name] for name in self._names], skipped)

    @property
    def weights(self) -> Weights:
        """The averaged parameters by name."""
        return dict(zip(self._names, self._average.mean, strict=True))

    def state_dict(self) -> dict[str, Tensor]:
        if not self._names:
            return {}
        return {"weight": self._average.weight, **{f"mean.{name}": x for name, x in self.weights.items()}}

    def wants(self, state: Mapping[str, Tensor]) -> bool:
        return "weight" in state

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        if not state:
            self._names = []
            return
        named = {k.removeprefix("mean."): x.clone() for k, x in state.items() if k != "weight"}
        self._names, self._average.mean = list(named), list(named.values())
        self._average.weight = state["weight"].clone()


class SnapshotProximal(_Stateless):
    """The weights of ``age`` updates ago; with age 0, for every step those that selected its action.

    Exact version tracking (arXiv 2605.12070). Keeps a ring of ``age + 1`` versions, or of ``kept`` for age 0. In the
    first updates of a run the ring is not full and its oldest version is used.

    age 0 is coupled PPO in the learner's own numerics: the difference between its log-probability and the stored one of
    behavior is the discrepancy between training and inference (precision, kernels, a normalizer that was not published)
    and nothing else. Normalizer buffers are therefore kept with those versions. It costs a forward pass per distinct
    lag in the minibatch; steps older than the ring keep the stored log-probability.
    """

    recordable = False  # the ring changes, and the number of passes depends on the lags

    def __init__(self, *, age: int = 1, kept: int = 8, **unused: Any) -> None:
        if age < 0:
            raise ValueError(f"age of the proximal snapshot is {age}, expected at least 0 updates")
        self.by_step = age == 0
        self._ring: deque[Weights] = deque(maxlen=kept if self.by_step else age + 1)

    @torch.no_grad()
    def begin_update(self, model: nn.Module, start_log_prob: Tensor, start_params: Tensor) -> None:
        named = model.state_dict().items() if self.by_step else model.named_parameters()
        self._ring.append({name: x.detach().clone() for name, x in named})

    def log_prob(
        self, evaluate: Evaluate, lanes: Tensor | None, log_prob: Tensor, behavior: Tensor, lag: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        if self.by_step:
            return self._log_prob_by_step(evaluate, behavior, lag), None
        proximal, params = evaluate(self._ring[0])
        return proximal.detach(), params.detach()

    def _log_prob_by_step(self, evaluate: Evaluate, behavior: Tensor, lag: Tensor) -> Tensor:
        """[T, b]: every step evaluated with its own version, ``lag`` updates before the newest of the ring."""
        log_prob = behavior.detach().clone()
        for age in torch.unique(lag).long().tolist():
            if age < len(self._ring):
                versioned, _ = evaluate(self._ring[-1 - age])
                log_prob = torch.where(lag == age, versioned.detach().to(log_prob.dtype), log_prob)
        return log_prob

    def reset(self, model: nn.Module) -> None:
        self._ring.clear()

    def state_dict(self) -> dict[str, Tensor]:
        return {f"{i}.{name}": x for i, version in enumerate(self._ring) for name, x in version.items()}

    def wants(self, state: Mapping[str, Tensor]) -> bool:
        return bool(state) and all(key.partition(".")[0].isdigit() for key in state)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        versions: dict[int, Weights] = {}
        for key, x in state.items():
            index, name = key.split(".", 1)
            versions.setdefault(int(index), {})[name] = x.clone()
        self._ring.clear()
        self._ring.extend(versions[i] for i in sorted(versions))


PROXIMALS: dict[str, Callable[..., Proximal]] = {
    "behavior": BehaviorProximal,
    "recompute": RecomputeProximal,
    "ewma": EwmaProximal,
    "interpolate": InterpolateProximal,
    "snapshot": SnapshotProximal,
}
