"""The bytes of ggml's K-quants (``block_q*_K`` of ggml-common.h): packing to them, and the exact inverse.

As in `packing`, codes are handled as words of four. The word of four codes has their low two or four bits
beside those of the words 8, 16 or 24 further on; so a byte of the file has codes that lie 32 weights apart.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from phiconv import ir
from phiconv.errors import UnsupportedModelError, UsageError

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["pack", "unpack"]

_FLOAT = "<f2"
_LAYOUTS: dict[ir.SuperBlockEncoding, np.dtype[np.void]] = {
    ir.Q2_K: np.dtype([("scales", "u1", (16,)), ("qs", "<u4", (16,)), ("d", _FLOAT), ("dmin", _FLOAT)]),
    ir.Q3_K: np.dtype([("qh", "<u4", (8,)), ("qs", "<u4", (16,)), ("scales", "u1", (12,)), ("d", _FLOAT)]),
    ir.Q4_K: np.dtype([("d", _FLOAT), ("dmin", _FLOAT), ("scales", "u1", (12,)), ("qs", "<u4", (32,))]),
    ir.Q5_K: np.dtype(
        [("d", _FLOAT), ("dmin", _FLOAT), ("scales", "u1", (12,)), ("qh", "<u4", (8,)), ("qs", "<u4", (32,))]
    ),
    ir.Q6_K: np.dtype([("qs", "<u4", (32,)), ("qh", "<u4", (16,)), ("scales", "u1", (16,)), ("d", _FLOAT)]),
}


def pack(blocks: ir.Blocks) -> NDArray[np.uint8]:
    """The bytes of blocks of a `SuperBlockEncoding`, as ggml stores them: a vector."""
    encoding, sub_scales, sub_minima = blocks.encoding, blocks.sub_scales, blocks.sub_minima
    if not isinstance(encoding, ir.SuperBlockEncoding) or encoding not in _LAYOUTS or sub_scales is None:
        raise UsageError(f"GGUF has no tensor type for {encoding.name}")
    layout = _LAYOUTS[encoding]
    packed = np.empty(len(blocks), layout)
    packed["d"] = blocks.scales
    words = blocks.words()
    scales = sub_scales.view(np.uint8)
    if sub_minima is None:
        packed["scales"] = (scales if encoding == ir.Q6_K else _pack_signed_scales(scales)).T
    else:
        packed["dmin"] = blocks.minima
        packed["scales"] = (
            scales | sub_minima << 4
            if encoding == ir.Q2_K
            else _pack_scales(scales, sub_minima.view(np.uint8))
        ).T
    packed["qs"] = _pack_low(words, encoding).T
    if "qh" in (layout.names or ()):
        packed["qh"] = _pack_high(words, encoding).T
    return packed.view(np.uint8)


def unpack(data: bytes | memoryview | NDArray[np.uint8], encoding: ir.SuperBlockEncoding) -> ir.Blocks:
    """The inverse of `pack`, in memory of its own.

    Args:
        data: A whole number of blocks.
        encoding: What they are.
    """
    layout = _LAYOUTS.get(encoding)
    if layout is None:
        raise UnsupportedModelError(f"phiconv cannot decode tensors of type {encoding.name}")
    packed = np.frombuffer(data, layout)
    words = np.empty((encoding.block_size // 4, packed.size), np.uint32)
    _unpack_low(np.ascontiguousarray(packed["qs"].T), words, encoding)
    if "qh" in (layout.names or ()):
        _unpack_high(np.ascontiguousarray(packed["qh"].T), words, encoding)
    codes = words.astype("<u4", copy=False)[..., None].view(np.uint8)
    scales: NDArray[np.uint8] = np.ascontiguousarray(packed["scales"].T)
    minima = np.ascontiguousarray(packed["dmin"]) if encoding.has_minimum else None
    sub_minima: NDArray[np.uint8] | None = None
    if encoding == ir.Q2_K:
        scales, sub_minima = scales & np.uint8(15), scales >> np.uint8(4)
    elif encoding.has_minimum:
        scales, sub_minima = _unpack_scales(scales)
    elif encoding == ir.Q3_K:
        scales = _unpack_signed_scales(scales)
    signed = scales.view(np.int8) if encoding.offset else scales
    return ir.Blocks(encoding, codes, np.ascontiguousarray(packed["d"]), minima, signed, sub_minima)


# ------------------------------------------------------------------------------------------------- codes


def _low(encoding: ir.SuperBlockEncoding) -> tuple[int, tuple[int, ...]]:
    """How many low bits of a code are in ``qs``, and how words (64,) are cut up to find those of a word.

    The last axis counts the words beside each other, the one before it those at rising bits of one word.
    """
    return (2, (2, 4, 8)) if encoding.bits < 4 else (4, (2, 2, 16) if encoding == ir.Q6_K else (4, 2, 8))


def _pack_low(words: NDArray[np.uint32], encoding: ir.SuperBlockEncoding) -> NDArray[np.uint32]:
    bits, shape = _low(encoding)
    return _gather(words.reshape(*shape, -1), bits, 0, bits).reshape(shape[0] * shape[2], -1)


def _unpack_low(
    packed: NDArray[np.uint32], words: NDArray[np.uint32], encoding: ir.SuperBlockEncoding
) -> None:
    bits, shape = _low(encoding)
    parts = packed.reshape(shape[0], shape[2], -1)
    by_position = words.reshape(*shape, -1)
    for i in range(shape[1]):
        np.right_shift(parts, bits * i, out=by_position[:, i])
    words &= _every_byte((1 << bits) - 1)


def _high(encoding: ir.SuperBlockEncoding) -> tuple[int, int, tuple[int, ...]]:
    """How many low bits are not in ``qh``, how many are there, and the words as in `_low`."""
    return (4, 2, (2, 4, 8)) if encoding == ir.Q6_K else (encoding.bits - 1, 1, (1, 8, 8))


def _pack_high(words: NDArray[np.uint32], encoding: ir.SuperBlockEncoding) -> NDArray[np.uint32]:
    below, bits, shape = _high(encoding)
    return _gather(words.reshape(*shape, -1), bits, below, bits).reshape(shape[0] * shape[2], -1)


def _unpack_high(
    packed: NDArray[np.uint32], words: NDArray[np.uint32], encoding: ir.SuperBlockEncoding
) -> None:
    below, bits, shape = _high(encoding)
    parts = packed.reshape(shape[0], shape[2], -1)
    by_position = words.reshape(*shape, -1)
    for i in range(shape[1]):
        high = parts >> (bits * i)
        high &= _every_byte((1 << bits) - 1)
        high <<= below
        by_position[:, i] |= high


def _gather(words: NDArray[np.uint32], bits: int, below: int, apart: int) -> NDArray[np.uint32]:
    """Bits ``below`` and up of the words along axis 1, side by side, ``apart`` bits apart."""
    result = np.zeros_like(words[:, 0])
    for i in range(words.shape[1]):
        part = words[:, i] >> below
        part &= _every_byte((1 << bits) - 1)
        part <<= apart * i
        result |= part
    return result


def _every_byte(mask: int) -> np.uint32:
    return np.uint32(mask * 0x01010101)


# ------------------------------------------------------------------------------------------------ scales


def _pack_scales(scales: NDArray[np.uint8], minima: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Six bits of 8 scales and 8 minima as (12, n).

    Bytes 0 to 3 have scales 0 to 3, bytes 4 to 7 minima 0 to 3, with the high two bits of those 4 further
    above them; bytes 8 to 11 have the low four bits of scales 4 to 7 and, above, of minima 4 to 7.
    """
    return np.concatenate(
        [
            scales[:4] | scales[4:] >> 4 << 6,
            minima[:4] | minima[4:] >> 4 << 6,
            scales[4:] & np.uint8(15) | minima[4:] << 4,
        ]
    )


