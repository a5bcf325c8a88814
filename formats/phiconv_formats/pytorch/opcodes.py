"""The opcodes of a pickle (Python's pickletools.py describes them), cut out of the stream one by one.

Only those that a pickle of protocol 2 or later needs for data have an argument here. The others are known by
name, so that a refusal can say what it met.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any, NamedTuple

from phiconv.errors import MalformedFileError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["MAX_OPCODES", "Opcode", "Stream", "walk"]

MAX_OPCODES = 200_000  # about thirty per tensor; the largest checkpoints have some thousand tensors
_MAX_INTEGER_BYTES = 255
_HIGHEST_PROTOCOL = 5


class Stream(NamedTuple):
    """Bytes with a pickle in them, and how messages call the place.

    Attributes:
        data: The bytes.
        path: The file they are from.
        name: What the bytes are in that file: "data.pkl", or "" for the file itself.
    """

    data: bytes
    path: Path
    name: str = ""

    def at(self, offset: int) -> str:
        """A place, for messages."""
        return f"byte {offset} of {self.name}" if self.name else f"byte {offset}"

    def fail(self, message: str, offset: int) -> MalformedFileError:
        """An error at a place."""
        hint = "download it again, or save it again as .safetensors"
        return MalformedFileError(message, path=self.path, at=self.at(offset), hint=hint)


class Opcode(NamedTuple):
    """One step of a pickle: where it is, what it is called, its argument (None where it has none)."""

    offset: int
    name: str
    argument: Any


# Opcode -> name and kind of argument: nothing; u and i: an integer of that many bytes; f: a big-endian float;
# s, b, n: a text, bytes, or an integer whose length stands before it in that many bytes; lines: two lines.
_OPCODES: dict[int, tuple[str, str]] = {
    0x80: ("PROTO", "u1"),
    0x95: ("FRAME", "u8"),
    ord("."): ("STOP", ""),
    # numbers and texts
    ord("N"): ("NONE", ""),
    0x88: ("NEWTRUE", ""),
    0x89: ("NEWFALSE", ""),
    ord("J"): ("BININT", "i4"),
    ord("K"): ("BININT1", "u1"),
    ord("M"): ("BININT2", "u2"),
    0x8A: ("LONG1", "n1"),
    0x8B: ("LONG4", "n4"),
    ord("G"): ("BINFLOAT", "f8"),
    ord("X"): ("BINUNICODE", "s4"),
    0x8C: ("SHORT_BINUNICODE", "s1"),
    0x8D: ("BINUNICODE8", "s8"),
    ord("U"): ("SHORT_BINSTRING", "s1"),  # texts of Python 2
    ord("T"): ("BINSTRING", "s4"),
    ord("C"): ("SHORT_BINBYTES", "b1"),
    ord("B"): ("BINBYTES", "b4"),
    0x8E: ("BINBYTES8", "b8"),
    # containers
    ord("("): ("MARK", ""),
    ord(")"): ("EMPTY_TUPLE", ""),
    0x85: ("TUPLE1", ""),
    0x86: ("TUPLE2", ""),
    0x87: ("TUPLE3", ""),
    ord("t"): ("TUPLE", ""),
    ord("]"): ("EMPTY_LIST", ""),
    ord("a"): ("APPEND", ""),
    ord("e"): ("APPENDS", ""),
    ord("}"): ("EMPTY_DICT", ""),
    ord("s"): ("SETITEM", ""),
    ord("u"): ("SETITEMS", ""),
    # the memo
    ord("q"): ("BINPUT", "u1"),
    ord("r"): ("LONG_BINPUT", "u4"),
    0x94: ("MEMOIZE", ""),
    ord("h"): ("BINGET", "u1"),
    ord("j"): ("LONG_BINGET", "u4"),
    # names, storages and calls; what they may say is up to the machine
    ord("c"): ("GLOBAL", "lines"),
    0x93: ("STACK_GLOBAL", ""),
    ord("Q"): ("BINPERSID", ""),
    ord("R"): ("REDUCE", ""),
    ord("b"): ("BUILD", ""),
    ord("i"): ("INST", "lines"),
    # what no machine here does
    ord("o"): ("OBJ", ""),
    0x81: ("NEWOBJ", ""),
    0x92: ("NEWOBJ_EX", ""),
    0x82: ("EXT1", ""),
    0x83: ("EXT2", ""),
    0x84: ("EXT4", ""),
    0x8F: ("EMPTY_SET", ""),
    0x90: ("ADDITEMS", ""),
    0x91: ("FROZENSET", ""),
    0x96: ("BYTEARRAY8", ""),
    0x97: ("NEXT_BUFFER", ""),
    0x98: ("READONLY_BUFFER", ""),
    # protocols 0 and 1
    ord("I"): ("INT", ""),
    ord("L"): ("LONG", ""),
    ord("F"): ("FLOAT", ""),
    ord("S"): ("STRING", ""),
    ord("V"): ("UNICODE", ""),
    ord("P"): ("PERSID", ""),
    ord("g"): ("GET", ""),
    ord("p"): ("PUT", ""),
    ord("l"): ("LIST", ""),
    ord("d"): ("DICT", ""),
    ord("0"): ("POP", ""),
    ord("1"): ("POP_MARK", ""),
    ord("2"): ("DUP", ""),
}

_FIXED = {
    "u1": struct.Struct("<B"),
    "u2": struct.Struct("<H"),
    "u4": struct.Struct("<I"),
    "u8": struct.Struct("<Q"),
    "i4": struct.Struct("<i"),
    "f8": struct.Struct(">d"),
}


def walk(stream: Stream, start: int = 0) -> Iterator[Opcode]:
    """The opcodes of one pickle, from ``start`` to its STOP, which is the last one.

    Raises:
        MalformedFileError: An unknown opcode, an argument beyond the end, an end without STOP, or more
            opcodes than any checkpoint needs.
    """
    data, at = stream.data, start
    for _ in range(MAX_OPCODES):
        if at >= len(data):
            raise stream.fail("the pickle ends without a STOP: it is truncated", at)
        name, kind = _OPCODES.get(data[at], ("", ""))
        if not name:
            raise stream.fail(f"0x{data[at]:02X} is no opcode of a pickle", at)
        argument, end = _argument(stream, at, kind)
        if name == "PROTO" and argument > _HIGHEST_PROTOCOL:
            raise stream.fail(f"a pickle of protocol {argument}", at)
        if name == "FRAME" and argument > len(data) - end:
            raise stream.fail(f"a frame of {argument} bytes, and {len(data) - end} are left", at)
        yield Opcode(at, name, argument)
        at = end
        if name == "STOP":
            return
    raise stream.fail(f"a pickle of more than {MAX_OPCODES} opcodes", at)


def _argument(stream: Stream, at: int, kind: str) -> tuple[Any, int]:
    """The argument of the opcode at ``at``, and where it ends."""
    if not kind:
        return None, at + 1
    if kind == "lines":
        return _lines(stream, at)
    fixed = _FIXED[kind] if kind in _FIXED else _FIXED[f"u{kind[1]}"]
    end = at + 1 + fixed.size
    if end > len(stream.data):
        raise stream.fail("the pickle ends within an opcode: it is truncated", at)
    value = fixed.unpack_from(stream.data, at + 1)[0]
    if kind in _FIXED:
        return value, end
    if value > len(stream.data) - end:
        raise stream.fail(f"takes {value} bytes, and {len(stream.data) - end} are left", at)
    content, end = stream.data[end : end + value], end + value
    if kind[0] == "b":
        return content, end
    if kind[0] == "s":
        return _text(stream, at, content), end
    if value > _MAX_INTEGER_BYTES:
        raise stream.fail(f"an integer of {value} bytes", at)
    return int.from_bytes(content, "little", signed=True), end


def _lines(stream: Stream, at: int) -> tuple[tuple[str, str], int]:
    """The module and the name of an object, each on a line."""
    middle = stream.data.find(b"\n", at + 1)
    end = stream.data.find(b"\n", middle + 1)
    if middle < 0 or end < 0:
        raise stream.fail("the pickle ends within a name: it is truncated", at)
    module, name = stream.data[at + 1 : middle], stream.data[middle + 1 : end]
    return (_text(stream, at, module), _text(stream, at, name)), end + 1


def _text(stream: Stream, at: int, content: bytes) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        raise stream.fail("a text that is not valid UTF-8", at) from None
