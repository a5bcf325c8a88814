"""The bytes of quantized matrices as ONNX's own tensors of integers, for its DequantizeLinear.

A matrix of N rows and K columns, in B blocks to a row, is

- codes [N, K]: INT4 or INT8 where the blocks are symmetric (the codes less 8 or 128, in two's complement),
  UINT4 or UINT8 where they have zero points;
- scales [N, B], floats;
- zero points [N, B], of the type of the codes, where blocks have them.

So rows lie as in a checkpoint, and a graph transposes them. Of two numbers of 4 bits the first is in the
lower half of a byte. They are one stream without gaps between rows: a row of zero points may end within a
byte.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from onnx import TensorProto

from phiconv import ir
from phiconv.errors import MalformedFileError, UsageError
from phiconv_formats.shared.bit_stream import pack_codes, pack_halves, unpack_codes, unpack_halves

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Bytes: TypeAlias = NDArray[np.uint8]
    Data: TypeAlias = bytes | memoryview | Bytes

__all__ = ["element_type", "has_channels", "is_standard", "pack_integers", "row_sizes", "unpack_integers"]

_TYPES = {
    (4, True): TensorProto.INT4,
    (4, False): TensorProto.UINT4,
    (8, True): TensorProto.INT8,
    (8, False): TensorProto.UINT8,
}
"""Of codes, by their bits and whether the blocks are symmetric."""

_SIGNS = {4: np.uint8(0x88), 8: np.uint8(0x80)}
"""What turns the codes of a byte into the same numbers less the middle one, in two's complement, and back."""


def is_standard(encoding: ir.Encoding) -> bool:
    """Whether a matrix is for ONNX's own operators, rather than for ONNX Runtime's."""
    return encoding in ir.ONNX_AFFINE["qdq"] or has_channels(encoding)


def has_channels(encoding: ir.Encoding) -> bool:
    """Whether each row of a matrix has one scale, for products of quantized activations."""
    return isinstance(encoding, ir.BlockEncoding) and encoding == ir.onnx_channel(
        encoding.bits, encoding.block_size
    )


def element_type(encoding: ir.BlockEncoding) -> int:
    """ONNX's type of the codes, and of the zero points."""
    return _TYPES[encoding.bits, not encoding.has_zero_point]


def row_sizes(encoding: ir.BlockEncoding, columns: int) -> tuple[tuple[int, int], ...]:
    """Of each of the tensors: bytes of so many rows, and how many; two where one ends within a byte.

    Raises:
        UsageError: Rows are no whole number of blocks.
    """
    if columns % encoding.block_size:
        raise UsageError(f"rows of {columns} weights cannot be cut into {encoding.name} blocks")
    blocks = columns // encoding.block_size
    sizes = (columns * encoding.bits // 8, 1), (blocks * encoding.scale_type.dtype.itemsize, 1)
    if not encoding.has_zero_point:
        return sizes
    bits = blocks * encoding.bits
    return (*sizes, (bits // 4, 2) if bits % 8 else (bits // 8, 1))


def pack_integers(blocks: ir.Encoded) -> tuple[Bytes, ...]:
    """The bytes of rows, one vector for each of the tensors.

    Args:
        blocks: Whole rows; an even number of them where `row_sizes` says so, but for the last of a matrix.

    Raises:
        UsageError: They are floats, or of an encoding that is no pure number of bits.
    """
    encoding = blocks.encoding if isinstance(blocks, ir.Blocks) else None
    if not isinstance(blocks, ir.Blocks) or not isinstance(encoding, ir.BlockEncoding):
        raise UsageError("these weights are no integers with a scale")
    codes = pack_codes(blocks.words(), encoding.bits)
    scales = blocks.scales.view(np.uint8)
    if blocks.zero_points is None:
        return codes ^ _SIGNS[encoding.bits], scales
    zeros = blocks.zero_points
    if encoding.bits == 4:
        zeros = pack_halves(zeros)
    return codes, scales, zeros


def unpack_integers(
    encoding: ir.BlockEncoding, codes: Data, scales: Data, zero_points: Data = b""
) -> ir.Blocks:
    """The inverse of `pack_integers`.

    Args:
        encoding: What the bytes are.
        codes: The bytes of the codes: a whole number of blocks; so for the other two.
        scales: The bytes of the scales.
        zero_points: The bytes of the zero points.

    Raises:
        MalformedFileError: The tensors have not the same number of blocks.
    """
    packed, zeros = (np.frombuffer(part, np.uint8) for part in (codes, zero_points))
    count = len(scales) // encoding.scale_type.dtype.itemsize
    expected = (
        count * encoding.block_size * encoding.bits // 8,
        count * encoding.scale_type.dtype.itemsize,
        -(-count * encoding.bits // 8) if encoding.has_zero_point else 0,
    )
    if (packed.size, len(scales), zeros.size) != expected:
        raise MalformedFileError(
            f"{packed.size}, {len(scales)} and {zeros.size} bytes are no blocks of {encoding.name}"
        )
    if not encoding.has_zero_point:
        packed = packed ^ _SIGNS[encoding.bits]
    elif encoding.bits == 4:
        zeros = unpack_halves(zeros)[:count]
    words = unpack_codes(packed, encoding.bits, encoding.block_size)
    return ir.Blocks(
        encoding,
        words[..., None].view(np.uint8),
        np.frombuffer(scales, encoding.scale_type.dtype).copy(),
        zero_points=zeros.copy() if encoding.has_zero_point else None,
    )
