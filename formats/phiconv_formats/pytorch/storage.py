"""Tensors as views of storages: read in place, whatever their strides, a few rows at a time."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from phiconv import ir
from phiconv.errors import MalformedFileError, UnsupportedModelError, printable
from phiconv_formats.pytorch.zip_archive import check_crc
from phiconv_formats.shared.rows import as_floats, read_rows

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from numpy.typing import NDArray

    from phiconv_formats.pytorch.records import TensorRecord
    from phiconv_formats.pytorch.zip_archive import ZipEntry
    from phiconv_formats.shared.files import InputFile

__all__ = ["Region", "tensor_of"]

_LARGEST_STEP = 16
"""Elements from one to its nearest neighbour: what lies between is read too, and takes memory."""

_MOST_MATRICES = 1 << 16


class Region:
    """The bytes of a storage.

    Attributes:
        file: The file.
        offset: Where they start.
        size: How many there are.
        big_endian: The machine that saved them had the high byte first.
    """

    def __init__(
        self,
        file: InputFile,
        offset: int,
        size: int,
        *,
        big_endian: bool = False,
        entry: ZipEntry | None = None,
    ) -> None:
        self.file = file
        self.offset = offset
        self.size = size
        self.big_endian = big_endian
        self._unchecked = entry

    def changed(self) -> bool:
        """Whether the file is no longer the one that was opened.

        Raises:
            MalformedFileError: It is, and its bytes do not agree with their checksum.
        """
        if self.file.changed():
            return True
        if self._unchecked is not None:
            check_crc(self.file, self._unchecked)
            self._unchecked = None  # several tensors may share a storage
        return False


@dataclass(frozen=True, slots=True)
class StridedRows:
    """A matrix in a storage (an `ir.Source`).

    Attributes:
        region: The storage.
        offset: The first element of the matrix, in elements from the start of the storage.
        columns: Elements of a row.
        row_stride, column_stride: Elements from one row, and from one column, to the next.
        encoding: What an element is; of a `RawEncoding` only the bytes can be read.
        name: The tensor, for messages.
    """

    region: Region
    offset: int
    columns: int
    row_stride: int
    column_stride: int
    encoding: ir.FloatEncoding | ir.RawEncoding
    name: str = field(compare=False)

    @property
    def label(self) -> str:
        """File and tensor name, for messages."""
        return f"{self.region.file.path}: {self.name}"

    def read(self, start: int, stop: int) -> NDArray[np.generic]:
        """Reads rows ``start`` to ``stop`` into an array of their own; of a `RawEncoding`, their bytes."""
        size = itemsize(self.encoding)
        if self.row_stride == self.columns and self.column_stride == 1:
            at = self.region.offset + self.offset * size
            rows = read_rows(self.region.file, at, self.columns * size, start, stop).view(f"u{size}")
        else:
            rows = self._gather(start, stop)
        if self.region.big_endian:
            rows = rows.byteswap()
        if not isinstance(self.encoding, ir.FloatEncoding):
            return rows.view(np.uint8)
        return as_floats(rows, self.encoding)

    def changed(self) -> bool:
        """Whether what it reads is no longer what was opened."""
        return self.region.changed()

    def _gather(self, start: int, stop: int) -> NDArray[Any]:
        """Elements of shape (rows, columns), read in runs along the dimension whose elements are closest."""
        count, first = stop - start, self.offset + start * self.row_stride
        along_rows = self.columns == 1 or (self.row_stride < self.column_stride and count > 0)
        if along_rows:
            return self._runs(first, (self.columns, self.column_stride), (count, self.row_stride)).T.copy()
        return self._runs(first, (count, self.row_stride), (self.columns, self.column_stride)).copy()

    def _runs(self, first: int, outer: tuple[int, int], inner: tuple[int, int]) -> NDArray[Any]:
        """Reads ``outer`` runs of ``inner`` elements; each a count and a stride."""
        size = itemsize(self.encoding)
        span = max((inner[0] - 1) * inner[1] + 1, 0)
        buffer = np.empty((outer[0], span), f"u{size}")
        for i, run in enumerate(buffer):
            at = self.region.offset + (first + i * outer[1]) * size
            self.region.file.read_into(at, run.data)
        return buffer[:, :: inner[1]]


def itemsize(encoding: ir.FloatEncoding | ir.RawEncoding) -> int:
    """Bytes of an element."""
    return encoding.dtype.itemsize if isinstance(encoding, ir.FloatEncoding) else encoding.block_bytes


def tensor_of(record: TensorRecord, region: Region, name: str) -> ir.Tensor:
    """A tensor that reads its rows from a storage.

    Args:
        record: Which elements of the storage it has.
        region: The storage.
        name: The tensor's name.

    Raises:
        MalformedFileError: It reaches beyond its storage, or holds an element twice.
        UnsupportedModelError: Its elements are too far from each other to be read in runs.
    """
    _check(record, region, name)
    shape, stride = record.shape, record.stride
    if math.prod(shape) == 0:
        columns = shape[-1] if len(shape) > 1 else 1
        return ir.Tensor.of(StridedRows(region, 0, columns, columns, 1, record.encoding, name), shape)
    is_matrix = len(shape) > 1
    columns, column_stride = (shape[-1], stride[-1]) if is_matrix else (1, 1)
    if columns == 1:
        column_stride = 1  # there is no next one
    leading = list(zip(shape, stride, strict=True))[: -1 if is_matrix else None]
    *outer, (count, row_stride) = _merged(leading) or [(1, columns)]
    if count == 1:
        row_stride = columns * column_stride
    if math.prod(d for d, _ in outer) > _MOST_MATRICES:
        raise _unsupported(region, name)
    runs = []
    for start in _offsets(outer, record.offset):
        source = StridedRows(region, start, columns, row_stride, column_stride, record.encoding, name)
        runs.append(ir.Run(source, 0, count))
    return ir.Tensor(shape, tuple(runs))


def _check(record: TensorRecord, region: Region, name: str) -> None:
    def fail(message: str) -> MalformedFileError:
        return MalformedFileError(message, path=region.file.path, at=f"tensor {printable(name)}")

    held = region.size // itemsize(record.encoding)
    if 0 in record.shape:
        return
    last = record.offset + sum((d - 1) * s for d, s in zip(record.shape, record.stride, strict=True))
    if last >= held:
        raise fail(f"reaches element {last} of a storage that has {held}")
    reach = 0
    dimensions = sorted((s, d) for d, s in zip(record.shape, record.stride, strict=True) if d > 1)
    for stride, count in dimensions:
        if stride <= reach:
            shape = printable(list(record.shape), 90)
            raise fail(f"holds elements twice: shape {shape}, stride {printable(list(record.stride), 90)}")
        reach += (count - 1) * stride
    if dimensions and dimensions[0][0] > _LARGEST_STEP:
        raise _unsupported(region, name)


def _merged(dimensions: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Counts and strides of the same elements in as few dimensions as can be."""
    result: list[tuple[int, int]] = []
    for count, stride in dimensions:
        if count == 1:
            continue
        if result and result[-1][1] == count * stride:
            result[-1] = (result[-1][0] * count, stride)
        else:
            result.append((count, stride))
    return result


def _offsets(dimensions: list[tuple[int, int]], first: int) -> Iterator[int]:
    """The first element of each matrix, the last dimension fastest."""
    if not dimensions:
        yield first
        return
    (count, stride), *rest = dimensions
    for i in range(count):
        yield from _offsets(rest, first + i * stride)


def _unsupported(region: Region, name: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        "its elements lie too far from each other",
        path=region.file.path,
        at=f"tensor {printable(name)}",
        hint="save it again, contiguous, as .safetensors",
    )
