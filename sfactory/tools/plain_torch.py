"""The network and the training step of a run in plain torch, and the speed of matrix products.

The reference loops of `sfactory.tools.roofline`. The network is written here again with the layers of `torch.nn`, the
loss is PPO's with `torch.distributions`, the optimizer is `torch.optim.Adam(fused=True)`: a slower sfactory does not
make them slower. Where the network has no plain form, the network of sfactory takes its place.

Legend: N rows, K parameters of the action distribution.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributions import Categorical, Distribution, Normal
from torch.utils.flop_counter import FlopCounterMode

from sfactory.config import Config
from sfactory.envs import EnvSpec
from sfactory.learning.network import build_model
from sfactory.model.encoders import ACTIVATIONS, Nature, SmallCnn
from sfactory.model.treatment import Treatment, obs_treatments


def plain_network(config: Config, spec: EnvSpec) -> nn.Module | None:
    """Build the same layers in plain torch: observation [N, ...] -> [N, outputs + 1], the value last.

    The outputs are logits and means. Returns None if there is no plain form (several observations, a recurrent core, a
    mask, LayerNorm, a value head with bins, a custom encoder or IMPALA's).
    """
    model = config.model
    treatment, *more = obs_treatments(spec, config).values()
    if more or model.core != "none" or model.layer_norm or model.value_head != "scalar" or spec.mask:
        return None
    encoder, shape = treatment.encoder, treatment.encoder_shape
    outputs = sum(sum(action.sizes) for action in spec.actions.values())
    activation = ACTIVATIONS[model.activation]
    if encoder == "minatar":
        height, width, channels = shape
        size = 16 * (height - 2) * (width - 2)
        front: list[nn.Module] = [nn.Conv2d(channels, 16, 3), nn.ReLU(), nn.Flatten()]
    elif encoder in ("nature", "cnn"):
        layers = (Nature if encoder == "nature" else SmallCnn).layout
        inputs = (shape[0], *(filters for filters, *_ in layers))
        convs = [nn.Conv2d(channels, *layer) for channels, layer in zip(inputs, layers, strict=False)]
        front = [layer for conv in convs for layer in (conv, nn.ReLU())] + [nn.Flatten()]
        size = nn.Sequential(*front)(torch.zeros(1, *shape)).shape[1]
    elif encoder == "mlp":
        front, size = [nn.Flatten()], int(np.prod(shape))
    else:
        return None

    def trunk(head: int) -> nn.Sequential:
        widths = [size, *model.hidden]
        layers = [layer for a, b in itertools.pairwise(widths) for layer in (nn.Linear(a, b), activation())]
        return nn.Sequential(*layers, nn.Linear(widths[-1], head))

    if not model.separate:
        return nn.Sequential(*front, trunk(outputs + 1))
    return _ActorAndCritic(nn.Sequential(*front, trunk(outputs)), nn.Sequential(*front, trunk(1)))


def encoder_of(config: Config, spec: EnvSpec) -> str:
    """The encoder of the first observation: `mlp` for all that are no picture."""
    return first_treatment(config, spec).encoder


def first_treatment(config: Config, spec: EnvSpec) -> Treatment:
    """How the first observation is read."""
    return next(iter(obs_treatments(spec, config).values()))


class _ActorAndCritic(nn.Module):
    """Separate actor and critic networks, outputs concatenated."""

    def __init__(self, *networks: nn.Module) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([network(x) for network in self.networks], -1)


class PlainTorch:
    """A network with random data of up to `max_rows` rows: forward, forward and backward, a whole training step.

    Each of the three takes the number of rows and returns it.
    """

    def __init__(
        self, config: Config, spec: EnvSpec, max_rows: int, layout: torch.memory_format = torch.contiguous_format
    ) -> None:
        """layout: memory format of pictures and filters."""
        self.spec, self.layout, self.config = spec, layout, config
        plain = plain_network(config, spec)
        self.own = build_model(config, spec) if plain is None else None
        self.network: nn.Module = (plain or self.own).to(memory_format=layout)  # type: ignore[union-attr, call-overload]
        dims = sum(leaf.sizes[0] for leaf in spec.actions.values() if leaf.kind == "box")
        self.log_std = nn.Parameter(torch.zeros(dims))
        self.parameters = [*self.network.parameters(), *([self.log_std] if self.own is None and dims else [])]
        shapes = {name: leaf.shape for name, leaf in spec.obs.items()}
        if plain is not None:  # it reads what the encoder reads: channels first, large pictures averaged
            shapes = {name: leaf.encoder_shape for name, leaf in obs_treatments(spec, config).items()}
        self.hwc = encoder_of(config, spec) == "minatar"  # the picture has its channels last
        generator = np.random.default_rng(1)
        self.obs = {
            name: torch.from_numpy(generator.integers(0, 2, (max_rows, *shape)).astype(spec.obs[name].dtype))
            for name, shape in shapes.items()
        }
        self.actions = {
            name: torch.from_numpy(_random_actions(generator, max_rows, leaf)) for name, leaf in spec.actions.items()
        }
        self.old_log_prob, self.advantage, self.target = torch.from_numpy(
            generator.standard_normal((3, max_rows)).astype(np.float32)
        )
        self.order = torch.from_numpy(generator.permutation(max_rows))

    @functools.cached_property
    def optimizer(self) -> torch.optim.Optimizer:
        """Made when the first step is taken: torch imports its compiler with it, which takes seconds."""
        return torch.optim.Adam(self.parameters, self.config.optim.lr, eps=self.config.optim.eps, fused=True)

    @torch.inference_mode()
    def forward(self, rows: int) -> int:
        """The pass of the inference worker, without the choice of an action."""
        self.outputs(slice(0, rows))
        return rows

    def forward_backward(self, rows: int) -> int:
        """One forward and one backward pass, without a loss."""
        params, value = self.outputs(slice(0, rows))
        self.network.zero_grad()
        (params.sum() + value.sum()).backward()
        return rows

    def training_step(self, rows: int) -> int:
        """One optimizer step on a minibatch that is picked from all rows; the loss is PPO's."""
        chosen = self.order[:rows]
        params, value = self.outputs(chosen)
        log_prob, entropy = self.log_prob_entropy(params.float(), {k: x[chosen] for k, x in self.actions.items()})
        ratio = (log_prob - 1e-3 * self.old_log_prob[chosen] - log_prob.detach()).exp()
        advantage, clip, c = self.advantage[chosen], self.config.surrogate.clip, self.config.loss
        gain = torch.min(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage)
        value_loss = (value.float() - self.target[chosen]).square().mean()
        loss = c.value_coef * value_loss - gain.mean() - c.entropy_coef * entropy.mean()
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, self.config.optim.max_grad_norm or float("inf"))
        self.optimizer.step()
        return rows

    def outputs(self, rows: slice | Tensor) -> tuple[Tensor, Tensor]:
        """(logits and means [N, K], value [N]); K also has the log stds if the network is sfactory's own."""
        if self.own is not None:
            out = self.own({name: x[rows] for name, x in self.obs.items()})
            return out.params, out.value
        x = next(iter(self.obs.values()))[rows].float()
        x = x.permute(0, 3, 1, 2) if self.hwc else x
        x = x.contiguous(memory_format=self.layout) if x.dim() == 4 else x
        head = self.network(x)
        return head[:, :-1], head[:, -1]

    def log_prob_entropy(self, params: Tensor, actions: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """log p [N] of the actions, entropy [N]."""
        if self.own is not None:
            return self.own.distribution.log_prob_entropy(params, actions)
        log_prob = entropy = torch.zeros(params.shape[0])
        for policy, action in self._policies(params, actions):
            # a box has a column per dimension, a head of a discrete leaf has none
            log_prob = log_prob + policy.log_prob(action).reshape(params.shape[0], -1).sum(-1)
            entropy = entropy + policy.entropy().reshape(params.shape[0], -1).sum(-1)
        return log_prob, entropy

    def _policies(self, params: Tensor, actions: dict[str, Tensor]) -> Iterable[tuple[Distribution, Tensor]]:
        """A distribution and its actions for every box and every head of a discrete leaf."""
        column = box = 0
        for name, leaf in self.spec.actions.items():
            action = actions[name].flatten(1) if leaf.shape else actions[name][:, None]
            if leaf.kind == "box":
                mean, std = params[:, column : column + leaf.sizes[0]], self.log_std[box : box + leaf.sizes[0]].exp()
                yield Normal(mean, std.expand_as(mean), validate_args=False), action
                box += leaf.sizes[0]
            else:
                starts = itertools.accumulate(leaf.sizes[:-1], initial=column)
                for head, (start, size) in enumerate(zip(starts, leaf.sizes, strict=True)):
                    yield Categorical(logits=params[:, start : start + size], validate_args=False), action[:, head]
            column += sum(leaf.sizes)


def _random_actions(generator: np.random.Generator, rows: int, leaf: Any) -> np.ndarray:
    """Actions [N, *shape] of one leaf."""
    if leaf.kind == "box":
        return generator.standard_normal((rows, *leaf.shape)).astype(np.float32)
    sizes = np.asarray(leaf.sizes).reshape(leaf.shape)
    return generator.integers(np.broadcast_to(sizes, (rows, *leaf.shape)))


def flops_per_row(config: Config, spec: EnvSpec) -> tuple[float, float]:
    """Floating-point operations of the network's products and convolutions: (forward, forward and backward)."""
    rows = 8  # few: from 32 rows on, layers of sfactory call a library whose operations are not counted
    plain = PlainTorch(config, spec, rows)
    with FlopCounterMode(display=False) as forward:
        plain.outputs(slice(0, rows))
    with FlopCounterMode(display=False) as both:
        plain.forward_backward(rows)
    return forward.get_total_flops() / rows, both.get_total_flops() / rows
