"""Codes of floats of 4 and 8 bits, E2M1 and E4M3 (OCP Microscaling Formats, version 1.0)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from phiconv.quantizers.numerics.scratch import scratch

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from phiconv.ir import FloatArray

__all__ = ["BETWEEN_E2M1_EVEN", "LARGEST_E2M1", "LARGEST_E4M3", "e2m1_codes", "e4m3_codes", "take_signs"]

LARGEST_E2M1 = np.float32(6)
LARGEST_E4M3 = np.float32(448)

BETWEEN_E2M1_EVEN = np.array([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5], np.float32)
"""Thresholds between magnitudes 0, 0.5, 1, 1.5, 2, 3, 4 and 6; what lies halfway goes to the even code."""
BETWEEN_E2M1_EVEN[1::2] = np.nextafter(BETWEEN_E2M1_EVEN[1::2], np.float32(0))

_SMALLEST_E4M3 = np.uint32((127 - 6) << 23)
"""The bits of 2**-6, the smallest normal E4M3."""

_INFINITY = np.uint32(255 << 23)
"""The bits of infinity; larger ones are NaN."""

_LARGEST_E4M3_CODE = np.uint8(0x7E)

_CHUNK = 1 << 16
"""Weights at a time, so that what lies between two NumPy operations stays in a core's own caches."""


def take_signs(x: FloatArray) -> NDArray[np.uint8]:
    """Makes weights magnitudes.

    Returns:
        1 where one was negative, or 0, in memory that the next call overwrites.
    """
    negative: NDArray[np.uint8] = scratch("negative", x.shape, np.uint8)
    np.less(x, np.float32(0), out=negative.view(np.bool_))
    np.abs(x, out=x)
    return negative


def e2m1_codes(x: FloatArray, negative: NDArray[np.uint8], between: Any) -> NDArray[np.uint8]:
    """E2M1 codes of weights by the thresholds between magnitudes; a weight on one belongs below it.

    Args:
        x: Magnitudes, shape (block_size / 4, n, 4).
        negative: 1 where the weight is negative, or 0; overwritten.
        between: The seven thresholds: numbers, or arrays of shape (n, 4).

    Returns:
        Codes of the same shape; that of a negative zero is 0.
    """
    above = scratch("above", x.shape, np.bool_)
    codes: NDArray[np.uint8] = np.greater(x, between[0]).view(np.uint8)
    # A negative code is 8 more, but where the magnitude is 0.
    negative &= codes
    for threshold in between[1:]:
        codes += np.greater(x, threshold, out=above).view(np.uint8)
    words = negative.view(np.uint32)
    words <<= 3
    codes |= negative
    return codes


def e4m3_codes(x: FloatArray) -> NDArray[np.uint8]:
    """The nearest E4M3 numbers of magnitudes up to 900; halves to the even code, too large becomes 448.

    Args:
        x: C-contiguous, any shape.

    Returns:
        Codes of the same shape; those of negative weights have the highest bit, that of -0 as well.
    """
    codes = np.empty(x.shape, np.uint8)
    weights, target = x.reshape(-1), codes.reshape(-1)
    for start in range(0, x.size, _CHUNK):
        _round_to_e4m3(weights[start : start + _CHUNK], target[start : start + _CHUNK])
    return codes


def _round_to_e4m3(x: FloatArray, target: NDArray[np.uint8]) -> None:
    """Rounds a vector by one float32 addition, as `floats` does to float16.

    The spacing of E4M3 numbers at ``|x|`` is ``2**(e - 3)``, where ``e`` is the exponent of ``x`` but at
    least -6: that of float32 numbers at ``power = 2**(e + 20)``. The low bits of their sum count the
    spacings: 8 to 16 of them, fewer for a subnormal. With ``e + 6`` added as the exponent above three bits of
    mantissa that is the code: the leading 8 of a normal number is the carry into its exponent. It all happens
    in the lowest byte of a word, where what stands above it does not matter.
    """
    magnitude, exponent, power = scratch("e4m3", (3, x.size), np.uint32)
    total = np.abs(x, out=magnitude.view(np.float32))
    np.bitwise_and(magnitude, 0x7F800000, out=exponent)
    np.clip(exponent, _SMALLEST_E4M3, _INFINITY, out=exponent)
    np.add(exponent, 20 << 23, out=power)
    total += power.view(np.float32)
    exponent >>= 20
    magnitude += exponent
    magnitude -= (127 - 6) << 3
    np.copyto(target, magnitude, casting="unsafe")
    np.clip(target, np.uint8(0), _LARGEST_E4M3_CODE, out=target)
    sign = np.right_shift(x.view(np.uint32), 24, out=power).astype(np.uint8)
    sign &= 0x80
    target |= sign
