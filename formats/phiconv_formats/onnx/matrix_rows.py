"""Matrices that an ONNX file has by columns, as rows that are read when they are needed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from phiconv_formats.onnx.packing import unpack_columns
from phiconv_formats.shared.rows import as_floats

if TYPE_CHECKING:
    from typing import Any

    from numpy.typing import NDArray

    from phiconv import ir
    from phiconv_formats.shared.rows import FileRows

__all__ = ["BlockColumns", "FloatColumns"]


@dataclass(frozen=True, slots=True)
class FloatColumns:
    """Columns of a stored matrix as rows (an `ir.Source`)."""

    stored: FileRows
    encoding: ir.FloatEncoding
    height: int

    @property
    def label(self) -> str:
        """File and tensor name, for messages."""
        return self.stored.label

    def read(self, start: int, stop: int) -> NDArray[np.generic]:
        """Reads rows ``start`` to ``stop`` into memory of their own."""
        size = self.encoding.dtype.itemsize
        data = _columns(self.stored, self.height, start * size, stop * size)
        return np.ascontiguousarray(as_floats(data, self.encoding).T)

    def changed(self) -> bool:
        """Whether a file is no longer the one that was opened."""
        return self.stored.changed()


@dataclass(frozen=True, slots=True)
class BlockColumns:
    """Columns of a quantized matrix as rows (an `ir.Source`), in the layout of `packing.pack_columns`."""

    encoding: ir.BlockEncoding
    heights: tuple[int, ...]
    parts: tuple[FileRows, ...]

    @property
    def label(self) -> str:
        """File and tensor name, for messages."""
        return self.parts[0].label

    def read(self, start: int, stop: int) -> ir.Blocks:
        """Reads rows ``start`` to ``stop`` into memory of their own."""
        first, last = start // 2 * 2, -(-stop // 2) * 2  # two columns are a byte
        size = self.encoding.scale_type.dtype.itemsize
        ranges = ((first // 2, last // 2), (first * size, last * size), (first // 2, last // 2))
        data: list[NDArray[Any]] = [
            _columns(part, height, *where)
            for part, height, where in zip(self.parts, self.heights, ranges, strict=False)
        ]
        scales = as_floats(data[1], self.encoding.scale_type)
        blocks = unpack_columns(self.encoding, data[0], scales, *data[2:])
        if (first, last) == (start, stop):
            return blocks
        per_row = self.heights[1]
        return blocks.take(np.arange((start - first) * per_row, (stop - first) * per_row))

    def changed(self) -> bool:
        """Whether a file is no longer the one that was opened."""
        return any(part.changed() for part in self.parts)


def _columns(stored: FileRows, height: int, first: int, last: int) -> NDArray[np.uint8]:
    """The bytes ``first`` to ``last`` of every row."""
    result = np.empty((height, last - first), np.uint8)
    for i, row in enumerate(result):
        stored.file.read_into(stored.offset + i * stored.row_bytes + first, row.data)
    return result
