"""llama.cpp's classic quantizers: 32 weights with one scale, some with a minimum, rounded to nearest.

The formulas are those of ``quantize_row_*_ref`` in ggml-quants.c, in float32 and in its order of
operations, so that codes and scales are the very ones that the released x86-64 builds of llama.cpp produce
(builds for ARM contract some multiplications and additions, and differ from them in a few blocks). Codes
come from the scale in float32, which is only then rounded to float16.

A weight that is not finite, or a scale beyond float16, gives a scale or a minimum that is not finite, and no
warning: it is for the caller to look.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from phiconv.ir import F16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, BlockEncoding, Blocks
from phiconv.quantizers.numerics.floats import narrow
from phiconv.quantizers.numerics.scratch import scratch
from phiconv.quantizers.numerics.tiles import (
    block_max,
    block_min,
    first_equal,
    scratch_quads,
    spread,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from phiconv.ir import FloatArray

__all__ = ["q4_0", "q4_1", "q5_0", "q5_1", "q8_0"]


@np.errstate(all="ignore")
def q8_0(values: NDArray[Any]) -> Blocks:
    """Quantizes to signed bytes: ``scale = max |x| / 127``, ``code = x / scale``, halves away from zero.

    Args:
        values: float32, float16 or bfloat16, shape (rows, columns); so for all quantizers here.
    """
    x = scratch_quads(values, Q8_0.block_size)
    scale: FloatArray = np.abs(np.maximum(block_max(x), -block_min(x)))  # abs for the sign of a zero
    scale /= 127
    x *= spread(_reciprocal(scale))
    # C's roundf: add a half with the sign of x, cut off. Just below k + 1, where it matters, the sum is exact
    # unless |x| < 0.5; there x itself is added, and 2 x is cut off to 0 as it should be.
    x += np.clip(x, -0.5, 0.5, out=scratch("q8_0", x.shape, x.dtype))
    return Blocks(Q8_0, x.astype(np.int8), narrow(scale, F16))


def q4_0(values: NDArray[Any]) -> Blocks:
    """Quantizes to 4 bits around code 8, see `_symmetric`."""
    return _symmetric(values, Q4_0)


def q5_0(values: NDArray[Any]) -> Blocks:
    """Quantizes to 5 bits around code 16, see `_symmetric`."""
    return _symmetric(values, Q5_0)


def q4_1(values: NDArray[Any]) -> Blocks:
    """Quantizes to 4 bits above a minimum, see `_asymmetric`."""
    return _asymmetric(values, Q4_1)


def q5_1(values: NDArray[Any]) -> Blocks:
    """Quantizes to 5 bits above a minimum, see `_asymmetric`."""
    return _asymmetric(values, Q5_1)


@np.errstate(all="ignore")
def _symmetric(values: NDArray[Any], encoding: BlockEncoding) -> Blocks:
    """The weight w of largest size gets code 0: ``scale = w / -offset``, ``code = x / scale + offset``."""
    offset = encoding.offset
    x = scratch_quads(values, encoding.block_size)
    scale = _extreme(x) / np.float32(-offset)
    inverse = _reciprocal(scale)
    x *= spread(inverse)
    x += offset + 0.5
    codes = x.astype(np.uint8)
    # NumPy has no SIMD for a minimum with a scalar, but for clip (with bounds of the array's own type).
    np.clip(codes, np.uint8(0), np.uint8(2 * offset - 1), out=codes)
    if (too_small := (inverse == 0) & (scale != 0)).any():
        codes[:, too_small] = 0
    return Blocks(encoding, codes, narrow(scale, F16))


@np.errstate(all="ignore")
def _asymmetric(values: NDArray[Any], encoding: BlockEncoding) -> Blocks:
    """The codes span the block: ``scale = (max - min) / (2**bits - 1)``, ``code = (x - min) / scale``."""
    x = scratch_quads(values, encoding.block_size)
    low = _minimum(x)
    scale = np.abs(block_max(x) - low) / np.float32((1 << encoding.bits) - 1)  # abs: a positive zero
    x -= spread(low)
    x *= spread(_reciprocal(scale))
    x += 0.5
    return Blocks(encoding, x.astype(np.uint8), narrow(scale, F16), narrow(low, F16))


def _reciprocal(scale: FloatArray) -> FloatArray:
    """``1 / scale``, and 0 where that is not finite.

    ggml has 0 for a scale of 0 alone. Up to 2**-128 its ``1 / scale`` is infinite, and casting what comes
    of that to an integer gives 0 on x86; only `_symmetric` has to do something about it to have the same.
    """
    inverse: FloatArray = np.divide(1, scale, dtype=np.float32)
    inverse[~np.isfinite(inverse)] = 0
    return inverse


def _extreme(x: FloatArray) -> FloatArray:
    """The weight of largest magnitude in every block with its sign, the first one of equals: shape (n,)."""
    high, low = block_max(x), block_min(x)
    extreme: FloatArray = np.where(high > -low, high, low) + np.float32(0)  # + 0 makes a positive zero
    ties = np.flatnonzero((high == -low) & (high > 0))
    if ties.size:
        extreme[ties] = first_equal(x, ties, high[ties])
    return extreme


def _minimum(x: FloatArray) -> FloatArray:
    """The smallest weight of every block, of zeros with either sign the first one: shape (n,)."""
    low = block_min(x)
    zeros = np.flatnonzero(low == 0)
    if zeros.size:
        low[zeros] = first_equal(x, zeros, low[zeros])
    return low
