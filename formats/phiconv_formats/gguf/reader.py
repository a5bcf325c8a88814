"""Reads GGUF files, whole or split, of versions 2 and 3.

A header is checked from end to end before a tensor is handed out: what follows can trust every count, offset
and shape. The weights themselves are read when they are needed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from phiconv import ir
from phiconv.errors import MalformedFileError, MissingFileError, UnsupportedModelError, printable
from phiconv.ir.findings import keeping
from phiconv.ir.model import Checkpoint
from phiconv_formats.gguf.packing import unpack
from phiconv_formats.gguf.scale_types import with_scale_types
from phiconv_formats.gguf.types import GGML_TYPES, GgmlType
from phiconv_formats.gguf.values import GgufValue, HeaderReader, ValueType
from phiconv_formats.shared.files import InputFile
from phiconv_formats.shared.rows import FileRows, read_rows

if TYPE_CHECKING:
    from collections.abc import Mapping
    from os import PathLike
    from pathlib import Path

__all__ = ["BlockRows", "GgufFile", "GgufValue", "ValueType", "open_gguf"]

MAX_KEYS = 10_000
MAX_TENSORS = 20_000
MAX_ALIGNMENT = 1 << 20
DEFAULT_ALIGNMENT = 32
MAX_DIMENSIONS = 4

_SMALLEST_KV = 8 + 4 + 1  # an empty key, a type, a byte
_SMALLEST_TENSOR = 8 + 4 + 8 + 4 + 8  # an empty name, one dimension, a type, an offset
_INTEGERS = (
    ValueType.UINT8, ValueType.INT8, ValueType.UINT16, ValueType.INT16,
    ValueType.UINT32, ValueType.INT32, ValueType.UINT64, ValueType.INT64,
)  # fmt: skip
_PART_NAME = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf", re.DOTALL)


@dataclass(frozen=True, slots=True)
class GgufFile:
    """What a GGUF file says, its tensors ready to be read.

    Attributes:
        path: The file; of a split one, its first part.
        version: The version of the format, 2 or 3.
        metadata: Typed values by key, in file order; a split file's own keys (``split.*``) are left out.
        tensors: By name, in file order.
        types: The stored type of each tensor.
        alignment: Tensors start at multiples of this.
        data_offset: The byte where the tensors start, in the first part.
        files: The files that hold the tensors.
    """

    path: Path
    version: int
    metadata: dict[str, GgufValue]
    tensors: dict[str, ir.Tensor]
    types: dict[str, GgmlType]
    alignment: int
    data_offset: int
    files: tuple[InputFile, ...]


@dataclass(frozen=True, slots=True)
class BlockRows:
    """A matrix of quantized blocks in a file (an `ir.Source`).

    Attributes:
        file: The file.
        offset: The byte where the first row starts.
        columns: Weights in a row.
        type: How blocks are stored.
        name: The tensor, for messages.
    """

    file: InputFile
    offset: int
    columns: int
    type: GgmlType
    name: str

    @property
    def label(self) -> str:
        """File and tensor name, for messages."""
        return f"{self.file.path}: {self.name}"

    @property
    def encoding(self) -> ir.Encoding:
        """How the rows are stored."""
        return self.type.encoding

    def read(self, start: int, stop: int) -> ir.Encoded:
        """Reads and unpacks the blocks of rows ``start`` to ``stop``.

        Raises:
            UnsupportedModelError: A vector is cut inside a block.
        """
        first, first_rest = divmod(start * self.columns, self.type.block_size)
        last, last_rest = divmod(stop * self.columns, self.type.block_size)
        if first_rest or last_rest:
            message = f"weights {start} to {stop} of a {self.type.name} vector are not whole blocks"
            raise UnsupportedModelError(message, path=self.file.path, at=self.name)
        data = read_rows(self.file, self.offset, self.type.block_bytes, first, last)
        return unpack(data.reshape(-1), self.encoding)

    def changed(self) -> bool:
        """Whether the file is no longer the one that was opened."""
        return self.file.changed()


def open_gguf(path: str | PathLike[str]) -> GgufFile:
    """Opens a GGUF file, and with the first part of a split one (``-00001-of-00003.gguf``) all others.

    Raises:
        MalformedFileError: The file does not follow the format.
        MissingFileError: It is not there, or another part of it.
        ConfigError: A key that says how tensors are to be read has a value of another type.
    """
    first = _open_part(InputFile(path))
    count = _integer(first, "split.count", 1)
    with keeping(lambda found: _parts_there(first, found)):
        whole = first if count <= 1 else _open_parts(first, count)
        return replace(whole, tensors=with_scale_types(whole.tensors, whole.metadata, whole.path))


def _parts_there(first: GgufFile, found: Checkpoint | None) -> Checkpoint:
    """The first part of a file, with what was found of another one."""
    tensors = first.tensors | dict(found.stored if found else {})
    return Checkpoint(first.path, "gguf", tensors, metadata=first.metadata)


def _open_part(file: InputFile) -> GgufFile:
    """Reads the header of one file; an error carries what was read of it until then."""
    metadata: dict[str, GgufValue] = {}
    infos: dict[str, _Info] = {}
    with keeping(lambda _: _half_read(file, metadata, infos)):
        return _read_part(file, metadata, infos)


def _half_read(
    file: InputFile, metadata: Mapping[str, GgufValue], infos: Mapping[str, _Info]
) -> Checkpoint | None:
    """What was read of a header, to look at; None if that is nothing."""
    tensors = {name: info.tensor(file, 0) for name, info in infos.items()}
    return Checkpoint(file.path, "gguf", tensors, metadata=metadata) if metadata else None


def _read_part(file: InputFile, metadata: dict[str, GgufValue], infos: dict[str, _Info]) -> GgufFile:
    """Reads a header into these, from end to end."""
    reader = HeaderReader(file)
    version = _read_version(reader)
    n_tensors = reader.count("tensors", _SMALLEST_TENSOR, MAX_TENSORS)
    n_kv = reader.count("metadata keys", _SMALLEST_KV, MAX_KEYS)
    for _ in range(n_kv):
        start, key = reader.position, reader.name("key")
        if key in metadata:
            reader.fail(f"the key {printable(key)} is there twice", f"byte {start}")
        metadata[key] = reader.value()
    if n_tensors * _SMALLEST_TENSOR > reader.remaining():
        reader.fail(f"{n_tensors} tensors are announced, and {reader.remaining()} bytes are left in the file")
    for _ in range(n_tensors):
        start, name = reader.position, reader.name("tensor name")
        if name in infos:
            reader.fail(f"the tensor {printable(name)} is there twice", f"byte {start}")
        infos[name] = _Info.read(reader, name)
    alignment = _alignment(metadata, file.path)
    data_offset = _round_up(reader.position, alignment)
    _check_layout(infos, file, data_offset, alignment)
    return GgufFile(
        path=file.path,
        version=version,
        metadata=metadata,
        tensors={name: info.tensor(file, data_offset) for name, info in infos.items()},
        types={name: info.type for name, info in infos.items()},
        alignment=alignment,
        data_offset=data_offset,
        files=(file,),
    )


def _read_version(reader: HeaderReader) -> int:
    magic = reader.take(min(4, reader.file.size))
    if magic != b"GGUF":
        reader.fail(f"not a GGUF file: it starts with {magic!r}", "byte 0")
    version = reader.unsigned(4)
    if int.from_bytes(version.to_bytes(4, "little"), "big") in (1, 2, 3):
        reader.fail("a big-endian GGUF file", "byte 4", "make it again for little-endian machines")
    if version not in (2, 3):
        message = f"GGUF version {version} is not supported, versions 2 and 3 are"
        reader.fail(message, "byte 4", "make the file again with a current tool")
    return version


@dataclass(frozen=True, slots=True)
class _Info:
    """One tensor of a header, every field checked by itself."""

    name: str
    shape: tuple[int, ...]
    type: GgmlType
    offset: int

    @staticmethod
    def read(reader: HeaderReader, name: str) -> _Info:
        at = f"tensor {printable(name)}"
        n_dims = reader.unsigned(4)
        if not 1 <= n_dims <= MAX_DIMENSIONS:
            reader.fail(f"{n_dims} dimensions, where 1 to {MAX_DIMENSIONS} are allowed", at)
        shape = tuple(reader.unsigned(8) for _ in range(n_dims))[::-1]
        if 0 in shape:
            reader.fail(f"a dimension of shape {list(shape)} is 0", at)
        number = reader.unsigned(4)
        kind = GGML_TYPES.get(number)
        if kind is None:
            reader.fail(f"tensor type {number} is not known", at, "convert from the original checkpoint")
        if shape[-1] % kind.block_size:
            reader.fail(f"rows of {shape[-1]} weights are not whole {kind.name} blocks", at)
        return _Info(name, shape, kind, reader.unsigned(8))

    @property
    def end(self) -> int:
        return self.offset + self.type.nbytes(self.shape)

    def tensor(self, file: InputFile, data_offset: int) -> ir.Tensor:
        columns = self.shape[-1] if len(self.shape) > 1 else 1
        offset, encoding = data_offset + self.offset, self.type.encoding
        source: ir.Source
        if isinstance(encoding, ir.AnyBlockEncoding):
            source = BlockRows(file, offset, columns, self.type, self.name)
        else:
            source = FileRows(file, offset, self.type.row_bytes(columns), encoding, self.name)
        return ir.Tensor.of(source, self.shape)


def _alignment(metadata: dict[str, GgufValue], path: Path) -> int:
    value = metadata.get("general.alignment")
    if value is None:
        return DEFAULT_ALIGNMENT
    number = value.value
    # At least 8, and a power of two: one bit set.
    if value.type is not ValueType.UINT32 or not 8 <= number <= MAX_ALIGNMENT or number & (number - 1):
        message = f"{printable(number, 40)} is no alignment: it must be a power of two from 8 on, a UINT32"
        raise MalformedFileError(message, path=path, at="key general.alignment")
    return int(number)


def _round_up(position: int, alignment: int) -> int:
    return -(-position // alignment) * alignment


def _check_layout(infos: dict[str, _Info], file: InputFile, data_offset: int, alignment: int) -> None:
    """Every tensor is aligned, inside the file, and shares no byte with another."""
    at = 0
    for info in sorted(infos.values(), key=lambda i: i.offset):
        if info.offset % alignment:
            message, hint = f"offset {info.offset} is not a multiple of {alignment}", ""
        elif info.offset < at:
            message, hint = f"starts at byte {info.offset} of the data, inside the tensor before it", ""
        elif data_offset + info.end > file.size:
            end = data_offset + info.end
            message = f"ends at byte {end} of the file, which has {file.size}: it is truncated"
            hint = "download it again"
        else:
            at = info.end
            continue
        raise MalformedFileError(message, path=file.path, at=f"tensor {printable(info.name)}", hint=hint)


# ---------------------------------------------------------------------------------------------- split files


def _integer(part: GgufFile, key: str, default: int | None = None) -> int:
    value = part.metadata.get(key)
    if value is None and default is not None:
        return default
    if value is None or value.type not in _INTEGERS or value.value < 0:
        raise MalformedFileError("expected a number", path=part.path, at=f"key {key}")
    return int(value.value)


def _open_parts(first: GgufFile, count: int) -> GgufFile:
    """Opens the other parts, checks that all say the same, and joins them."""
    parts = [first, *(_open_part(InputFile(path)) for path in _part_paths(first, count))]
    total = _integer(first, "split.tensors.count")
    tensors: dict[str, ir.Tensor] = {}
    types: dict[str, GgmlType] = {}
    for number, part in enumerate(parts):
        for key, expected in (("split.no", number), ("split.count", count), ("split.tensors.count", total)):
            if _integer(part, key) != expected:
                message = f"{_integer(part, key)}, where {expected} is expected"
                raise MalformedFileError(message, path=part.path, at=f"key {key}", hint="download it again")
        twice = tensors.keys() & part.tensors.keys()
        if twice:
            message = "the tensor is in another part too"
            raise MalformedFileError(message, path=part.path, at=f"tensor {printable(min(twice))}")
        tensors.update(part.tensors)
        types.update(part.types)
    if len(tensors) != total:
        message = f"{total} are announced, and the {count} parts hold {len(tensors)}"
        raise MalformedFileError(message, path=first.path, at="key split.tensors.count")
    return GgufFile(
        path=first.path,
        version=first.version,
        metadata={key: value for key, value in first.metadata.items() if not key.startswith("split.")},
        tensors=tensors,
        types=types,
        alignment=first.alignment,
        data_offset=first.data_offset,
        files=tuple(file for part in parts for file in part.files),
    )


def _part_paths(first: GgufFile, count: int) -> list[Path]:
    """The files of parts 2 to ``count``; they must all be there."""
    path = first.path
    match = _PART_NAME.fullmatch(path.name)
    if not match or int(match[3]) != count:
        message = f"a part of {count}, and its name does not end in -00001-of-{count:05d}.gguf"
        raise MalformedFileError(message, path=path, hint="give the parts their original names")
    stem = match[1]
    if int(match[2]) != 1 or _integer(first, "split.no") != 0:
        hint = f"give {stem}-00001-of-{count:05d}.gguf"
        raise MalformedFileError(f"not the first of {count} parts", path=path, hint=hint)
    paths = []
    for number in range(2, count + 1):
        part = path.with_name(f"{stem}-{number:05d}-of-{count:05d}.gguf")
        if not part.exists():
            hint = f"download {part.name} again into {path.parent}"
            raise MissingFileError(f"part {number} of {count} is not there", path=part, hint=hint)
        paths.append(part)
    return paths
