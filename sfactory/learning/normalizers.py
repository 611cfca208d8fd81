"""Running statistics of observations, rewards, value targets and advantages.

Statistics are updated once per update, after its last optimizer step, so that one update uses one set of statistics;
those of the advantages are the exception and include the current batch. All tensors are changed in place: a recorded
update reads them where they are.

Legend: T steps, B lanes.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from sfactory.algo.normalize import EwmaMoments, Moments, RewardScale, TargetScale, decay_from_span, masked_moments
from sfactory.config import Config
from sfactory.learning.batch import Batch
from sfactory.learning.distributed import BatchMoments, Learners
from sfactory.model.actor_critic import ActorCritic


class Normalizers:
    """Everything that is rescaled before it is learned from, for one network."""

    def __init__(self, config: Config, model: ActorCritic, device: torch.device, learners: Learners) -> None:
        self.config, self.model, self.device, self.learners = config, model, device, learners
        self.observations = {name: Moments(shape, device) for name, shape in model.normalized_shapes().items()}
        self.rewards = RewardScale(device=device)
        self.targets = TargetScale(device=device) if config.normalize.value_targets else None
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

    @torch.no_grad()
    def update(self, batch: Batch, target: Tensor, valid: Tensor) -> None:
        """Add a batch to the statistics and write those of observations and value targets into the network.

        target: value targets in units of reward. valid: rows that count. Both have the shape of `batch.valid`.
        """
        found = {
            f"obs.{name}": masked_moments(batch.obs[name][:-1], valid, moments.shape)
            for name, moments in self.observations.items()
        }
        if batch.discounted_return is not None:
            running = batch.discounted_return * self.config.env.reward_scale
            found["reward"] = masked_moments(running, valid, ())
        if self.targets is not None:
            found["target"] = masked_moments(target, valid)
        if not found:
            return
        pooled = self.learners.pool_moments([BatchMoments(*moments) for moments in found.values()])
        by_name = dict(zip(found, pooled, strict=True))
        for name, moments in self.observations.items():
            moments.merge(*by_name[f"obs.{name}"])
            self.model.set_normalizer(name, moments.mean, moments.var)
        if "reward" in by_name:
            self.rewards.moments.merge(*by_name["reward"])
        if self.targets is not None:
            self.model.rescale_value(*self.targets.merge(*by_name["target"]))

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
