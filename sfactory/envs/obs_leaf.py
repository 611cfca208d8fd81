"""Observation spaces: the leaf of a space, and the function that reads it from an observation.

Box keeps its shape. Categories become truth values: one-hot up to `ONE_HOT` values, the binary digits of their number
beyond, so that Discrete(1,000,000) is 20 features. A leaf without numbers is left out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from sfactory.envs.space_leaves import UNSUPPORTED, part_of
from sfactory.envs.spec import Leaf
from sfactory.errors import EnvError

ONE_HOT = 1024
"""Most values of an entry that is one-hot."""
ONE_HOT_SPACE = 4096
"""Most features of a one-hot space; the entries of a larger one are binary digits."""

Encode = Callable[[np.ndarray], np.ndarray]
"""Values [N, *raw shape] -> rows of a leaf [N, *shape]."""


@dataclass(frozen=True)
class ObsReader:
    """Reads one leaf from observations of the environment; called with a single observation, returns its array."""

    leaf: Leaf
    path: tuple[Any, ...]
    """Keys that lead to the leaf's space in Dict and Tuple spaces."""
    raw: tuple[int, ...]
    """Shape of the value in the environment."""
    encode: Encode | None
    """None: the value is the row."""

    def __call__(self, obs: Any) -> Any:
        if self.path:
            obs = part_of(obs, self.path)
        if self.encode is None:
            return obs
        value = np.asarray(obs)
        if value.shape != self.raw and value.size == math.prod(self.raw) == 1:  # a category in an array of its own
            value = value.reshape(self.raw)
        return self.encode(value[None])[0]


def obs_leaves(
    env: str, leaves: Iterable[tuple[str, tuple[Any, ...], Any]]
) -> tuple[dict[str, ObsReader], dict[str, str]]:
    """Return the readers of an observation by name, and the leaves that are left out: name -> reason.

    leaves: name, path and space, as from `space_leaves`. Raises EnvError for a space that is not supported, two leaves
    of one name, and an observation without any number.
    """
    readers: dict[str, ObsReader] = {}
    omitted: dict[str, str] = {}
    for name, path, space in leaves:
        if name in readers or name in omitted:
            raise EnvError(f"{env}: two leaves of the observation have the name {name}; rename one, without a slash")
        if 0 in (space.shape or ()):
            omitted[name] = f"a space of shape {space.shape} holds no number"
        else:
            readers[name] = obs_leaf(name, path, space)
    if not readers:
        rest = f": {', '.join(omitted)}" if omitted else ""
        raise EnvError(f"{env}: the observation space holds no number{rest}; an observation needs at least one")
    return readers, omitted


def obs_leaf(name: str, path: tuple[Any, ...], space: Any) -> ObsReader:
    """Return the reader of one observation space. Raises EnvError if it is not supported."""
    from gymnasium import spaces

    raw: tuple[int, ...] = space.shape or ()  # the shape is None for unsupported spaces
    if isinstance(space, spaces.Box) and space.dtype.kind in "fbiu":
        return ObsReader(_box_leaf(space), path, raw, None)
    if isinstance(space, spaces.MultiBinary):
        source = f"MultiBinary {'x'.join(map(str, raw))}" if len(raw) > 1 else ""
        return ObsReader(Leaf((math.prod(raw),), "bool", source=source), path, raw, _flat_bits)
    if isinstance(space, spaces.Discrete | spaces.MultiDiscrete):
        categories = Categories(name, space)
        leaf = Leaf((categories.features,), "bool", source=categories.source)
        return ObsReader(leaf, path, raw, categories)
    kind, key = type(space).__name__, name.partition("/")[2]
    if key:
        raise EnvError(f"observation space {name}: {kind} cannot be read by a network; leave it out: --env.drop {key}")
    raise EnvError(f"observation space {name}: {kind} {UNSUPPORTED}")


def _box_leaf(space: Any) -> Leaf:
    kind = space.dtype.kind
    if kind == "b":
        return Leaf(space.shape, "bool")
    dtype = "uint8" if space.dtype == np.uint8 else "int64"
    if kind == "f" or (kind == "u" and space.high.max() > np.iinfo(np.int64).max):
        dtype = "float32"
    low, high = _finite(space.low, space.bounded_below, -np.inf), _finite(space.high, space.bounded_above, np.inf)
    return Leaf(space.shape, dtype, low, high)


