"""The sections of a .litertlm, and what is in those that are small."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from phiconv.errors import MalformedFileError
from phiconv_formats.litert.container import ALIGNMENT, HEADER, MAGIC, TOKENIZER
from phiconv_formats.litert.flatbuffer_reader import FlatBuffer

if TYPE_CHECKING:
    from collections.abc import Mapping

    from phiconv_formats.litert.flatbuffer_reader import TableView
    from phiconv_formats.shared.files import InputFile

__all__ = ["StoredSection", "is_container", "read_sections", "section_bytes"]

_WHAT = "LiteRT-LM file"
_MOST_SECTIONS = 64
_MOST_ITEMS = 64
_STRING = 9
_LARGEST = 64 << 20
"""Bytes of a section that is no model, and of a tokenizer when it is unpacked."""


@dataclass(frozen=True, slots=True)
class StoredSection:
    """A section.

    Attributes:
        kind: A key of `SECTION_KINDS`, or a number that phiconv does not know.
        start, stop: Its bytes in the file.
        items: What the header says of it in words.
    """

    kind: int
    start: int
    stop: int
    items: Mapping[str, str]


def is_container(file: InputFile) -> bool:
    """Whether a file is a .litertlm, and no model alone."""
    return file.read_bytes(0, min(len(MAGIC), file.size)) == MAGIC


def read_sections(file: InputFile) -> list[StoredSection]:
    """The sections of a file that `is_container`.

    Raises:
        MalformedFileError: Its header is none, or sections are not in the file.
    """
    end = int.from_bytes(file.read_bytes(HEADER - 8, 8), "little")
    if not HEADER < end <= min(ALIGNMENT, file.size):
        raise MalformedFileError(
            f"not a {_WHAT}: a header of {end} bytes",
            path=file.path,
            at="byte 24",
            hint="download it again",
        )
    buffer = FlatBuffer(file, HEADER, end, _WHAT)
    listed = buffer.root().table(1)
    found: list[StoredSection] = []
    for table in listed.tables(0) if listed is not None else ():
        if len(found) == _MOST_SECTIONS:
            raise buffer.error(f"more than {_MOST_SECTIONS} sections", table.at)
        start, stop = table.number(1, "Q"), table.number(2, "Q")
        if not end <= start <= stop <= file.size:
            raise buffer.error(f"a section at {start} to {stop}: the file ends at {file.size}", table.at)
        found.append(StoredSection(table.number(3, "B"), start, stop, _items(table)))
    return found


def _items(section: TableView) -> dict[str, str]:
    items: dict[str, str] = {}
    for table in section.tables(0):
        if len(items) == _MOST_ITEMS:
            raise section.buffer.error(f"more than {_MOST_ITEMS} items", table.at)
        value = table.table(2) if table.number(1, "B") == _STRING else None
        if value is not None:
            items[table.text(0)] = value.text(0)
    return items


def section_bytes(file: InputFile, section: StoredSection) -> bytes:
    """What is in a small section, unpacked.

    Raises:
        MalformedFileError: It is too large, or not what it is said to be.
    """
    at = f"byte {section.start}"
    size = section.stop - section.start
    if size > _LARGEST:
        raise MalformedFileError(f"a section of {size} bytes, and no model", path=file.path, at=at)
    data = file.read_bytes(section.start, size)
    if section.kind != TOKENIZER:
        return data
    unpacked, inflating = int.from_bytes(data[:8], "little"), zlib.decompressobj()
    if unpacked > _LARGEST:
        raise MalformedFileError(f"a tokenizer of {unpacked} bytes", path=file.path, at=at)
    try:
        result = inflating.decompress(data[8:], unpacked + 1)
    except zlib.error as error:
        raise MalformedFileError(f"a damaged tokenizer: {error}", path=file.path, at=at) from None
    if len(result) != unpacked:
        raise MalformedFileError(
            f"a tokenizer that is not of the {unpacked} bytes that it says", path=file.path, at=at
        )
    return result
