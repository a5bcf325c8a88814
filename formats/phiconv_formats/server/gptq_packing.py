"""The arrays of GPTQ and AWQ: words of neighbouring codes, and rows of the matrix as columns.

For a linear layer of ``out`` rows and ``in`` columns, with B bits:

    GPTQ   qweight I32 [in * B / 32, out], along the input axis; qzeros I32 [groups, out * B / 32]; scales F16
           [groups, out]; g_idx I32 [in]: the group of every column. The first version of the format stores
           zero points less 1.
    AWQ    qweight I32 [in, out / 8], along the output axis; qzeros I32 [groups, out / 8]; scales F16
           [groups, out]. In a word the even ones of eight numbers come first.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from phiconv import ir
from phiconv_formats.folders.shards import Entry, Part
from phiconv_formats.shared.bit_stream import pack_codes

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from phiconv_formats.shared.output import OutputTensor

    Bytes: TypeAlias = NDArray[np.uint8]

__all__ = ["awq_entry", "gptq_entry", "pack_awq", "pack_gptq"]

_WORD = 32
"""Bits."""

_AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
"""Which of eight neighbouring numbers is in each half byte of a word, from the lowest on."""


def gptq_entry(output: OutputTensor, encoding: ir.Encoding) -> Entry:
    """The arrays of GPTQ that store a matrix; ``gptq-v2`` in the encoding's name is the second version."""
    assert isinstance(encoding, ir.BlockEncoding)  # noqa: S101 - the recipes have no others
    tensor, bits = output.tensor, encoding.bits
    rows, columns = tensor.rows, tensor.columns
    groups, words, together = columns // encoding.block_size, columns * bits // _WORD, _WORD // bits
    found = (
        ("qweight", "I32", (words, rows), 4, 1, words),
        ("qzeros", "I32", (groups, rows // together), 4, together, groups),
        ("scales", "F16", (groups, rows), 2, 1, groups),
        ("g_idx", "I32", (columns,), 4 * columns, 0),
    )
    return _entry(output, encoding, found, partial(pack_gptq, columns=columns))


def awq_entry(output: OutputTensor, encoding: ir.Encoding) -> Entry:
    """The arrays of AWQ that store a matrix."""
    tensor = output.tensor
    rows, columns = tensor.rows, tensor.columns
    groups = columns // encoding.block_size
    found = (
        ("qweight", "I32", (columns, rows // 8), 4, 8, columns),
        ("qzeros", "I32", (groups, rows // 8), 4, 8, groups),
        ("scales", "F16", (groups, rows), 2, 1, groups),
    )
    return _entry(output, encoding, found, partial(pack_awq, columns=columns))


def _entry(output: OutputTensor, encoding: ir.Encoding, found: tuple[Any, ...], pack: Any) -> Entry:
    name = output.name.removesuffix(".weight")
    parts = tuple(Part(f"{name}.{suffix}", *rest) for suffix, *rest in found)
    return Entry(output, encoding, parts, pack)


def pack_gptq(encoded: ir.Encoded, columns: int) -> tuple[Bytes, ...]:
    """The bytes of rows in each of the arrays of `gptq_entry`, a row of bytes for every line of an array."""
    blocks, encoding = _blocks(encoded)
    words = (
        pack_codes(blocks.words(), encoding.bits).view("<u4").reshape(-1, columns * encoding.bits // _WORD)
    )
    together = _WORD // encoding.bits
    middle = (1 << (encoding.bits - 1)) - (0 if encoding.name.startswith("gptq-v2") else 1)
    word = sum(middle << (encoding.bits * k) for k in range(together))
    groups = columns // encoding.block_size
    zeros = np.full((groups, -(-len(words) // together)), word, "<u4")
    indices = np.arange(columns, dtype="<i4") // encoding.block_size
    return _lines(words.T), _lines(zeros), _lines(_scales(blocks, groups)), indices.view(np.uint8)


def pack_awq(encoded: ir.Encoded, columns: int) -> tuple[Bytes, ...]:
    """The bytes of rows in each of the arrays of `awq_entry`, a row of bytes for every line of an array."""
    blocks, encoding = _blocks(encoded)
    assert blocks.zero_points is not None  # noqa: S101 - the recipes have no others
    groups = columns // encoding.block_size
    codes = blocks.words().T.copy().view(np.uint8).reshape(-1, columns)
    zeros = blocks.zero_points.reshape(-1, groups)
    return _lines(_awq_words(codes).T), _lines(_awq_words(zeros).T), _lines(_scales(blocks, groups))


def _awq_words(numbers: Bytes) -> NDArray[np.uint32]:
    """Numbers of 4 bits, eight rows in a word: (rows, k) to (rows / 8, k)."""
    eights = numbers.reshape(-1, 8, numbers.shape[1])
    words = np.zeros((len(eights), numbers.shape[1]), "<u4")
    for place, row in enumerate(_AWQ_ORDER):
        words |= eights[:, row].astype("<u4") << np.uint32(4 * place)
    return words


def _scales(blocks: ir.Blocks, groups: int) -> NDArray[Any]:
    return blocks.scales.reshape(-1, groups).T


def _blocks(encoded: ir.Encoded) -> tuple[ir.Blocks, ir.BlockEncoding]:
    assert isinstance(encoded, ir.Blocks)  # noqa: S101 - floats are for the folder
    assert isinstance(encoded.encoding, ir.BlockEncoding)  # noqa: S101 - the recipes have no others
    return encoded, encoded.encoding


def _lines(values: NDArray[Any]) -> Bytes:
    """The bytes of an array's lines."""
    return np.ascontiguousarray(values).view(np.uint8)
