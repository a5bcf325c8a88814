"""The bytes of a GGUF header: typed values, read within bounds and written back exactly as they were.

Strings are UTF-8 where they can be. A token may hold other bytes (a piece of a character); Python's
``surrogateescape`` keeps those, so reading and writing return the same bytes.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
from gguf.constants import GGUFValueType as ValueType

from phiconv.errors import MalformedFileError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from phiconv_formats.shared.files import InputFile

__all__ = [
    "MAX_HEADER_BYTES",
    "GgufValue",
    "HeaderReader",
    "ValueType",
    "serialize",
    "serialize_header",
    "serialize_kv",
    "serialize_tensor_info",
]

MAX_HEADER_BYTES = 30_000_000  # the vocabulary of Phi-4-mini and its merges take 8 MB
MAX_ITEMS = 1_600_000  # in all arrays together; the largest vocabularies and their merges are 1.3 million
ARRAY_WEIGHT = 16  # an array inside an array costs as much as that many items
MAX_NESTING = 4
MAX_NAME_BYTES = 1 << 16

# NumPy's names and those of the struct module are the same letters here.
_FORMATS = {
    ValueType.UINT8: "B",
    ValueType.INT8: "b",
    ValueType.UINT16: "H",
    ValueType.INT16: "h",
    ValueType.UINT32: "I",
    ValueType.INT32: "i",
    ValueType.FLOAT32: "f",
    ValueType.BOOL: "?",
    ValueType.UINT64: "Q",
    ValueType.INT64: "q",
    ValueType.FLOAT64: "d",
}
_DTYPES = {kind: np.dtype(f"<{letter}") for kind, letter in _FORMATS.items()}
_SMALLEST = {
    **{kind: dtype.itemsize for kind, dtype in _DTYPES.items()},
    ValueType.STRING: 8,
    ValueType.ARRAY: 12,
}


@dataclass(frozen=True, slots=True)
class GgufValue:
    """A metadata value and the type that it has in a file.

    Attributes:
        type: The type of the value.
        value: A number, a bool, a string, or a list of those; arrays of arrays are lists of `GgufValue`.
        item_type: The type of an array's items.
    """

    type: ValueType
    value: Any
    item_type: ValueType | None = None


# -------------------------------------------------------------------------------------------------- writing


def serialize(value: GgufValue) -> bytes:
    """The bytes of a value, without its type.

    Raises:
        ValueError: The value does not fit its type.
    """
    return b"".join(_pieces(value))


def serialize_kv(key: str, value: GgufValue) -> bytes:
    """The bytes of a metadata entry: key, type and value."""
    return b"".join((_string(key), struct.pack("<I", value.type), *_pieces(value)))


def _pieces(value: GgufValue) -> Iterator[bytes]:
    """What `serialize` joins, so that the bytes of a vocabulary are copied once."""
    if value.type is ValueType.STRING:
        yield _string(value.value)
        return
    if value.type is not ValueType.ARRAY:
        yield _numbers(value.type, [value.value])
        return
    if value.item_type is None:
        raise ValueError("an array needs the type of its items")
    yield struct.pack("<IQ", value.item_type, len(value.value))
    if value.item_type is ValueType.STRING:
        yield from _strings(value.value)
    elif value.item_type is ValueType.ARRAY:
        for item in value.value:
            yield from _pieces(item)
    else:
        yield _numbers(value.item_type, value.value)


def serialize_tensor_info(name: str, shape: Sequence[int], type_id: int, offset: int) -> bytes:
    """The bytes that describe a tensor.

    Args:
        name: Its name.
        shape: Outermost dimension first; the file has it the other way round.
        type_id: The number of its type, see `GGML_TYPES`.
        offset: Its first byte, counted from the start of the data.
    """
    dims = struct.pack(f"<I{len(shape)}Q", len(shape), *reversed(shape))
    return _string(name) + dims + struct.pack("<IQ", type_id, offset)


def serialize_header(n_tensors: int, n_kv: int) -> bytes:
    """The first bytes of a file: magic, version 3 and the two counts."""
    return b"GGUF" + struct.pack("<IQQ", 3, n_tensors, n_kv)


def _string(text: str) -> bytes:
    data = text.encode("utf-8", "surrogateescape")
    return struct.pack("<Q", len(data)) + data


def _strings(texts: Sequence[str]) -> Iterable[bytes]:
    """The pieces of `_string` of each, for vocabularies: a step for all of them at a time."""
    try:
        data = [*map(str.encode, texts)]
    except UnicodeEncodeError:
        return map(_string, texts)
    lengths = [*map(len, data)]
    stored = {length: struct.pack("<Q", length) for length in {*lengths}}
    return chain.from_iterable(zip(map(stored.__getitem__, lengths), data, strict=True))


def _numbers(kind: ValueType, values: Sequence[Any]) -> bytes:
    try:
        return struct.pack(f"<{len(values)}{_FORMATS[kind]}", *values)
    except (struct.error, OverflowError) as error:
        raise ValueError(f"a value does not fit the GGUF type {kind.name}: {error}") from error


# -------------------------------------------------------------------------------------------------- reading


class HeaderReader:
    """Reads a header from its first byte to its last, and never past the end of the file or a sane size.

    Every count is checked against the bytes that are left before anything is allocated or repeated.

    Attributes:
        file: The file.
        position: The byte that comes next.
    """

    def __init__(self, file: InputFile) -> None:
        self.file = file
        self.position = 0
        self._data = b""
        self._items = 0

    def fail(self, message: str, at: str = "", hint: str = "") -> NoReturn:
        """Raises the error for what was just read."""
        raise MalformedFileError(message, path=self.file.path, at=at or f"byte {self.position}", hint=hint)

    def remaining(self) -> int:
        """Bytes from here to the end of the file."""
        return self.file.size - self.position

    def need(self, count: int) -> None:
        """Makes sure that ``count`` more bytes are in memory."""
        end = self.position + count
        if end <= len(self._data):
            return
        if end > self.file.size:
            message = f"{count} more bytes are announced, and the file ends at byte {self.file.size}: "
            self.fail(message + "it is truncated or damaged", hint="download it again")
        if end > MAX_HEADER_BYTES:
            self.fail(f"the header is larger than {MAX_HEADER_BYTES} bytes")
        # Twice as much every time: few reads, and little more than the header needs.
        target = min(max(end, 2 * len(self._data), 1 << 16), self.file.size, MAX_HEADER_BYTES)
        self._data += self.file.read_bytes(len(self._data), target - len(self._data))

    def take(self, count: int) -> bytes:
        """The next ``count`` bytes."""
        self.need(count)
        start, self.position = self.position, self.position + count
        return self._data[start : self.position]

    def unsigned(self, size: int) -> int:
        """The next unsigned number of ``size`` bytes."""
        return int.from_bytes(self.take(size), "little")

    def count(self, what: str, smallest: int, limit: int) -> int:
        """A count of things of at least ``smallest`` bytes each, which must fit what is left of the file."""
        count = self.unsigned(8)
        if count * smallest > self.remaining():
            message = f"{count} {what} are announced, and {self.remaining()} bytes are left in the file"
            self.fail(message, hint="download it again")
        if count > limit:
            self.fail(f"{count} {what} are more than the {limit} that are sane")
        return count

    def name(self, what: str) -> str:
        """A key or a tensor name: UTF-8, and not too long."""
        start, length = self.position, self.unsigned(8)
        if length > MAX_NAME_BYTES:
            self.fail(f"the {what} has {length} bytes, and {MAX_NAME_BYTES} are allowed", f"byte {start}")
        try:
            return self.take(length).decode("utf-8")
        except UnicodeDecodeError:
            self.fail(f"the {what} is not valid UTF-8", f"byte {start}")

    def value(self) -> GgufValue:
        """A type and a value of it."""
        kind = self._type()
        if kind is ValueType.ARRAY:
            return self._array(0)
        item = self._strings(1)[0] if kind is ValueType.STRING else self._numbers(kind, 1)[0]
        return GgufValue(kind, item)

    def _type(self) -> ValueType:
        number = self.unsigned(4)
        try:
            return ValueType(number)
        except ValueError:
            self.fail(f"there is no value type {number}", f"byte {self.position - 4}")

    def _array(self, depth: int) -> GgufValue:
        if depth >= MAX_NESTING:
            self.fail(f"arrays are nested more than {MAX_NESTING} deep")
        kind = self._type()
        weight = ARRAY_WEIGHT if kind is ValueType.ARRAY else 1
        count = self.count("array items", _SMALLEST[kind], (MAX_ITEMS - self._items) // weight)
        self._items += count * weight
        items: list[Any]
        if kind is ValueType.ARRAY:
            items = [self._array(depth + 1) for _ in range(count)]
        elif kind is ValueType.STRING:
            items = self._strings(count)
        else:
            items = self._numbers(kind, count)
        return GgufValue(ValueType.ARRAY, items, kind)

    def _numbers(self, kind: ValueType, count: int) -> list[Any]:
        dtype = _DTYPES[kind]
        start, data = self.position, self.take(count * dtype.itemsize)
        if kind is ValueType.BOOL and not set(data) <= {0, 1}:
            self.fail("a bool is neither 0 nor 1", f"byte {start}")
        numbers: list[Any] = np.frombuffer(data, dtype).tolist()
        return numbers

    def _strings(self, count: int) -> list[str]:
        """Strings one after the other: a loop over a vocabulary, so it keeps its state in local variables."""
        result: list[str] = []
        data, at, unpack = self._data, self.position, struct.Struct("<Q").unpack_from
        for _ in range(count):
            if at + 8 > len(data):
                self.position = at
                self.need(8)
                data = self._data
            start = at + 8
            at = start + unpack(data, at)[0]
            if at > len(data):
                self.position = start
                self.need(at - start)
                data = self._data
            result.append(data[start:at].decode("utf-8", "surrogateescape"))
        self.position = at
        return result
