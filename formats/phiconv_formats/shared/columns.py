"""Columns of a stored matrix as rows: what is quantized for ``x @ W`` has a weight's row in a column.

Such a matrix cannot be read row by row in one piece, and a pass over the file for every tile would be far too
many. So a strip of columns is read at once, turned, and kept for the tiles that come next.
"""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from phiconv import ir
from phiconv_formats.shared.rows import FileRows, as_floats

if TYPE_CHECKING:
    from collections.abc import Hashable

    from numpy.typing import NDArray

    Bytes: TypeAlias = NDArray[np.uint8]

__all__ = ["ColumnRows"]

_STRIP = 2 << 20
_LARGEST_STRIP = 8 << 20
_PIECE = 1 << 10
"""Bytes of a strip: so many that a row of it is a piece worth reading, and no more than the largest."""

_KEPT = 64 << 20
"""Bytes of strips that are kept, of all matrices together."""


class _Strips:
    """The strips that were used last, for all threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._strips: OrderedDict[Hashable, Bytes] = OrderedDict()
        self._bytes = 0

    def find(self, key: Hashable) -> Bytes | None:
        with self._lock:
            if key in self._strips:
                self._strips.move_to_end(key)
            return self._strips.get(key)

    def keep(self, key: Hashable, strip: Bytes) -> None:
        with self._lock:
            if key in self._strips:  # two threads have read it
                return
            self._strips[key] = strip
            self._bytes += strip.nbytes
            while self._bytes > _KEPT and len(self._strips) > 1:
                self._bytes -= self._strips.popitem(last=False)[1].nbytes


_STRIPS = _Strips()


@dataclass(frozen=True, slots=True)
class ColumnRows:
    """Columns of a stored matrix as rows.

    Attributes:
        stored: The matrix, one tensor of a file.
        together: Neighbouring elements that count as one column.
    """

    stored: ir.Tensor
    together: int = 1

    @property
    def label(self) -> str:
        """File and tensor name, for messages."""
        return self.stored.label

    def read(self, start: int, stop: int) -> NDArray[Any]:
        """Reads columns ``start`` to ``stop``.

        Returns:
            Shape (stop - start, height * together) of a float type; of others bytes.
        """
        width, first = self._width(), start // self._width()
        strips = [self._strip(i, width) for i in range(first, -(-stop // width))]
        if not strips:
            strips = [np.empty((0, self.stored.rows * self._item), np.uint8)]
        joined = strips[0] if len(strips) == 1 else np.concatenate(strips)
        data = joined[start - first * width : stop - first * width].copy()
        encoding = self.stored.encoding
        return as_floats(data, encoding) if isinstance(encoding, ir.FloatEncoding) else data

    def changed(self) -> bool:
        """Whether the file is no longer the one that was opened."""
        return self.stored.changed()

    @property
    def _item(self) -> int:
        """Bytes of a column in one row."""
        return round(self.stored.encoding.bits_per_weight / 8) * self.together

    def _width(self) -> int:
        """Columns of a strip."""
        size = min(max(self.stored.rows * _PIECE, _STRIP), _LARGEST_STRIP)
        return max(size // max(self.stored.rows * self._item, 1), 1)

    def _strip(self, index: int, width: int) -> Bytes:
        """The columns of a strip as rows of bytes."""
        source = self.stored.runs[0].source
        # A model that nobody has any more must not keep its files open.
        key: tuple[Hashable, ...] | None = None
        if isinstance(source, FileRows):
            key = (weakref.ref(source.file), source.offset, self.together, width, index)
        if key is not None and (found := _STRIPS.find(key)) is not None:
            return found
        first, last = index * width, min((index + 1) * width, self.stored.columns // self.together)
        data = self._columns(first * self._item, last * self._item)
        by_column = data.reshape(self.stored.rows, last - first, self._item).transpose(1, 0, 2)
        strip = np.ascontiguousarray(by_column).reshape(last - first, -1)
        if key is not None:
            _STRIPS.keep(key, strip)
        return strip

    def _columns(self, first: int, last: int) -> Bytes:
        """The bytes ``first`` to ``last`` of every row."""
        height, source = self.stored.rows, self.stored.runs[0].source
        result = np.empty((height, last - first), np.uint8)
        if isinstance(source, FileRows):
            for i, row in enumerate(result):
                source.file.read_into(source.offset + i * source.row_bytes + first, row.data)
            return result
        step = max(_STRIP // max(round(self.stored.columns * self._item / self.together), 1), 1)
        for start in range(0, height, step):
            rows: Any = self.stored.read(start, min(start + step, height))
            result[start : start + step] = rows.view(np.uint8).reshape(len(rows), -1)[:, first:last]
        return result
