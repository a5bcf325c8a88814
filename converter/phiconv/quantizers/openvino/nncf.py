"""NNCF's data-free quantizers for OpenVINO: integers in groups or rows, NF4, MXFP4 and MXFP8.

The formulas are those of ``nncf.compress_weights`` (NNCF 3.4) with neither data nor scale estimation, in
float32 and in its order of operations, so that codes, scales and zero points are the very ones. Codes come
from the scale in float32, which is only then rounded to float16; halves are rounded to the even code. (NNCF
has a second way, in NumPy, for matrices of fewer than 10 000 weights, which no Phi has: there the scales of
MXFP4 and MXFP8 may be others, of tiny blocks and next to powers of two.)

A weight that is not finite, or a scale beyond float16, gives a scale that is not finite, and no warning.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from phiconv.ir import F16, OPENVINO_MXFP4, OPENVINO_MXFP8, Blocks
from phiconv.quantizers.numerics.floats import narrow, widen
from phiconv.quantizers.numerics.small_floats import (
    BETWEEN_E2M1_EVEN,
    LARGEST_E2M1,
    LARGEST_E4M3,
    e2m1_codes,
    e4m3_codes,
)
from phiconv.quantizers.numerics.tiles import block_max, block_min, scratch_quads, spread

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from phiconv.ir import BlockEncoding, CodebookEncoding, FloatArray

__all__ = ["asymmetric", "mxfp4", "mxfp8", "nf4", "symmetric"]

_LEAST_SCALE = np.float32(2.0**-23)

_BETWEEN_NF4 = np.array([
    -0.84809643, -0.6106329, -0.45999527, -0.33967942, -0.2346074, -0.13791174, -0.045525018, 0.03979015,
    0.120255254, 0.20352125, 0.29201376, 0.38931254, 0.5016634, 0.6427869, 0.8614784,
], np.float32)  # fmt: skip
"""Halfway between two numbers of NF4, as OpenVINO rounds them; what lies there goes to the lower one."""

_PER_LN_2 = np.float32(1.442695)
"""1 / ln 2, both rounded."""


@np.errstate(all="ignore")
def asymmetric(
    values: NDArray[Any], _importance: FloatArray | None = None, *, encoding: BlockEncoding
) -> Blocks:
    """Quantizes with a zero point; the range always holds 0, which is thus represented exactly.

    With ``n = 2**bits - 1``, ``low = min(0, min x)`` and ``high = max(0, max x)``::

        scale      = (high - low) / n, at least 2**-23
        zero_point = -rint(low / scale), within 0 and n
        code       = rint(x / scale + zero_point), within 0 and n

    Args:
        values: float32, float16 or bfloat16, shape (rows, columns); so for all quantizers here.
        encoding: One of `phiconv.ir.openvino_affine`; so for the next one.
    """
    largest_code = np.float32((1 << encoding.bits) - 1)
    x = scratch_quads(values, encoding.block_size)
    zero = np.float32(0)
    low, high = np.minimum(block_min(x), zero), np.maximum(block_max(x), zero)
    scale = _bounded((high - low) / largest_code)
    zero_point = np.clip(-np.rint(low / scale), zero, largest_code)
    x /= spread(scale)
    x += spread(zero_point)
    codes = _codes(x, zero, largest_code)
    return Blocks(encoding, codes, narrow(scale, F16), zero_points=zero_point.astype(np.uint8))


@np.errstate(all="ignore")
def symmetric(
    values: NDArray[Any], _importance: FloatArray | None = None, *, encoding: BlockEncoding
) -> Blocks:
    """Quantizes around 0; the weight of largest size becomes the least code, ``-m`` with ``m = 2**(bits-1)``.

    So the scale is negative where that is the maximum::

        scale = |min x| / m if |min x| >= max x, else -max x / m; at least 2**-23 in size
        code  = rint(x / scale), within -m and m - 1
    """
    middle = np.float32(1 << (encoding.bits - 1))
    x = scratch_quads(values, encoding.block_size)
    low, high = np.abs(block_min(x)), block_max(x)
    scale = _bounded(np.where(low >= high, low, -high) / middle)
    x /= spread(scale)
    if encoding.offset:
        np.rint(x, out=x)
        x += middle
        codes = _codes(x, np.float32(0), 2 * middle - 1)
    else:
        np.clip(np.rint(x, out=x), -middle, middle - 1, out=x)
        codes = x.astype(np.int8)
    return Blocks(encoding, codes, narrow(scale, F16))


def _bounded(scale: NDArray[Any]) -> FloatArray:
    """Scales, but 2**-23 where they are smaller in size."""
    bounded: FloatArray = np.where(np.abs(scale) < _LEAST_SCALE, _LEAST_SCALE, scale)
    return bounded


def _codes(x: FloatArray, least: np.float32, largest: np.float32) -> NDArray[np.uint8]:
    """The nearest whole numbers within bounds."""
    np.rint(x, out=x)
    np.clip(x, least, largest, out=x)
    return x.astype(np.uint8)


# --------------------------------------------------------------------------------------- 4- and 8-bit floats


@np.errstate(all="ignore")
def nf4(values: NDArray[Any], _importance: FloatArray | None = None, *, encoding: CodebookEncoding) -> Blocks:
    """Quantizes to the nearest NormalFloat: ``scale = max |x|``, at least 2**-23.

    Args:
        values: As of `asymmetric`.
        encoding: One of `phiconv.ir.OPENVINO_NF4`.
    """
    x = scratch_quads(values, encoding.block_size)
    scale = _bounded(_largest(x))
    x /= spread(scale)
    codes, above = np.zeros(x.shape, np.uint8), np.empty(x.shape, np.bool_)
    for middle in _BETWEEN_NF4:
        codes += np.greater(x, middle, out=above).view(np.uint8)
    return Blocks(encoding, codes, narrow(scale, F16))


@np.errstate(all="ignore")
def mxfp4(values: NDArray[Any], _importance: FloatArray | None = None) -> Blocks:
    """Quantizes to E2M1 with a power of two as scale, the least one that 6 times it holds the block."""
    x = scratch_quads(values, OPENVINO_MXFP4.block_size)
    largest = _largest(x)
    exponent = _exponent(largest, LARGEST_E2M1)
    x *= spread(np.ldexp(np.float32(1), -exponent))
    signs = np.signbit(x).view(np.uint8)
    codes = e2m1_codes(np.abs(x, out=x), np.zeros(x.shape, np.uint8), BETWEEN_E2M1_EVEN)
    codes |= signs << 3  # a weight that becomes 0 keeps its sign
    # The table has doubled numbers: half the scale belongs to it.
    return Blocks(OPENVINO_MXFP4, codes, _marked(np.ldexp(np.float32(1), exponent - 1), largest))


@np.errstate(all="ignore")
def mxfp8(values: NDArray[Any], _importance: FloatArray | None = None) -> Blocks:
    """Quantizes to E4M3 with a power of two as scale, the least one that 448 times it holds the block.

    OpenVINO rounds twice, to float16 and then to E4M3. So halfway is what float16 takes for it.
    """
    x = scratch_quads(values, OPENVINO_MXFP8.block_size)
    largest = _largest(x)
    exponent = _exponent(largest, LARGEST_E4M3)
    x *= spread(np.ldexp(np.float32(1), -exponent))
    if values.dtype.itemsize > 2:  # others have no more bits than float16 where E4M3 has any
        widen(narrow(x, F16), out=x)
    return Blocks(OPENVINO_MXFP8, e4m3_codes(x), _marked(np.ldexp(np.float32(1), exponent), largest))


def _exponent(largest: FloatArray, number: np.float32) -> NDArray[np.int32]:
    """``ceil(log2(largest / number))`` as OpenVINO computes it, from a natural logarithm in float32.

    Its rounding shows next to a power of two: some quotients that are one get the next exponent, and others,
    a few units in the last place above, get the one below. float64 keeps the rounding the same everywhere.
    """
    quotient = (_bounded(largest) / number).astype(np.float64)
    logarithm = np.log(quotient).astype(np.float32) * _PER_LN_2
    # The bounds are of the scale's type; fmin and fmax make one of them of what is no number.
    exponent: NDArray[np.int32] = np.fmin(np.fmax(np.ceil(logarithm), -127), 127).astype(np.int32)
    return exponent


def _marked(scale: FloatArray, largest: FloatArray) -> FloatArray:
    """The scales, but infinity or NaN where a weight is."""
    return np.where(np.isfinite(largest), scale, largest)


def _largest(x: FloatArray) -> FloatArray:
    """The largest magnitude of every block."""
    result: FloatArray = np.abs(np.maximum(block_max(x), -block_min(x)))
    return result
