"""The bytes of ggml's blocks whose codes are numbers of a small table, as structures of ggml-common.h."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from phiconv import ir
from phiconv.errors import UnsupportedModelError, UsageError
from phiconv_formats.gguf import packing_grids

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from phiconv_formats.gguf.packing_grids import Fields, Structs, Words

__all__ = ["pack", "unpack"]

_LAYOUTS: dict[ir.CodebookEncoding, np.dtype[np.void]] = {
    ir.IQ4_NL: np.dtype([("d", "<f2"), ("qs", "<u4", (4,))]),
    ir.IQ4_XS: np.dtype([("d", "<f2"), ("high", "<u2"), ("low", "<u4"), ("qs", "<u4", (32,))]),
    ir.MXFP4: np.dtype([("d", "u1"), ("qs", "<u4", (4,))]),
    ir.NVFP4: np.dtype([("d", "u1", (4,)), ("qs", "<u4", (4, 2))]),
    ir.TQ1_0: np.dtype([("qs", "<u4", (13,)), ("d", "<f2")]),
    ir.TQ2_0: np.dtype([("qs", "<u4", (16,)), ("d", "<f2")]),
    **packing_grids.LAYOUTS,
}


def pack(blocks: ir.Blocks, encoding: ir.CodebookEncoding) -> NDArray[np.uint8]:
    """The bytes of blocks, as ggml stores them."""
    if encoding not in _LAYOUTS:
        raise UsageError(f"GGUF has no tensor type for {encoding.name}")
    per_struct = 4 if encoding == ir.NVFP4 else 1
    if len(blocks) % per_struct:
        raise UsageError(f"GGUF stores {encoding.name} blocks in fours, not {len(blocks)} of them")
    structs = np.empty(len(blocks) // per_struct, _LAYOUTS[encoding])
    _PACKERS[encoding](blocks, structs)
    return structs.view(np.uint8)


def unpack(data: bytes | memoryview | NDArray[np.uint8], encoding: ir.CodebookEncoding) -> ir.Blocks:
    """The inverse of `pack`; of bytes that ggml does not write, the blocks that it reads from them."""
    if encoding not in _LAYOUTS:
        raise UnsupportedModelError(f"phiconv cannot decode tensors of type {encoding.name}")
    words, scales, sub_scales = _UNPACKERS[encoding](np.frombuffer(data, _LAYOUTS[encoding]))
    codes = words[..., None].view(np.uint8)
    return ir.Blocks(encoding, codes, np.ascontiguousarray(scales), sub_scales=sub_scales)


# ------------------------------------------------------------------------------------------------- 4 bits


def _pack_halves(words: Words) -> Words:
    """Codes of 4 bits, (..., 2 k, n) to (..., k, n): byte j has code j and, above, the other half's."""
    half = words.shape[-2] // 2
    packed = words[..., half:, :] << 4
    packed |= words[..., :half, :]
    return packed


def _unpack_halves(packed: Words) -> Words:
    return np.concatenate([packed & 0x0F0F0F0F, (packed >> 4) & 0x0F0F0F0F], axis=-2)


def _pack_iq4_nl(blocks: ir.Blocks, structs: Structs) -> None:
    structs["d"] = blocks.scales
    structs["qs"] = _pack_halves(blocks.words()).T


def _unpack_iq4_nl(structs: Structs) -> Fields:
    return _unpack_halves(structs["qs"].T), structs["d"], None


def _pack_iq4_xs(blocks: ir.Blocks, structs: Structs) -> None:
    structs["d"] = blocks.scales
    structs["qs"] = _pack_halves(blocks.words().reshape(8, 8, -1)).reshape(32, -1).T
    scales = packing_grids.sub_scales(blocks) + 32
    structs["low"] = packing_grids.pack_bits(scales & 15, 4)
    structs["high"] = packing_grids.pack_bits(scales >> 4, 2)


def _unpack_iq4_xs(structs: Structs) -> Fields:
    words = _unpack_halves(structs["qs"].T.reshape(8, 4, -1)).reshape(64, -1)
    low = packing_grids.unpack_bits(structs["low"], 4, 8)
    scales = low | packing_grids.unpack_bits(structs["high"], 2, 8) << 4
    return words, structs["d"], scales.astype(np.int8) - 32


# ------------------------------------------------------------------------------------------- 4-bit floats


def _pack_mxfp4(blocks: ir.Blocks, structs: Structs) -> None:
    # 2.0 ** (exponent - 128) is subnormal for the exponents 0 and 1.
    bits = blocks.scales.view(np.uint32)
    structs["d"] = np.where(bits >> 23, (bits >> 23) + 1, bits >> 22)
    structs["qs"] = _pack_halves(blocks.words()).T


