"""FlatBuffers, written front to back: a table, then what it refers to, which patches its offsets.

https://flatbuffers.dev/internals: a table begins with the distance back to its vtable, which says where each
of its fields is. Text, vectors and other tables are referred to by the distance forward, 32 bits wide. So
what several tables share is written after the last one that refers to it.

Nothing is left out for having its default value. So the length depends on no number in it, and a number that
is known only once everything has its place (`Blank`) can be filled in.
"""

from __future__ import annotations

import struct
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

__all__ = [
    "Blank",
    "Child",
    "Field",
    "Finished",
    "Number",
    "Table",
    "Tables",
    "Text",
    "Vector",
    "finish",
    "int32s",
]

_OFFSET = 4  # bytes
_WIDEST = 8


class Number(NamedTuple):
    """A number in a table.

    Attributes:
        kind: Of `struct`: "b", "B", "?", "H", "i", "I", "f" or "Q".
        value: The number.
    """

    kind: str
    value: float


@dataclass(frozen=True, eq=False)
class Blank:
    """A uint64 in a table that is filled in later; 0 until then."""


@dataclass(frozen=True, eq=False)
class Table:
    """A table: its fields by their slots. One that several refer to says that it is shared."""

    fields: Mapping[int, Field]
    shared: bool = False


@dataclass(frozen=True, eq=False)
class Vector:
    """A vector of numbers, little-endian; or room for one, all zeros."""

    values: NDArray[Any]
    shared: bool = False


@dataclass(frozen=True, eq=False)
class Text:
    """A text."""

    value: str
    shared = False


@dataclass(frozen=True, eq=False)
class Tables:
    """A vector of tables or texts."""

    items: Sequence[Child]
    shared = False


Child: TypeAlias = Table | Vector | Text | Tables
Field: TypeAlias = Number | Blank | Child


@dataclass(frozen=True, slots=True)
class Finished:
    """A whole FlatBuffer.

    Attributes:
        data: Its bytes.
        places: Where the blanks are, and where the first number of each vector is.
    """

    data: bytearray
    places: Mapping[Blank | Vector, int]

    def fill(self, blank: Blank, value: int) -> None:
        """Fills a number in."""
        struct.pack_into("<Q", self.data, self.places[blank], value)


def finish(root: Table, identifier: bytes = b"") -> Finished:
    """Writes a table and everything below it.

    Args:
        root: The table.
        identifier: Four bytes that say what it is, if there are any.
    """
    writer = _Writer()
    writer.data += struct.pack("<I", 0) + identifier
    writer.refer(0, root)
    writer.run()
    return Finished(writer.data, writer.places)


class _Writer:
    """What has been written, and what is still to come."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.places: dict[Blank | Vector, int] = {}
        self._next: deque[tuple[int, Child]] = deque()
        self._shared: dict[Child, list[int]] = {}
        self._vtables: dict[bytes, int] = {}

    def refer(self, at: int, child: Child) -> None:
        """Notes that the offset at a byte is to lead to a child."""
        if child.shared:
            self._shared.setdefault(child, []).append(at)
        else:
            self._next.append((at, child))

    def run(self) -> None:
        """Writes all that is referred to; what is shared comes last, and so do its own children."""
        while self._next or self._shared:
            while self._next:
                at, child = self._next.popleft()
                self._write(child, [at])
            if self._shared:
                # Of what is shared, tables first: they may refer to shared vectors.
                child = next((c for c in self._shared if isinstance(c, Table)), next(iter(self._shared)))
                self._write(child, self._shared.pop(child))

    def _write(self, child: Child, referrers: Sequence[int]) -> None:
        if isinstance(child, Table):
            start = self._table(child)
        elif isinstance(child, Vector):
            start = self._vector(child)
        elif isinstance(child, Text):
            text = child.value.encode()
            start = self._begin(_OFFSET, after=_OFFSET)
            self.data += struct.pack("<I", len(text)) + text + b"\0"
        else:
            start = self._begin(_OFFSET, after=_OFFSET)
            self.data += struct.pack("<I", len(child.items)) + bytes(_OFFSET * len(child.items))
            for i, item in enumerate(child.items):
                self.refer(start + _OFFSET * (1 + i), item)
        for at in referrers:
            struct.pack_into("<I", self.data, at, start - at)

    def _begin(self, alignment: int, after: int = 0) -> int:
        """Pads, so that what begins ``after`` bytes later is aligned; returns where the data ends now."""
        self.data += bytes(-(len(self.data) + after) % alignment)
        return len(self.data)

    def _vector(self, vector: Vector) -> int:
        values = vector.values
        # The count is aligned, too, whatever its numbers are.
        start = self._begin(max(values.itemsize, _OFFSET), after=_OFFSET)
        self.data += struct.pack("<I", values.size)
        self.places[vector] = len(self.data)
        self.data += values.astype(values.dtype.newbyteorder("<"), copy=False).tobytes()
        return start

    def _table(self, table: Table) -> int:
        """A table, its widest fields first; one vtable serves all tables that are laid out alike."""
        widths = {slot: _width(field) for slot, field in table.fields.items()}
        order = sorted(widths, key=lambda slot: (-widths[slot], slot))
        ends = _OFFSET
        offsets = {}
        for slot in order:
            ends += -(ends + _OFFSET) % widths[slot]  # the table begins 4 bytes behind a multiple of 8
            offsets[slot] = ends
            ends += widths[slot]
        slots = max(widths, default=-1) + 1
        vtable = struct.pack(
            f"<{2 + slots}H", 4 + 2 * slots, ends, *(offsets.get(slot, 0) for slot in range(slots))
        )
        if vtable not in self._vtables:
            self._vtables[vtable] = self._begin(_OFFSET)
            self.data += vtable
        start = self._begin(_WIDEST, after=_OFFSET)
        self.data += struct.pack("<i", start - self._vtables[vtable]) + bytes(ends - _OFFSET)
        for slot in order:
            self._field(start + offsets[slot], table.fields[slot])
        return start

    def _field(self, at: int, field: Field) -> None:
        if isinstance(field, Number):
            struct.pack_into("<" + field.kind, self.data, at, field.value)
        elif isinstance(field, Blank):
            self.places[field] = at
        else:
            self.refer(at, field)


def _width(field: Field) -> int:
    if isinstance(field, Number):
        return struct.calcsize(field.kind)
    return _WIDEST if isinstance(field, Blank) else _OFFSET


def int32s(values: Sequence[int]) -> Vector:
    """A vector of int32."""
    return Vector(np.array(values, np.int32))
