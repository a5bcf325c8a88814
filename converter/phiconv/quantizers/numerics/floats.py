"""Exact conversions between the stored float types, several times as fast as ``astype`` where that is slow.

Every result has the bits that NumPy's ``astype`` gives (ml_dtypes' for bfloat16): round to nearest, ties to
even, subnormals kept, too large becomes infinity. llama.cpp rounds in the same way.

A 16-bit float has only 65536 values, so a conversion from it can be a look-up. But bfloat16 to float32 is a
shift of the bits, which ml_dtypes does at the speed of memory, and between float32 and float16 arithmetic is
quicker.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from phiconv.ir import BF16, F16, F32
from phiconv.quantizers.numerics.scratch import scratch

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from phiconv.ir import FloatArray, FloatEncoding

__all__ = ["narrow", "widen"]

_CHUNK = 1 << 16
"""Elements at a time, so that what lies between two NumPy operations stays in a core's own caches."""


def widen(values: NDArray[Any], out: FloatArray | None = None) -> FloatArray:
    """Converts to float32: `narrow` with that type."""
    return narrow(values, F32, out)


def narrow(values: NDArray[Any], encoding: FloatEncoding, out: NDArray[Any] | None = None) -> NDArray[Any]:
    """Converts an array to another float type.

    A float64 is rounded to float32 first, whatever the target, as by a converter that computes in float32.

    Args:
        values: float16, bfloat16, float32 or float64, any shape.
        encoding: The type to convert to.
        out: C-contiguous memory for the result; fresh if None.

    Returns:
        The same shape in the encoding's dtype: ``values`` itself, not a copy, if it has that type already and
        no ``out`` was given.
    """
    if out is None:
        if values.dtype == encoding.dtype:
            return values
        out = np.empty(values.shape, encoding.dtype)
    _convert(np.ascontiguousarray(values).reshape(-1), out.reshape(-1))
    return out


def _convert(source: NDArray[Any], target: NDArray[Any]) -> None:
    """Converts a contiguous vector into another one."""
    with np.errstate(over="ignore", invalid="ignore"):
        if source.dtype.itemsize == 8:
            source = source.astype(F32.dtype)
        pair = source.dtype, target.dtype
        if pair == (F32.dtype, F16.dtype):
            for start in range(0, source.size, _CHUNK):
                _round_to_float16(source[start : start + _CHUNK], target[start : start + _CHUNK])
        elif pair == (F16.dtype, F32.dtype):
            for start in range(0, source.size, _CHUNK):
                _widen_float16(source[start : start + _CHUNK], target[start : start + _CHUNK])
        elif source.dtype.itemsize == 2 and target.dtype.itemsize <= 4 and pair != (BF16.dtype, F32.dtype):
            _look_up(source, _table(*pair), target)
        else:
            np.copyto(target, source, casting="unsafe")


@cache
def _table(source: np.dtype[Any], target: np.dtype[Any]) -> NDArray[Any]:
    """Every value of a 16-bit float type in another type, by its bits."""
    return np.arange(1 << 16, dtype=np.uint16).view(source).astype(F32.dtype).astype(target)


def _look_up(source: NDArray[Any], table: NDArray[Any], target: NDArray[Any]) -> None:
    keys = source.view(np.uint16)
    for start in range(0, keys.size, _CHUNK):
        # No key is out of range; any mode but the default one writes into `out` without a copy.
        table.take(keys[start : start + _CHUNK], mode="clip", out=target[start : start + _CHUNK])


_REBIAS = np.float32(2.0**112)
"""What moves an exponent from float16's bias to float32's: ``127 - 15``."""

_SUBNORMAL = np.float32(2.0**-140)


def _widen_float16(x: NDArray[np.float16], target: FloatArray) -> None:
    """Widens a vector: its exponent and mantissa as a float32's, multiplied by `_REBIAS`.

    A subnormal becomes one first, and the product has its value. Infinity and NaN need a look-up, and so does
    everything where some library has told the processor to take subnormals for zeros.
    """
    magnitude = np.bitwise_and(x.view(np.uint16), 0x7FFF, out=scratch("magnitude", x.shape, np.uint16))
    if magnitude.max(initial=0) >= 0x7C00 or _SUBNORMAL * _REBIAS == 0:
        _look_up(x, _table(F16.dtype, F32.dtype), target)
        return
    bits = target.view(np.int32)
    np.copyto(bits, x.view(np.int16))  # with the sign in all upper bits, of which one is wanted
    np.left_shift(bits, 13, out=bits)
    np.bitwise_and(bits, np.int32(-0x70002000), out=bits)
    target *= _REBIAS


_SMALLEST = np.uint32(113 << 23)
"""The bits of 2**-14, the smallest normal float16."""

_TOO_LARGE = np.uint32(143 << 23)
"""The bits of 2**16, whose exponent is beyond float16; larger bits are larger numbers, infinity and NaN."""


def _round_to_float16(x: FloatArray, target: NDArray[np.float16]) -> None:
    """Rounds a vector of float32 by one float32 addition.

    The spacing of float16 numbers at ``|x|`` is ``2**(e - 10)``, where ``e`` is the exponent of ``x`` but
    at least -14. That is the spacing of float32 numbers at ``power = 2**(e + 13)``, so their sum is rounded
    just as float16 has to be, and its low bits count the spacings in ``|x|``: 1024 to 2048 of them, fewer
    for a subnormal. With ``e + 14`` added as the exponent above ten bits of mantissa that is the float16:
    the leading 1024 of a normal number is the carry into its exponent, and so is the 2048 of one rounded up.
    """
    bits = x.view(np.uint32)
    magnitude, power, sign = scratch("float16", (3, x.size), np.uint32)
    np.bitwise_and(bits, 0x7FFFFFFF, out=magnitude)
    if magnitude.max() >= _TOO_LARGE:
        np.copyto(target, x, casting="unsafe")
        return
    np.bitwise_and(bits, 0x7F800000, out=power)
    np.clip(power, _SMALLEST, _TOO_LARGE, out=power)
    # power's exponent field becomes e + 13 + 127, which is e + 12 in the six bits that a float16 has above
    # its mantissa. The 2 << 10 missing to e + 14 is in the sum from the start, far below its own exponent.
    power += (13 << 23) + 2048
    total = magnitude.view(np.float32)
    total += power.view(np.float32)
    power >>= 13
    magnitude += power
    np.right_shift(bits, 16, out=sign)
    sign &= 0x8000
    magnitude += sign
    np.copyto(target.view(np.uint16), magnitude, casting="unsafe")
