"""A small update and batches for it."""

import torch

from sfactory.config import Config, Model, Normalize, Optim, Run, Sampling, with_settings
from sfactory.envs import ActionLeaf, Leaf
from sfactory.learning import parallel_network, parts
from sfactory.learning.batch import Batch
from sfactory.learning.objectives.actor_critic import value_bins
from sfactory.learning.update import Update
from sfactory.model.actor_critic import ActorCritic

T, B = 6, 8
ACTIONS = {"action": ActionLeaf((), "int64", "discrete", (3,))}
OBS = {"obs": Leaf((4,), "float32")}


def divide_into_parts(monkeypatch, most):
    """Divide passes and minibatches on the CPU as on a GPU whose parts hold at most so many numbers; None: do not."""
    for module in (parts, parallel_network):
        monkeypatch.setattr(module, "most_numbers", lambda device: most)


def make_update(
    core="none",
    value_targets=False,
    normalize=False,
    advantage=True,
    learners=None,
    max_grad_norm=0.5,
    kernels="torch",
    actions=ACTIONS,
    squash=False,
    hidden=(16,),
    span=1.0,
    value_head="scalar",
    **learning,
):
    """An update of a small network.

    normalize: observations and rewards. span: of the advantage statistics. learning: other settings, those with two
    underscores by section and name.
    """
    config = Config(
        run=Run(kernels=kernels),
        sampling=Sampling(groups_per_sampler=2, envs_per_group=B // 2, rollout_length=T),
        model=Model(
            hidden=hidden,
            core=core,
            core_size=8 if core != "none" else Model.core_size,
            squash=squash,
            value_head=value_head,
        ),
        normalize=Normalize(
            value_targets=value_targets, obs=normalize, reward=normalize, advantage=advantage, advantage_span=span
        ),
        optim=Optim(lr=1e-2, max_grad_norm=max_grad_norm),
    )
    learning = {"epochs": 1, "minibatches": 4, **learning}
    if learning.get("proximal") != "snapshot":  # for others they have no effect
        learning = {name: value for name, value in learning.items() if not name.startswith("snapshot")}
    names = {name: name.replace("__", ".") if "__" in name else f"learning.{name}" for name in learning}
    config = with_settings(config, {names[name]: value for name, value in learning.items()})
    torch.manual_seed(0)
    core_size = 8 if core != "none" else 0
    model = ActorCritic(
        OBS, actions, hidden=hidden, core=core, core_size=core_size, normalize_obs=normalize, squash=squash,
        median=config.surrogate.has_median_head, value_bins=value_bins(config),
    )  # fmt: skip
    return Update(config, model, torch.device("cpu"), learners=learners)


def make_batch(update, reward_scale=1.0, seed=1):
    """A batch of actions of the update's own policy, with a reset row in every second lane."""
    g = torch.Generator().manual_seed(seed)
    first = torch.zeros(T + 1, B, dtype=torch.bool)
    first[3, ::2] = True
    terminated = torch.zeros(T, B, dtype=torch.bool)
    terminated[1, ::2] = True
    valid = torch.ones(T, B, dtype=torch.bool)
    valid[2, ::2] = False
    obs, state = {"obs": torch.randn(T + 1, B, 4, generator=g)}, None
    if update.model.state_size:
        state = torch.zeros(B, update.model.state_size)
    with torch.no_grad():
        params = update.model.unroll(obs, first, state).params[:-1]
    action = update.model.distribution.sample(
        params, torch.rand(T, B, update.model.distribution.num_noise, generator=g)
    )
    return Batch(
        obs=obs,
        first=first,
        action=action,
        log_prob=update.model.distribution.log_prob(params, action).masked_fill(~valid, 0.0),
        params=params,
        reward=(reward_scale * torch.randn(T, B, generator=g)).masked_fill(~valid, 0.0),
        terminated=terminated,
        truncated=torch.zeros_like(terminated),
        valid=valid,
        lag=torch.zeros(T, B),
        state=state,
        discounted_return=None,
    )
