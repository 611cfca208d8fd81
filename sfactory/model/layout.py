"""Which axes of an observation are the height and width of a picture. Does not import torch.

A picture is the adjacent pair of axes with the largest smaller side; all other axes are channels, whose places do not
matter: (96, 96, 3), (3, 96, 96), (4, 96, 96, 3), (96, 96, 3, 4). The shape decides only if the channels are clearly
fewer than the pixels. It does not for (36, 36, 36), (32, 32, 64) and (20, 24, 18).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

FEW_CHANNELS = 4
"""Axes of at most this length are channels, whatever the picture's proportions."""


class Layout(NamedTuple):
    """Axes of a picture."""

    channels: tuple[int, ...]
    """Axes of the channels, in their order; () for a picture without them."""
    height: int
    """Axis of the height; that of the width follows it."""

    @property
    def axes(self) -> tuple[int, ...]:
        """The order that puts the channels first."""
        return (*self.channels, self.height, self.height + 1)

    def words(self, shape: Sequence[int]) -> str:
        """The layout in words, for a line about it."""
        if not self.channels:
            return "grey"
        if len(self.channels) == 1:
            return "channels first" if self.channels[0] == 0 else "channels last"
        counts = "x".join(str(shape[axis]) for axis in self.channels)
        return f"{shape[self.height]}x{shape[self.height + 1]} with {counts} channels"


def channels_first(dims: int) -> Layout:
    """The layout [..., H, W]."""
    return Layout(tuple(range(dims - 2)), dims - 2)


def channels_last(dims: int) -> Layout:
    """The layout [H, W, ...]."""
    return Layout(tuple(range(2, dims)), 0)


def smaller_side(shape: Sequence[int]) -> int:
    """The smaller side of the largest picture that adjacent axes could be; 0 for vectors."""
    return max((min(pair) for pair in itertools.pairwise(shape)), default=0)


def layout_of(shape: Sequence[int]) -> Layout | None:
    """The layout of a picture of this shape, two axes or more; None if the shape does not decide it."""
    side = smaller_side(shape)
    height = next(axis for axis in range(len(shape) - 1) if min(shape[axis : axis + 2]) == side)
    channels = tuple(axis for axis in range(len(shape)) if axis not in (height, height + 1))
    square = shape[height] == shape[height + 1]
    few = max(FEW_CHANNELS, side - 1 if square else side // 2)
    if any(shape[axis] >= side or shape[axis] > few for axis in channels):
        return None
    return Layout(channels, height)
