"""Encode plain Python state as JSON and decode it, exact to the last bit, without pickle.

Supported: numbers, strings, lists, tuples, dicts, sets, deques, NumPy arrays and scalars, NumPy random generators. Any
other type raises SnapshotError, because an inexact state would go unnoticed.
"""

from __future__ import annotations

import base64
from collections import deque
from typing import Any

import numpy as np

BIT_GENERATORS: dict[str, Any] = {
    kind.__name__: kind
    for kind in (np.random.PCG64, np.random.PCG64DXSM, np.random.MT19937, np.random.Philox, np.random.SFC64)
}


class SnapshotError(TypeError):
    """A value of a type that cannot be encoded."""


def encode(value: Any) -> Any:
    """Encode `value` as JSON. Raises SnapshotError with the name of an unsupported type."""
    if value is None or type(value) in (bool, int, str):
        return value
    if type(value) is float:
        return {"float": value.hex()}
    if isinstance(value, np.ndarray) and value.dtype.kind in "biufSU":
        data = base64.b64encode(np.ascontiguousarray(value).tobytes()).decode()
        return {"array": [value.dtype.str, list(value.shape), data]}
    if isinstance(value, np.generic) and value.dtype.kind in "biuf":
        return {"scalar": encode(np.asarray(value))}
    if type(value) in (list, tuple, set, deque):
        items = [encode(item) for item in (sorted(value) if type(value) is set else value)]
        return items if type(value) is list else {type(value).__name__: items}
    if type(value) is dict:
        return {"dict": [[encode(key), encode(item)] for key, item in value.items()]}
    if isinstance(value, np.random.Generator) and type(value.bit_generator).__name__ in BIT_GENERATORS:
        return {"generator": encode(value.bit_generator.state)}
    if isinstance(value, np.random.RandomState):
        return {"random_state": encode(value.get_state())}
    raise SnapshotError(f"{type(value).__module__}.{type(value).__name__} is not plain state")


def decode(text: Any) -> Any:
    """Decode the result of `encode`. Random generators become new objects in the same state."""
    if isinstance(text, list):
        return [decode(item) for item in text]
    if not isinstance(text, dict):
        return text
    ((kind, body),) = text.items()
    if kind == "float":
        return float.fromhex(body)
    if kind == "array":
        dtype, shape, data = body
        return np.frombuffer(base64.b64decode(data), np.dtype(dtype)).reshape(shape).copy()
    if kind == "scalar":
        return decode(body)[()]
    if kind == "dict":
        return {decode(key): decode(item) for key, item in body}
    if kind == "generator":
        state = decode(body)
        generator = np.random.Generator(BIT_GENERATORS[state["bit_generator"]]())
        generator.bit_generator.state = state
        return generator
    if kind == "random_state":
        random = np.random.RandomState()
        random.set_state(decode(body))
        return random
    return {"tuple": tuple, "set": set, "deque": deque}[kind](decode(body))


def plain_attributes(owner: Any, leave_out: tuple[str, ...] = ()) -> Any:
    """Encode the attributes of an object as JSON, except those in `leave_out`."""
    return encode({name: value for name, value in vars(owner).items() if name not in leave_out})


def set_attributes(owner: Any, text: Any) -> None:
    """Set the attributes from `plain_attributes`. A RandomState is changed in place: its methods may be bound."""
    for name, value in decode(text).items():
        held = getattr(owner, name, None)
        if isinstance(value, np.random.RandomState) and isinstance(held, np.random.RandomState):
            held.set_state(value.get_state())
        else:
            setattr(owner, name, value)
