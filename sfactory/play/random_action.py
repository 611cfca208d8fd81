"""Random actions, as an opponent and to check environments."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from sfactory.envs import EnvSpec


def random_action(
    spec: EnvSpec, obs: Mapping[str, np.ndarray], generator: np.random.Generator
) -> dict[str, np.ndarray]:
    """Draw actions [E, *shape]: uniform among the allowed ones; normal in dimensions of a box without bounds."""
    num_rows, offset, actions = len(next(iter(obs.values()))), 0, {}
    for name, leaf in spec.actions.items():
        if leaf.kind == "discrete":
            heads = []
            for size in leaf.sizes:
                priority = generator.random((num_rows, size))
                if spec.mask:
                    priority[obs[spec.mask][:, offset : offset + size] == 0] = -1.0
                heads.append(priority.argmax(axis=1))
                offset += size
            values = np.stack(heads, axis=1)
        else:
            low, high = np.array(leaf.low), np.array(leaf.high)
            free = np.clip(generator.standard_normal((num_rows, len(low))), low, high)
            with np.errstate(invalid="ignore"):  # infinite bounds, whose result is not used
                values = np.where(np.isfinite(high - low), low + (high - low) * generator.random(free.shape), free)
        actions[name] = values.reshape(num_rows, *leaf.shape).astype(leaf.dtype)
    return actions
