"""One scale for each output channel, which is a row of a matrix: for processors that compute with integers.

Codes are symmetric, since the zero point of a weight has to be 0 there. A weight that is not finite gives a
scale that is not finite, and no warning: it is for the caller to look.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from phiconv.ir import Blocks
from phiconv.quantizers.numerics.tiles import block_max, block_min, quads, scratch_quads, spread

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from phiconv.ir import BlockEncoding, FloatArray

__all__ = ["FACTORS", "channels"]

FACTORS = tuple(np.float32(n / 40) for n in range(42, 19, -1))
"""Shares of the range that 4 bits are tried with, from 1.05 to 0.5."""


@np.errstate(all="ignore")
def channels(
    values: NDArray[Any], importance: FloatArray | None = None, *, encoding: BlockEncoding
) -> Blocks:
    """Quantizes rows.

    With ``m = max |w|`` of a row: ::

        scale = m / 127                    for 8 bits
        scale = factor * m / 7             for 4, with the factor of the least squared error of the row
        code  = rint(w / scale)            from -127 to 127, or from -8 to 7, halves to even

    Args:
        values: float32, float16 or bfloat16, shape (rows, columns).
        importance: What an error counts, by column: float32 of shape (columns,). 8 bits ignore it.
        encoding: One of `phiconv.ir.onnx_channel`.
    """
    x = scratch_quads(values, encoding.block_size)
    largest: FloatArray = np.maximum(np.abs(block_min(x)), np.abs(block_max(x)))
    if encoding.bits == 8:
        full: FloatArray = largest / np.float32(127)
        return _blocks(encoding, _codes(x, full, -127, 127), full)
    weights = None if importance is None else quads(importance[None], encoding.block_size)
    best = np.full(largest.shape, np.inf, np.float32)
    scale: FloatArray = largest / np.float32(7)
    for factor in FACTORS:
        tried: FloatArray = factor * largest / np.float32(7)
        error = np.square(_codes(x, tried, -8, 7) * spread(tried) - x)
        if weights is not None:
            error *= weights
        # Element by element: no sum depends on how many rows are in the tile.
        sums = np.add.reduce(error, axis=0)
        total = (sums[:, 0] + sums[:, 1]) + (sums[:, 2] + sums[:, 3])
        better = total < best
        best[better], scale[better] = total[better], tried[better]
    return _blocks(encoding, _codes(x, scale, -8, 7), scale)


def _codes(x: FloatArray, scale: FloatArray, low: int, high: int) -> FloatArray:
    codes: FloatArray = x / spread(np.where(scale == 0, np.float32(1), scale))
    np.rint(codes, out=codes)
    return np.clip(codes, np.float32(low), np.float32(high), out=codes)


def _blocks(encoding: BlockEncoding, codes: FloatArray, scale: FloatArray) -> Blocks:
    return Blocks(encoding, (codes + np.float32(encoding.offset)).astype(np.uint8), scale)
