"""Running statistics of observations, rewards, value targets and advantages.

Statistics of observations and rewards are updated after the last optimizer step of an update, so that it uses one set
of them. Those of advantages and value targets are updated at its start and include the current batch: a first reward
after many updates without one would otherwise be divided by a standard deviation of nearly zero. All tensors are
changed in place: a recorded update reads them where they are.

Legend: T steps, B lanes.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from sfactory.algo.normalize import EwmaMoments, Moments, RewardScale, TargetScale, decay_from_span, masked_moments
from sfactory.config import Config
from sfactory.learning.batch import Batch
from sfactory.learning.batch_scaling import target_span
from sfactory.learning.distributed import BatchMoments, Learners
from sfactory.model.actor_critic import ActorCritic


class Normalizers:
    """Everything that is rescaled before it is learned from, for one network."""

    def __init__(self, config: Config, model: ActorCritic, device: torch.device, learners: Learners) -> None:
        self.config, self.model, self.device, self.learners = config, model, device, learners
        self.observations = {name: Moments(shape, device) for name, shape in model.normalized_shapes().items()}
        self.rewards = RewardScale(device=device)
        span = target_span(config, learners.world_size)
        self.targets = TargetScale(decay_from_span(span), device) if config.normalize.value_targets else None
        self.advantages = EwmaMoments(decay_from_span(config.normalize.advantage_span), device=device)

    # -- transformations ---------------------------------------------------------------------------------------------

    def reward(self, reward: Tensor) -> Tensor:
        """Raw reward [T, B] -> the reward that is learned from; metrics keep the raw one."""
        env = self.config.env
        reward = reward * env.reward_scale if env.reward_scale != 1.0 else reward
        if self.config.normalize.reward:
            reward = self.rewards(reward)
        return reward.clamp(-env.reward_clip, env.reward_clip) if env.reward_clip else reward

    def value(self, output: Tensor) -> Tensor:
        """Output of the value head [...] -> value in units of reward."""
        return output if self.targets is None else self.targets.value(output)

    def target(self, target: Tensor) -> Tensor:
        """Value target in units of reward [...] -> target for the output of the value head."""
        return target if self.targets is None else self.targets.output(target)

    def advantage(self, advantage: Tensor, valid: Tensor) -> Tensor:
        """Advantages [T, B] -> mean 0 and variance 1 over valid rows, if `normalize.advantage`; updates first."""
        if not self.config.normalize.advantage:
            return advantage
        (moments,) = self.learners.pool_moments([BatchMoments(*masked_moments(advantage, valid))])
        return self.advantages.standardize(advantage, valid, *self.advantages.update(*moments))

    # -- updating ----------------------------------------------------------------------------------------------------

    @property
    def moves_value_head(self) -> bool:
        """Whether `add_targets` changes weights, so that outputs computed before have other units."""
        return self.targets is not None and self.model.value_bins is None

    @torch.no_grad()
    def add_targets(self, target: Tensor, valid: Tensor) -> None:
        """Add value targets [T, B] in units of reward, where valid, to their statistics, before they are normalized.

        The value head is rescaled with them: `value` of its output stays the same (PopArt, arXiv 1602.07714, alg. 1). A
        head with bins stays as it is (`model.histogram_head`).
        """
        if self.targets is None:
            return
        (moments,) = self.learners.pool_moments([BatchMoments(*masked_moments(target, valid))])
        correction = self.targets.merge(*moments)
        if self.moves_value_head:
            self.model.rescale_value(*correction)

    @torch.no_grad()
    def update(self, batch: Batch, valid: Tensor) -> None:
        """Add a batch to the statistics of observations and rewards, and write the former into the network.

        valid: rows that count, in the shape of `batch.valid`. Every row counts once: replayed ones are left out.
        """
        if batch.fresh is not None:
            valid = valid & batch.fresh
        found = {
            f"obs.{name}": masked_moments(batch.obs[name][:-1], valid, moments.shape)
            for name, moments in self.observations.items()
        }
        if batch.discounted_return is not None:
            running = batch.discounted_return * self.config.env.reward_scale
            found["reward"] = masked_moments(running, valid, ())
        if not found:
            return
        pooled = self.learners.pool_moments([BatchMoments(*moments) for moments in found.values()])
        by_name = dict(zip(found, pooled, strict=True))
        for name, moments in self.observations.items():
            moments.merge(*by_name[f"obs.{name}"])
            self.model.set_normalizer(name, moments.mean, moments.var)
        if "reward" in by_name:
            self.rewards.moments.merge(*by_name["reward"])

    # -- checkpoints -------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Tensor]:
        """Tensors named obs.LEAF.*, reward.*, target.* (with `normalize.value_targets`) and advantage.*."""
        state = {f"obs.{n}.{k}": v for n, m in self.observations.items() for k, v in m.state_dict().items()}
        state |= {f"reward.{k}": v for k, v in self.rewards.state_dict().items()}
        if self.targets is not None:
            state |= {f"target.{k}": v for k, v in self.targets.state_dict().items()}
        return state | {f"advantage.{k}": v for k, v in self.advantages.state_dict().items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state_dict` returned."""
        self._load_observations(state)
        self.rewards.load_state_dict(_select(state, "reward."))
        self.advantages.load_state_dict(_select(state, "advantage."))
        if self.targets is not None:
            self.targets.load_state_dict(_select(state, "target."))

    def initialize_from(self, state: Mapping[str, Tensor]) -> None:
        """Take the statistics that the weights of another run depend on: those of observations and value targets.

        The network must hold the weights of that run already: where that run normalized its value targets and this one
        does not, the value head is rescaled to units of reward.
        """
        self._load_observations(state)
        target = _select(state, "target.")
        if target and self.targets is not None:
            self.targets.load_state_dict(target)
        elif target:
            self.model.rescale_value(target["std"].to(self.device), target["mean"].to(self.device))

    def _load_observations(self, state: Mapping[str, Tensor]) -> None:
        for name, moments in self.observations.items():
            moments.load_state_dict(_select(state, f"obs.{name}."))


def _select(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The entries whose names start with the prefix, without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
