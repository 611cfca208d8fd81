"""How the observations of a checkpoint were read: recorded as lines in its state, and compared when it is used.

Checkpoints without these lines were trained by a version that fed integers as they are, read every picture by one rule
and divided only bytes by 255. Where the present rules read the observation in another way, the weights do not fit it,
even if their shapes do: such a checkpoint is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sfactory.config import Config
from sfactory.envs import EnvSpec
from sfactory.errors import CheckpointError
from sfactory.model.layout import channels_first, channels_last
from sfactory.model.treatment import Scaling, Treatment, obs_lines, obs_treatments

KEY = "observations"
"""Entry of a checkpoint's state."""


def reading(spec: EnvSpec, config: Config) -> dict[str, list[str]]:
    """The entry of a checkpoint's state that says how observations are read."""
    return {KEY: obs_lines(spec, config)}


def check_reading(state: Mapping[str, Any], spec: EnvSpec, config: Config) -> None:
    """Raise CheckpointError if the checkpoint's network read the observations in another way than it would now."""
    if KEY in state:
        return
    changed = [one.line for one in obs_treatments(spec, config).values() if not _as_before(one, config)]
    if changed:
        raise CheckpointError(
            f"this checkpoint was trained by an earlier version, which read the observation in another way; now it is "
            f"{changed[0]}; train again"
        )


def _as_before(now: Treatment, config: Config) -> bool:
    """Whether a version that recorded no lines read this leaf in the same way."""
    if ":" in now.encoder:
        return True
    encoder = _encoder_before(now.shape, config.model.encoder)
    if encoder != now.encoder or now.pool != (1, 1):
        return False
    if encoder in ("nature", "impala"):
        return now.layout == channels_first(3) and now.bytes_to_unit
    number = "float" in now.dtype
    usual = now.layout == (channels_last(3) if encoder == "minatar" else None)
    return usual and now.scaling is (Scaling.NORMALIZED if number and config.normalize.obs else Scaling.NONE)


def _encoder_before(shape: tuple[int, ...], encoder: str) -> str:
    if len(shape) != 3:
        return "mlp"
    if encoder != "auto":
        return encoder
    if min(shape[1:]) >= 36:
        return "nature"
    return "minatar" if min(shape[:2]) >= 3 else "mlp"
