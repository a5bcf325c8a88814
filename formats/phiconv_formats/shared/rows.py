"""Rows in a file that are read when they are needed: of floats, and of matrices whose blocks lie in parts."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from phiconv import ir
from phiconv.errors import MalformedFileError
from phiconv_formats.shared.bit_stream import pack_halves, unpack_halves

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from phiconv_formats.shared.files import InputFile

__all__ = [
    "AssembledRows",
    "FileRows",
    "HalfByteRows",
    "NarrowScales",
    "Rows",
    "RowsOf",
    "SharedRows",
    "as_floats",
    "read_rows",
]


@dataclass(frozen=True, slots=True)
class FileRows:
    """A matrix of numbers, row after row, from a byte of a file on (an `ir.Source`).

    Attributes:
        file: The file.
        offset: The byte where the first row starts.
        row_bytes: Bytes from one row to the next.
        encoding: What an element is; of a `RawEncoding` only the bytes can be read.
        name: The tensor, for messages.
    """

    file: InputFile
    offset: int
    row_bytes: int
    encoding: ir.Encoding
    name: str = field(compare=False)

    @property
    def label(self) -> str:
        """File and tensor name, for messages."""
        return f"{self.file.path}: {self.name}"

    def read(self, start: int, stop: int) -> NDArray[np.generic]:
        """Reads rows ``start`` to ``stop`` into an array of their own; of a `RawEncoding`, their bytes."""
        rows = read_rows(self.file, self.offset, self.row_bytes, start, stop)
        if not isinstance(self.encoding, ir.FloatEncoding):
            return rows
        return as_floats(rows, self.encoding)

    def changed(self) -> bool:
        """Whether the file is no longer the one that was opened."""
        return self.file.changed()


class Rows(Protocol):
    """Rows of any numbers, or of bytes (an `ir.Source` but for its encoding)."""

    @property
    def label(self) -> str:
        """File and tensor name, for messages."""

    def read(self, start: int, stop: int) -> Any:
        """Reads rows ``start`` to ``stop`` into an array of their own."""

    def changed(self) -> bool:
        """Whether the file is no longer the one that was opened."""


@dataclass(frozen=True, slots=True)
class RowsOf:
    """What is read of other rows.

    Attributes:
        stored: These.
    """

    stored: Rows

    @property
    def label(self) -> str:
        """File and tensor name, for messages."""
        return self.stored.label

    def changed(self) -> bool:
        """Whether the file is no longer the one that was opened."""
        return self.stored.changed()


@dataclass(frozen=True, slots=True)
class SharedRows(RowsOf):
    """Numbers of rectangles of a matrix, seen as if every row, and every block of it, had its own.

    Attributes:
        stored: Those of rectangles, shape (rows / height, columns / width), rounded up.
        height: Rows of a rectangle.
        wide: Blocks of a row in a rectangle.
        blocks: Blocks of a row, where the last rectangle may be cut off.
    """

    height: int
    wide: int = 1
    blocks: int | None = None

    def read(self, start: int, stop: int) -> NDArray[Any]:
        """Those of rows ``start`` to ``stop``, shape (rows, blocks)."""
        first, last = start // self.height, -(-stop // self.height)
        shared: Any = self.stored.read(first, last)[np.arange(start, stop) // self.height - first]
        return np.ascontiguousarray(shared.repeat(self.wide, axis=1)[:, : self.blocks])


@dataclass(frozen=True, slots=True)
class HalfByteRows(RowsOf):
    """Rows of 4-bit numbers without gaps, so that one may begin within a byte.

    Attributes:
        stored: Their bytes, each as a row.
        numbers: How many there are in a row.
    """

    numbers: int

    def read(self, start: int, stop: int) -> NDArray[np.uint8]:
        """The bytes of rows ``start`` to ``stop``, the first of which begins a byte here."""
        first, last = start * self.numbers, stop * self.numbers
        packed = self.stored.read(first // 2, -(-last // 2))
        return pack_halves(unpack_halves(packed.reshape(-1))[first % 2 :][: last - first])


@dataclass(frozen=True, slots=True)
class AssembledRows:
    """Rows of a quantized matrix whose codes, scales and so on lie apart (an `ir.Source`).

    Attributes:
        encoding: Of the blocks.
        parts: The rows of the codes, of the scales and of whatever else there is.
        unpack: Makes blocks of the bytes of each part, uint8 of shape (bytes,).
    """

    encoding: ir.Encoding
    parts: tuple[Rows, ...]
    unpack: Callable[..., ir.Encoded]

    @property
    def label(self) -> str:
        """File and tensor name of the codes, for messages."""
        return self.parts[0].label

    def read(self, start: int, stop: int) -> ir.Encoded:
        """Reads rows ``start`` to ``stop`` into memory of their own."""
        parts = [part.read(start, stop) for part in self.parts]
        return self.unpack(*(part.reshape(-1).view(np.uint8) for part in parts))

    def changed(self) -> bool:
        """Whether a file is no longer the one that was opened."""
        return any(part.changed() for part in self.parts)


@dataclass(frozen=True, slots=True)
class NarrowScales(RowsOf):
    """Rows of blocks with scales of the type that a file says they had before (an `ir.Source`).

    Attributes:
        stored: The blocks as they are stored.
        encoding: The same with scales of that type.
    """

    encoding: ir.BlockEncoding

    def read(self, start: int, stop: int) -> ir.Blocks:
        """Reads rows ``start`` to ``stop`` into memory of their own.

        Raises:
            MalformedFileError: A scale is no number of that type.
        """
        blocks = self.stored.read(start, stop)
        assert isinstance(blocks, ir.Blocks)  # noqa: S101 - what its encoding says
        with np.errstate(over="ignore"):
            scales = blocks.scales.astype(self.encoding.scale_type.dtype)
        before, after = (each.astype(np.float32) for each in (blocks.scales, scales))
        if not np.array_equal(before, after, equal_nan=True):
            name = self.encoding.scale_type.name
            message = f"says that its scales are {name} numbers, and they are not"
            raise MalformedFileError(message, path=self.label)
        return replace(blocks, encoding=self.encoding, scales=scales)


def as_floats(rows: NDArray[Any], encoding: ir.FloatEncoding) -> NDArray[np.generic]:
    """Little-endian bytes, as unsigned integers of any size, seen as the floats that they are."""
    dtype = encoding.dtype
    data: NDArray[np.generic] = rows.view(dtype)
    if sys.byteorder == "big" and dtype.byteorder == "=":
        # The dtypes of ml_dtypes are in the machine's own order only.
        return data.view(np.uint16).byteswap().view(dtype)
    return data


def read_rows(file: InputFile, offset: int, row_bytes: int, start: int, stop: int) -> NDArray[np.uint8]:
    """The bytes of rows ``start`` to ``stop``, shape (rows, row_bytes)."""
    first, count = offset + start * row_bytes, (stop - start) * row_bytes
    if first + count > file.size:  # before anything is allocated
        file.read_bytes(first, count)
    data = np.empty((stop - start, row_bytes), dtype=np.uint8)
    file.read_into(first, data.data)
    return data
