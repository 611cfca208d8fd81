"""Try the network of a run on the data of a random rollout: build it, act with it, and train it for a moment.

An environment can follow every rule and still not train: its observations may be of a kind or size that no encoder
reads, or its numbers so large that no loss is finite.

Legend: T steps, E environments, each a lane of the batch; with A agents E x A lanes.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from sfactory.config import Config, with_settings
from sfactory.envs import EnvSpec, bounded
from sfactory.errors import one_line, own_place
from sfactory.learning.batch import Batch
from sfactory.learning.network import build_model
from sfactory.learning.own_time import own_time
from sfactory.learning.trial import try_own_network
from sfactory.learning.update import Update
from sfactory.model.actor_critic import ActorCritic
from sfactory.tools.random_rollout import KEPT, RandomRollout

OUTCOME = ("reward", "terminated", "truncated", "valid")
UPDATES = 2  # the second one reads the observations with the statistics of the first
EPOCHS = 2  # an update of several optimizer steps has a forward pass without gradients before them


def try_network(config: Config, spec: EnvSpec, rollout: RandomRollout) -> tuple[int, str]:
    """Return the number of weights of the network, and why it cannot act or train; empty if it can."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)  # the environment, which is in this process, may have set other ones
    try:
        with torch.inference_mode(False), torch.enable_grad():
            return _trial(config, spec, rollout)
    finally:
        torch.set_default_dtype(before)


def _trial(config: Config, spec: EnvSpec, rollout: RandomRollout) -> tuple[int, str]:
    """`try_network` with torch's own default settings."""
    weights = 0
    try:
        bounded(spec, config.model.squash)
        model = build_model(config, spec)
        weights = sum(parameter.numel() for parameter in model.parameters())
        if config.model.own_code[0]:
            try_own_network(config, spec)
        settings = {"batch.epochs": EPOCHS, "batch.minibatches": 1, "run.precision": "fp32"}
        update = Update(with_settings(config, settings), model, torch.device("cpu"))
        for number in range(UPDATES):
            metrics = update.run(_batch(config, model, spec, rollout), updates=number, progress=0.0)
            if metrics["skipped"] > 0:
                return weights, "a loss or gradient is not finite, because the numbers in it are too large"
    except Exception as error:
        reason = str(error) if hasattr(error, "exit_code") else one_line(error)  # ours are written for people
        return weights, f"{reason}{own_place(error)}"
    return weights, ""


def _batch(config: Config, model: ActorCritic, spec: EnvSpec, rollout: RandomRollout) -> Batch:
    """The first T steps of the rollout, with actions of the network's own policy."""
    steps, lanes = min(KEPT, len(rollout.reward)), rollout.reward.shape[1]
    obs = {name: torch.from_numpy(rollout.kept[name][: steps + 1]) for name in spec.obs}
    first = torch.ones(steps + 1, lanes, dtype=torch.bool)
    first[1:] = torch.from_numpy(rollout.first[:steps])
    state = torch.zeros(lanes, model.state_size) if model.state_size else None
    with torch.no_grad():
        params = model.unroll(obs, first, state).params[:-1]
        noise = torch.rand(steps, lanes, model.distribution.num_noise)
        action = model.distribution.sample(params, noise)
        log_prob = model.distribution.log_prob(params, action)
    outcome = {name: torch.from_numpy(getattr(rollout, name)[:steps]) for name in OUTCOME}
    if spec.acting:
        known = {name: leaf.numpy() for name, leaf in outcome.items()}
        found = own_time(**known, first=first.numpy(), acting=rollout.acting[: steps + 1])
        outcome = {name: torch.from_numpy(values) for name, values in found._asdict().items()}
    return Batch(
        obs=obs,
        first=first,
        action=action,
        log_prob=log_prob.masked_fill(~outcome["valid"], 0.0),
        params=params,
        **outcome,
        lag=torch.zeros(steps, lanes),
        state=state,
        discounted_return=_discounted(outcome["reward"], config.trace.gamma) if config.normalize.reward else None,
    )


def _discounted(reward: Tensor, gamma: float) -> Tensor:
    """Running discounted return [T, E] of rewards [T, E]."""
    returns = np.zeros_like(reward.numpy())
    for t, row in enumerate(reward.numpy()):
        returns[t] = row + (gamma * returns[t - 1] if t else 0.0)
    return torch.from_numpy(returns)
