"""How the network reads each leaf of an observation: as a picture, a grid or a vector, and on which scale.

`treat` decides it from name, shape, dtype, bounds, `model.encoder` and `normalize.obs`. The network, the first lines of
`train`, `info` and `check-env` read the same `Treatment`, so the line says what is computed. Does not import torch.

    picture   sides of 36 or more: nature; of 12 to 35: cnn. Scaled to [0, 1] by its bounds.
    grid      sides of 5 to 11: minatar's 3x3 convolution, which keeps every place apart
    vector    everything else: fully connected layers

Numbers of grids and vectors are normalized by running statistics with `normalize.obs`, integers and bytes too. Without
it, integers with finite bounds are scaled by them. Truth values are never scaled.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any, Protocol

from sfactory.model.layout import Layout, channels_first, channels_last, layout_of, smaller_side

SIDES = {"mlp": 0, "minatar": 3, "nature": 36, "impala": 1, "cnn": 12}
"""Encoder -> smallest side of a picture that it can read."""
SMALLEST_GRID, LARGEST_GRID = 5, 35
SMALLEST_GREY = 20  # both sides of a picture without channels
LARGEST_SIDE = 160  # larger pictures are averaged
UNBOUNDED = 2.0**31 - 1.0  # a bound of this size says nothing of the numbers
MOST_LINES = 6


class ObsLeaf(Protocol):
    """One leaf of the observation space; `low` and `high`, as in `sfactory.envs.Leaf`, may be missing."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> Any: ...


class Scaling(Enum):
    """What happens to the numbers of a leaf."""

    NONE = "as it is"
    NORMALIZED = "normalized"
    """(x - running mean) / running standard deviation, clipped at +-10."""
    UNIT = "to [0, 1]"
    """(x - low) / (high - low)."""
    SYMMETRIC = "to [-1, 1]"
    """2 (x - low) / (high - low) - 1."""


