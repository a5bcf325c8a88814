"""The arrays of compressed-tensors: packing to them, and the exact inverse.

The layouts, for a linear layer of ``out`` rows and ``in`` columns:

    pack-quantized         weight_packed I32 [out, in * bits / 32], weight_scale [out, groups], weight_shape
                           I64 [2], maybe weight_zero_point I32 [out * bits / 32, rounded up, groups]
    int-quantized          weight I8 [out, in], weight_scale [out, groups]
    float-quantized        weight F8_E4M3 [out, in], weight_scale [out, 1], or one for 128 rows and columns
    nvfp4-pack-quantized   weight_packed U8 [out, in / 2], weight_scale F8_E4M3 [out, in / 16],
                           weight_global_scale F32 [1]
    mxfp4-pack-quantized   weight_packed U8 [out, in / 2], weight_scale U8 [out, in / 32]
    mxfp8-quantized        weight F8_E4M3 [out, in], weight_scale U8 [out, in / 32]

Codes that are packed are counted from the least one on, and are one stream of bits, each from its lowest bit
on; zero points lie in words down the rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from phiconv import ir
from phiconv.errors import WeightError
from phiconv.ir.server import FP8_BLOCK, scheme_of
from phiconv_formats.folders.shards import Entry, Part
from phiconv_formats.server.schemes import SCHEMES
from phiconv_formats.shared.bit_stream import pack_codes, unpack_codes
from phiconv_formats.shared.rows import RowsOf
from phiconv_formats.shared.safetensors import DTYPE_OF_ENCODING
from phiconv_formats.shared.small_scales import e4m3_bytes, e4m3_halves, exponents, powers

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from phiconv_formats.shared.output import OutputTensor

    Bytes: TypeAlias = NDArray[np.uint8]

__all__ = ["WordsOfRows", "entry", "pack", "unpack", "unpack_zero_points"]

_WORD = 32
"""Bits."""

_FLOAT_TYPES = {kind.dtype: kind for kind in (ir.BF16, ir.F16, ir.F32)}

_NO_NUMBER = 0x7F
"""The code of NaN in E4M3, but for the sign."""


def entry(output: OutputTensor, encoding: ir.Encoding) -> Entry:
    """The arrays that store a matrix."""
    tensor, name = output.tensor, output.name.removesuffix(".weight")
    rows, columns = tensor.rows, tensor.columns
    found = (*_codes(encoding, rows, columns), *_scales(encoding, rows, columns))
    parts = tuple(Part(f"{name}.{suffix}", *rest) for suffix, *rest in found)
    return Entry(output, encoding, parts, partial(pack, shape=(rows, columns)))


def _codes(encoding: ir.Encoding, rows: int, columns: int) -> list[Any]:
    """Name, type, shape, bytes of a row (and for how many rows) of what has a place for every weight."""
    layout = SCHEMES[scheme_of(encoding)].layout
    if layout == "pack-quantized":
        assert isinstance(encoding, ir.BlockEncoding)  # noqa: S101 - the layout of integers
        words, height = columns * encoding.bits // _WORD, -(-rows * encoding.bits // _WORD)
        groups = columns // encoding.block_size
        zero_points = ("weight_zero_point", "I32", (height, groups), 4 * groups, _WORD // encoding.bits)
        return [
            ("weight_packed", "I32", (rows, words), 4 * words),
            ("weight_shape", "I64", (2,), 16, 0),
            *([zero_points] if encoding.has_zero_point else []),
        ]
    if layout.endswith("fp4-pack-quantized"):
        return [("weight_packed", "U8", (rows, columns // 2), columns // 2)]
    return [("weight", "I8" if layout == "int-quantized" else "F8_E4M3", (rows, columns), columns)]


def _scales(encoding: ir.Encoding, rows: int, columns: int) -> list[Any]:
    """The same of the scales."""
    scheme, groups = scheme_of(encoding), columns // encoding.block_size
    if scheme == "fp8-block":
        size = _scale_type(encoding).dtype.itemsize
        height, width = -(-rows // FP8_BLOCK), -(-columns // FP8_BLOCK)
        dtype = DTYPE_OF_ENCODING[_scale_type(encoding)]
        return [("weight_scale", dtype, (height, width), size * width, FP8_BLOCK)]
    if scheme == "nvfp4a16":
        return [
            ("weight_scale", "F8_E4M3", (rows, groups), groups),
            ("weight_global_scale", "F32", (1,), 4, 0),
        ]
    if scheme in {"mxfp4a16", "mxfp8"}:
        return [("weight_scale", "U8", (rows, groups), groups)]
    kind = _scale_type(encoding)
    return [("weight_scale", DTYPE_OF_ENCODING[kind], (rows, groups), groups * kind.dtype.itemsize)]


def _scale_type(encoding: ir.Encoding) -> ir.FloatEncoding:
    if isinstance(encoding, ir.BlockEncoding):
        return encoding.scale_type
    assert isinstance(encoding, ir.CodebookEncoding)  # noqa: S101 - servers have no others
    return _FLOAT_TYPES[encoding.scale_dtype]


# ------------------------------------------------------------------------------------------------- to bytes


def pack(encoded: ir.Encoded, shape: tuple[int, int]) -> tuple[Bytes, ...]:
    """The bytes of rows, one vector for each of the arrays of `entry`.

    Args:
        encoded: Blocks of one of compressed-tensors' encodings.
        shape: Rows and columns of the whole matrix.

    Raises:
        WeightError: Rows of a square of ``fp8-block`` have scales of their own.
    """
    assert isinstance(encoded, ir.Blocks)  # noqa: S101 - floats are for the folder
    encoding, scheme = encoded.encoding, scheme_of(encoded.encoding)
    layout = SCHEMES[scheme].layout
    if isinstance(encoding, ir.BlockEncoding):
        codes = _packed(encoded, shape) if layout == "pack-quantized" else (_bytes_of_integers(encoded),)
        return (*codes, _bytes(encoded.scales))
    assert isinstance(encoding, ir.CodebookEncoding)  # noqa: S101 - servers have no others
    stream = pack_codes(encoded.words(), len(encoding.table).bit_length() - 1)
    if scheme == "fp8-block":
        return stream, _bytes(_square_scales(encoded, shape[1]))
    if scheme == "nvfp4a16":
        assert encoded.global_scales is not None  # noqa: S101 - the scheme has them
        return stream, e4m3_bytes(encoded.scales), _bytes(encoded.global_scales[:1])
    if scheme in {"mxfp4a16", "mxfp8"}:
        return stream, exponents(encoded.scales, doubled=scheme == "mxfp4a16")
    return stream, _bytes(encoded.scales)


def _packed(blocks: ir.Blocks, shape: tuple[int, int]) -> tuple[Bytes, ...]:
    """Codes, shape and maybe zero points in words."""
    encoding: Any = blocks.encoding
    bits, columns = encoding.bits, shape[1]
    stream = pack_codes(blocks.words(), bits)
    if _is_signed(encoding):
        stream ^= np.uint8(0x80)
    rows = len(blocks) * encoding.block_size // columns
    found = [stream, _bytes(np.array(shape, "<i8"))]
    if blocks.zero_points is not None:
        found.append(_zero_point_words(blocks.zero_points.reshape(rows, -1), bits))
    return tuple(found)


def _zero_point_words(zero_points: Bytes, bits: int) -> Bytes:
    """Zero points of rows, shape (rows, groups), in words of several rows each, the first in the low bits."""
    count = _WORD // bits
    padded = np.pad(zero_points, ((0, -len(zero_points) % count), (0, 0))).astype("<u4")
    shifts = (bits * np.arange(count, dtype="<u4"))[:, None]
    fields = padded.reshape(-1, count, zero_points.shape[1]) << shifts
    return _bytes(np.bitwise_or.reduce(fields, axis=1))


def _bytes_of_integers(blocks: ir.Blocks) -> Bytes:
    """Signed codes, one to a byte."""
    encoding: Any = blocks.encoding
    stream = pack_codes(blocks.words(), 8)
    return stream - np.uint8(encoding.offset)  # which wraps around to the right negative ones


def _square_scales(blocks: ir.Blocks, columns: int) -> NDArray[Any]:
    """One scale of 128 rows and columns, of those that every block of every row has."""
    wide = FP8_BLOCK // blocks.encoding.block_size
    scales = blocks.scales.reshape(-1, columns // blocks.encoding.block_size)
    found = scales[::FP8_BLOCK, ::wide]
    again = found.repeat(FP8_BLOCK, axis=0)[: len(scales)].repeat(wide, axis=1)[:, : scales.shape[1]]
    if not np.array_equal(_bytes(again), _bytes(scales)):  # as bits: NaN is unequal to itself
        raise WeightError("rows that lie in one square of fp8-block have scales of their own")
    return found


def _is_signed(encoding: ir.BlockEncoding) -> bool:
    return not encoding.offset and not encoding.has_zero_point


def _bytes(values: NDArray[Any]) -> Bytes:
    return np.ascontiguousarray(values).reshape(-1).view(np.uint8)


# ----------------------------------------------------------------------------------------------- from bytes


def unpack(encoding: ir.Encoding, codes: Bytes, scales: Bytes, *more: Bytes) -> ir.Blocks:
    """The inverse of `pack`, of the bytes that stand for rows.

    Args:
        encoding: What they are.
        codes: Of ``weight_packed`` or ``weight``.
        scales: Of ``weight_scale``, for every block of every row.
        *more: Zero points, one to a byte; or the scale of the tensor, for every row.

    Returns:
        Blocks in memory of their own. A code that is no number makes the scale of its block none.
    """
    scheme = SCHEMES[scheme_of(encoding)]
    if isinstance(encoding, ir.BlockEncoding):
        numbers = _integers(encoding, codes, packed=scheme.layout == "pack-quantized")
        zero_points = more[0].copy() if more else None
        kind = encoding.scale_type.dtype
        return ir.Blocks(encoding, numbers, scales.view(kind).copy(), zero_points=zero_points)
    assert isinstance(encoding, ir.CodebookEncoding)  # noqa: S101 - servers have no others
    floats = unpack_codes(codes, scheme.bits, encoding.block_size)[..., None].view(np.uint8)
    found: NDArray[Any]
    if scheme_of(encoding) == "nvfp4a16":
        found = e4m3_halves()[scales]
        found[scales & 0x7F == _NO_NUMBER] = np.nan
        rows = more[0].view("<f4")
        return ir.Blocks(encoding, floats, found, global_scales=rows.repeat(len(found) // max(len(rows), 1)))
    if scheme_of(encoding) in {"mxfp4a16", "mxfp8"}:
        found = powers(scales, doubled=scheme.bits == 4)
    else:
        found = scales.view(encoding.scale_dtype).copy()
    if scheme.bits == 8 and (broken := ((floats & 0x7F) == _NO_NUMBER).any(axis=(0, 2))).any():
        found[broken] = np.nan
    return ir.Blocks(encoding, floats, found)


def _integers(encoding: ir.BlockEncoding, data: Bytes, *, packed: bool) -> NDArray[Any]:
    """Codes quads first."""
    if not packed:
        stored = data + np.uint8(encoding.offset)
        numbers = unpack_codes(stored, 8, encoding.block_size)[..., None].view(np.uint8)
    else:
        stream = data ^ np.uint8(0x80) if _is_signed(encoding) else data
        numbers = unpack_codes(stream, encoding.bits, encoding.block_size)[..., None].view(np.uint8)
    return numbers.view(np.int8) if _is_signed(encoding) else numbers


def unpack_zero_points(words: NDArray[Any], bits: int) -> Bytes:
    """The inverse of the packing of zero points: uint8 of shape (rows, groups), padding included.

    Args:
        words: Shape (words, groups).
        bits: Bits of a zero point.
    """
    count = _WORD // bits
    shifts = (bits * np.arange(count, dtype="<u4"))[None, :, None]
    fields = words.view("<u4")[:, None] >> shifts & np.uint32((1 << bits) - 1)
    zero_points: Bytes = fields.astype(np.uint8).reshape(-1, words.shape[1])
    return zero_points


@dataclass(frozen=True, slots=True)
class WordsOfRows(RowsOf):
    """Zero points that lie in words down the rows as a byte for every block of every row.

    Attributes:
        stored: The words, shape (rows * bits / 32, rounded up, blocks).
        bits: Of a zero point.
    """

    bits: int

    def read(self, start: int, stop: int) -> NDArray[np.uint8]:
        """Those of rows ``start`` to ``stop``, shape (rows, blocks)."""
        count = _WORD // self.bits
        first = start // count
        words = self.stored.read(first, -(-stop // count))
        return unpack_zero_points(words.view("<u4"), self.bits)[start - first * count :][: stop - start]
