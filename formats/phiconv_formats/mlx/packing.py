"""The bytes of MLX's tensors: packing to them, and the exact inverse.

A matrix that is quantized is stored as two or three tensors: codes, scales and, of an affine quantization,
minima, which MLX calls biases. The codes of a row are one stream of bits, each from its lowest bit on; a
group fills whole bytes of it.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from phiconv import ir
from phiconv.errors import MalformedFileError, UsageError
from phiconv_formats.shared.bit_stream import pack_codes, unpack_codes
from phiconv_formats.shared.small_scales import e4m3_bytes, e4m3_halves, exponents, powers

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Bytes: TypeAlias = NDArray[np.uint8]
    Data: TypeAlias = bytes | memoryview | Bytes
    MlxEncoding: TypeAlias = ir.BlockEncoding | ir.CodebookEncoding

__all__ = ["pack", "row_bytes", "unpack"]

_ENCODINGS: tuple[MlxEncoding, ...] = (*ir.MLX_AFFINE, ir.MLX_MXFP4, ir.MLX_MXFP8, ir.MLX_NVFP4)


def row_bytes(encoding: ir.Encoding, columns: int) -> tuple[int, ...]:
    """Bytes of a row in each of the tensors that store a matrix.

    Args:
        encoding: A float type, or an encoding of blocks that means the same as one of MLX's.
        columns: Weights in a row, a multiple of the block size.

    Returns:
        Of a float type one number; else those of codes, scales and, of an affine quantization, minima.

    Raises:
        UsageError: MLX has no such tensors.
    """
    if isinstance(encoding, ir.FloatEncoding):
        return (columns * encoding.dtype.itemsize,)
    encoding = _checked(encoding)
    bits, groups = _bits(encoding), columns // encoding.block_size
    if columns % encoding.block_size:
        raise UsageError(f"rows of {columns} weights cannot be cut into {encoding.name} groups")
    if isinstance(encoding, ir.BlockEncoding):
        size = groups * encoding.scale_type.dtype.itemsize
        return columns * bits // 8, size, size
    return columns * bits // 8, groups


def pack(encoded: ir.Encoded) -> tuple[Bytes, ...]:
    """The bytes of rows, one vector for each of the tensors that store them, as `row_bytes` counts them.

    Args:
        encoded: Float rows of any shape, or blocks of an encoding that means the same as one of MLX's.

    Raises:
        UsageError: MLX has no such tensors.
    """
    if not isinstance(encoded, ir.Blocks):
        return (_bytes(encoded),)
    encoding = _checked(encoded.encoding)
    codes = pack_codes(encoded.words(), _bits(encoding))
    if isinstance(encoding, ir.BlockEncoding):
        assert encoded.minima is not None  # noqa: S101 - MLX's have minima
        return codes, _bytes(encoded.scales), _bytes(encoded.minima)
    if ir.same_meaning(encoding, ir.MLX_NVFP4):
        return codes, e4m3_bytes(encoded.scales)
    return codes, exponents(encoded.scales, doubled=len(encoding.table) == 16)


def unpack(
    encoding: ir.Encoding, columns: int, weight: Data, scales: Data = b"", biases: Data = b""
) -> ir.Encoded:
    """The inverse of `pack`.

    Args:
        encoding: What the bytes are.
        columns: Weights in a row.
        weight: The bytes of the codes, or of the floats: a whole number of rows; so for the other two.
        scales: The bytes of the scales.
        biases: The bytes of the minima.

    Returns:
        Blocks in memory of their own; of a float type rows that are the memory of ``weight``.

    Raises:
        MalformedFileError: The tensors have not the same number of rows.
        UsageError: MLX has no such tensors.
    """
    parts = [np.frombuffer(data, np.uint8) for data in (weight, scales, biases)]
    sizes = (*row_bytes(encoding, columns), 0, 0)[:3]
    rows = parts[0].size // sizes[0] if sizes[0] else 0
    if [part.size for part in parts] != [rows * size for size in sizes]:
        found = ", ".join(str(part.size) for part in parts)
        raise MalformedFileError(f"{found} bytes are no rows of {columns} weights in {encoding.name}")
    if isinstance(encoding, ir.FloatEncoding):
        return parts[0].view(encoding.dtype).reshape(rows, columns)
    encoding = _checked(encoding)
    bits = _bits(encoding)
    codes = unpack_codes(parts[0], bits, encoding.block_size)[..., None].view(np.uint8)
    if isinstance(encoding, ir.BlockEncoding):
        kind = encoding.scale_type.dtype
        return ir.Blocks(encoding, codes, parts[1].view(kind).copy(), parts[2].view(kind).copy())
    if ir.same_meaning(encoding, ir.MLX_NVFP4):
        return ir.Blocks(encoding, codes, e4m3_halves()[parts[1]])
    return ir.Blocks(encoding, codes, powers(parts[1], doubled=bits == 4))


@cache
def _checked(encoding: ir.Encoding) -> MlxEncoding:
    """The encoding, if it is one of MLX's, perhaps under another name."""
    if isinstance(encoding, ir.BlockEncoding | ir.CodebookEncoding) and any(
        ir.same_meaning(encoding, known) for known in _ENCODINGS
    ):
        return encoding
    raise UsageError(f"MLX has no tensor type for {encoding.name}")


def _bits(encoding: MlxEncoding) -> int:
    """Bits of a code."""
    return encoding.bits if isinstance(encoding, ir.BlockEncoding) else len(encoding.table).bit_length() - 1


def _bytes(values: NDArray[np.generic]) -> Bytes:
    return np.ascontiguousarray(values).reshape(-1).view(np.uint8)
