"""Scales of microscaling formats as the bytes that they are stored in: E8M0 and E4M3.

In memory they are float32, and half as large where the table of codes has doubled numbers.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from phiconv import ir

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["e4m3_bytes", "e4m3_halves", "exponents", "powers"]


def exponents(scales: NDArray[np.float32], *, doubled: bool) -> NDArray[np.uint8]:
    """E8M0 bytes of powers of two, ``2.0 ** (byte - 127)``, or half of that where the table is doubled.

    What is not finite becomes 255, which is no number.
    """
    exponent = np.frexp(scales)[1] + (126 + doubled)
    return np.where(np.isfinite(scales), exponent, 255).astype(np.uint8)


def powers(exponents: NDArray[np.uint8], *, doubled: bool) -> NDArray[np.float32]:
    """The inverse of `exponents`: 255 is no number, with either table."""
    numbers: NDArray[np.float32] = _powers(doubled)[exponents]
    return numbers


@cache
def _powers(doubled: bool) -> NDArray[np.float32]:
    numbers: NDArray[np.float32] = np.ldexp(np.float32(1), (np.arange(256) - (127 + doubled)).clip(max=127))
    numbers[255] = np.nan
    return numbers


def e4m3_halves() -> NDArray[np.float32]:
    """Half of the number of every E4M3 byte, for the doubled table."""
    return np.array([number / 2 for number in ir.MLX_MXFP8.table], np.float32)


def e4m3_bytes(scales: NDArray[np.float32]) -> NDArray[np.uint8]:
    """The bytes of halves of E4M3 numbers; 127, no number but in MLX, of what is not finite."""
    bytes_: NDArray[np.uint8] = _e4m3_by_top_bits()[scales.view(np.uint32) >> 20]
    return bytes_


@cache
def _e4m3_by_top_bits() -> NDArray[np.uint8]:
    """The bytes by the sign, the exponent and three bits of mantissa of their float32: they have no more."""
    bytes_ = np.full(1 << 12, 127, np.uint8)
    bytes_[e4m3_halves().view(np.uint32) >> 20] = np.arange(256)
    return bytes_
