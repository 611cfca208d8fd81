"""Frames that environments render, in the one form that videos take: uint8 [H, W, 3], 0 to 255."""

from __future__ import annotations

import numpy as np

from sfactory.errors import EnvError, NoPictures, one_line

CHANNELS = (1, 3, 4)  # grey, red-green-blue, and these with transparency


def to_frame(picture: np.ndarray) -> np.ndarray | None:
    """Convert a rendered picture to uint8 [H, W, 3]; None if it is no picture.

    Grey pictures [H, W], pictures with the channels first, and those with a fourth channel (transparency, which is
    dropped) are converted too. Floats up to 1 are taken as 0 to 1, larger ones as 0 to 255; truth values are black and
    white; of unsigned 16-bit numbers the upper 8 bits count.
    """
    if picture.ndim == 2:
        picture = picture[:, :, None]
    if picture.ndim != 3 or not picture.size or picture.dtype.kind not in "fiub":
        return None
    if picture.shape[2] not in CHANNELS and picture.shape[0] in CHANNELS:
        picture = np.moveaxis(picture, 0, 2)
    if picture.shape[2] not in CHANNELS:
        return None
    return np.broadcast_to(_bytes(picture[:, :, :3]), (*picture.shape[:2], 3))


def render_error(name: str, error: Exception) -> EnvError:
    """The error of an environment whose render() failed. name: of the environment."""
    if isinstance(error, NotImplementedError):
        return NoPictures(
            f"{name}: no video, because it has no render(): write one that returns a picture [H, W, 3], uint8"
        )
    return EnvError(f"{name} cannot be rendered on this machine: {one_line(error)}")


def _bytes(picture: np.ndarray) -> np.ndarray:
    if picture.dtype == np.uint8:
        return picture
    if picture.dtype == bool:
        return picture.astype(np.uint8) * np.uint8(255)
    if picture.dtype.kind == "f":
        numbers = np.nan_to_num(picture, nan=0.0)
        picture = np.rint(numbers * 255.0 if numbers.max() <= 1.0 else numbers)
    elif picture.dtype == np.uint16 and picture.max() > 255:
        picture = picture >> 8
    return np.clip(picture, 0, 255).astype(np.uint8)
