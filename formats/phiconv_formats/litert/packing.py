"""The bytes of TFLite's constants: what stores a tensor, what is in it, and the inverse."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from phiconv import ir
from phiconv.errors import UsageError
from phiconv_formats.litert.schema import BITS, ElementType
from phiconv_formats.shared.bit_stream import pack_halves, unpack_halves

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Bytes: TypeAlias = NDArray[np.uint8]

__all__ = ["Parts", "encoding_of", "pack", "parts_of", "unpack"]

_FLOATS = {ir.F32: ElementType.FLOAT32, ir.F16: ElementType.FLOAT16}
_INTEGERS = {8: ElementType.INT8, 4: ElementType.INT4}


@dataclass(frozen=True, slots=True)
class Parts:
    """What stores a tensor.

    Attributes:
        type: Of its floats or codes.
        channels: Each row has a float32 scale.
        block_size: Weights with a float16 scale; 0 for no blocks.
        scales_shape: Of those scales.
    """

    type: ElementType
    channels: bool = False
    block_size: int = 0
    scales_shape: tuple[int, ...] = ()

    def row_bytes(self, columns: int) -> tuple[int, ...]:
        """Bytes of a row in each part: floats or codes, then scales if there are any."""
        codes = columns * BITS[self.type] // 8
        if self.channels:
            return codes, 4
        return (codes, 2 * self.scales_shape[-1]) if self.block_size else (codes,)


def parts_of(encoding: ir.Encoding, shape: tuple[int, ...]) -> Parts:
    """What stores a tensor.

    Args:
        encoding: How it is stored.
        shape: Of the tensor.

    Raises:
        UsageError: TFLite has no such constants.
    """
    if encoding in _FLOATS:
        return Parts(_FLOATS[encoding])
    if isinstance(encoding, ir.BlockEncoding):
        for bits, kind in _INTEGERS.items():
            if ir.same_meaning(encoding, ir.litert_channel(bits, shape[-1])):
                return Parts(kind, channels=True)
        if ir.same_meaning(encoding, ir.litert_block(encoding.block_size)):
            size = encoding.block_size
            return Parts(ElementType.INT4, False, size, (*shape[:-1], shape[-1] // size))
    raise UsageError(f"LiteRT has no constants for {encoding.name}")


def pack(encoded: ir.Encoded) -> tuple[Bytes, ...]:
    """The bytes of rows, one vector for each part: floats; or codes, and scales.

    Two codes of 4 bits share a byte; the first one is in the lower half.

    Args:
        encoded: Float rows of any shape, or blocks.
    """
    if not isinstance(encoded, ir.Blocks):
        return (_bytes(encoded),)
    if not isinstance(encoded.encoding, ir.BlockEncoding):
        raise UsageError(f"LiteRT has no constants for {encoded.encoding.name}")
    offset = encoded.encoding.offset
    encoded = _normal(encoded, offset)
    codes = _bytes(encoded.words().T)
    if offset:  # two's complement, where codes in memory count from -8
        codes = pack_halves(codes) ^ np.uint8(0x88)
    return codes, _bytes(encoded.scales)


def _normal(blocks: ir.Blocks, offset: int) -> ir.Blocks:
    """The blocks without a scale that is 0 or subnormal, which XNNPACK refuses: codes get smaller instead."""
    least = np.finfo(blocks.scales.dtype).tiny
    small = np.flatnonzero(blocks.scales < least)
    if not small.size:
        return blocks
    codes, scales = blocks.codes.copy(), blocks.scales.copy()
    ratio = (scales[small].astype(np.float64) / least)[:, None]
    codes[:, small] = np.rint((codes[:, small].astype(np.float64) - offset) * ratio) + offset
    scales[small] = least
    return replace(blocks, codes=codes, scales=scales)


def encoding_of(kind: ElementType, block_size: int, *, channels: bool) -> ir.BlockEncoding | None:
    """The inverse of `parts_of`; None for what phiconv does not know.

    Args:
        kind: Of the codes.
        block_size: Weights that share a scale.
        channels: Whether those are rows, with float32 scales.
    """
    bits = {number: bits for bits, number in _INTEGERS.items()}.get(kind)
    if bits is None or block_size % 4 or not block_size:
        return None
    if channels:
        return ir.litert_channel(bits, block_size)
    return ir.litert_block(block_size) if bits == 4 else None


def unpack(encoding: ir.BlockEncoding, codes: Bytes, scales: Bytes) -> ir.Blocks:
    """The inverse of `pack`.

    Args:
        encoding: What the bytes are, one of `encoding_of`.
        codes: Those of the codes of whole blocks.
        scales: Those of the scales.

    Returns:
        Blocks in memory of their own.
    """
    words = unpack_halves(codes ^ np.uint8(0x88)) if encoding.bits == 4 else codes
    quads: Any = np.ascontiguousarray(words.view("<u4").reshape(-1, encoding.block_size // 4).T)
    quads = quads[..., None].view(np.uint8)
    numbers: Any = scales.view(encoding.scale_type.dtype).copy()
    return ir.Blocks(encoding, quads if encoding.bits == 4 else quads.view(np.int8), numbers)


def _bytes(values: NDArray[np.generic]) -> Bytes:
    return np.ascontiguousarray(values).reshape(-1).view(np.uint8)
