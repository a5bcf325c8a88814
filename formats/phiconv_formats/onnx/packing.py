"""The bytes of ONNX Runtime's quantized tensors: packing to them, and the exact inverse.

A matrix of N rows and K columns, as a checkpoint has it (N outputs, K inputs), is two or three tensors:
codes, scales and, where blocks have them, zero points. With B blocks to a row there are two layouts here, and
one more in `integers`:

- `pack`, for MatMulNBits, QMoE and GatherBlockQuantized (with its attribute ``bits``): uint8 codes [N, B,
  bytes of a block], scales [N, B], uint8 zero points [N, bytes of B codes]. Of two 4-bit codes the first is
  in the lower half of a byte, and a row whose last byte of zero points is half full has an 8 in the rest.
- `pack_columns`, for DequantizeLinear in front of MatMul: INT4 or UINT4 codes [K, N], scales [B, N], UINT4
  zero points [B, N].

A tensor of 4-bit integers is one stream of halves of bytes, without gaps between rows. INT4 is for symmetric
blocks: its numbers are the codes less 8, in two's complement.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from phiconv import ir
from phiconv.errors import MalformedFileError, UsageError
from phiconv_formats.shared.bit_stream import pack_codes, pack_halves, unpack_codes, unpack_halves

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Bytes: TypeAlias = NDArray[np.uint8]
    Data: TypeAlias = bytes | memoryview | Bytes

__all__ = [
    "pack",
    "pack_columns",
    "row_bytes",
    "unpack",
    "unpack_columns",
]

_MIDDLE = 8
"""The zero point that ONNX Runtime's quantizers leave in the half of a byte that is not used."""

_SIGNS = np.uint8(0x88)
"""What turns two codes from 0 to 15 into the same numbers less 8 in two's complement, and back."""


# ------------------------------------------------------------------------------ uint8: MatMulNBits and others