def _unpack_scales(packed: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    scales, minima, low = packed.reshape(3, 4, -1)
    return (
        np.concatenate([scales & np.uint8(63), low & np.uint8(15) | scales >> 6 << 4]),
        np.concatenate([minima & np.uint8(63), low >> 4 | minima >> 6 << 4]),
    )


def _pack_signed_scales(scales: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Six bits of 16 scales, 32 added, as (12, n).

    Bytes 0 to 7 have the low four bits of scales 0 to 7 and, above, of scales 8 to 15; bytes 8 to 11 the
    high two bits of scales j, j + 4, j + 8 and j + 12.
    """
    shifted = scales + np.uint8(32)
    low = shifted[:8] & np.uint8(15) | shifted[8:] << 4
    high = shifted.reshape(4, 4, -1) >> 4
    return np.concatenate([low, high[0] | high[1] << 2 | high[2] << 4 | high[3] << 6])


def _unpack_signed_scales(packed: NDArray[np.uint8]) -> NDArray[np.uint8]:
    low, high = packed[:8], packed[8:]
    shifted = np.concatenate([low & np.uint8(15), low >> 4])
    shifted |= np.concatenate([(high >> (2 * i) & np.uint8(3)) << 4 for i in range(4)])
    return shifted - np.uint8(32)
