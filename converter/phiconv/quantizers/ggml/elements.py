"""The elements-first layout of a tile of blocks, for quantizers that add up a block's weights in order.

A tile of ``n`` blocks is ``x[e, s, b]``: weight ``e`` of sub-block ``s`` of block ``b``. A reduction over
axis 0 adds the weights of every sub-block one after the other, as a loop would.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from phiconv.quantizers.numerics.floats import widen
from phiconv.quantizers.numerics.scratch import scratch
from phiconv.quantizers.numerics.tiles import UNITS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from phiconv.ir import FloatArray

__all__ = ["elements", "spread_importance", "to_quads"]


def elements(values: NDArray[Any], size: int, parts: int, name: str) -> FloatArray:
    """Lays a tile out elements first, in float32.

    Args:
        values: float32, float16 or bfloat16, shape (rows, columns).
        size: Weights per sub-block.
        parts: Sub-blocks per block.
        name: Of the memory of this thread for the result, see `scratch`.

    Returns:
        Shape (size, parts, n), C-contiguous.
    """
    n, fours = values.size // (size * parts), size // 4
    # Four neighbours move as one unit first, as in `quads`: half the time of moving one weight at a time.
    unit = UNITS[values.dtype.itemsize]
    moved = scratch("units", (fours, parts, n), unit)
    units = np.ascontiguousarray(values).reshape(-1).view(unit).reshape(n, parts, fours)
    np.copyto(moved, units.transpose(2, 1, 0))
    apart = moved.view(values.dtype).reshape(fours, parts, n, 4).transpose(0, 3, 1, 2)
    result = scratch(name, (size, parts, n), np.float32)
    ordered = result.reshape(apart.shape)
    if values.dtype == np.float32:
        np.copyto(ordered, apart)
        return result
    narrow = scratch("narrow", apart.shape, np.uint16)
    np.copyto(narrow, apart.view(np.uint16))
    widen(narrow.view(values.dtype), out=ordered)
    return result


def spread_importance(
    importance: FloatArray, shape: Sequence[int], size: int, parts: int, name: str
) -> FloatArray:
    """Weights by column, (columns,), as those of every weight of a tile of this shape, elements first."""
    rows, blocks = shape[0], importance.size // (size * parts)
    in_row = importance.astype(np.float32, copy=False).reshape(blocks, parts, size).transpose(2, 1, 0)
    result = scratch(name, (size, parts, rows * blocks), np.float32)
    np.copyto(result.reshape(size, parts, rows, blocks), in_row[:, :, None])
    return result


def to_quads(codes: NDArray[np.int32]) -> NDArray[np.uint8]:
    """Codes from 0 to 255 as bytes quads first: (size, parts, n) to (size * parts / 4, n, 4)."""
    size, parts, n = codes.shape
    words = codes[3::4] << 8
    for j in (2, 1, 0):
        words |= codes[j::4]
        if j:
            words <<= 8
    ordered = np.ascontiguousarray(words.transpose(1, 0, 2)).reshape(parts * size // 4, n)
    return ordered.astype("<i4", copy=False)[..., None].view(np.uint8)