def always_fits(name: str, value: np.ndarray, dtype: np.dtype) -> bool:
    """Whether every array of this dtype can be written into a leaf of another one, so that no later one is checked.

    Raises ValueError for a kind that a leaf does not hold, and for integers beyond its dtype, which would be cut.
    Nothing can be below it: leaves of integers are uint8 or int64, and signed integers are no kind of uint8.
    """
    if not np.can_cast(value.dtype, dtype, "same_kind"):
        raise ValueError(
            f"{name} has dtype {value.dtype}, but its space has {dtype}: return {dtype} (as array.astype), or declare "
            f"the space with dtype={value.dtype}"
        )
    if dtype.kind not in "ui" or np.can_cast(value.dtype, dtype, "safe"):
        return True
    if value.size and (largest := value.max()) > np.iinfo(dtype).max:
        raise ValueError(f"{name} is {largest}, but its space has {dtype}, which ends at {np.iinfo(dtype).max}")
    return False


class Categories:
    """Encodes the values of a Discrete or MultiDiscrete space as truth values."""

    def __init__(self, name: str, space: Any) -> None:
        self.name, self.space = name, space
        self.sizes = np.ravel(getattr(space, "nvec", getattr(space, "n", 0))).astype(np.int64)
        self.start = np.ravel(space.start).astype(np.int64)
        small = self.sizes <= ONE_HOT
        if int(self.sizes[small].sum()) > ONE_HOT_SPACE:
            small = np.zeros_like(small)
        digits = np.array([max(1, (size - 1).bit_length()) for size in self.sizes.tolist()])
        widths = np.where(small, self.sizes, digits)
        offsets = np.cumsum(widths) - widths
        self.features = int(widths.sum())
        self._one_hot, self._hot_offsets = np.flatnonzero(small), offsets[small]
        # Every digit of every other entry, in the order of the features: its entry, its power of two, its column.
        others = [(entry, digit) for entry in np.flatnonzero(~small).tolist() for digit in range(digits[entry])]
        self._digit_entries = np.array([entry for entry, _ in others], np.int64)
        self._powers = np.array([digit for _, digit in others], np.int64)
        self._columns = offsets[self._digit_entries] + self._powers if others else self._powers

    @property
    def source(self) -> str:
        """The space and its encoding in words."""
        kind = type(self.space).__name__
        if kind == "Discrete":
            what = f"Discrete({self.sizes[0]})"
        else:
            shape = "x".join(map(str, self.space.shape))
            what = f"MultiDiscrete {shape}"
        both = "one-hot and binary digits" if len(self._one_hot) else "binary digits"
        return f"{what}, {both if len(self._powers) else 'one-hot'}"

    def __call__(self, values: np.ndarray) -> np.ndarray:
        """values [N, *shape of the space] -> [N, features] bool. Raises ValueError for a value outside the space."""
        if values.shape[1:] != self.space.shape or values.dtype.kind not in "iub":
            raise ValueError(f"{self.name} is {values.dtype} {list(values.shape[1:])}, but its space is {self.space}")
        index = values.reshape(len(values), -1).astype(np.int64) - self.start
        wrong = (index < 0) | (index >= self.sizes)
        if wrong.any():
            raise ValueError(f"{self.name} is {values[wrong.any(axis=1)][0].tolist()}, outside of {self.space}")
        features = np.zeros((len(values), self.features), bool)
        if len(self._one_hot):
            features[np.arange(len(values))[:, None], self._hot_offsets + index[:, self._one_hot]] = True
        if len(self._powers):
            features[:, self._columns] = (index[:, self._digit_entries] >> self._powers) & 1
        return features


def _flat_bits(values: np.ndarray) -> np.ndarray:
    """[N, ...] -> [N, bits]. Raises ValueError for anything but 0 and 1."""
    flat = values.reshape(len(values), -1)
    if flat.dtype != bool and not ((flat == 0) | (flat == 1)).all():
        raise ValueError(f"a MultiBinary observation holds {flat[(flat != 0) & (flat != 1)][0]}; it may hold 0 and 1")
    return flat.astype(bool)


def _finite(bound: np.ndarray, bounded: np.ndarray, infinite: float) -> tuple[float, ...]:
    """Bounds as in `Leaf`: () if none is finite, one number if all are equal, else one per number."""
    values = np.where(bounded, bound.astype(np.float64), infinite).ravel()
    if not np.isfinite(values).any():
        return ()
    return (float(values[0]),) if (values == values[0]).all() else tuple(values.tolist())
