"""Rows of the matrices of an ONNX file, read when they are needed (each an `ir.Source`)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, cast

import numpy as np

from phiconv import ir
from phiconv.errors import MalformedFileError
from phiconv_formats.onnx.packing import unpack_columns
from phiconv_formats.rows import as_floats

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from numpy.typing import NDArray

    from phiconv_formats.rows import FileRows

__all__ = ["BlockColumns", "BlockRows", "FloatColumns", "HalfByteRows"]


@dataclass(frozen=True, slots=True)
class BlockRows:
    """Rows of a quantized matrix, from the rows of its tensors (an `ir.Source`).

    Attributes:
        encoding: The encoding of the blocks.
        stored: The same with scales of the type that is stored.
        columns: Weights in a row.
        parts: Codes, scales, and zero points if there are any.
        unpack: From bytes to blocks.
    """

    encoding: ir.BlockEncoding
    stored: ir.BlockEncoding
    columns: int
    parts: tuple[FileRows | HalfByteRows, ...]
    unpack: Callable[..., ir.Encoded]

    @property
    def label(self) -> str:
        """File and tensor name, for messages."""
        return self.parts[0].label

    def read(self, start: int, stop: int) -> ir.Encoded:
        """Reads rows ``start`` to ``stop`` into memory of their own."""
        blocks = self.unpack(self.stored, self.columns, *(part.read(start, stop) for part in self.parts))
        assert isinstance(blocks, ir.Blocks)  # noqa: S101 - a block encoding is unpacked to them
        return blocks if self.encoding == self.stored else self._narrowed(blocks)

    def changed(self) -> bool:
        """Whether a file is no longer the one that was opened."""
        return any(part.changed() for part in self.parts)

    def _narrowed(self, blocks: ir.Blocks) -> ir.Blocks:
        """With the scales' own type, which the file says they had before they were widened."""
        with np.errstate(over="ignore"):
            scales = blocks.scales.astype(self.encoding.scale_type.dtype)
        if not np.array_equal(scales.astype(np.float32), blocks.scales, equal_nan=True):
            name = self.encoding.scale_type.name
            raise MalformedFileError(
                f"says that its scales are {name} numbers, and they are not",
                path=self.label,
            )
        return replace(blocks, encoding=self.encoding, scales=scales)


@dataclass(frozen=True, slots=True)
class HalfByteRows:
    """Rows of 4-bit numbers without gaps, so that one may begin within a byte.

    Attributes:
        stored: Their bytes, each as a row.
        numbers: How many there are in a row.
    """

    stored: FileRows
    numbers: int

    @property
    def label(self) -> str:
        """File and tensor name, for messages."""
        return self.stored.label

    def read(self, start: int, stop: int) -> NDArray[np.uint8]:
        """Rows ``start`` to ``stop``, the first of which begins a byte here."""
        first, last = start * self.numbers, stop * self.numbers
        packed = cast("NDArray[np.uint8]", self.stored.read(first // 2, -(-last // 2)))
        numbers = np.stack([packed & np.uint8(15), packed >> np.uint8(4)], axis=-1).reshape(-1)
        wanted = numbers[first % 2 :][: last - first]
        if wanted.size % 2:
            wanted = np.append(wanted, np.uint8(0))
        result: NDArray[np.uint8] = wanted[::2] | wanted[1::2] << np.uint8(4)
        return result

    def changed(self) -> bool:
        """Whether the file is no longer the one that was opened."""
        return self.stored.changed()


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
