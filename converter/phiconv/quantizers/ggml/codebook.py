"""llama.cpp's quantizers to a small table of values where the scale alone decides: ternary and 4-bit floats.

The formulas are those of ``quantize_row_*_ref`` in ggml-quants.c, in float32 and in its order of operations,
so that codes and scales are the very ones of the released x86-64 builds. Where C leaves a conversion
undefined (weights below 2**-125 in MXFP4), they are what those builds do.

A weight that is not finite, or a scale beyond its type, gives a scale that is not finite, and no warning.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from phiconv.ir import F16, MXFP4, NVFP4, TQ1_0, TQ2_0, Blocks, CodebookEncoding
from phiconv.quantizers.numerics.floats import narrow
from phiconv.quantizers.numerics.scratch import scratch
from phiconv.quantizers.numerics.small_floats import e2m1_codes, take_signs
from phiconv.quantizers.numerics.tiles import block_max, block_min, scratch_quads, spread

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from phiconv.ir import FloatArray

__all__ = ["mxfp4", "nvfp4", "tq1_0", "tq2_0"]


# -------------------------------------------------------------------------------------------------- ternary


def tq1_0(values: NDArray[Any], _importance: FloatArray | None = None) -> Blocks:
    """Quantizes to -1, 0 and 1, see `_ternary`."""
    return _ternary(values, TQ1_0)


def tq2_0(values: NDArray[Any], _importance: FloatArray | None = None) -> Blocks:
    """Quantizes to -1, 0 and 1, see `_ternary`."""
    return _ternary(values, TQ2_0)


@np.errstate(all="ignore")
def _ternary(values: NDArray[Any], encoding: CodebookEncoding) -> Blocks:
    """``scale = max |x|``; what is at least half of it in magnitude becomes plus or minus 1."""
    x = scratch_quads(values, encoding.block_size)
    scale = _largest(x)
    inverse = np.divide(1, scale, dtype=np.float32)
    inverse[~np.isfinite(inverse)] = 0
    x *= spread(inverse)
    codes = np.greater_equal(x, np.float32(0.5)).view(np.uint8)
    codes += np.greater(x, np.float32(-0.5), out=scratch("above", x.shape, np.bool_)).view(np.uint8)
    return Blocks(encoding, codes, narrow(scale, F16))


# --------------------------------------------------------------------------------------------- 4-bit floats

_BETWEEN = np.array([0.5, 1.5, 2.5, 3.5, 5, 7, 10], np.float32)
"""Halfway between two values of doubled E2M1. What lies there goes to the one that is nearer to 0."""


@np.errstate(all="ignore")
def mxfp4(values: NDArray[Any], _importance: FloatArray | None = None) -> Blocks:
    """Quantizes to E2M1 with a power of two as scale: that of the largest weight of the block, times 1 / 8.

    The largest weight is then 8 to 16 scales, where the largest value is 12.
    """
    x = scratch_quads(values, MXFP4.block_size)
    largest = _largest(x)
    exponent = _floor_log2(largest) + (127 - 2)
    small = np.flatnonzero((exponent == 0) & (largest > 0))
    exponent[largest == 0] = 0
    exponent &= 255  # as x86 cuts off a negative number
    bits = np.where(exponent > 1, (exponent - 1) << 23, 0x00200000 << (exponent & 1)).astype(np.uint32)
    scale = bits.view(np.float32)
    # 1 / scale is exact; of the smallest scale it is twice what float32 has, and so is x then.
    inverse = np.divide(1, scale, dtype=np.float32)
    if small.size:
        x[:, small] *= 2
        inverse[small] = 2.0**127
    x *= spread(inverse)
    codes = e2m1_codes(x, take_signs(x), _BETWEEN)
    return Blocks(MXFP4, codes, np.where(np.isfinite(largest), scale, largest))


@np.errstate(all="ignore")
def nvfp4(values: NDArray[Any], _importance: FloatArray | None = None) -> Blocks:
    """Quantizes to E2M1 with an unsigned E4M3 number as scale: ``max |x| / 6``, rounded."""
    x = scratch_quads(values, NVFP4.block_size)
    largest = _largest(x)
    scale = _round_to_e4m3(largest / np.float32(6)) * np.float32(0.5)
    huge = np.flatnonzero(largest > _HUGE)
    exact = _by_error(x[:, huge], scale[huge])
    codes = e2m1_codes(x, take_signs(x), [spread(threshold * scale) for threshold in _BETWEEN])
    codes[:, scale == 0] = 0
    codes[:, huge] = exact
    return Blocks(NVFP4, codes, np.where(np.isfinite(largest), scale, largest))


_HUGE = np.float32(2.0**20)
"""Of a weight from 2**23 times the scale on, C's float32 errors for different codes are equal."""


def _by_error(x: FloatArray, scale: FloatArray) -> NDArray[np.uint8]:
    """Codes as C finds them: the first one of those with the least error."""
    values = np.array(NVFP4.table, np.float32)
    errors = np.abs(values * scale[:, None, None] - x[..., None])
    return np.asarray(errors.argmin(axis=-1), np.uint8)


def _floor_log2(x: FloatArray) -> NDArray[np.int32]:
    """``floorf(log2f(x))`` for positive x: also where the logarithm is rounded up to a whole number."""
    mantissa, exponent = np.frexp(x)
    result: NDArray[np.int32] = exponent - 1
    # Only a mantissa next to 1 can be rounded up: log2(1 - d) is -1.44 d, against half a unit of 150 at most.
    near = np.flatnonzero(mantissa > 1 - 2.0**-16)
    if near.size:
        result[near] = np.floor(np.log2(x[near].astype(np.float64)).astype(np.float32)).astype(np.int32)
    return result


@cache
def _e4m3_steps() -> tuple[FloatArray, FloatArray]:
    """The unsigned E4M3 numbers that ggml rounds to, in order, and from where on each but the first is taken.

    From 248 on all is 448: ggml passes over 256 to 416. And just below 2**-6 it does not round up.
    """
    byte = np.arange(0x78)
    numbers = np.ldexp((byte & 7) + 8 * (byte > 7), np.maximum(byte >> 3, 1) - 10)
    steps = (numbers[1:] + numbers[:-1]) / 2
    steps[7] = 2.0**-6
    first = np.nextafter(np.float32(steps[0]), np.float32(0))  # its sum with a half is rounded up in C
    steps[0] = first
    return np.append(numbers, 448).astype(np.float32), np.append(steps, 248).astype(np.float32)


def _round_to_e4m3(x: FloatArray) -> FloatArray:
    numbers, steps = _e4m3_steps()
    result: FloatArray = numbers[np.searchsorted(steps, x, side="right")]
    return result


# ---------------------------------------------------------------------------------------------------- tiles


def _largest(x: FloatArray) -> FloatArray:
    """The largest magnitude of every block, (n,)."""
    result: FloatArray = np.abs(np.maximum(block_max(x), -block_min(x)))
    return result
