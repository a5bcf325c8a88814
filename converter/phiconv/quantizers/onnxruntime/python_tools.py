"""Quantizers of ONNX Runtime's Python tools: blocks of weights with a scale, rounded to nearest.

Each has the formula, the type of every intermediate number and the rounding (halves to even) of the function
that it is named after, so that codes, scales and zero points are the very ones.

A weight that is not finite, or a scale beyond its type, gives a scale that is not finite, and no warning: it
is for the caller to look.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from phiconv.ir import F32, Blocks
from phiconv.quantizers.numerics.floats import narrow, widen
from phiconv.quantizers.numerics.scratch import scratch
from phiconv.quantizers.numerics.tiles import block_max, block_min, first_equal, scratch_quads, spread
from phiconv.quantizers.onnxruntime.matmul_nbits import extreme

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from phiconv.ir import BlockEncoding, FloatArray, FloatEncoding

    DoubleArray: TypeAlias = NDArray[np.float64]

__all__ = ["double_codes", "gather", "qmoe", "rtn"]

_EPSILON = np.finfo(np.float32).eps


@np.errstate(all="ignore")
def rtn(values: NDArray[Any], _importance: FloatArray | None = None, *, encoding: BlockEncoding) -> Blocks:
    """Quantizes as ``RTNWeightOnlyQuantConfig``: in float64, from a range in the stored type.

    With ``n = 2**bits - 1``, symmetric: ``scale = 2 max |w| / n``, and the zero point is ``2**(bits - 1)``,
    so that the largest weight may be cut off. Asymmetric: ``scale = (max - min) / n``, where 0 need not lie
    between both, and ``zero_point = rint(-min / scale)`` from 0 to n. A scale of 0 becomes 1. Then ::

        code = rint(weight / scale + zero_point)    but from 0 to n

    Args:
        values: float32 or float16 like the scales, shape (rows, columns).
        encoding: One of ``ONNX_AFFINE["rtn"]``.
    """
    largest, kind = (1 << encoding.bits) - 1, encoding.scale_type.dtype
    x = scratch_quads(values, encoding.block_size)
    low, high = block_min(x).astype(kind), block_max(x).astype(kind)
    if encoding.has_zero_point:
        scale = np.where(low == high, 1, (high - low).astype(np.float64) / largest)
        zero = np.clip(np.rint((0 - low) / scale), 0, largest)
    else:
        size = np.maximum(np.abs(low), np.abs(high))
        scale = np.where(size == 0, 1, (size * kind.type(2)).astype(np.float64) / largest)
        zero = np.full(scale.shape, float(encoding.offset))
    codes = double_codes(x, scale, zero, encoding.bits)
    zero_points = zero.astype(np.uint8) if encoding.has_zero_point else None
    return Blocks(encoding, codes, scale.astype(kind), zero_points=zero_points)


def double_codes(x: FloatArray, scale: DoubleArray, zero: DoubleArray, bits: int) -> NDArray[np.uint8]:
    """``rint(x / scale + zero)`` in float64, limited to codes: of a tile, (block_size / 4, n, 4)."""
    y = scratch("double_codes", x.shape, np.float64)
    np.divide(x, spread(scale), out=y)
    y += spread(zero)
    np.rint(y, out=y)
    np.clip(y, 0, (1 << bits) - 1, out=y)
    none = np.flatnonzero(scale == 0)
    y[:, none] = np.nan_to_num(y[:, none])  # 0 / 0 is code 0, as C's cast of NaN to an integer on x86
    return y.astype(np.uint8)


@np.errstate(all="ignore")
def gather(values: NDArray[Any], _importance: FloatArray | None = None, *, encoding: BlockEncoding) -> Blocks:
    """Quantizes to 4 bits as the "default" of ``MatMulNBitsQuantizer`` does the table of a Gather.

    Every number is rounded to the stored type. Symmetric, where m is the weight of largest size, the smallest
    one of equals: ``scale = m / -8``, ``code = rint(weight / scale)`` from -8 to 7, which 8 is added to here.
    Asymmetric: ``scale = (max - min) / 15``, where 0 counts as a weight, ``zero_point = rint(-min / scale)``
    and ``code = rint(weight / scale + zero_point)``. With a scale of 0, both are 8.

    Args:
        values: float32 or float16 like the scales, shape (rows, columns).
        encoding: One of ``ONNX_AFFINE["gather"]``.
    """
    kind = encoding.scale_type
    x = scratch_quads(values, encoding.block_size)
    low, high = block_min(x), block_max(x)
    if encoding.has_zero_point:
        low, high = np.minimum(low, 0), np.maximum(high, 0)
        span = np.abs(_rounded(high - low, kind))  # abs for the sign of a zero
        scale = _rounded(np.divide(span, np.float32(15)), kind)
        zero = np.clip(np.rint(_rounded(-low / scale, kind)), np.float32(0), np.float32(15))
        zero[scale == 0] = 8
    else:
        scale = _rounded(extreme(x, low, high) / np.float32(-8), kind)
        zero = np.full(scale.shape, np.float32(8))
    none = np.flatnonzero(scale == 0)
    x /= spread(scale)
    x = _rounded(x, kind)
    if encoding.has_zero_point:
        x += spread(zero)
        x = _rounded(x, kind)
        np.rint(x, out=x)
    else:
        np.rint(x, out=x)
        x += np.float32(8)
    np.clip(x, np.float32(0), np.float32(15), out=x)
    x[:, none] = 8
    zero_points = zero.astype(np.uint8) if encoding.has_zero_point else None
    return Blocks(encoding, x.astype(np.uint8), narrow(scale, kind), zero_points=zero_points)


def _rounded(x: FloatArray, kind: FloatEncoding) -> FloatArray:
    """Float32 numbers rounded to another float type, in float32."""
    return x if kind == F32 else widen(narrow(x, kind))


@np.errstate(all="ignore")
def qmoe(values: NDArray[Any], _importance: FloatArray | None = None, *, encoding: BlockEncoding) -> Blocks:
    """Quantizes an expert's matrix as the model builder of ONNX Runtime GenAI does for QMoE.

    With the weight m of largest size, the first one of equals, and ``middle = 2**(bits - 1)``, in float32: ::

        scale = m / -middle     but 2**-23 where it is closer to 0
        code  = rint(weight / scale) + middle

    The scale is rounded to float16 after that.

    Args:
        values: float32, float16 or bfloat16, shape (rows, columns).
        encoding: One of ``ONNX_AFFINE["qmoe"]``.
    """
    middle = np.float32(encoding.offset)
    x = scratch_quads(values, encoding.block_size)
    low, high = block_min(x), block_max(x)
    largest = np.where(high > -low, high, low)
    ties = np.flatnonzero(high == -low)
    if ties.size:
        largest[ties] = first_equal(x, ties, high[ties])
    scale = largest / -middle
    scale = np.where(np.abs(scale) < _EPSILON, _EPSILON, scale)
    x /= spread(scale)
    np.rint(x, out=x)
    x += middle
    np.clip(x, np.float32(0), np.float32(2) * middle - 1, out=x)
    return Blocks(encoding, x.astype(np.uint8), narrow(scale, encoding.scale_type))
