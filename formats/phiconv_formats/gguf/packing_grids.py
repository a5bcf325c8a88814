"""The bytes of ggml's IQ1, IQ2 and IQ3 blocks, which store a number of a grid for every 8 (or 4) codes."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from phiconv import ir
from phiconv.errors import UsageError
from phiconv.ir.codebooks import grid

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

__all__ = [
    "LAYOUTS",
    "PACKERS",
    "UNPACKERS",
    "Fields",
    "Structs",
    "Words",
    "pack_bits",
    "sub_scales",
    "unpack_bits",
]

Structs: TypeAlias = "NDArray[np.void]"
"""Blocks as they are stored."""

Words: TypeAlias = "NDArray[Any]"
"""Codes of blocks, four to a word: uint32 of shape (block_size / 4, n), as of `Blocks.words`."""

Fields: TypeAlias = "tuple[Words, NDArray[Any], NDArray[np.int8] | None]"
"""Words, scales and sub-scales of blocks."""

LAYOUTS: dict[ir.CodebookEncoding, np.dtype[np.void]] = {
    ir.IQ1_S: np.dtype([("d", "<f2"), ("low", "u1", (32,)), ("high", "<u2", (8,))]),
    ir.IQ1_M: np.dtype([("low", "u1", (32,)), ("high", "u1", (16,)), ("scales", "<u2", (4,))]),
    ir.IQ2_XXS: np.dtype([("d", "<f2"), ("qs", [("points", "u1", (4,)), ("signs", "<u4")], (8,))]),
    ir.IQ2_XS: np.dtype([("d", "<f2"), ("qs", "<u2", (32,)), ("scales", "u1", (8,))]),
    ir.IQ2_S: np.dtype(
        [
            ("d", "<f2"),
            ("low", "u1", (32,)),
            ("signs", "u1", (32,)),
            ("high", "u1", (8,)),
            ("scales", "u1", (8,)),
        ]
    ),
    ir.IQ3_XXS: np.dtype([("d", "<f2"), ("points", "u1", (64,)), ("signs", "<u4", (8,))]),
    ir.IQ3_S: np.dtype(
        [
            ("d", "<f2"),
            ("low", "u1", (64,)),
            ("high", "u1", (8,)),
            ("signs", "u1", (32,)),
            ("scales", "u1", (4,)),
        ]
    ),
}


# ---------------------------------------------------------------------------------- bits, scales and signs


def pack_bits(numbers: NDArray[Any], bits: int) -> NDArray[Any]:
    """Numbers (k, ...) of some bits each as one of k * bits, the first in the lowest bits."""
    packed = np.zeros(numbers.shape[1:], np.uint32)
    for k, number in enumerate(numbers):
        packed |= number.astype(np.uint32) << (k * bits)
    return packed


def unpack_bits(packed: NDArray[Any], bits: int, count: int) -> NDArray[Any]:
    """The inverse of `pack_bits`, which may leave out higher bits."""
    wide = packed.astype(np.uint32)
    return np.stack([(wide >> (k * bits)) & ((1 << bits) - 1) for k in range(count)])


def sub_scales(blocks: ir.Blocks) -> NDArray[np.integer[Any]]:
    """The sub-scales of blocks that have them."""
    if blocks.sub_scales is None:
        raise UsageError(f"{blocks.encoding.name} blocks without their sub-scales")
    return blocks.sub_scales


def _halved(blocks: ir.Blocks) -> NDArray[np.integer[Any]]:
    """Odd sub-scales 2 s + 1 as s."""
    return sub_scales(blocks) >> 1


def _odd(halved: NDArray[Any]) -> NDArray[np.int8]:
    return (2 * halved + 1).astype(np.int8)


def _fields(packed: NDArray[Any]) -> NDArray[Any]:
    """What `unpack_bits` gave of (n, m), shape (k, n, m), as rows in the order of the weights: (m k, n)."""
    return packed.transpose(2, 0, 1).reshape(-1, packed.shape[1])


def _columns(rows: NDArray[Any], per_field: int) -> NDArray[Any]:
    """The inverse of `_fields`: rows (m k, n) as (k, n, m)."""
    return rows.reshape(-1, per_field, rows.shape[-1]).transpose(1, 2, 0)


def _sign_bits(words: Words, bit: int) -> NDArray[Any]:
    """One bit of every code, eight to a number: (64, n) to (32, n)."""
    bits = (words >> bit) & 0x01010101
    # The product has the sum of bits 0, 8, 16 and 24 shifted by 28, 21, 14 and 7: they meet in bits 28 to 31.
    bits *= 0x10204080
    bits >>= 28
    return np.asarray(bits[0::2] | bits[1::2] << 4)


def _spread_signs(signs: NDArray[Any], bit: int) -> Words:
    """The inverse of `_sign_bits`."""
    words = np.empty((2 * len(signs), signs.shape[1]), np.uint32)
    words[0::2] = signs & 15
    words[1::2] = signs >> 4
    # Shifted by 0, 7, 14 and 21, bits 0 to 3 each come to stand at bit 0 of a byte.
    words *= 0x00204081
    words &= 0x01010101
    words <<= bit
    return words


def _with_parity(signs: NDArray[Any]) -> NDArray[Any]:
    """Seven signs and the eighth, which makes the number of negative ones even."""
    parity = signs ^ signs >> 4
    parity ^= parity >> 2
    parity ^= parity >> 1
    return np.asarray(signs | (parity & 1) << 7)


# --------------------------------------------------------------------------------------------------- points


def _keys(words: Words, bits: int) -> NDArray[Any]:
    """The codes of a word without their highest bit, which is bit ``bits``, side by side."""
    mask = (1 << bits) - 1
    return pack_bits(np.stack([(words >> (8 * j)) & mask for j in range(4)]), bits)


@cache
def _points(encoding: ir.CodebookEncoding) -> Words:
    """The words of every point of the grid: (1 or 2, points)."""
    return np.ascontiguousarray(np.ascontiguousarray(grid(encoding)).view("<u4").T)


@cache
def _numbers(encoding: ir.CodebookEncoding) -> NDArray[np.int16]:
    """The number of a point by its keys, side by side; -1 for what is no point."""
    words = _points(encoding)
    bits = 2 if len(words) == 2 else 3
    keys = pack_bits(_keys(words, bits), 4 * bits)
    numbers = np.full(1 << (4 * bits * len(words)), -1, np.int16)
    numbers[keys] = np.arange(len(keys))
    return numbers


def _pack_points(blocks: ir.Blocks, encoding: ir.CodebookEncoding) -> NDArray[Any]:
    """The numbers of the points: of 8 or of 4 codes each, (32 or 64, n)."""
    words = blocks.words()
    per_point = len(_points(encoding))
    bits = 2 if per_point == 2 else 3
    keys = _keys(words, bits).reshape(-1, per_point, words.shape[1])
    numbers = _numbers(encoding)[pack_bits(keys.transpose(1, 0, 2), 4 * bits)]
    if numbers.size and numbers.min() < 0:
        raise UsageError(f"codes that are no point of the grid of {encoding.name}")
    return np.asarray(numbers, np.uint32)


def _unpack_points(numbers: NDArray[Any], encoding: ir.CodebookEncoding) -> Words:
    """The inverse of `_pack_points`."""
    points = _points(encoding)
    words = np.empty((len(numbers), len(points), numbers.shape[1]), np.uint32)
    for k, words_k in enumerate(points):
        words[:, k] = words_k[numbers]
    return words.reshape(-1, numbers.shape[1])


# -------------------------------------------------------------------------------------------------- 2 bits


def _pack_iq2_xxs(blocks: ir.Blocks, structs: Structs) -> None:
    structs["d"] = blocks.scales
    points = _pack_points(blocks, ir.IQ2_XXS)
    structs["qs"]["points"] = points.reshape(8, 4, -1).transpose(2, 0, 1)
    structs["qs"]["signs"] = _pack_signs_and_scales(blocks, 2)


def _unpack_iq2_xxs(structs: Structs) -> Fields:
    points = structs["qs"]["points"].reshape(-1, 32).T.astype(np.uint32)
    signs, scales = _unpack_signs_and_scales(structs["qs"]["signs"])
    return _unpack_points(points, ir.IQ2_XXS) | _spread_signs(signs, 2), structs["d"], scales


def _pack_signs_and_scales(blocks: ir.Blocks, bit: int) -> NDArray[Any]:
    """Four times seven signs and a sub-scale in a word for every 32 weights: (n, 8)."""
    signs = _sign_bits(blocks.words(), bit) & 127
    return np.asarray(pack_bits(_columns(signs, 4), 7) | _halved(blocks).T.astype(np.uint32) << 28)


def _unpack_signs_and_scales(packed: NDArray[Any]) -> tuple[NDArray[Any], NDArray[np.int8]]:
    return _with_parity(_fields(unpack_bits(packed, 7, 4))), _odd((packed >> 28).T)


def _pack_iq2_xs(blocks: ir.Blocks, structs: Structs) -> None:
    structs["d"] = blocks.scales
    signs = _sign_bits(blocks.words(), 2) & 127
    structs["qs"] = (_pack_points(blocks, ir.IQ2_XS) | signs << 9).T
    structs["scales"] = pack_bits(_columns(_halved(blocks), 2), 4)


def _unpack_iq2_xs(structs: Structs) -> Fields:
    numbers = structs["qs"].T.astype(np.uint32)
    words = _unpack_points(numbers & 511, ir.IQ2_XS)
    words |= _spread_signs(_with_parity(numbers >> 9), 2)
    return words, structs["d"], _odd(_fields(unpack_bits(structs["scales"], 4, 2)))


def _pack_iq2_s(blocks: ir.Blocks, structs: Structs) -> None:
    structs["d"] = blocks.scales
    points = _pack_points(blocks, ir.IQ2_S)
    structs["low"] = (points & 255).T
    structs["high"] = pack_bits(_columns(points >> 8, 4), 2)
    structs["signs"] = _sign_bits(blocks.words(), 2).T
    structs["scales"] = pack_bits(_columns(_halved(blocks), 2), 4)


def _unpack_iq2_s(structs: Structs) -> Fields:
    points = structs["low"].T | _fields(unpack_bits(structs["high"], 2, 4)) << 8
    words = _unpack_points(points, ir.IQ2_S)
    words |= _spread_signs(structs["signs"].T.astype(np.uint32), 2)
    return words, structs["d"], _odd(_fields(unpack_bits(structs["scales"], 4, 2)))


# -------------------------------------------------------------------------------------------------- 3 bits


def _pack_iq3_xxs(blocks: ir.Blocks, structs: Structs) -> None:
    structs["d"] = blocks.scales
    structs["points"] = _pack_points(blocks, ir.IQ3_XXS).T
    structs["signs"] = _pack_signs_and_scales(blocks, 3)


def _unpack_iq3_xxs(structs: Structs) -> Fields:
    signs, scales = _unpack_signs_and_scales(structs["signs"])
    words = _unpack_points(structs["points"].T.astype(np.uint32), ir.IQ3_XXS)
    return words | _spread_signs(signs, 3), structs["d"], scales


def _pack_iq3_s(blocks: ir.Blocks, structs: Structs) -> None:
    structs["d"] = blocks.scales
    points = _pack_points(blocks, ir.IQ3_S)
    structs["low"] = (points & 255).T
    structs["high"] = pack_bits(_columns(points >> 8, 8), 1)
    structs["signs"] = _sign_bits(blocks.words(), 3).T
    structs["scales"] = pack_bits(_columns(_halved(blocks), 2), 4)


def _unpack_iq3_s(structs: Structs) -> Fields:
    points = structs["low"].T | _fields(unpack_bits(structs["high"], 1, 8)) << 8
    words = _unpack_points(points, ir.IQ3_S)
    words |= _spread_signs(structs["signs"].T.astype(np.uint32), 3)
    return words, structs["d"], _odd(_fields(unpack_bits(structs["scales"], 4, 2)))


# --------------------------------------------------------------------------------------------------- 1 bit


def _pack_iq1_s(blocks: ir.Blocks, structs: Structs) -> None:
    structs["d"] = blocks.scales
    points = _pack_points(blocks, ir.IQ1_S)
    structs["low"] = (points & 255).T
    shifted = (blocks.words()[::8] >> 2) & 1  # of the first code of 32
    high = pack_bits(_columns(points >> 8, 4), 3)
    high |= _halved(blocks).T.astype(np.uint32) << 12
    structs["high"] = high | shifted.T << 15


def _unpack_iq1_s(structs: Structs) -> Fields:
    high = structs["high"].astype(np.uint32)
    words = _unpack_points(structs["low"].T | _fields(unpack_bits(high, 3, 4)) << 8, ir.IQ1_S)
    words |= np.repeat((high >> 15).T * 0x04040404, 8, axis=0)
    return words, structs["d"], _odd(((high >> 12) & 7).T)


def _pack_iq1_m(blocks: ir.Blocks, structs: Structs) -> None:
    points = _pack_points(blocks, ir.IQ1_M)
    structs["low"] = (points & 255).T
    shifted = (blocks.words()[::2] >> 2) & 1  # of the first code of 8
    structs["high"] = pack_bits(_columns(points >> 8 | shifted << 3, 2), 4)
    scales = pack_bits(_columns(_halved(blocks), 4), 3)
    # The scale of the block is in the four bits that the sub-scales leave, the lowest bits first.
    structs["scales"] = scales | unpack_bits(blocks.scales.view(np.uint16), 4, 4).T << 12


def _unpack_iq1_m(structs: Structs) -> Fields:
    high = _fields(unpack_bits(structs["high"], 4, 2))
    words = _unpack_points(structs["low"].T | (high & 7) << 8, ir.IQ1_M)
    words |= np.repeat((high >> 3) * 0x04040404, 2, axis=0)
    scales = pack_bits((structs["scales"] >> 12).T, 4).astype(np.uint16).view(np.float16)
    return words, scales, _odd(_fields(unpack_bits(structs["scales"], 3, 4)))


PACKERS: dict[ir.CodebookEncoding, Callable[[ir.Blocks, Structs], None]] = {
    ir.IQ1_S: _pack_iq1_s,
    ir.IQ1_M: _pack_iq1_m,
    ir.IQ2_XXS: _pack_iq2_xxs,
    ir.IQ2_XS: _pack_iq2_xs,
    ir.IQ2_S: _pack_iq2_s,
    ir.IQ3_XXS: _pack_iq3_xxs,
    ir.IQ3_S: _pack_iq3_s,
}

UNPACKERS: dict[ir.CodebookEncoding, Callable[[Structs], Fields]] = {
    ir.IQ1_S: _unpack_iq1_s,
    ir.IQ1_M: _unpack_iq1_m,
    ir.IQ2_XXS: _unpack_iq2_xxs,
    ir.IQ2_XS: _unpack_iq2_xs,
    ir.IQ2_S: _unpack_iq2_s,
    ir.IQ3_XXS: _unpack_iq3_xxs,
    ir.IQ3_S: _unpack_iq3_s,
}
