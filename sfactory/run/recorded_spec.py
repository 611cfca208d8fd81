"""The spec of its environment in a checkpoint: with it a policy is loaded without building an environment."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sfactory.envs import EnvSpec
from sfactory.envs.saved_spec import spec_from_json, spec_to_json
from sfactory.errors import CheckpointError

KEY = "spec"
"""Entry of a checkpoint's state."""


def spec_entry(spec: EnvSpec) -> dict[str, Any]:
    """The entry of a checkpoint's state that holds the spec, as JSON."""
    return {KEY: spec_to_json(spec)}


def recorded_spec(state: Mapping[str, Any]) -> EnvSpec | None:
    """The spec in a checkpoint's state; None if an earlier version wrote it. CheckpointError if it cannot be used."""
    if KEY not in state:
        return None
    try:
        return spec_from_json(state[KEY])
    except ValueError as error:
        raise CheckpointError(f"the environment's spec in state.json cannot be used: {error}") from error
