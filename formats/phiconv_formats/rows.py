"""Rows of plain floats in a file: the tensors of safetensors, and the unquantized ones of GGUF."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from phiconv import ir

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .files import InputFile

__all__ = ["FileRows", "as_floats", "read_rows"]


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
    name: str

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
