"""Protobuf messages, written field by field (https://protobuf.dev/programming-guides/encoding)."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["message", "number", "packed", "text"]

_VARINT, _BYTES = 0, 2


def _varint(value: int) -> bytes:
    parts = []
    while value > 127:
        parts.append(value & 127 | 128)
        value >>= 7
    return bytes([*parts, value])


def number(field: int, value: int) -> bytes:
    """A field that is a number, 0 or more."""
    return _varint(field << 3 | _VARINT) + _varint(value)


def message(field: int, content: bytes) -> bytes:
    """A field that is a message, or bytes."""
    return _varint(field << 3 | _BYTES) + _varint(len(content)) + content


def text(field: int, value: str) -> bytes:
    """A field that is text."""
    return message(field, value.encode())


def packed(field: int, values: Sequence[int]) -> bytes:
    """A field that is several numbers."""
    return message(field, b"".join(map(_varint, values)))
