"""Check a safetensors file before it is used: its header, and that its numbers are finite. Free of torch.

A file is 8 bytes of length, a header of JSON (name -> dtype, shape, offsets) and the bytes of the tensors. Everything
is checked against the size of the file, so that nothing is allocated for a tensor that is not there.
"""

from __future__ import annotations

import json
import math
import struct
from typing import Any, NamedTuple

import numpy as np

LONGEST_HEADER = 16 * 2**20
"""Bytes; 100,000 tensors have a header of 10 MB."""
MOST_DIMENSIONS = 8
ITEM_SIZES = {
    "BOOL": 1, "U8": 1, "I8": 1, "U16": 2, "I16": 2, "F16": 2, "BF16": 2, "U32": 4, "I32": 4, "F32": 4, "U64": 8,
    "I64": 8, "F64": 8,
}  # fmt: skip
"""Dtype of the format -> bytes of a number."""
_EXPONENTS = {"F16": ("<u2", 0x7C00), "BF16": ("<u2", 0x7F80), "F32": ("<u4", 0x7F800000), "F64": ("<u8", 0x7FF << 52)}
"""Dtype -> its bits as integers, and the bits of the exponent: all of them are set in NaN and infinity only."""
_AT_ONCE = 2**22  # numbers that are checked at the same time


class TensorFileError(ValueError):
    """A file that is not what the format says; the message says what is wrong."""


class TensorEntry(NamedTuple):
    """A tensor in a file; start and end: offsets of its bytes in the file."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


def read_header(data: bytes | memoryview, size: int | None = None) -> dict[str, TensorEntry]:
    """Tensors of a file by name. data: the file, or its beginning if `size` is given. TensorFileError says why not."""
    size = len(data) if size is None else size
    if size < 8:
        raise TensorFileError("has no header")
    (length,) = struct.unpack("<Q", data[:8])
    if length > min(LONGEST_HEADER, size - 8):
        raise TensorFileError(f"has a header of {length:,} bytes")
    try:
        header = json.loads(bytes(data[8 : 8 + length]))
    except (ValueError, RecursionError) as error:
        raise TensorFileError("has an unreadable header") from error
    if not isinstance(header, dict):
        raise TensorFileError("has an unreadable header")
    found = {name: _entry(name, value, 8 + length) for name, value in header.items() if name != "__metadata__"}
    at = 8 + length
    for name, entry in sorted(found.items(), key=lambda item: item[1].start):
        if entry.start != at:
            raise TensorFileError(f"has a gap or an overlap before {name!r}")
        at = entry.end
    if at != size:
        raise TensorFileError(f"has {size:,} bytes, its header describes {at:,}")
    return found


def _entry(name: str, value: Any, begin: int) -> TensorEntry:
    """One entry of the header. begin: where the bytes of the tensors begin."""
    try:
        dtype, shape, (start, end) = value["dtype"], tuple(value["shape"]), value["data_offsets"]
    except (TypeError, KeyError, ValueError):
        raise TensorFileError(f"does not describe {name!r}") from None
    numbers = (*shape, start, end)
    if not all(type(number) is int and 0 <= number < 2**48 for number in numbers) or len(shape) > MOST_DIMENSIONS:
        raise TensorFileError(f"has no usable shape of {name!r}")
    if not isinstance(dtype, str) or dtype not in ITEM_SIZES:
        raise TensorFileError(f"has an unknown dtype of {name!r}")
    if end - start != math.prod(shape) * ITEM_SIZES[dtype]:
        raise TensorFileError(f"has {end - start:,} bytes of {name!r}, which do not fit its shape")
    return TensorEntry(dtype, shape, begin + start, begin + end)


def first_not_finite(data: bytes | memoryview, tensors: dict[str, TensorEntry]) -> str:
    """Name of the first tensor that holds NaN or infinity; empty if there is none."""
    for name, entry in tensors.items():
        if entry.dtype in _EXPONENTS:
            bits, exponent = _EXPONENTS[entry.dtype]
            numbers = np.frombuffer(data, np.dtype(bits), math.prod(entry.shape), entry.start)
            for at in range(0, len(numbers), _AT_ONCE):
                if bool(((numbers[at : at + _AT_ONCE] & exponent) == exponent).any()):
                    return name
    return ""
