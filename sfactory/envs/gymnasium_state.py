"""Save and restore the state of one gymnasium environment as JSON, for exact resume.

Supported: classic control, MuJoCo, and every environment with methods `snapshot()` and `restore(state)` that exchange
plain state (`sfactory.envs.saved_state`). Any other environment is an error, because an inexact state would go
unnoticed. Supported wrappers are gymnasium's TimeLimit and OrderEnforcing.
"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np

from sfactory.envs.saved_state import SnapshotError, decode, encode, plain_attributes, set_attributes
from sfactory.errors import EnvError

WRAPPERS = {"TimeLimit": "_elapsed_steps", "OrderEnforcing": "_has_reset"}
NOT_STATE = ("spec", "action_space", "observation_space", "metadata", "render_mode", "screen", "surf", "clock")
MUJOCO = ("model", "data", "mujoco_renderer")


def env_state(env: gymnasium.Env) -> Any:
    """Return the state that determines all later steps, as JSON. Raises EnvError for unsupported environments."""
    layers: list[Any] = []
    while isinstance(env, gymnasium.Wrapper):
        attribute = WRAPPERS.get(type(env).__name__)
        if attribute is None or not type(env).__module__.startswith("gymnasium.wrappers"):
            raise EnvError(f"wrapper {type(env).__name__} cannot be saved exactly")
        layers.append(encode(getattr(env, attribute)))
        env = env.env
    try:
        layers.append(_inner_state(env))
    except SnapshotError as error:
        raise EnvError(f"{type(env).__name__} cannot be saved exactly: {error}") from error
    return layers


def set_env_state(env: gymnasium.Env, layers: list[Any]) -> None:
    """Load the state of `env_state` into an environment that was built with the same settings and reset."""
    for layer in layers[:-1]:
        assert isinstance(env, gymnasium.Wrapper), "the environment had other wrappers when it was saved"
        setattr(env, WRAPPERS[type(env).__name__], decode(layer))
        env = env.env
    inner: Any = env
    if hasattr(inner, "restore") and hasattr(inner, "snapshot"):
        inner.restore(decode(layers[-1]))
    elif _is_mujoco(inner):
        _set_mujoco(inner, *layers[-1])
    else:
        set_attributes(inner, layers[-1])


def _inner_state(env: Any) -> Any:
    """State of the environment inside all wrappers."""
    if hasattr(env, "snapshot") and hasattr(env, "restore"):
        return encode(env.snapshot())
    if type(env).__module__.startswith("gymnasium.envs.classic_control."):
        return plain_attributes(env, NOT_STATE)
    if _is_mujoco(env):
        return [encode(_mujoco(env)), plain_attributes(env, (*NOT_STATE, *MUJOCO))]
    raise EnvError(f"{type(env).__name__} cannot be saved exactly: it has no snapshot() and restore()")


def _is_mujoco(env: Any) -> bool:
    return hasattr(env, "model") and hasattr(env, "data") and type(env.data).__module__.startswith("mujoco")


def _mujoco(env: Any) -> dict[str, np.ndarray]:
    """Return MuJoCo's integration state and every array of `data`.

    Positions, velocities and time do not suffice, because the solver's warm start changes the last bits. The
    integration state does not suffice for tasks that read body positions or contact forces before the next step.
    Constraint arrays (`efc_`) change their sizes and are recomputed in every step, so they are left out.
    """
    import mujoco

    kind = mujoco.mjtState.mjSTATE_INTEGRATION
    state = np.empty(mujoco.mj_stateSize(env.model, kind))
    mujoco.mj_getState(env.model, env.data, state, kind)
    names = [name for name in dir(env.data) if not name.startswith(("_", "efc_"))]
    arrays = {name: getattr(env.data, name) for name in names}
    return {"integration": state} | {name: x for name, x in arrays.items() if isinstance(x, np.ndarray)}


def _set_mujoco(env: Any, state: Any, attributes: Any) -> None:
    import mujoco

    arrays = decode(state)
    mujoco.mj_setState(env.model, env.data, arrays.pop("integration"), mujoco.mjtState.mjSTATE_INTEGRATION)
    for name, value in arrays.items():
        if getattr(env.data, name).shape == value.shape:
            getattr(env.data, name)[...] = value
    set_attributes(env, attributes)
