"""Numbers that several rows share, seen as if every row had its own (nearly `ir.Source`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from phiconv_formats.server.compressed_packing import unpack_zero_points

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from phiconv import ir

__all__ = ["SharedScales", "WordsOfRows"]


@dataclass(frozen=True, slots=True)
class SharedScales:
    """Scales of rectangles of a matrix as scales of the blocks of its rows.

    Attributes:
        stored: One for each rectangle, shape (rows / height, columns / width), rounded up; or a single one.
        height: Rows of a rectangle.
        wide: Blocks of a row in a rectangle.
        blocks: Blocks of a row, the last rectangle of which may be cut off.
    """

    stored: ir.Tensor
    height: int
    wide: int
    blocks: int

    @property
    def label(self) -> str:
        """File and tensor name, for messages."""
        return self.stored.label

    def read(self, start: int, stop: int) -> NDArray[np.generic]:
        """Those of rows ``start`` to ``stop``, shape (rows, blocks)."""
        first, last = start // self.height, -(-stop // self.height)
        found: Any = self.stored.read(first, last)
        skipped = start - first * self.height
        shared = found[(skipped + np.arange(stop - start)) // self.height]
        return np.ascontiguousarray(shared.repeat(self.wide, axis=1)[:, : self.blocks])

    def changed(self) -> bool:
        """Whether the file is no longer the one that was opened."""
        return self.stored.changed()


@dataclass(frozen=True, slots=True)
class WordsOfRows:
    """Zero points that lie in words down the rows as a byte for every block of every row.

    Attributes:
        stored: The words, shape (rows * bits / 32, rounded up, blocks).
        bits: Of a zero point.
    """

    stored: ir.Tensor
    bits: int

    @property
    def label(self) -> str:
        """File and tensor name, for messages."""
        return self.stored.label

    def read(self, start: int, stop: int) -> NDArray[np.uint8]:
        """Those of rows ``start`` to ``stop``, shape (rows, blocks)."""
        count = 32 // self.bits
        first = start // count
        words: Any = self.stored.read(first, -(-stop // count))
        return unpack_zero_points(words.view("<u4"), self.bits)[start - first * count :][: stop - start]

    def changed(self) -> bool:
        """Whether the file is no longer the one that was opened."""
        return self.stored.changed()
