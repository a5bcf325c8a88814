"""FlatBuffers, read table by table from a file; nothing is held but what is asked for, and nothing believed.

Offsets only lead forward, so there are no circles; but many may lead to one table. So what is looked at is
counted, and a small file cannot keep anybody busy.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, NamedTuple

from phiconv.errors import MalformedFileError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from phiconv_formats.shared.files import InputFile

__all__ = ["FlatBuffer", "TableView", "VectorView"]

_WINDOW = 1 << 16
_LONGEST_TEXT = 1 << 12
_MOST_TABLES = 300_000
"""Ten signatures of a model of 80 layers have two thirds of that."""

_MOST_TEXT = 1 << 25
"""Bytes of all names together that are read."""


class VectorView(NamedTuple):
    """A vector: its first element's byte in the file, and how many elements there are."""

    start: int
    length: int


class FlatBuffer:
    """A FlatBuffer in a range of bytes of a file.

    Args:
        file: The file.
        start: Where it begins.
        stop: Where it ends at the latest.
        what: What the file is, for messages.
    """

    def __init__(self, file: InputFile, start: int, stop: int, what: str) -> None:
        self.file = file
        self.start, self.stop = start, min(stop, file.size)
        self._what = what
        self._left = _MOST_TABLES
        self._text_left = _MOST_TEXT
        self._first, self._window = 0, b""

    def root(self, identifier: bytes = b"") -> TableView:
        """The table that all begins with.

        Raises:
            MalformedFileError: It is none, or there is another identifier.
        """
        if identifier and self._bytes(self.start + 4, 4) != identifier:
            raise self.error("it does not begin as one", self.start)
        return self.table(self.start)

    def table(self, at: int) -> TableView:
        """The table that the offset at a byte leads to."""
        self._left -= 1
        if self._left < 0:
            raise self.error(f"more than {_MOST_TABLES} tables, which no model has", at)
        table = at + self.number("I", at)
        vtable = table - self.number("i", table)
        size = self.number("H", vtable)
        if size < 4 or size % 2:
            raise self.error("a table without a list of its fields", vtable)
        data = self._bytes(vtable, size)
        return TableView(self, table, struct.unpack_from(f"<{size // 2 - 2}H", data, 4))

    def number(self, kind: str, at: int) -> int:
        """The integer at a byte; ``kind`` as `struct` has it."""
        value: int = struct.unpack("<" + kind, self._bytes(at, struct.calcsize(kind)))[0]
        return value

    def text(self, at: int, *, cut: bool = False) -> str:
        """The text that the offset at a byte leads to.

        Args:
            at: The byte.
            cut: Whether to take only the beginning of a long one, instead of refusing it.
        """
        start = at + self.number("I", at)
        size = self.number("I", start)
        if size > _LONGEST_TEXT and not cut:
            raise self.error(f"a name of {size} bytes", start)
        taken = min(size, _LONGEST_TEXT)
        self._text_left -= taken
        if self._text_left < 0:
            raise self.error(f"names of more than {_MOST_TEXT} bytes together", start)
        try:
            return self._bytes(start + 4, taken).decode(errors="ignore" if taken < size else "strict")
        except UnicodeDecodeError:
            raise self.error("a name that is no UTF-8", start) from None

    def vector(self, at: int, width: int) -> VectorView:
        """The vector that the offset at a byte leads to, of elements of so many bytes."""
        start = at + self.number("I", at)
        count = self.number("I", start)
        if count * width > self.stop - start - 4:
            raise self.error(f"a list of {count} elements, beyond the end of the file", start)
        return VectorView(start + 4, count)

    def read(self, start: int, size: int) -> bytes:
        """Some bytes."""
        return bytes(self._bytes(start, size))

    def error(self, message: str, at: int) -> MalformedFileError:
        """A `MalformedFileError` about a byte of the file."""
        return MalformedFileError(
            f"not a {self._what}: {message}", path=self.file.path, at=f"byte {at}", hint="download it again"
        )

    def _bytes(self, at: int, size: int) -> bytes:
        if not self.start <= at <= self.stop - size:
            raise self.error("it ends within a table, or leads out of it", at)
        if not self._first <= at <= at + size <= self._first + len(self._window):
            self._first = max(self.start, at - _WINDOW // 2)  # lists of fields may lie before their tables
            wanted = max(_WINDOW, at - self._first + size)
            self._window = self.file.read_bytes(self._first, min(wanted, self.stop - self._first))
        first = at - self._first
        return self._window[first : first + size]


class TableView:
    """A table of a `FlatBuffer`; a field that is not there has its default."""

    def __init__(self, buffer: FlatBuffer, at: int, fields: tuple[int, ...]) -> None:
        self.buffer = buffer
        self.at = at
        self._fields = fields

    def _place(self, slot: int) -> int | None:
        offset = self._fields[slot] if slot < len(self._fields) else 0
        return self.at + offset if offset else None

    def number(self, slot: int, kind: str, default: int = 0) -> int:
        """A field that is an integer."""
        place = self._place(slot)
        return default if place is None else self.buffer.number(kind, place)

    def text(self, slot: int, *, cut: bool = False) -> str:
        """A field that is text; perhaps the beginning of it, see `FlatBuffer.text`."""
        place = self._place(slot)
        return "" if place is None else self.buffer.text(place, cut=cut)

    def table(self, slot: int) -> TableView | None:
        """A field that is a table."""
        place = self._place(slot)
        return None if place is None else self.buffer.table(place)

    def tables(self, slot: int) -> Iterator[TableView]:
        """A field that is a list of tables."""
        place = self._place(slot)
        if place is not None:
            start, count = self.buffer.vector(place, 4)
            for i in range(count):
                yield self.buffer.table(start + 4 * i)

    def vector(self, slot: int, width: int) -> VectorView | None:
        """A field that is a list of numbers of so many bytes; None for none."""
        place = self._place(slot)
        return None if place is None else self.buffer.vector(place, width)

    def integers(self, slot: int, most: int, *, cut: bool = False) -> tuple[int, ...]:
        """A field that is a list of at most so many int32.

        Args:
            slot: The field.
            most: How many.
            cut: Whether to take only the first ones of more, instead of refusing them.

        Raises:
            MalformedFileError: There are more.
        """
        found = self.vector(slot, 4)
        if found is None:
            return ()
        if found.length > most and not cut:
            raise self.buffer.error(f"{found.length} numbers, where there are at most {most}", found.start)
        count = min(found.length, most)
        return struct.unpack(f"<{count}i", self.buffer.read(found.start, 4 * count))
