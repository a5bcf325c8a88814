"""ONNX Runtime's own blockwise quantizers: blocks of weights with a scale, and maybe a zero point.

The formulas are those of its C++ kernels (MlasQuantizeBlockwise and MlasQDQQuantizeBlockwise), which its
MatMulNBits quantizer calls "default": in float32 and in their order of operations, so that codes, scales and
zero points are the very ones. ``roundf`` in them is C's, halves away from zero.

A weight that is not finite, or a scale beyond its type, gives a scale that is not finite, and no warning: it
is for the caller to look.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from phiconv.ir import BF16, Blocks
from phiconv.quantizers.numerics.floats import narrow, widen
from phiconv.quantizers.numerics.scratch import scratch
from phiconv.quantizers.numerics.tiles import block_max, block_min, first_equal, scratch_quads, spread

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from phiconv.ir import BlockEncoding, FloatArray

__all__ = ["default", "extreme", "qdq"]

_HALF = np.nextafter(np.float32(0.5), np.float32(0))
"""For y of 0 or more, ``floor(y + _HALF)`` is ``roundf(y)``; with 0.5 it would be wrong for y = _HALF."""


@np.errstate(all="ignore")
def default(
    values: NDArray[Any], _importance: FloatArray | None = None, *, encoding: BlockEncoding
) -> Blocks:
    """Quantizes for MatMulNBits.

    With ``n = 2**bits - 1``, symmetric, where m is the weight of largest size, the smallest one of equals: ::

        scale      = m / -2**(bits - 1)            so m has code 0, and the scale is negative where m is not
        zero_point = 2**(bits - 1)

    and asymmetric, where low is at most and high at least 0: ::

        scale      = (high - low) / n
        zero_point = roundf(-low / scale)

    Either way the scale is rounded to the type that is stored, and ::

        code       = roundf(weight * (1 / scale) + zero_point)    but from 0 to n

    Scales of bfloat16 are only rounded after the codes have been computed.

    Args:
        values: float32, float16 or bfloat16, shape (rows, columns). The peer has them in the type of the
            scales; bfloat16 it widens first.
        encoding: One of ``ONNX_AFFINE["default"]``.
    """
    x = scratch_quads(values, encoding.block_size)
    scale, zero = _range(x, encoding)
    stored = narrow(scale, encoding.scale_type)
    used = _used(scale, stored)
    largest = np.float32((1 << encoding.bits) - 1)
    inverse = _inverse(used)
    endless = np.flatnonzero(np.isinf(inverse))  # of scales up to 2**-128
    beyond = np.where(x[:, endless] * spread(inverse[endless]) > 0, largest, 0)
    x *= spread(inverse)
    # One addition instead of two: no weight is rounded otherwise, see the test of ties.
    x += spread(zero + _HALF)
    np.clip(x, np.float32(0), largest, out=x)
    x[:, endless] = beyond
    return _blocks(encoding, x, stored, zero)


@np.errstate(all="ignore")
def qdq(values: NDArray[Any], _importance: FloatArray | None = None, *, encoding: BlockEncoding) -> Blocks:
    """Quantizes for DequantizeLinear: as `default`, but ``code = roundf(weight * (1 / scale)) + zero_point``.

    In the file a symmetric code is a signed integer, less by 8. The runtime's quantizer makes no codes of 8
    bits for it: those are the codes of `default`.

    Args:
        values: As for `default`.
        encoding: One of ``ONNX_AFFINE["qdq"]``.
    """
    if encoding.bits != 4:
        return default(values, encoding=encoding)
    x = scratch_quads(values, encoding.block_size)
    scale, zero = _range(x, encoding)
    stored = narrow(scale, encoding.scale_type)
    inverse = _inverse(_used(scale, stored))
    endless = np.flatnonzero(np.isinf(inverse))
    x *= spread(inverse)
    # roundf: a half with the sign of x is added, then cut off; to less than 0.5 is added x itself.
    x += np.clip(x, -0.5, 0.5, out=scratch("qdq", x.shape, x.dtype))
    np.trunc(x, out=x)
    x += spread(zero)
    np.clip(x, np.float32(0), np.float32((1 << encoding.bits) - 1), out=x)
    x[:, endless] = 0  # what C's cast of an infinity to an integer comes to on x86
    return _blocks(encoding, x, stored, zero)


def _range(x: FloatArray, encoding: BlockEncoding) -> tuple[FloatArray, FloatArray]:
    """Scale and zero point of every block, both float32 of shape (n,)."""
    low, high = block_min(x), block_max(x)
    if not encoding.has_zero_point:
        middle = np.float32(encoding.offset)
        scale = extreme(x, low, high) / -middle
        return scale, np.full(scale.shape, middle)
    largest = np.float32((1 << encoding.bits) - 1)
    low, high = np.minimum(low, 0), np.maximum(high, 0)
    scale = np.abs(high - low) / largest  # abs for the sign of a zero
    zero = np.where(scale == 0, np.float32(0), -low / scale)
    return scale, np.floor(np.clip(zero, np.float32(0), largest) + _HALF)


def extreme(x: FloatArray, low: FloatArray, high: FloatArray) -> FloatArray:
    """The weight of largest size in every block, the smallest one of equals, of zeros the first: shape (n,).

    Args:
        x: The tile.
        low: The smallest weight of every block.
        high: The largest one.
    """
    result: FloatArray = np.where(np.abs(high) > np.abs(low), high, low)
    zeros = np.flatnonzero(result == 0)
    if zeros.size:
        result[zeros] = first_equal(x, zeros, result[zeros])
    return result


def _used(scale: FloatArray, stored: NDArray[Any]) -> FloatArray:
    """The scale that codes are computed with."""
    return scale if stored.dtype == BF16.dtype else widen(stored)


def _inverse(scale: FloatArray) -> FloatArray:
    return np.where(scale == 0, np.float32(0), np.float32(1) / scale)


def _blocks(encoding: BlockEncoding, codes: FloatArray, scales: NDArray[Any], zero: FloatArray) -> Blocks:
    zero_points = zero.astype(np.uint8) if encoding.has_zero_point else None
    return Blocks(encoding, codes.astype(np.uint8), scales, zero_points=zero_points)
