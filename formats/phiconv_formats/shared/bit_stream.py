"""Codes of a few bits as one stream of bits, each from its lowest bit on; and back.

So MLX stores codes, and so does ONNX, whose first of two codes is in the lower half of a byte.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Words: TypeAlias = NDArray[np.uint32]
    Bytes: TypeAlias = NDArray[np.uint8]

__all__ = ["pack_codes", "pack_halves", "unpack_codes", "unpack_halves"]

_CHUNK = 1 << 13
"""Eights of codes at a time, so that what lies between two operations stays in a core's own caches."""


def pack_codes(words: Words, bits: int) -> Bytes:
    """The stream of bits of all blocks, one after the other; of words of four codes, (block_size / 4, n)."""
    eights = words.T.copy().reshape(-1).view("<u8")  # not the memory of the blocks, not even of one
    for start in range(0, eights.size, _CHUNK):
        part = eights[start : start + _CHUNK]
        upper = np.empty_like(part)
        for kept, gap in _steps(bits):
            np.bitwise_and(part, kept << gap, out=upper)
            part ^= upper
            upper >>= gap
            part |= upper
    width, used = _lane(bits)
    lanes = eights.view(np.uint8).reshape(-1, width)
    packed = np.empty((len(lanes), used), np.uint8)
    for k in range(used):  # several times as fast as all at once: NumPy is slow over a short axis
        packed[:, k] = lanes[:, k]
    return packed.reshape(-1)


def unpack_codes(packed: Bytes, bits: int, block_size: int) -> Words:
    """The inverse of `pack_codes`."""
    width, used = _lane(bits)
    lanes = np.zeros((packed.size // used, width), np.uint8)
    for k in range(used):
        lanes[:, k] = packed[k::used]
    eights = lanes.reshape(-1).view("<u8")
    for start in range(0, eights.size, _CHUNK):
        part = eights[start : start + _CHUNK]
        upper = np.empty_like(part)
        for kept, gap in reversed(_steps(bits)):
            np.bitwise_and(part, kept, out=upper)
            part ^= upper
            upper <<= gap
            part |= upper
    return np.ascontiguousarray(eights.view("<u4").reshape(-1, block_size // 4).T)


def pack_halves(numbers: Bytes | NDArray[np.int8]) -> Bytes:
    """Numbers of 4 bits, two to a byte along the last axis; 0 beside the last one of an odd number.

    Args:
        numbers: From 0 to 15, shape (..., k).

    Returns:
        Shape (..., k / 2, rounded up).
    """
    if numbers.shape[-1] % 2:
        numbers = np.concatenate([numbers, np.zeros_like(numbers[..., :1])], axis=-1)
    pairs = np.ascontiguousarray(numbers).view("<u2")
    packed: Bytes = (pairs | pairs >> 4).astype(np.uint8)
    return packed


def unpack_halves(packed: Bytes) -> Bytes:
    """The inverse of `pack_halves`, with an even number along the last axis: (..., k) to (..., 2 * k)."""
    numbers = np.empty((*packed.shape[:-1], 2 * packed.shape[-1]), np.uint8)
    np.bitwise_and(packed, 15, out=numbers[..., ::2])
    np.right_shift(packed, 4, out=numbers[..., 1::2])
    return numbers


def _lane(bits: int) -> tuple[int, int]:
    """The fewest codes that fill whole bytes, and how many they fill."""
    common = math.gcd(bits, 8)
    return 8 // common, bits // common


def _steps(bits: int) -> list[tuple[int, int]]:
    """How codes of one byte each get next to each other: at first in pairs, then in fours, then in eights.

    Returns:
        For each step a mask of where the upper ones of two are afterwards, and how far down they move.
    """
    steps = []
    for codes in (1, 2, 4)[: _lane(bits)[0].bit_length() - 1]:
        width, field = 8 * codes, bits * codes
        upper = ((1 << field) - 1) << field
        steps.append((sum(upper << at for at in range(0, 64, 2 * width)), width - field))
    return steps
