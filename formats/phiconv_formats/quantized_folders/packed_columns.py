"""Codes that lie along the rows of words, many columns in one: GPTQ's zero points, and all of AWQ's.

A word of 32 bits (three words for codes of 3 bits) holds the codes of some neighbouring columns, which are
rows of the matrix.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from phiconv_formats.shared.bit_stream import unpack_codes
from phiconv_formats.shared.columns import ColumnRows

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from phiconv import ir

__all__ = ["WORD_BITS", "PackedColumns", "unpack_rows", "words_of"]

WORD_BITS = 32


def words_of(bits: int) -> tuple[int, int]:
    """The fewest words that codes fill, and how many codes fill them."""
    common = math.lcm(bits, WORD_BITS)
    return common // WORD_BITS, common // bits


def unpack_rows(packed: NDArray[Any], bits: int) -> NDArray[np.uint8]:
    """Rows of bytes as the codes of their streams of bits: shape (rows, bytes) to (rows, codes)."""
    if bits == 8:
        return packed
    words = unpack_codes(np.ascontiguousarray(packed).reshape(-1), bits, 4)
    codes: NDArray[np.uint8] = words.reshape(-1).view(np.uint8)
    return codes.reshape(len(packed), packed.shape[1] * 8 // bits)


@dataclass(frozen=True, slots=True)
class PackedColumns:
    """Columns of codes as rows, one code for each row of the array.

    Attributes:
        stored: The array of words, shape (height, words).
        bits: Of a code: 2, 3, 4 or 8.
        added: What is to be added to every code before it counts. The sum is that of whole words, so that a
            code of 0 carries into its neighbour as it has borrowed from it; codes of 3 bits are added to one
            by one, and begin again at 0.
        order: Which code of a word belongs to its first column, the second, and so on; None for as they lie.
    """

    stored: ir.Tensor
    bits: int
    added: int = 0
    order: tuple[int, ...] | None = None

    @property
    def label(self) -> str:
        """File and tensor name, for messages."""
        return self.stored.label

    def read(self, start: int, stop: int) -> NDArray[np.uint8]:
        """The codes of columns ``start`` to ``stop``, shape (stop - start, height)."""
        words, codes = words_of(self.bits)
        first, last, height = start // codes, -(-stop // codes), self.stored.rows
        packed = ColumnRows(self.stored, words).read(first, last).reshape(-1).view("<u4")
        if self.added and self.bits != 3:
            ones = sum(self.added << at for at in range(0, WORD_BITS, self.bits))
            packed = packed + np.uint32(ones)
        found = unpack_rows(packed.view(np.uint8).reshape(-1, 4 * words), self.bits)
        if self.added and self.bits == 3:
            found = (found + np.uint8(self.added)) & np.uint8(7)
        if self.order is not None:
            found = found[:, self.order]
        by_column = found.reshape(last - first, height, codes).transpose(0, 2, 1)
        rows = by_column.reshape((last - first) * codes, height)
        return np.ascontiguousarray(rows[start - first * codes : stop - first * codes])

    def changed(self) -> bool:
        """Whether the file is no longer the one that was opened."""
        return self.stored.changed()
