"""The bytes of ggml's blocks, as structures of ggml-common.h: packing to them, and the exact inverse.

A packer works on words of four codes (`Blocks.words`): word ``i`` of a block holds the codes of its weights
``4 i`` to ``4 i + 3``, the first in the lowest byte.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from phiconv import ir
from phiconv.errors import UnsupportedModelError, UsageError
from phiconv_formats.gguf import packing_codebook, packing_k

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["pack", "unpack"]

# Scale, minimum, 5th bits, codes: fields without padding, all little-endian.
_LAYOUTS: dict[ir.BlockEncoding, np.dtype[np.void]] = {
    ir.Q4_0: np.dtype([("d", "<f2"), ("qs", "<u4", (4,))]),
    ir.Q4_1: np.dtype([("d", "<f2"), ("m", "<f2"), ("qs", "<u4", (4,))]),
    ir.Q5_0: np.dtype([("d", "<f2"), ("qh", "<u4"), ("qs", "<u4", (4,))]),
    ir.Q5_1: np.dtype([("d", "<f2"), ("m", "<f2"), ("qh", "<u4"), ("qs", "<u4", (4,))]),
    ir.Q8_0: np.dtype([("d", "<f2"), ("qs", "<u4", (8,))]),
}


def pack(encoded: ir.Encoded) -> NDArray[np.uint8]:
    """The bytes of rows, as ggml stores them.

    Args:
        encoded: Float rows of any shape, or blocks of an encoding that ggml has.

    Returns:
        A vector of bytes: of float rows their own memory, not a copy, if that is in order.
    """
    if not isinstance(encoded, ir.Blocks):
        return np.ascontiguousarray(encoded).reshape(-1).view(np.uint8)
    encoding = encoded.encoding
    if isinstance(encoding, ir.CodebookEncoding):
        return packing_codebook.pack(encoded, encoding)
    if isinstance(encoding, ir.SuperBlockEncoding):
        return packing_k.pack(encoded)
    if encoding not in _LAYOUTS:
        raise UsageError(f"GGUF has no tensor type for {encoding.name}")
    blocks = np.empty(len(encoded), _LAYOUTS[encoding])
    blocks["d"] = encoded.scales
    if encoded.minima is not None:
        blocks["m"] = encoded.minima
    words = encoded.words()
    if encoding.bits == 8:
        blocks["qs"] = words.T
    else:
        blocks["qs"] = _pack_nibbles(words).T
    if encoding.bits == 5:
        blocks["qh"] = _pack_fifth_bits(words)
    return blocks.view(np.uint8)


def unpack(data: bytes | memoryview | NDArray[np.uint8], encoding: ir.Encoding) -> ir.Encoded:
    """The inverse of `pack`.

    Args:
        data: A whole number of blocks.
        encoding: What they are.

    Returns:
        Blocks in memory of their own; of a float encoding a vector that is the memory of ``data``.
    """
    if isinstance(encoding, ir.FloatEncoding):
        return np.frombuffer(data, encoding.dtype)
    if isinstance(encoding, ir.CodebookEncoding):
        return packing_codebook.unpack(data, encoding)
    if isinstance(encoding, ir.SuperBlockEncoding):
        return packing_k.unpack(data, encoding)
    if not isinstance(encoding, ir.BlockEncoding) or encoding not in _LAYOUTS:
        raise UnsupportedModelError(f"phiconv cannot decode tensors of type {encoding.name}")
    blocks = np.frombuffer(data, _LAYOUTS[encoding])
    words = np.empty((encoding.block_size // 4, blocks.size), np.uint32)
    if encoding.bits == 8:
        words[:] = blocks["qs"].T
    else:
        _unpack_nibbles(blocks["qs"].T, words)
    if encoding.bits == 5:
        _unpack_fifth_bits(np.ascontiguousarray(blocks["qh"]), words)
    bytes_ = words[..., None]
    codes = bytes_.view(np.int8) if encoding.bits == 8 else bytes_.view(np.uint8)
    minima = np.ascontiguousarray(blocks["m"]) if encoding.has_minimum else None
    return ir.Blocks(encoding, codes, np.ascontiguousarray(blocks["d"]), minima)


def _pack_nibbles(words: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """The low four bits of codes (8, n) as (4, n): byte j has those of code j and, above, of code j + 16."""
    nibbles = words & np.uint32(0x0F0F0F0F)
    packed = nibbles[4:]
    packed <<= 4
    packed |= nibbles[:4]
    return packed


def _unpack_nibbles(packed: NDArray[np.uint32], words: NDArray[np.uint32]) -> None:
    words[:4] = packed
    np.right_shift(words[:4], 4, out=words[4:])
    words &= 0x0F0F0F0F


def _pack_fifth_bits(words: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """Bit 4 of codes (8, n) as (n,): that of code j becomes bit j."""
    bits = (words >> 4) & 0x01010101
    # The product has the sum of bits 0, 8, 16 and 24 shifted by 28, 21, 14 and 7: they meet in bits 28 to 31.
    bits *= 0x10204080
    bits >>= 28
    bits <<= np.arange(0, 32, 4, dtype=np.uint32)[:, None]
    result: NDArray[np.uint32] = np.bitwise_or.reduce(bits, axis=0)
    return result


def _unpack_fifth_bits(packed: NDArray[np.uint32], words: NDArray[np.uint32]) -> None:
    bits = packed >> np.arange(0, 32, 4, dtype=np.uint32)[:, None]
    bits &= 0x0F
    # Shifted by 0, 7, 14 and 21, bits 0 to 3 each come to stand at bit 0 of a byte; from there to bit 4.
    bits *= 0x00204081
    bits &= 0x01010101
    bits <<= 4
    words |= bits
