"""The file that LiteRT-LM opens: a header, which lists sections, and the sections behind it.

Layout of LiteRT-LM 0.18 (schema/core/litertlm_header_schema.fbs and litertlm_builder.py)::

    0   8   "LITERTLM"
    8   12  version: major, minor, patch, uint32 each
    20  4   zero
    24  8   end of the header, uint64
    32      a FlatBuffer without an identifier, which ends within the first 16 KiB

Each section begins at a multiple of 16 KiB. Offsets of weights count from where the model's section begins.
The builder adds a random number and the time of day; nobody needs them, and equal models make equal files.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from phiconv_formats.litert.flatbuffer import Blank, Number, Table, Tables, Text, finish

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from phiconv_formats.litert.flatbuffer import Child, Field

__all__ = [
    "ALIGNMENT",
    "HEADER",
    "LLM_METADATA",
    "MAGIC",
    "MODEL",
    "SECTION_KINDS",
    "TOKENIZER",
    "VERSION",
    "Section",
    "header",
    "stored_zlib",
]

MAGIC = b"LITERTLM"
VERSION = (1, 5, 0)
"""The oldest that has all that is used; releases from 0.10 to 0.18 take it."""

ALIGNMENT = 16384
HEADER = 32
"""Bytes before the FlatBuffer."""

MODEL, LLM_METADATA, TOKENIZER = 3, 5, 6

SECTION_KINDS = {
    1: "binary data",
    MODEL: "TFLite model",
    4: "SentencePiece tokenizer",
    LLM_METADATA: "LLM metadata",
    TOKENIZER: "tokenizer.json",
    7: "TFLite weights",
    8: "embedding metadata",
    9: "executor metadata",
    10: "speech synthesis metadata",
    11: "speech recognition metadata",
}
"""What sections are, by the numbers that the header has."""

_STRING = 9
"""Of the union of an item's values."""

_LONGEST_STORED = 0xFFFF


@dataclass(frozen=True, slots=True)
class Section:
    """A section that is to be written.

    Attributes:
        kind: A key of `SECTION_KINDS`.
        size: Its bytes.
        items: What the header says of it.
    """

    kind: int
    size: int
    items: Mapping[str, str]


def header(sections: Sequence[Section]) -> tuple[bytes, list[int]]:
    """The header, and where each section begins."""
    ends = [(Blank(), Blank()) for _ in sections]
    objects: list[Child] = [
        Table({0: Tables(_items(section.items)), 1: begin, 2: end, 3: Number("B", section.kind)})
        for section, (begin, end) in zip(sections, ends, strict=True)
    ]
    finished = finish(Table({0: Table({0: Tables([])}), 1: Table({0: Tables(objects)})}))
    at, places = HEADER + len(finished.data), []
    for section, (begin, end) in zip(sections, ends, strict=True):
        at += -at % ALIGNMENT
        places.append(at)
        finished.fill(begin, at)
        at += section.size
        finished.fill(end, at)
    front = MAGIC + struct.pack("<3IIQ", *VERSION, 0, HEADER + len(finished.data))
    return front + bytes(finished.data), places


def _items(items: Mapping[str, str]) -> list[Child]:
    made: list[Child] = []
    for key, value in items.items():
        fields: dict[int, Field] = {0: Text(key), 1: Number("B", _STRING), 2: Table({0: Text(value)})}
        made.append(Table(fields))
    return made


def stored_zlib(data: bytes) -> bytes:
    """Bytes as a zlib stream that compresses nothing, behind their number as uint64.

    Compressed bytes depend on which zlib there is; these do not.
    """
    blocks = []
    for start in range(0, max(len(data), 1), _LONGEST_STORED):
        part = data[start : start + _LONGEST_STORED]
        last = start + _LONGEST_STORED >= len(data)
        blocks.append(struct.pack("<BHH", last, len(part), len(part) ^ 0xFFFF) + part)
    end = struct.pack(">I", zlib.adler32(data))
    return struct.pack("<Q", len(data)) + b"\x78\x01" + b"".join(blocks) + end
