"""llm-compressor's data-free quantizers: integers, FP8, NVFP4, MXFP4 and MXFP8.

The formulas are those of compressed-tensors 0.19 (``calculate_qparams``, ``quantize``) with its min-max
observer. On a processor the peer computes in the type of the weights and rounds to it after every operation;
R(x) is that rounding. Scales and zero points are always the peer's. The quotient of a weight and its scale is
float32 here, as in the peer's kernel for a GPU, unless an encoding asks for the runtime's way: that quotient
is rounded, too, which puts up to one code in twenty of 8 bits one off.

A weight that is not finite, or a scale beyond its type, gives a scale that is not finite, and no warning.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from phiconv.ir import BF16, F16, F32, MLX_MXFP8, Blocks
from phiconv.ir.server import CT_NVFP4, FP8_BLOCK, is_runtime
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

    from phiconv.ir import BlockEncoding, CodebookEncoding, FloatArray, FloatEncoding

__all__ = ["asymmetric", "fp8_block", "fp8_channel", "global_scale", "mxfp4", "mxfp8", "nvfp4", "symmetric"]

_KINDS = {kind.dtype: kind for kind in (BF16, F16, F32)}

_EPSILON = {BF16: np.float32(2.0**-7), F16: np.float32(2.0**-10), F32: np.float32(2.0**-23)}
"""What a scale of 0 becomes: the distance from 1 to the next number of its type."""

_LEAST_E4M3_SCALE = np.float32(0.125)
"""What an E4M3 scale of 0 becomes."""

_E4M3 = np.array(MLX_MXFP8.table, np.float32)


@np.errstate(all="ignore")
def symmetric(
    values: NDArray[Any], _importance: FloatArray | None = None, *, encoding: BlockEncoding
) -> Blocks:
    """Quantizes around 0, such that the weight of largest size lies half a code beyond the last one.

    With ``m = 2**(bits - 1)``::

        scale = R(max |x| / (m - 0.5))
        code  = rint(x / scale), within -m and m - 1

    Args:
        values: float32, float16 or bfloat16, shape (rows, columns); so for all quantizers here.
        encoding: One of `phiconv.ir.server.compressed_int`; so for the next one.
    """
    kind, middle = encoding.scale_type, np.float32(1 << (encoding.bits - 1))
    x = scratch_quads(values, encoding.block_size)
    scale = _not_zero(_rounded(_largest(x) / (middle - np.float32(0.5)), kind), kind)
    x = _quotient(x, spread(scale), kind, runtime=is_runtime(encoding))
    np.clip(x, -middle, middle - 1, out=x)
    np.rint(x, out=x)
    if encoding.offset:
        x += middle
        return Blocks(encoding, x.astype(np.uint8), narrow(scale, kind))
    return Blocks(encoding, x.astype(np.int8), narrow(scale, kind))


@np.errstate(all="ignore")
def asymmetric(
    values: NDArray[Any], _importance: FloatArray | None = None, *, encoding: BlockEncoding
) -> Blocks:
    """Quantizes with a zero point; the range always holds 0, which is thus represented exactly.

    With ``m = 2**(bits - 1)``, ``low = min(0, min x)`` and ``high = max(0, max x)``::

        scale      = R(R(high - low) / (2 m - 1))
        zero_point = rint(R(-m - R(low / scale))), within -m and m - 1
        code       = rint(x / scale + zero_point), within -m and m - 1

    Both are stored with m added.
    """
    kind, middle = encoding.scale_type, np.float32(1 << (encoding.bits - 1))
    runtime = is_runtime(encoding)
    x = scratch_quads(values, encoding.block_size)
    zero = np.float32(0)
    low, high = np.minimum(block_min(x), zero), np.maximum(block_max(x), zero)
    scale = _rounded(_rounded(high - low, kind) / (2 * middle - 1), kind)
    zero_point = _rounded(-middle - _rounded(low / scale, kind), kind)
    zero_point = np.rint(np.clip(zero_point, -middle, middle - 1))
    zero_point = np.where(np.isnan(zero_point), zero, zero_point)  # of a scale of 0
    scale = _not_zero(scale, kind)
    x = _quotient(x, spread(scale), kind, runtime=runtime)
    x += spread(zero_point)
    if runtime:
        x = _rounded(x, kind)
    np.clip(x, -middle, middle - 1, out=x)
    np.rint(x, out=x)
    x += middle
    zero_points = (zero_point + middle).astype(np.uint8)
    return Blocks(encoding, x.astype(np.uint8), narrow(scale, kind), zero_points=zero_points)


# ------------------------------------------------------------------------------------------------------- FP8


@np.errstate(all="ignore")
def fp8_channel(
    values: NDArray[Any], _importance: FloatArray | None = None, *, encoding: CodebookEncoding
) -> Blocks:
    """Quantizes rows to E4M3: ``scale = R(max |x| / 448)``, code the number nearest to ``x / scale``.

    Args:
        values: See `symmetric`.
        encoding: One of `phiconv.ir.server.compressed_fp8`; so for the next one.
    """
    x = scratch_quads(values, encoding.block_size)
    return _fp8(x, _largest(x), encoding)


@np.errstate(all="ignore")
def fp8_block(
    values: NDArray[Any], _importance: FloatArray | None = None, *, encoding: CodebookEncoding
) -> Blocks:
    """Quantizes squares of 128 rows and columns, the last ones smaller, as `fp8_channel` does rows.

    Args:
        values: The first row is the first of a square.
        encoding: Its blocks are as wide as a square, or a part of that which divides the row.
    """
    size, rows = encoding.block_size, len(values)
    x = scratch_quads(values, size)
    largest = _largest(x).reshape(rows, -1)
    wide, blocks = FP8_BLOCK // size, largest.shape[1]
    squares = np.maximum.reduceat(largest, np.arange(0, rows, FP8_BLOCK), axis=0)
    squares = np.maximum.reduceat(squares, np.arange(0, blocks, wide), axis=1)
    shared = squares.repeat(FP8_BLOCK, axis=0)[:rows].repeat(wide, axis=1)[:, :blocks]
    return _fp8(x, shared.reshape(-1), encoding)


def _fp8(x: FloatArray, largest: FloatArray, encoding: CodebookEncoding) -> Blocks:
    kind = _KINDS[encoding.scale_dtype]
    scale = _not_zero(_rounded(largest / LARGEST_E4M3, kind), kind)
    x = _quotient(x, spread(scale), kind, runtime=is_runtime(encoding))
    np.clip(x, -LARGEST_E4M3, LARGEST_E4M3, out=x)
    return Blocks(encoding, e4m3_codes(x), narrow(scale, kind))


# -------------------------------------------------------------------------------------------- microscaling


def global_scale(largest: float, dtype: np.dtype[Any]) -> float:
    """NVFP4's scale of a whole tensor, ``R(R(1 / max |x|) * 2688)``; 1 where that is infinite.

    The scales of its blocks then use the range of E4M3: 2688 is 448 * 6.

    Args:
        largest: The size of its largest weight, or of all tensors that a runtime joins with it.
        dtype: The type of the weights.
    """
    kind = _KINDS[dtype]
    with np.errstate(all="ignore"):
        bounded = np.array([largest], np.float32)
        inverse = _rounded(np.float32(1) / np.maximum(bounded, np.float32(2.0**-126)), kind)
        scale = float(_rounded(inverse * np.float32(2688), kind)[0])
    return scale if np.isfinite(scale) else 1.0


@np.errstate(all="ignore")
def nvfp4(
    values: NDArray[Any], _importance: FloatArray | None = None, *, encoding: CodebookEncoding
) -> Blocks:
    """Quantizes to E2M1 with an E4M3 number as scale of 16 weights, and G as that of the whole tensor.

    In float32, where e4m3 is the nearest such number up to 448::

        scale = e4m3(G * R(max |x| / 6)), but 0.125 for 0
        code  = the E2M1 number nearest to x / (scale / G)

    Args:
        values: See `symmetric`.
        encoding: `phiconv.ir.server.CT_NVFP4` with the tensor's own ``global_scale``.
    """
    whole = np.float32(encoding.global_scale)
    x = scratch_quads(values, encoding.block_size)
    largest = _largest(x)
    local = whole * _rounded(largest / LARGEST_E2M1, _KINDS[values.dtype])
    scale = _E4M3[e4m3_codes(np.clip(local, 0, LARGEST_E4M3))]
    scale = np.where(scale == 0, _LEAST_E4M3_SCALE, scale)
    x /= spread(scale / whole)
    # The table has doubled numbers: half the scale belongs to it.
    scales, wholes = _marked(scale * np.float32(0.5), largest), np.full(scale.shape, whole)
    return Blocks(CT_NVFP4, _e2m1(x), scales, global_scales=wholes)


@np.errstate(all="ignore")
def mxfp4(
    values: NDArray[Any], _importance: FloatArray | None = None, *, encoding: CodebookEncoding
) -> Blocks:
    """Quantizes to E2M1 with a power of two as scale of 32 weights, see `_exponents`.

    Args:
        values: See `symmetric`.
        encoding: `phiconv.ir.server.CT_MXFP4`.
    """
    x = scratch_quads(values, encoding.block_size)
    largest = _largest(x)
    exponents = _exponents(largest, 2)
    x = _rounded(np.ldexp(x, -spread(exponents), out=x), _KINDS[values.dtype])
    return Blocks(encoding, _e2m1(x), _marked(np.ldexp(np.float32(1), exponents - 1), largest))


@np.errstate(all="ignore")
def mxfp8(
    values: NDArray[Any], _importance: FloatArray | None = None, *, encoding: CodebookEncoding
) -> Blocks:
    """Quantizes to E4M3 with a power of two as scale of 32 weights, see `_exponents`.

    Args:
        values: See `symmetric`.
        encoding: `phiconv.ir.server.CT_MXFP8`.
    """
    x = scratch_quads(values, encoding.block_size)
    largest = _largest(x)
    exponents = _exponents(largest, 8)
    x = _rounded(np.ldexp(x, -spread(exponents), out=x), _KINDS[values.dtype])
    np.clip(x, -LARGEST_E4M3, LARGEST_E4M3, out=x)
    return Blocks(encoding, e4m3_codes(x), _marked(np.ldexp(np.float32(1), exponents), largest))


def _exponents(largest: FloatArray, offset: int) -> NDArray[np.int32]:
    """The exponent of ``max |x|``, from 1.75 times a power of two on that of the next one, less an offset.

    It is -127 at least: what the byte 0 stands for in E8M0.
    """
    bits = largest.view(np.int32) + np.int32(1 << 21)
    exponents: NDArray[np.int32] = np.maximum((bits >> 23) - (127 + offset), -127)
    return exponents


def _e2m1(x: FloatArray) -> NDArray[np.uint8]:
    """E2M1 codes; halfway to the even one. A weight below 0 has the sign also where it becomes 0."""
    negative = np.less(x, np.float32(0)).view(np.uint8)
    codes = e2m1_codes(np.abs(x, out=x), np.zeros(x.shape, np.uint8), BETWEEN_E2M1_EVEN)
    codes |= negative << 3
    return codes


# ------------------------------------------------------------------------------------------------ arithmetic


def _largest(x: FloatArray) -> FloatArray:
    """The size of the largest weight of every block."""
    result: FloatArray = np.abs(np.maximum(block_max(x), -block_min(x)))
    return result


def _rounded(x: NDArray[Any], kind: FloatEncoding) -> FloatArray:
    """R: float32 numbers rounded to another float type, in float32, in their own memory."""
    return x if kind == F32 else widen(narrow(x, kind), out=x)


def _quotient(x: FloatArray, scale: FloatArray, kind: FloatEncoding, *, runtime: bool) -> FloatArray:
    """``x / scale`` in the memory of x."""
    x /= scale
    return _rounded(x, kind) if runtime else x


def _not_zero(scale: FloatArray, kind: FloatEncoding) -> FloatArray:
    result: FloatArray = np.where(scale == 0, _EPSILON[kind], scale)
    return result


def _marked(scale: FloatArray, largest: FloatArray) -> FloatArray:
    """The scales, but infinity or NaN where a weight is."""
    return np.where(np.isfinite(largest), scale, largest)
