"""Environment specs and spaces as JSON, for checkpoints: a policy is used without building its environment.

JSON holds no code. What is read back may come from anybody: types and sizes are checked before anything is allocated.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sfactory.envs.spec import ActionLeaf, EnvSpec, Leaf

MAX_NUMBERS = 1 << 26  # of all arrays of an observation or action together
MAX_DEPTH = 20  # of Dict and Tuple spaces in each other
LEAVES = ("obs", "actions")
DTYPES = frozenset(np.dtype(kind).name for kind in "?bBhHiIlLefd")


def spec_to_json(spec: EnvSpec) -> dict[str, Any]:
    """Everything in a spec. Infinity is written as text, because JSON has no such number.

    Leaves are a list: the network reads them in their order, and files of JSON may be written with sorted keys.
    """
    import msgspec

    data: dict[str, Any] = _without_infinity(msgspec.to_builtins(spec))
    return data | {name: [list(leaf) for leaf in data[name].items()] for name in LEAVES}


def spec_from_json(data: Any) -> EnvSpec:
    """The inverse of `spec_to_json`. Raises ValueError for data that is no usable spec."""
    import msgspec

    try:
        spec = msgspec.convert(data | {name: dict(data[name]) for name in LEAVES}, EnvSpec, strict=False)
    except (msgspec.ValidationError, TypeError, KeyError, ValueError, RecursionError) as error:
        raise ValueError(f"no description of an environment ({' '.join(str(error).split())})") from error
    if not spec.obs or not spec.actions:
        raise ValueError("it has no observation or no action")
    _check_sizes([leaf.shape for leaf in spec.obs.values()])
    _check_sizes([leaf.shape for leaf in spec.actions.values()])
    leaves: list[tuple[str, Leaf | ActionLeaf]] = [*spec.obs.items(), *spec.actions.items()]
    for name, leaf in leaves:
        if leaf.dtype not in DTYPES:
            raise ValueError(f"{name} has dtype {leaf.dtype!r}")
        _check_bounds(name, leaf)
    return spec


def _check_bounds(name: str, leaf: Leaf | ActionLeaf) -> None:
    count = math.prod(leaf.shape)
    if not all(len(bound) in (0, 1, count) for bound in (leaf.low, leaf.high)):
        raise ValueError(f"{name} has {len(leaf.low)} and {len(leaf.high)} bounds for {count} numbers")
    if not isinstance(leaf, ActionLeaf):
        return
    sizes = len(leaf.sizes), sum(leaf.sizes)
    numbers = sizes == (1, count) and len(leaf.low) == len(leaf.high) == count
    choices = sizes[0] == count and min(leaf.sizes, default=1) > 0 and sizes[1] <= MAX_NUMBERS
    if not {"box": numbers, "discrete": choices}.get(leaf.kind, False):
        raise ValueError(f"{name} is no {leaf.kind!r} action of {count} numbers")


def spaces_to_json(group: Any) -> dict[str, Any] | None:
    """The observation and action space of a group's environments; None if the group has none."""
    spaces = [getattr(group, name, None) for name in ("observation_space", "action_space")]
    if None in spaces:
        return None
    return {name: _space_to_json(space) for name, space in zip(("observation", "action"), spaces, strict=True)}


def spaces_from_json(data: Mapping[str, Any]) -> tuple[Any, Any]:
    """The inverse of `spaces_to_json`. Raises ValueError for data that describes no spaces."""
    try:
        _check_sizes(list(_shapes(data)))
        return _space_from_json(data["observation"]), _space_from_json(data["action"])
    except (KeyError, TypeError, ValueError, AssertionError, AttributeError, OverflowError, RecursionError) as error:
        raise ValueError(f"no description of spaces ({' '.join(str(error).split())})") from error


def same_space(one: Any, other: Any) -> bool:
    """Whether two spaces are equal, as far as a policy reads them: spaces of other kinds are told apart by their class,
    because not all of them can be compared."""
    return one is other or one == other or _space_to_json(one) == _space_to_json(other)


