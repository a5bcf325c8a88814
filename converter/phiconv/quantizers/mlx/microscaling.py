"""MLX's quantizers to 4- and 8-bit floats with a scale of 8 bits.

The formulas are those of ``mx.quantize`` on the CPU, of MLX 0.32.2 and later. The scale comes from the
largest magnitude of a block, divided by the largest number of the element's type: a quotient that is rounded
to the type of the weights. A weight halfway between two E2M1 numbers gets the smaller one, and E2M1 has no
negative zero here.

Where MLX computes nonsense, this does not: it bounds the exponent of a block of the tiniest weights, all
below 1.8e-38 in MXFP4 and 1.4e-36 in MXFP8, which MLX lets run over into a huge one; and a weight beyond 1e10
becomes the largest number that NVFP4 has, not 0.

A weight that is not finite gives a scale that is not finite, and no warning.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from phiconv.ir import MLX_MXFP4, MLX_MXFP8, MLX_NVFP4, Blocks
from phiconv.quantizers.numerics.floats import widen
from phiconv.quantizers.numerics.small_floats import e2m1_codes, e4m3_codes, take_signs
from phiconv.quantizers.numerics.tiles import block_max, block_min, scratch_quads, spread

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from phiconv.ir import FloatArray

__all__ = ["mxfp4", "mxfp8", "nvfp4"]

_LARGEST_E2M1 = np.float32(6)
_LARGEST_E4M3 = np.float32(448)
_BETWEEN_E2M1 = np.array([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5], np.float32)
"""The middles between neighbouring magnitudes 0, 0.5, 1, 1.5, 2, 3, 4 and 6."""


@np.errstate(all="ignore")
def mxfp4(values: NDArray[Any], _importance: FloatArray | None = None) -> Blocks:
    """Quantizes to E2M1 with a power of two as scale, the least one that 6 times it holds the block.

    Args:
        values: float32, float16 or bfloat16, shape (rows, columns); so for all quantizers here.
    """
    x = scratch_quads(values, MLX_MXFP4.block_size)
    negative, largest = take_signs(x), block_max(x)
    exponent = _exponent(largest, _LARGEST_E2M1, values.dtype)
    x *= spread(np.ldexp(np.float32(1), -exponent))
    codes = e2m1_codes(x, negative, _BETWEEN_E2M1)
    # The table has doubled numbers: half the scale belongs to it.
    return Blocks(MLX_MXFP4, codes, _marked(np.ldexp(np.float32(1), exponent - 1), largest))


@np.errstate(all="ignore")
def mxfp8(values: NDArray[Any], _importance: FloatArray | None = None) -> Blocks:
    """Quantizes to E4M3 with a power of two as scale, the least one that 448 times it holds the block."""
    x = scratch_quads(values, MLX_MXFP8.block_size)
    largest = np.abs(np.maximum(block_max(x), -block_min(x)))
    exponent = _exponent(largest, _LARGEST_E4M3, values.dtype)
    x *= spread(np.ldexp(np.float32(1), -exponent))
    return Blocks(MLX_MXFP8, e4m3_codes(x), _marked(np.ldexp(np.float32(1), exponent), largest))


@np.errstate(all="ignore")
def nvfp4(values: NDArray[Any], _importance: FloatArray | None = None) -> Blocks:
    """Quantizes to E2M1 with an E4M3 number as scale: ``max |x| / 6``, rounded.

    Weights below 6 / 1024 all become 0: their scale is.
    """
    x = scratch_quads(values, MLX_NVFP4.block_size)
    negative, largest = take_signs(x), block_max(x)
    quotient = _quotient(largest, _LARGEST_E2M1, values.dtype)
    numbers = np.array(MLX_MXFP8.table, np.float32)
    scale = numbers[e4m3_codes(np.clip(quotient, 0, _LARGEST_E4M3))]
    x /= spread(np.where(scale == 0, np.float32(np.inf), scale))
    codes = e2m1_codes(x, negative, _BETWEEN_E2M1)
    return Blocks(MLX_NVFP4, codes, _marked(scale * np.float32(0.5), largest))


def _quotient(largest: FloatArray, number: np.float32, dtype: np.dtype[Any]) -> FloatArray:
    """``largest / number`` as a number of the weights' own type."""
    quotient: NDArray[Any] = (largest / number).astype(dtype)
    return widen(quotient)


def _exponent(largest: FloatArray, number: np.float32, dtype: np.dtype[Any]) -> NDArray[np.int32]:
    """``ceil(log2(largest / number))``, but -127 or more, and 0 of a block of zeros."""
    mantissa, exponent = np.frexp(_quotient(largest, number, dtype))
    # The mantissa is 0.5 or more and below 1, so the logarithm is below the exponent, and 1 below it at 0.5.
    exponent -= mantissa == 0.5
    return np.maximum(exponent, -127)


def _marked(scale: FloatArray, largest: FloatArray) -> FloatArray:
    """The scales, but infinity or NaN where a weight is."""
    return np.where(np.isfinite(largest), scale, largest)
