"""Try a network of the user's own before a run begins: build it, act with it, and compute a gradient.

What the learner and inference compute must be the same policy: the features of a row depend on nothing but that row and
the weights. So the network is also compared with itself: for a row alone and among others, in training and in
evaluation mode, and a second time. A difference would be taken for a change of the policy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sfactory import pickled
from sfactory.config import Config
from sfactory.device.selection import pick_device
from sfactory.envs import EnvSpec, Leaf
from sfactory.errors import SettingError
from sfactory.learning.network import build_model
from sfactory.model import own_code
from sfactory.model.actor_critic import ActorCritic
from sfactory.model.encoders import check_encoders

ROWS = 3
TOLERANCE = 0.02
"""Of what outputs differ between rows: other kernels for other numbers of rows round differently, on a GPU by 0.1 %."""


def try_own_network(config: Config, spec: EnvSpec, local_rank: int = 0) -> None:
    """Build the network of a run and compute with it. Raises SettingError for what is wrong in the user's own code."""
    setting, name = config.model.own_code
    model = build_model(config, spec).to(pick_device(config.run.device, local_rank))
    check_encoders(name, model, setting)
    for encoder in model.trunk.encoders if not config.model.network else ():
        encoder.register_forward_hook(_check_features)
    obs = _observations(spec)
    try:
        _act_and_learn(model, obs, setting, name)
    except SettingError:
        raise
    except (Exception, SystemExit) as error:
        shapes = ", ".join(f"{leaf} {tuple(x.shape)} {str(x.dtype).removeprefix('torch.')}" for leaf, x in obs.items())
        raise own_code.failed(setting, name, error, f"its forward was called with {shapes}") from error


def _act_and_learn(model: ActorCritic, obs: Mapping[str, Tensor], setting: str, name: str) -> None:
    device = next(model.parameters()).device
    obs = {leaf: x.to(device) for leaf, x in obs.items()}
    model.eval()
    with torch.no_grad():  # and not inference_mode: a network may keep a tensor for later
        acting = model(obs).params
        again = model(obs).params
        alone = model({leaf: x[:1] for leaf, x in obs.items()}).params
    model.train()
    first = torch.zeros(1, ROWS, dtype=torch.bool, device=device)
    out = model.unroll({leaf: x.unsqueeze(0) for leaf, x in obs.items()}, first)
    for other, when in (
        (again, "when it is called again"),
        (alone, "when other rows are in the batch"),
        (out.params.detach()[0], "in training mode"),
    ):
        if _differ(acting, other):
            raise SettingError(
                f"{setting} {pickled.shown_name(name)} returns other numbers for the same observation {when}: the "
                f"policy that is trained would not be the one that acts, {own_code.PAGE}"
            )
    (out.params.sum() + out.value.sum()).backward()


def _differ(acting: Tensor, other: Tensor) -> bool:
    """Whether two outputs of the same first rows differ by more than rounding. NaN says nothing: the rows are made up.

    The measure is how much the outputs depend on the row: a standard deviation that is the same for all rows may be a
    hundred times as large as the means beside it.
    """
    scale = float((acting.amax(0) - acting.amin(0)).max())
    return bool(((acting[: len(other)] - other).abs() > TOLERANCE * scale + 1e-6).any())


def _check_features(encoder: nn.Module, arguments: tuple[Any, ...], features: Any) -> None:
    """A forward hook: SettingError if an encoder does not return [N, out_size]."""
    rows, size = len(arguments[0]), encoder.out_size
    found = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
    if found != (rows, size):
        raise SettingError(
            f"model.encoder: forward of {type(encoder).__name__} returned {found}; expected the features {rows, size}: "
            f"rows and out_size, {own_code.PAGE}"
        )


def _observations(spec: EnvSpec) -> dict[str, Tensor]:
    """Random leaves [ROWS, *shape] within their bounds."""
    generator = np.random.default_rng(0)
    found = {name: _rows(leaf, generator) for name, leaf in spec.obs.items()}
    for name in (spec.mask, spec.acting):  # every action is allowed, every agent acts
        if name:
            found[name] = np.ones_like(found[name])
    return {name: torch.from_numpy(rows) for name, rows in found.items()}


def _rows(leaf: Leaf, generator: np.random.Generator) -> np.ndarray:
    shape, dtype = (ROWS, *leaf.shape), np.dtype(leaf.dtype)
    low, high = _bounds(leaf.low, -np.inf, leaf.shape), _bounds(leaf.high, np.inf, leaf.shape)
    if dtype.kind == "f":
        return np.clip(generator.standard_normal(shape), low, high).astype(dtype)
    if dtype.kind == "b":
        return generator.integers(0, 2, shape).astype(dtype)
    if dtype == np.uint8:
        return generator.integers(0, 256, shape).clip(low, high).astype(dtype)
    # Of other integers without bounds only 0 is surely one that an embedding knows.
    return np.floor(generator.uniform(size=shape) * 2).clip(low, np.where(np.isfinite(high), high, 0.0)).astype(dtype)


def _bounds(numbers: Sequence[float], otherwise: float, shape: Sequence[int]) -> np.ndarray:
    """Bounds of a leaf as an array that is broadcast to its shape."""
    if len(numbers) <= 1:
        return np.asarray(numbers[0] if numbers else otherwise)
    return np.asarray(numbers).reshape(shape)
