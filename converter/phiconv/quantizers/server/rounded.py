"""GPTQ's and AWQ's formats, rounded to nearest: data-free, as GPTQModel's ``RTNConfig``, and better.

The peer finds a scale in float32, rounds weights with it to the type that they had, and makes codes of these
once more; the scale becomes float16 only then. In the original GPTQ code a symmetric group without negative
weights keeps 0 as its lower end, which halves its scale and cuts off all weights beyond 7/15 of the largest.
And in AWQ's layout codes beyond 15 wrap around where float16 has too few bits for the scale.

Here the scale is rounded to float16 first, codes are made with what is stored, ends are symmetric, and no
code wraps around. The formats are the same; the peer's own bytes an encoding can ask for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from phiconv.ir import BF16, F16, F32, Blocks
from phiconv.ir.server import is_runtime
from phiconv.quantizers.numerics.floats import narrow, widen
from phiconv.quantizers.numerics.tiles import block_max, block_min, scratch_quads, spread

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from phiconv.ir import BlockEncoding, FloatArray, FloatEncoding

__all__ = ["awq", "gptq"]

_KINDS = {kind.dtype: kind for kind in (BF16, F16, F32)}


@np.errstate(all="ignore")
def gptq(values: NDArray[Any], _importance: FloatArray | None = None, *, encoding: BlockEncoding) -> Blocks:
    """Quantizes around the middle code, ``z = 2**(bits - 1)``.

    With ``n = 2**bits - 1``, where f16 is the rounding to float16::

        scale = f16(2 max |x| / n)
        code  = rint(x / scale) + z, within 0 and n

    Args:
        values: float32, float16 or bfloat16, shape (rows, columns); so for the next one.
        encoding: One of `phiconv.ir.hub_encodings.grouped_integers`; so for the next one.
    """
    last = np.float32((1 << encoding.bits) - 1)
    x = scratch_quads(values, encoding.block_size)
    low, high = _ends(x)
    largest = np.maximum(-low, high)
    runtime = is_runtime(encoding)
    low = np.where(low < 0, -largest, low) if runtime else -largest
    none = largest == 0
    low, high = np.where(none, np.float32(-1), low), np.where(none, np.float32(1), largest)
    zero = np.full(low.shape, (last + 1) / 2)
    codes, scale = _codes(x, low, high, zero, last, _KINDS[values.dtype], runtime=runtime)
    np.clip(codes, np.float32(0), last, out=codes)
    return Blocks(encoding, codes.astype(np.uint8), scale)


@np.errstate(all="ignore")
def awq(values: NDArray[Any], _importance: FloatArray | None = None, *, encoding: BlockEncoding) -> Blocks:
    """Quantizes with a zero point; the range always holds 0, which is thus represented exactly.

    With ``n = 2**bits - 1``, ``low = min(0, min x)`` and ``high = max(0, max x)``::

        scale      = f16((high - low) / n)
        zero_point = rint(-low / scale), within 0 and n
        code       = rint(x / scale) + zero_point, within 0 and n
    """
    last = np.float32((1 << encoding.bits) - 1)
    x = scratch_quads(values, encoding.block_size)
    low, high = _ends(x)
    none = (low == 0) & (high == 0)
    low, high = np.where(none, np.float32(-1), low), np.where(none, np.float32(1), high)
    runtime = is_runtime(encoding)
    scale = (high - low) / last
    zero = np.rint(-low / (scale if runtime else _widened(scale)))
    zero = np.clip(np.nan_to_num(zero, nan=0), np.float32(0), last)
    codes, stored = _codes(x, low, high, zero, last, _KINDS[values.dtype], runtime=runtime, again=True)
    if runtime:  # what does not fit wraps around; infinity is all bits 0 where C casts it
        wrapped = np.where(np.isfinite(codes), codes, 0).astype(np.int64) & int(last)
        return Blocks(encoding, wrapped.astype(np.uint8), stored, zero_points=zero.astype(np.uint8))
    np.clip(codes, np.float32(0), last, out=codes)
    return Blocks(encoding, codes.astype(np.uint8), stored, zero_points=zero.astype(np.uint8))


def _codes(
    x: FloatArray,
    low: FloatArray,
    high: FloatArray,
    zero: FloatArray,
    last: np.float32,
    kind: FloatEncoding,
    *,
    runtime: bool,
    again: bool = False,
) -> tuple[FloatArray, NDArray[Any]]:
    """Codes that have not been limited, in the memory of x, and scales.

    Args:
        x: The tile.
        low: The lower end of every block.
        high: The upper end.
        zero: Its zero point.
        last: The largest code.
        kind: The type of the weights.
        runtime: The peer's way.
        again: In the peer's second division the scale is the stored one.
    """
    scale = (high - low) / last
    stored = narrow(scale, F16)
    lanes, offset = spread(scale if runtime else widen(stored)), spread(zero)
    x /= lanes
    np.rint(x, out=x)
    if not runtime:
        np.nan_to_num(x, copy=False, nan=0)  # tiny weights whose scale float16 has no bits for
        x += offset
        return x, stored
    x += offset
    np.clip(x, np.float32(0), last, out=x)
    x -= offset
    x *= lanes
    x = widen(narrow(x, kind), out=x)
    x += offset * lanes
    x /= spread(widen(stored)) if again else lanes
    return np.rint(x, out=x), stored


def _ends(x: FloatArray) -> tuple[FloatArray, FloatArray]:
    """The lowest and the highest weight of every block, 0 among them."""
    zero = np.float32(0)
    return np.minimum(block_min(x), zero), np.maximum(block_max(x), zero)


def _widened(scale: FloatArray) -> FloatArray:
    return widen(narrow(scale, F16))