@dataclass(frozen=True)
class Treatment:
    """How the network reads one leaf."""

    name: str
    shape: tuple[int, ...]
    """As in the environment; so are dtype and bounds."""
    dtype: str
    low: tuple[float, ...]
    high: tuple[float, ...]
    """One bound for all numbers, or one per number. Infinite or of no use: see `bounded`."""
    encoder: str
    """mlp, cnn, nature, minatar, impala, or module:Class, which gets what the environment returns."""
    layout: Layout | None
    """Axes of a picture or grid; None for vectors and encoders of the user's own."""
    pool: tuple[int, int]
    """Height and width of the blocks of pixels that are averaged."""
    scaling: Scaling
    source: str = ""
    """The space, if the leaf is not its own array."""

    @property
    def encoder_shape(self) -> tuple[int, ...]:
        """Shape of what the encoder reads: channels first, for minatar last; the leaf's own for the others."""
        if self.layout is None:
            return self.shape
        height, width = (-(-side // block) for side, block in zip(self._sides, self.pool, strict=True))
        channels = math.prod(self.shape[axis] for axis in self.layout.channels)
        return (height, width, channels) if self.encoder == "minatar" else (channels, height, width)

    @property
    def affine(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """(shift, factor), one or one per number: the scaled number is (x - shift) * factor. ((), ()) if unscaled.

        Numbers without finite bounds keep their value; a number whose bounds are equal becomes 0.
        """
        if self.scaling not in (Scaling.UNIT, Scaling.SYMMETRIC):
            return (), ()
        pairs = []
        for low, high in zip(*_same_length(self.low, self.high), strict=True):
            span = high - low
            if not bounded(low, high):
                pairs.append((0.0, 1.0))
            elif self.scaling is Scaling.UNIT:
                pairs.append((low, 1.0 / span if span > 0 else 0.0))
            else:
                pairs.append((0.5 * (low + high), 2.0 / span if span > 0 else 0.0))
        return tuple(shift for shift, _ in pairs), tuple(factor for _, factor in pairs)

    @property
    def bytes_to_unit(self) -> bool:
        """Whether these are bytes, all divided by 255."""
        return self.scaling is Scaling.UNIT and (self.dtype, self.low, self.high) == ("uint8", (0.0,), (255.0,))

    @property
    def grid(self) -> bool:
        """Whether every place counts: truth values and small pictures that are read by 3x3 filters."""
        return self.encoder == "minatar" and (self.dtype == "bool" or min(self._sides) < SIDES["cnn"])

    @property
    def line(self) -> str:
        """One line about the leaf: `obs: picture 96x96x3 uint8, channels last -> nature CNN, scaled by 1/255`."""
        return f"{self.name}: {self.words}"

    @property
    def words(self) -> str:
        """The line without the name."""
        if ":" in self.encoder:
            own = f"{_times(self.shape) or 'one number'} {self.dtype} -> {self.encoder}"
            return f"{own}, {self._scale if self.scaling is Scaling.NORMALIZED else 'as the environment returns it'}"
        if self.layout is None:
            several = f" ({_times(self.shape)})" if len(self.shape) > 1 else ""
            source = f"{self.source}: " if self.source else ""
            what = f"{source}vector of {math.prod(self.shape)}{several} {self.dtype}{self._interval}"
        else:
            kind, layout = "grid" if self.grid else "picture", self.layout.words(self.shape)
            what = f"{kind} {_times(self.shape)} {self.dtype}, {layout}"
        network = {"mlp": "mlp", "cnn": "small CNN (cnn)"}.get(self.encoder, f"{self.encoder} CNN")
        average = f", {_times(self.pool)} pixels averaged" if self.pool != (1, 1) else ""
        return ", ".join(part for part in (f"{what} -> {network}{average}", self._scale) if part)

    @property
    def _sides(self) -> tuple[int, int]:
        assert self.layout is not None
        return self.shape[self.layout.height], self.shape[self.layout.height + 1]

    @property
    def _interval(self) -> str:
        """`, 0 to 255` for integers with one pair of bounds."""
        if not _integer(self.dtype):
            return ""
        found = list(map(bounded, *_same_length(self.low, self.high)))
        if not all(found):
            return ", some without bounds" if any(found) else " without bounds"
        same = len(self.low) == len(self.high) == 1
        return f", {self.low[0]:g} to {self.high[0]:g}" if same else ", bounds of their own"

    @property
    def _scale(self) -> str:
        """What happens to the numbers, in words; empty for truth values and for float vectors as they are."""
        if self.scaling is Scaling.NORMALIZED:
            return "normalized"
        found = list(map(bounded, *_same_length(self.low, self.high)))
        span = f"{self.low[0]:g} to {self.high[0]:g}" if len(self.low) == len(self.high) == 1 else "its own bounds"
        if self.scaling is Scaling.NONE:
            if self.dtype == "bool" or (self.layout is None and "float" in self.dtype):
                return ""
            return f"as it is, {span}" if any(found) else "as it is: no bounds; --normalize.obs true scales it"
        if self.layout is None:
            return f"scaled {self.scaling.value}{'' if all(found) else ' where there are bounds'}"
        if self.bytes_to_unit:
            small = "; if its numbers are small, set --normalize.obs true" if self.grid else ""
            return f"scaled by 1/255{small}"
        return f"scaled {self.scaling.value} from {span}"


def treat(
    name: str,
    shape: Sequence[int],
    dtype: Any,
    low: Sequence[float] = (),
    high: Sequence[float] = (),
    *,
    encoder: str = "auto",
    normalize: bool = False,
    source: str = "",
) -> Treatment:
    """Decide how the network reads one leaf.

    Args:
        name, shape, dtype, low, high, source: of the leaf, as in `sfactory.envs.Leaf`. Bytes without bounds: 0 to 255.
        encoder: `model.encoder`. A name is taken for every picture and grid. Where the shape does not say which axes
            are the picture, nature, impala and cnn read channels first, minatar channels last; mlp takes a vector.
        normalize: `normalize.obs`.

    Raises ValueError, in one line, if the encoder is unknown, if it is auto and the shape does not decide, or if the
    picture is too small for it.
    """
    if ":" not in encoder and encoder not in ("auto", *SIDES):
        expected = ", ".join(["auto", *SIDES])
        raise ValueError(f"model.encoder is {encoder!r}, expected one of {expected}, or module:Class")
    shape, dtype = tuple(shape), str(dtype)
    low, high = _filled(dtype, low, high)
    if ":" in encoder:
        scaling = Scaling.NORMALIZED if normalize and "float" in dtype else Scaling.NONE
        return Treatment(name, shape, dtype, low, high, encoder, None, (1, 1), scaling, source)
    finite = all(map(bounded, *_same_length(low, high)))
    chosen, layout = _choose(name, shape, dtype, encoder, finite)
    if layout is None:
        scaling = _vector_scaling(dtype, low, high, normalize)
        return Treatment(name, shape, dtype, low, high, "mlp", None, (1, 1), scaling, source)
    sides = shape[layout.height], shape[layout.height + 1]
    if min(sides) < SIDES[chosen]:
        raise ValueError(
            f"{name}: {_times(sides)} is too small for model.encoder {chosen}, which reads {SIDES[chosen]} pixels a "
            f"side or more; --model.encoder auto gives every leaf a network of its size"
        )
    found = Treatment(name, shape, dtype, low, high, chosen, layout, _blocks(sides), Scaling.NONE, source)
    if dtype == "bool":
        return found
    if normalize and (found.grid or not finite):
        return replace(found, scaling=Scaling.NORMALIZED)
    small = _within(low, high, -1.0 if found.grid else 0.0, 1.0)
    useful = any(map(bounded, *_same_length(low, high))) and not small
    return replace(found, scaling=Scaling.UNIT) if useful else found


def treatments(
    obs: Mapping[str, ObsLeaf], *, without: Collection[str] = (), encoder: str = "auto", normalize: bool = False
) -> dict[str, Treatment]:
    """The treatment of every leaf that an encoder reads: all but those `without`. Raises ValueError as `treat`."""
    return {
        name: treat(
            name, leaf.shape, leaf.dtype, getattr(leaf, "low", ()), getattr(leaf, "high", ()),
            encoder=encoder, normalize=normalize, source=getattr(leaf, "source", ""),
        )
        for name, leaf in obs.items() if name not in without
    }  # fmt: skip


def obs_treatments(spec: Any, config: Any) -> dict[str, Treatment]:
    """The treatments of a run: `EnvSpec` and `Config`. Raises ValueError as `treat`."""
    return treatments(
        spec.obs, without=(spec.mask, spec.acting), encoder=config.model.reader, normalize=config.normalize.obs
    )


def obs_lines(spec: Any, config: Any) -> list[str]:
    """At most `MOST_LINES` lines that say how the network of a run reads the observation of an `EnvSpec`.

    Leaves that are read in the same way share a line if there are many. Raises ValueError as `treat`.
    """
    words = {name: treatment.words for name, treatment in obs_treatments(spec, config).items()}
    if spec.mask:
        words[spec.mask] = "action mask"
    if spec.acting:
        words[spec.acting] = f"whose turn it is, of {len(spec.agents)} agents"
    words |= {name: f"left out: {reason}" for name, reason in getattr(spec, "omitted", {}).items()}
    if len(words) <= MOST_LINES:
        return [f"{name}: {text}" for name, text in words.items()]
    same: dict[str, list[str]] = {}
    for name, text in words.items():
        same.setdefault(text, []).append(name)
    groups = sorted(same.items(), key=lambda group: (" CNN" not in group[0], "no bounds" not in group[0]))
    shown = groups if len(groups) <= MOST_LINES else groups[: MOST_LINES - 1]
    lines = [f"{_names(names)}: {text}" for text, names in shown]
    if len(shown) < len(groups):
        lines.append(f"and {sum(len(names) for _, names in groups[len(shown) :])} more observations")
    return lines


def cost_lines(spec: Any, config: Any) -> list[str]:
    """A line if a run computes convolutions of pictures twice: settings for vectors have `model.separate`."""
    pictures = [one for one in obs_treatments(spec, config).values() if one.layout is not None and not one.grid]
    if not (pictures and config.model.separate):
        return []
    return [
        "model.separate: two networks for pictures, of actor and critic; --model.separate false: one, at half the cost"
    ]


def bounded(low: float, high: float) -> bool:
    """Whether two bounds say something of a number: finite, and smaller than those of 32-bit integers."""
    return abs(low) < UNBOUNDED and abs(high) < UNBOUNDED


def _choose(name: str, shape: tuple[int, ...], dtype: str, encoder: str, finite: bool) -> tuple[str, Layout | None]:
    """Encoder and layout of a leaf; the layout of a vector is None."""
    side, dims = smaller_side(shape), len(shape)
    if encoder == "mlp" or dims < 2:
        return "mlp", None
    if dims == 2:
        if side < SMALLEST_GREY or (encoder == "auto" and (dtype == "bool" or not finite)):
            return "mlp", None
        return _of_size(shape, encoder), Layout((), 0)
    if dtype == "bool" and dims == 3:
        return _bits(shape, encoder)
    narrow = side < SIDES["cnn"] and max(shape) > LARGEST_GRID
    if side < SMALLEST_GRID or (narrow and encoder == "auto"):
        return "mlp", None
    layout = layout_of(shape)
    if layout is None and encoder == "auto":
        raise ValueError(
            f"{name}: the shape {_times(shape)} does not say which axes are a picture; set --model.encoder: nature, "
            f"cnn and impala read channels first, minatar channels last, and mlp takes it as a vector"
        )
    if layout is None:
        layout = channels_last(dims) if encoder == "minatar" else channels_first(dims)
    return _of_size((shape[layout.height], shape[layout.height + 1]), encoder), layout


def _of_size(sides: Sequence[int], encoder: str) -> str:
    """The encoder for a picture of this size, if none is named."""
    if encoder != "auto":
        return encoder
    return next((name for name in ("nature", "cnn") if min(sides) >= SIDES[name]), "minatar")


def _bits(shape: tuple[int, ...], encoder: str) -> tuple[str, Layout | None]:
    """Encoder and layout of [., ., .] truth values, as 10x10x4: a grid with its channels last where nothing decides."""
    layout = layout_of(shape)
    if encoder == "auto":
        image = min(shape[1:]) if layout is None else min(shape[layout.height : layout.height + 2])
        if image >= SIDES["nature"]:
            return "nature", layout or channels_first(3)
        if min(shape[:2]) < SIDES["minatar"] and (layout is None or image < SMALLEST_GRID):
            return "mlp", None
        return "minatar", layout or channels_last(3)
    return encoder, layout or (channels_last(3) if encoder == "minatar" else channels_first(3))


def _vector_scaling(dtype: str, low: tuple[float, ...], high: tuple[float, ...], normalize: bool) -> Scaling:
    if dtype == "bool":
        return Scaling.NONE
    if normalize:
        return Scaling.NORMALIZED
    useful = any(map(bounded, *_same_length(low, high))) and not _within(low, high, -1.0, 1.0)
    return Scaling.SYMMETRIC if _integer(dtype) and useful else Scaling.NONE


def _blocks(sides: tuple[int, int]) -> tuple[int, int]:
    """Sides of the blocks that are averaged, so that the picture has at most `LARGEST_SIDE` pixels a side.

    No side becomes smaller than the nature encoder can read.
    """
    block = -(-max(sides) // LARGEST_SIDE)
    height, width = (max(1, min(block, side // SIDES["nature"])) for side in sides)
    return height, width


def _filled(dtype: str, low: Sequence[float], high: Sequence[float]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Bounds with their default: 0 and 255 for bytes, else infinite."""
    if dtype == "bool":
        return (0.0,), (1.0,)
    if dtype == "uint8":
        return tuple(low) or (0.0,), tuple(high) or (255.0,)
    return tuple(low) or (-math.inf,), tuple(high) or (math.inf,)


def _same_length(low: tuple[float, ...], high: tuple[float, ...]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Both bounds with one number, or both with one per number."""
    size = max(len(low), len(high))
    first, second = (bound * size if len(bound) == 1 else bound for bound in (low, high))
    return first, second


def _within(low: Iterable[float], high: Iterable[float], least: float, most: float) -> bool:
    return all(bound >= least for bound in low) and all(bound <= most for bound in high)


def _integer(dtype: str) -> bool:
    return dtype != "bool" and "float" not in dtype


def _times(sides: Sequence[Any]) -> str:
    return "x".join(map(str, sides))


def _names(names: Sequence[str]) -> str:
    shown = ", ".join(names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"
