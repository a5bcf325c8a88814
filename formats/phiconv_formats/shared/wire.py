"""Protobuf's wire format, read field by field from a file; nothing is held but what is asked for.

https://protobuf.dev/programming-guides/encoding: a message is a sequence of fields, each a key (number and
kind) and a value. A value is a number, or a range of bytes that is text, packed numbers or another message.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from phiconv.errors import MalformedFileError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from phiconv_formats.shared.files import InputFile

__all__ = ["Field", "WireReader"]

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_WINDOW = 1 << 16
_LONGEST_VARINT = 10
_LONGEST_TEXT = 1 << 12
_MOST_FIELDS = 220_000
"""A fifth more than Phi-3.5-MoE has with every expert by itself: a small file must not keep anybody busy."""


class Field(NamedTuple):
    """A field of a message.

    Attributes:
        number: Which one.
        value: A number's unsigned value or bits; of a range of bytes, their count.
        start, stop: The range of bytes in the file; the same where it is a number.
    """

    number: int
    value: int
    start: int
    stop: int


class WireReader:
    """Reads messages of one file.

    Args:
        file: The file.
        what: What it is, for messages, with its article.
    """

    def __init__(self, file: InputFile, what: str) -> None:
        self.file = file
        self._what = what
        self._left = _MOST_FIELDS
        self._first, self._window = 0, b""

    def fields(self, start: int, stop: int) -> Iterator[Field]:
        """The fields of the message in a range of bytes.

        Raises:
            MalformedFileError: They are none, or there are more than any model has.
        """
        at = start
        while at < stop:
            self._left -= 1
            if self._left < 0:
                raise self.error(f"more than {_MOST_FIELDS} parts, which no Phi model has", at)
            key, value_at = self._varint(at, stop)
            number, kind = key >> 3, key & 7
            if number == 0:
                raise self.error("no field of a message", at)
            if kind == _VARINT:
                value, at = self._varint(value_at, stop)
                yield Field(number, value, at, at)
            elif kind in {_FIXED32, _FIXED64}:
                size = 4 if kind == _FIXED32 else 8
                value = int.from_bytes(self._bytes(value_at, size, stop), "little")
                at = value_at + size
                yield Field(number, value, at, at)
            elif kind == _BYTES:
                size, first = self._varint(value_at, stop)
                if size > stop - first:
                    raise self.error(f"a field of {size} bytes, where {stop - first} are left", at)
                at = first + size
                yield Field(number, size, first, at)
            else:
                raise self.error(f"a field of unknown kind {kind}", at)

    def text(self, field: Field) -> str:
        """A field that is text.

        Raises:
            MalformedFileError: It is none, or too long for a name.
        """
        size = field.stop - field.start
        if size > _LONGEST_TEXT:
            raise self.error(f"a name of {size} bytes", field.start)
        try:
            return self._bytes(field.start, size, field.stop).decode()
        except UnicodeDecodeError:
            raise self.error("a name that is no UTF-8", field.start) from None

    def numbers(self, field: Field, most: int) -> list[int]:
        """A field that is a number, or several packed ones, at most so many; unsigned."""
        if field.stop == field.start:
            return [field.value] if field.value else []
        result: list[int] = []
        at = field.start
        while at < field.stop:
            if len(result) == most:
                raise self.error(f"more than {most} numbers", field.start)
            value, at = self._varint(at, field.stop)
            result.append(value)
        return result

    def error(self, message: str, at: int) -> MalformedFileError:
        """A `MalformedFileError` about a byte of the file."""
        return MalformedFileError(
            f"not {self._what}: {message}", path=self.file.path, at=f"byte {at}", hint="download it again"
        )

    def _varint(self, at: int, stop: int) -> tuple[int, int]:
        """A number of 7 bits to a byte, the lowest first, and where it ends."""
        first = at - self._first
        if at < stop and 0 <= first < len(self._window) and self._window[first] < 128:  # most are one byte
            return self._window[first], at + 1
        value = 0
        data = self._bytes(at, min(_LONGEST_VARINT, stop - at), stop)
        for i, byte in enumerate(data):
            value |= (byte & 127) << (7 * i)
            if byte < 128:
                return value & ((1 << 64) - 1), at + i + 1
        raise self.error("a number without an end", at)

    def _bytes(self, at: int, size: int, stop: int) -> bytes:
        if size > stop - at:
            raise self.error("the message ends within a field", at)
        if not self._first <= at <= at + size <= self._first + len(self._window):
            self._first = at
            self._window = self.file.read_bytes(at, min(max(size, _WINDOW), self.file.size - at))
        first = at - self._first
        return self._window[first : first + size]