def row_bytes(encoding: ir.Encoding, columns: int) -> tuple[int, ...]:
    """Bytes of a row in each of the tensors of `pack`.

    Args:
        encoding: A float type, or an encoding of blocks that means the same as one of ONNX Runtime's.
        columns: Weights in a row, a multiple of the block size.

    Returns:
        Of a float type one number; else those of codes, scales and, where blocks have them, zero points.

    Raises:
        UsageError: ONNX Runtime has no such tensors.
    """
    if isinstance(encoding, ir.FloatEncoding):
        return (columns * encoding.dtype.itemsize,)
    encoding = _checked(encoding)
    blocks = _blocks_of_row(encoding, columns)
    sizes = columns * encoding.bits // 8, blocks * encoding.scale_type.dtype.itemsize
    return (*sizes, -(-blocks * encoding.bits // 8)) if encoding.has_zero_point else sizes


def pack(encoded: ir.Encoded, columns: int) -> tuple[Bytes, ...]:
    """The bytes of rows, one vector for each of the tensors that store them, as `row_bytes` counts them.

    Args:
        encoded: Float rows, or blocks of an encoding that means the same as one of ONNX Runtime's.
        columns: Weights in a row.

    Raises:
        UsageError: ONNX Runtime has no such tensors.
    """
    if not isinstance(encoded, ir.Blocks):
        return (_bytes(encoded),)
    encoding = _checked(encoded.encoding)
    per_row = _blocks_of_row(encoding, columns)
    parts = pack_codes(encoded.words(), encoding.bits), _bytes(encoded.scales)
    if encoded.zero_points is None:
        return parts
    zero_points = encoded.zero_points.reshape(-1, per_row)
    if encoding.bits == 4:
        unused = ((0, 0), (0, per_row % 2))
        zero_points = pack_halves(np.pad(zero_points, unused, constant_values=_MIDDLE))
    return (*parts, _bytes(zero_points))


def unpack(
    encoding: ir.Encoding, columns: int, codes: Data, scales: Data = b"", zero_points: Data = b""
) -> ir.Encoded:
    """The inverse of `pack`.

    Args:
        encoding: What the bytes are.
        columns: Weights in a row.
        codes: The bytes of the codes, or of the floats: a whole number of rows; so for the other two.
        scales: The bytes of the scales.
        zero_points: The bytes of the zero points.

    Returns:
        Blocks in memory of their own; of a float type rows that are the memory of ``codes``.

    Raises:
        MalformedFileError: The tensors have not the same number of rows.
        UsageError: ONNX Runtime has no such tensors.
    """
    parts = _parts(encoding, columns, row_bytes(encoding, columns), codes, scales, zero_points)
    if isinstance(encoding, ir.FloatEncoding):
        return parts[0].view(encoding.dtype).reshape(-1, columns)
    encoding = _checked(encoding)
    if not encoding.has_zero_point:
        return _blocks(encoding, parts[0], parts[1], None)
    per_row = columns // encoding.block_size
    rows = parts[2].reshape(-1, -(-per_row * encoding.bits // 8))
    zeros = unpack_halves(rows) if encoding.bits == 4 else rows
    return _blocks(encoding, parts[0], parts[1], np.array(zeros[:, :per_row]).reshape(-1))


# --------------------------------------------------------------------------------- INT4 and UINT4, transposed


def pack_columns(blocks: ir.Blocks, columns: int) -> tuple[NDArray[Any], ...]:
    """Rows as columns of the tensors of DequantizeLinear.

    Args:
        blocks: An even number of rows, so that they fill whole bytes: of a matrix whose N rows are not one
            tile, a range that begins at an even row.
        columns: Weights in a row, K.

    Returns:
        Codes, uint8 of shape (K, rows / 2), which go to the bytes from ``first_row / 2`` on in each row of
        the tensor; scales in their type, shape (K / block_size, rows); and, where blocks have them, zero
        points, uint8 of shape (K / block_size, rows / 2).

    Raises:
        UsageError: The codes have not 4 bits, or the number of rows is odd.
    """
    encoding = _checked_int4(blocks.encoding)
    per_row = _blocks_of_row(encoding, columns)
    rows = len(blocks) // per_row if per_row else 0
    if rows % 2:
        raise UsageError(f"{rows} rows of 4-bit codes, as columns, do not fill whole bytes")
    by_column = blocks.codes.reshape(-1, rows, per_row, 4).transpose(2, 0, 3, 1)
    codes = pack_halves(by_column.reshape(columns, rows))
    scales = blocks.scales.reshape(rows, per_row).T.copy()
    if blocks.zero_points is None:
        return codes ^ _SIGNS, scales
    return codes, scales, pack_halves(blocks.zero_points.reshape(rows, per_row).T)


def unpack_columns(
    encoding: ir.Encoding, codes: Bytes, scales: NDArray[Any], zero_points: Bytes | None = None
) -> ir.Blocks:
    """The inverse of `pack_columns`.

    Raises:
        MalformedFileError: The shapes do not belong together.
        UsageError: The codes have not 4 bits.
    """
    encoding = _checked_int4(encoding)
    columns, rows = codes.shape[0], 2 * codes.shape[1]
    per_row = _blocks_of_row(encoding, columns)
    shapes = [(per_row, rows)] + [(per_row, rows // 2)] * encoding.has_zero_point
    found = [scales.shape] + ([] if zero_points is None else [zero_points.shape])
    if found != shapes:
        raise MalformedFileError(f"scales and zero points of shape {found} for codes of shape {codes.shape}")
    if zero_points is None:
        codes = codes ^ _SIGNS
    quads = unpack_halves(codes).reshape(per_row, -1, 4, rows).transpose(1, 3, 0, 2)
    unpacked = np.ascontiguousarray(quads).reshape(-1, rows * per_row, 4)
    zeros = None if zero_points is None else unpack_halves(zero_points).T.reshape(-1)
    return ir.Blocks(encoding, unpacked, scales.T.reshape(-1), zero_points=zeros)


# ----------------------------------------------------------------------------------------------------- shared


@cache
def _checked(encoding: ir.Encoding) -> ir.BlockEncoding:
    """The encoding, if it is one of ONNX Runtime's, perhaps under another name."""
    known = (e for encodings in ir.ONNX_AFFINE.values() for e in encodings)
    if isinstance(encoding, ir.BlockEncoding) and any(ir.same_meaning(encoding, e) for e in known):
        return encoding
    raise UsageError(f"ONNX Runtime has no tensor type for {encoding.name}")


def _checked_int4(encoding: ir.Encoding) -> ir.BlockEncoding:
    encoding = _checked(encoding)
    if encoding.bits != 4:
        raise UsageError(f"{encoding.name} has no codes of 4 bits, which ONNX's INT4 is for")
    return encoding


def _blocks_of_row(encoding: ir.BlockEncoding, columns: int) -> int:
    if columns % encoding.block_size:
        raise UsageError(f"rows of {columns} weights cannot be cut into {encoding.name} blocks")
    return columns // encoding.block_size


def _parts(encoding: ir.Encoding, columns: int, sizes: tuple[int, ...], *data: Data) -> list[Bytes]:
    """The bytes as vectors, if they are rows of these sizes."""
    parts = [np.frombuffer(part, np.uint8) for part in data]
    rows = parts[0].size // sizes[0] if sizes[0] else 0
    if [part.size for part in parts] != [rows * size for size in (*sizes, 0, 0)[: len(parts)]]:
        found = ", ".join(str(part.size) for part in parts)
        raise MalformedFileError(f"{found} bytes are no rows of {columns} weights in {encoding.name}")
    return parts


def _blocks(encoding: ir.BlockEncoding, codes: Bytes, scales: Bytes, zero_points: Bytes | None) -> ir.Blocks:
    words = unpack_codes(codes, encoding.bits, encoding.block_size)
    copied = scales.view(encoding.scale_type.dtype).copy()
    return ir.Blocks(encoding, words[..., None].view(np.uint8), copied, zero_points=zero_points)


def _bytes(values: NDArray[np.generic]) -> Bytes:
    return np.ascontiguousarray(values).reshape(-1).view(np.uint8)
