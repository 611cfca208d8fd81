"""An actor-critic network of the user's own in place of all layers: `model.network`.

A class `Network(shapes, *, outputs)`, a `torch.nn.Module`:

    shapes    leaf of the observation -> shape, as the environment has it
    outputs   numbers of the actor: one logit per choice, one mean per continuous number, leaf after leaf
    forward   leaves [N, *shape] -> actor [N, outputs], value [N] or [N, 1]

Leaves have the layout and dtype of the environment, unscaled; with `normalize.obs` floats are normalized. A single
observation is the leaf `obs`. Action masks, the standard deviation of continuous actions and squashing are added here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sfactory import pickled
from sfactory.errors import SettingError
from sfactory.model import own_code
from sfactory.model.actor_critic import ActorCritic
from sfactory.model.cores import CORES, Core
from sfactory.model.treatment import Treatment


class OwnTrunk(nn.Module):
    """The network of the user's own; its features are the outputs of the actor, then the value."""

    def __init__(self, name: str, obs: Mapping[str, Treatment], outputs: int) -> None:
        super().__init__()
        self.name, self.names, self.outputs, self.out_size = name, list(obs), outputs, outputs + 1
        self.encoders = nn.ModuleList()  # none: what reads `Trunk.encoders` finds nothing
        self.core: Core = CORES["none"](self.out_size, 0)
        shapes = {leaf: one.shape for leaf, one in obs.items()}
        self.network = own_code.make("model.network", name, (shapes,), {"outputs": outputs})

    def encode(self, obs: Mapping[str, Tensor]) -> Tensor:
        """Leaves [N, *shape] -> [N, outputs + 1]."""
        found = self.network({name: obs[name] for name in self.names})
        rows = len(next(iter(obs.values())))
        try:
            actor, value = found
            value = value.reshape(-1, 1)
            fits = actor.shape == (rows, self.outputs) and len(value) == rows
        except (TypeError, ValueError, AttributeError):
            fits = False
        if not fits:
            parts = found if isinstance(found, tuple | list) else (found,)
            shapes = [tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__ for x in parts]
            shown = ", ".join(map(str, shapes))
            raise SettingError(
                f"model.network {pickled.shown_name(self.name)}: forward returned {shown}; expected the outputs of the "
                f"actor ({rows}, {self.outputs}) and the value ({rows},)"
            )
        return torch.cat([actor, value.to(actor.dtype)], -1)


class OwnNetwork(ActorCritic):
    """`ActorCritic` whose layers are a network of the user's own; without memory between steps."""

    def __init__(self, *args: Any, network: str, **kwargs: Any) -> None:
        """network: `model.network`. Arguments of `ActorCritic`; those of its layers are not used."""
        self._network_name = network
        super().__init__(*args, **{**kwargs, "encoder": network, "separate": False, "median": False})

    def _trunk(self, **_: Any) -> Any:
        parts = self.distribution.parts
        return OwnTrunk(self._network_name, self.treatments, sum(sum(part.sizes) for part in parts))

    def _add_heads(self, log_std_init: float, median: bool) -> None:
        dimensions = sum(part.sizes[0] for part in self.distribution.parts if not part.discrete)
        self.median_head = None
        self.log_std = nn.Parameter(torch.full((dimensions,), log_std_init)) if dimensions else None

    def _outputs(self, x: Tensor, y: Tensor, obs: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        return self._params(x[:, :-1], obs), x[:, -1]

    def rescale_value(self, factor: Tensor, shift: Tensor) -> None:
        raise NotImplementedError("a network of the user's own has no value head that is known")