def _space_to_json(space: Any) -> dict[str, Any]:
    """A space as its kind and arguments. Other kinds than those that policies read are only named."""
    from gymnasium import spaces

    kind = next((k for k in ("Box", "Discrete", "MultiDiscrete", "MultiBinary") if isinstance(space, _class(k))), "")
    if isinstance(space, spaces.Dict):
        return {"kind": "Dict", "spaces": [[key, _space_to_json(child)] for key, child in space.items()]}
    if isinstance(space, spaces.Tuple):
        return {"kind": "Tuple", "spaces": [_space_to_json(child) for child in space]}
    if not kind:
        return {"kind": "other", "text": type(space).__name__}
    found: dict[str, Any] = {"kind": kind, "shape": list(space.shape), "dtype": space.dtype.name}
    names = {"Box": ("low", "high"), "Discrete": ("n", "start"), "MultiDiscrete": ("nvec", "start"), "MultiBinary": ()}
    return found | {name: _numbers(getattr(space, name)) for name in names[kind]}


def _space_from_json(data: Mapping[str, Any]) -> Any:
    from gymnasium import spaces

    kind = data["kind"]
    if kind == "Dict":
        return spaces.Dict([(_key(key), _space_from_json(child)) for key, child in data["spaces"]])  # in this order
    if kind == "Tuple":
        return spaces.Tuple([_space_from_json(child) for child in data["spaces"]])
    if kind == "other":
        return spaces.Text(1)  # a policy does not read it; a Tuple counts its places
    if data["dtype"] not in DTYPES:
        raise ValueError(f"a space has dtype {data['dtype']!r}")
    shape, dtype = tuple(data["shape"]), np.dtype(data["dtype"])
    if kind == "MultiBinary":
        return spaces.MultiBinary(shape)
    names = {"Box": ("low", "high"), "Discrete": ("n", "start"), "MultiDiscrete": ("nvec", "start")}[kind]
    first, second = (_array(data[name], shape, dtype) for name in names)
    if kind == "Box":
        return spaces.Box(first, second, shape, dtype)
    if kind == "Discrete":
        return spaces.Discrete(int(first), start=int(second), dtype=dtype)
    return spaces.MultiDiscrete(first, dtype=dtype, start=second)


def _class(kind: str) -> type:
    from gymnasium import spaces

    found: type = getattr(spaces, kind)
    return found


def _key(key: Any) -> Any:
    if not isinstance(key, str | int):
        raise ValueError(f"a key of a Dict space is {key!r}")
    return key


def _numbers(values: Any) -> Any:
    """One number if all are equal, else a flat list."""
    array = np.asarray(values)
    flat = array.ravel().tolist()
    equal = bool(flat) and all(x == flat[0] for x in flat)
    return _without_infinity(flat[0] if equal else flat)


def _array(numbers: Any, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """The inverse of `_numbers`."""
    given = numbers if isinstance(numbers, list) else [numbers]
    if not all(isinstance(x, bool | int | float | str) for x in given):
        raise ValueError("a bound of a space is no number")
    exact = [float(x) if isinstance(x, str) or dtype.kind == "f" else x for x in given]
    array = np.array(exact, dtype)
    return np.full(shape, array[0]) if len(array) == 1 else array.reshape(shape)


def _shapes(data: Any, depth: int = 0) -> Any:
    """The shapes in a description of spaces."""
    if depth > 2 * MAX_DEPTH:
        raise ValueError(f"spaces in each other, more than {MAX_DEPTH} deep")
    if isinstance(data, Mapping):
        if "shape" in data:
            yield data["shape"]
        for child in data.values():
            yield from _shapes(child, depth + 1)
    elif isinstance(data, list) and not (data and isinstance(data[0], int | float)):
        for child in data:
            yield from _shapes(child, depth + 1)


def _check_sizes(shapes: Sequence[Any]) -> None:
    """Raise ValueError for shapes that are none, or too large together."""
    total = 0
    for shape in shapes:
        if not isinstance(shape, list | tuple) or len(shape) > 32:
            raise ValueError(f"a shape is {str(shape)[:60]}")
        if not all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in shape):
            raise ValueError(f"a shape is {str(shape)[:60]}")
        total += math.prod(shape)
    if total > MAX_NUMBERS:
        raise ValueError(f"arrays of {total:,} numbers, more than {MAX_NUMBERS:,}")


def _without_infinity(data: Any) -> Any:
    """The same data with numbers that JSON does not have as text, which float() reads."""
    if isinstance(data, float):
        return data if math.isfinite(data) else str(data)
    if isinstance(data, Mapping):
        return {key: _without_infinity(value) for key, value in data.items()}
    return [_without_infinity(value) for value in data] if isinstance(data, list | tuple) else data
