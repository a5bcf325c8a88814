"""Sine and cosine in float32 whose bits are the same on every machine.

NumPy's depend on the processor and on NumPy's version, in float32 often and in float64 in the last bit; those
of C libraries differ, too. Here are only additions, multiplications and roundings of float64, which IEEE 754
defines to the bit, and at the end one rounding to float32.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from phiconv.ir.tensors import FloatArray

__all__ = ["cosine", "sine"]

_QUARTER = tuple(map(float.fromhex, ("0x1.921fb5p+0", "0x1.110b46p-26", "0x1.1a62633145c07p-54")))
"""A quarter turn, pi / 2, in three parts. The first two have 26 bits: products with up to 2**27 are exact."""

_LARGEST = 2.0**27

_TAYLOR = [(-1) ** k / math.factorial(2 * k + 1) for k in range(11)]
"""Of ``sin(x) / x``, in the square of x. Up to a quarter turn what is left out is below 2**-59."""


def sine(angles: FloatArray) -> FloatArray:
    """The sine of float32 angles in radians, computed in float64 and rounded to float32."""
    return _sine_of_rest(angles, 0)


def cosine(angles: FloatArray) -> FloatArray:
    """The cosine of float32 angles in radians, computed in float64 and rounded to float32."""
    return _sine_of_rest(angles, 1)


def _sine_of_rest(angles: FloatArray, more: int) -> FloatArray:
    """``sin(x + more * pi / 2)``, by what is left of it when it is taken to the nearest half turn."""
    x = angles.astype(np.float64)
    if x.size and np.abs(x).max() > _LARGEST:  # float32 numbers lie whole turns apart there: any rest will do
        x = np.fmod(x, 2 * math.pi)
    halves = np.rint(x * (1 / math.pi) + more / 2)
    quarters = 2 * halves - more
    for part in _QUARTER:
        x -= quarters * part
    square = x * x
    result = np.full_like(x, _TAYLOR[-1])
    for coefficient in _TAYLOR[-2::-1]:
        result *= square
        result += coefficient
    result *= x
    halves *= 0.5
    result *= 1 - 4 * (halves - np.floor(halves))  # the other sign behind an odd number of half turns
    return result.astype(np.float32)