def _unpack_mxfp4(structs: Structs) -> Fields:
    scales = np.ldexp(np.float32(1), structs["d"].astype(np.int32) - 128)
    return _unpack_halves(structs["qs"].T), scales, None


def _e4m3_halves() -> NDArray[np.float32]:
    """Half of the number that ggml sees in every byte: it ignores the sign; 127 is 0 instead of NaN."""
    byte = np.arange(256) & 127
    numbers = np.ldexp((byte & 7) + 8 * (byte > 7), np.maximum(byte >> 3, 1) - 11)
    numbers[127] = 0
    return np.asarray(numbers, np.float32)


def _pack_nvfp4(blocks: ir.Blocks, structs: Structs) -> None:
    # In order, so the place of a number among them is its byte.
    structs["d"] = np.searchsorted(_e4m3_halves()[:127], blocks.scales).clip(0, 126).reshape(-1, 4)
    structs["qs"] = _pack_halves(blocks.words()).T.reshape(-1, 4, 2)


def _unpack_nvfp4(structs: Structs) -> Fields:
    scales = _e4m3_halves()[structs["d"].reshape(-1)]
    return _unpack_halves(structs["qs"].reshape(-1, 2).T), scales, None


# ------------------------------------------------------------------------------------------------ ternary

# A byte has five codes as the digits of a fraction in base 3: ``ceil(digits * 256 / 3**5)``. Tripling it in
# eight bits moves the point; what is carried out is the next digit. Each entry: first word of the codes,
# digits, words per digit, first packed word.
_TERNARY_PARTS = ((0, 5, 8, 0), (40, 5, 4, 8), (60, 4, 1, 12))
_FRACTIONS = ((np.arange(256) * 256 + 242) // 243).astype(np.uint8)
_DIGITS = np.stack([(np.arange(256) * 3**k % 256 * 3 // 256) for k in range(5)]).astype(np.uint8)


def _pack_tq1_0(blocks: ir.Blocks, structs: Structs) -> None:
    words = blocks.words()
    packed = np.empty((13, len(blocks)), np.uint32)
    for start, digits, width, at in _TERNARY_PARTS:
        number = words[start : start + width].copy()
        for k in range(1, 5):
            number *= 3
            if k < digits:
                number += words[start + k * width : start + (k + 1) * width]
        packed[at : at + width] = number
    structs["qs"] = _FRACTIONS[packed.view(np.uint8)].view(np.uint32).T
    structs["d"] = blocks.scales


def _unpack_tq1_0(structs: Structs) -> Fields:
    packed = np.ascontiguousarray(structs["qs"].T)
    words = np.empty((64, len(structs)), np.uint32)
    for start, digits, width, at in _TERNARY_PARTS:
        for k in range(digits):
            digit = _DIGITS[k][packed[at : at + width].view(np.uint8)].view(np.uint32)
            words[start + k * width : start + (k + 1) * width] = digit
    return words, structs["d"], None


def _pack_tq2_0(blocks: ir.Blocks, structs: Structs) -> None:
    words = blocks.words().reshape(2, 4, 8, -1)
    packed = words[:, 0].copy()
    for k in range(1, 4):
        packed |= words[:, k] << (2 * k)
    structs["qs"] = packed.reshape(16, -1).T
    structs["d"] = blocks.scales


def _unpack_tq2_0(structs: Structs) -> Fields:
    packed = structs["qs"].T.reshape(2, 8, -1)
    words = np.stack([(packed >> (2 * k)) & 0x03030303 for k in range(4)], axis=1)
    return words.reshape(64, -1), structs["d"], None


_PACKERS: dict[ir.CodebookEncoding, Callable[[ir.Blocks, Structs], None]] = {
    ir.IQ4_NL: _pack_iq4_nl,
    ir.IQ4_XS: _pack_iq4_xs,
    ir.MXFP4: _pack_mxfp4,
    ir.NVFP4: _pack_nvfp4,
    ir.TQ1_0: _pack_tq1_0,
    ir.TQ2_0: _pack_tq2_0,
    **packing_grids.PACKERS,
}

_UNPACKERS: dict[ir.CodebookEncoding, Callable[[Structs], Fields]] = {
    ir.IQ4_NL: _unpack_iq4_nl,
    ir.IQ4_XS: _unpack_iq4_xs,
    ir.MXFP4: _unpack_mxfp4,
    ir.NVFP4: _unpack_nvfp4,
    ir.TQ1_0: _unpack_tq1_0,
    ir.TQ2_0: _unpack_tq2_0,
    **packing_grids.UNPACKERS,
}
