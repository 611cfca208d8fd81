"""The state of one gymnasium environment as JSON and back: what makes an exact resume possible.

Known: classic control, MuJoCo, and every environment that has `snapshot()` and `restore(state)` of its own (of plain
state, see `sfactory.envs.saved_state`). Everything else is refused by name: an environment that comes back almost the same is
worse than none. gymnasium's own TimeLimit and OrderEnforcing are the only wrappers that are known.
"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np

from sfactory.envs import EnvError
from sfactory.envs.saved_state import SnapshotError, decode, encode, plain_attributes, set_attributes

WRAPPERS = {"TimeLimit": "_elapsed_steps", "OrderEnforcing": "_has_reset"}
DRAWING = ("spec", "action_space", "observation_space", "metadata", "render_mode", "screen", "surf", "clock")
MUJOCO = ("model", "data", "mujoco_renderer")


def env_state(env: gymnasium.Env) -> Any:
    """JSON of everything that decides what the environment does next. EnvError for what cannot promise that."""
    layers: list[Any] = []
    while isinstance(env, gymnasium.Wrapper):
        attribute = WRAPPERS.get(type(env).__name__)
        if attribute is None or not type(env).__module__.startswith("gymnasium.wrappers"):
            raise EnvError(f"wrapper {type(env).__name__} cannot be saved exactly")
        layers.append(encode(getattr(env, attribute)))
        env = env.env
    try:
        layers.append(_own_state(env))
    except SnapshotError as error:
        raise EnvError(f"{type(env).__name__} cannot be saved exactly: {error}") from error
    return layers


def set_env_state(env: gymnasium.Env, layers: list[Any]) -> None:
    """The inverse, into an environment built and reset with the same settings."""
    for layer in layers[:-1]:
        assert isinstance(env, gymnasium.Wrapper), "the environment was wrapped otherwise when it was saved"
        setattr(env, WRAPPERS[type(env).__name__], decode(layer))
        env = env.env
    own: Any = env
    if hasattr(own, "restore") and hasattr(own, "snapshot"):
        own.restore(decode(layers[-1]))
    elif _is_mujoco(own):
        _set_mujoco(own, *layers[-1])
    else:
        set_attributes(own, layers[-1])


def _own_state(env: Any) -> Any:
    if hasattr(env, "snapshot") and hasattr(env, "restore"):
        return encode(env.snapshot())
    if type(env).__module__.startswith("gymnasium.envs.classic_control."):
        return plain_attributes(env, DRAWING)
    if _is_mujoco(env):
        return [encode(_mujoco(env)), plain_attributes(env, (*DRAWING, *MUJOCO))]
    raise EnvError(f"{type(env).__name__} cannot be saved exactly: it has no snapshot() and restore()")


def _is_mujoco(env: Any) -> bool:
    return hasattr(env, "model") and hasattr(env, "data") and type(env.data).__module__.startswith("mujoco")


def _mujoco(env: Any) -> dict[str, np.ndarray]:
    """The integration state, and every array of the data: rewards read positions that the last substep left behind.

    Positions, velocities and time alone are wrong (the solver's warm start decides bits), and so is the integration
    state alone for tasks that read body positions or contact forces before the next step. Constraint arrays (`efc_`)
    change their sizes and are made anew in every step.
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
