"""Safetensors: an 8-byte length, a JSON header, and the tensors one after the other.

This reader checks every rule of the format before it hands out a tensor, so that what it returns can be read
without another look. Sharded checkpoints (``model.safetensors.index.json``) open as one archive.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from phiconv import ir
from phiconv.errors import InputError, MalformedFileError, MissingFileError, printable
from phiconv.ir.findings import found_by, keeping
from phiconv.ir.model import Checkpoint
from phiconv_formats.shared.files import InputFile
from phiconv_formats.shared.rows import FileRows
from phiconv_formats.shared.strict_json import load_json_object, parse_json

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from os import PathLike

__all__ = [
    "DTYPE_OF_ENCODING",
    "METADATA_KEY",
    "Archive",
    "Layout",
    "lay_out",
    "load_index",
    "load_weight_map",
    "open_safetensors",
    "open_sharded",
]

MAX_HEADER_BYTES = 100_000_000  # the format's own limit
MAX_HEADER_VALUES = 250_000  # about eight per tensor; the largest files have some thousand tensors
MAX_INDEX_BYTES = 50_000_000
MAX_INDEX_VALUES = 250_000  # one per tensor
MAX_DIMENSIONS = 64

METADATA_KEY = "__metadata__"
"""The one name in a header that is no tensor."""

_FLOATS = {"F64": ir.F64, "F32": ir.F32, "F16": ir.F16, "BF16": ir.BF16}
_RAW_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "U16": 16, "I16": 16, "U32": 32, "I32": 32, "U64": 64, "I64": 64, "C64": 64,
    "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "F6_E2M3": 6, "F6_E3M2": 6, "F4": 4,
}  # fmt: skip


def _encoding(dtype: str, bits: int) -> ir.RawEncoding:
    common = math.lcm(bits, 8)
    return ir.RawEncoding(dtype.lower(), common // bits, common // 8)


_ENCODINGS: dict[str, ir.Encoding] = {
    **_FLOATS,
    **{dtype: _encoding(dtype, bits) for dtype, bits in _RAW_BITS.items()},
}
DTYPE_OF_ENCODING: dict[ir.Encoding, str] = {encoding: dtype for dtype, encoding in _ENCODINGS.items()}
"""The dtype that stores an encoding."""

_BITS = {**{dtype: 8 * encoding.dtype.itemsize for dtype, encoding in _FLOATS.items()}, **_RAW_BITS}


_ALIGNMENT = 64  # a cache line, and what any runtime that maps the file may ask for


@dataclass(frozen=True, slots=True)
class Layout:
    """A safetensors file without its tensors.

    Attributes:
        head: Length and header.
        offsets: Where in the file each tensor starts, by name.
        size: Bytes of the file.
    """

    head: bytes
    offsets: dict[str, int]
    size: int


def lay_out(tensors: Sequence[tuple[str, str, tuple[int, ...]]], metadata: Mapping[str, str]) -> Layout:
    """Lays a file out.

    The format allows no gaps. So that every tensor is aligned to its own elements all the same, those with
    wide elements come first, and spaces behind the header put the first one at a multiple of 64.

    Args:
        tensors: Name, dtype and shape of each; of one width they are stored in this order.
        metadata: Goes into ``__metadata__``.
    """
    header: dict[str, Any] = {METADATA_KEY: dict(metadata)}
    at, begins = 0, {}
    for name, dtype, shape in sorted(tensors, key=lambda t: -_BITS[t[1]]):
        begins[name] = at
        at += math.prod(shape) * _BITS[dtype] // 8
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [begins[name], at]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % _ALIGNMENT)
    start = 8 + len(text)
    offsets = {name: start + begin for name, begin in begins.items()}
    return Layout(len(text).to_bytes(8, "little") + text, offsets, start + at)


@dataclass(frozen=True, slots=True)
class Archive:
    """The tensors of one safetensors file, or of all shards of a checkpoint.

    Attributes:
        path: The file, or the index of the shards.
        tensors: By name, in the order of the header; shard after shard, by file name.
        metadata: What ``__metadata__`` says; of several shards, all together.
        files: The files that hold the tensors.
    """

    path: Path
    tensors: dict[str, ir.Tensor]
    metadata: dict[str, str]
    files: tuple[InputFile, ...]


def open_safetensors(path: str | PathLike[str]) -> Archive:
    """Opens one file and checks all of its header; reads no tensor.

    Raises:
        MalformedFileError: The file does not follow the format.
    """
    file = InputFile(path)
    header, start = _read_header(file)
    metadata = _metadata(header.pop(METADATA_KEY, {}), file.path)
    entries = [_Entry.parse(name, info, file.path) for name, info in header.items()]
    tensors = {entry.name: entry.tensor(file, start) for entry in entries}
    with keeping(lambda _: Checkpoint(file.path, "safetensors", tensors, metadata=metadata)):
        _check_layout(entries, file, start)
    return Archive(file.path, tensors, metadata, (file,))


def open_sharded(
    index_path: str | PathLike[str], open_file: Callable[[Path], Archive] = open_safetensors
) -> Archive:
    """Opens all shards that a ``model.safetensors.index.json`` names, and checks that both say the same.

    Args:
        index_path: The index.
        open_file: Opens a shard; checkpoints of PyTorch have an index of the same form.

    Raises:
        MalformedFileError: The index or a shard does not follow its format, or they contradict each other.
        MissingFileError: The index or a shard is not there.
    """
    index = Path(index_path)
    with keeping(lambda _: _shards_there(index, open_file)):
        weight_map = load_weight_map(index)
        shards = [open_file(index.parent / shard) for shard in sorted(set(weight_map.values()))]
        return _joined(index, weight_map, shards)


def _shards_there(index: Path, open_file: Callable[[Path], Archive]) -> Checkpoint:
    """The tensors of the shards that are there, as far as these can be read."""
    tensors: dict[str, ir.Tensor] = {}
    for shard in sorted(set(_weight_map(index).values())):
        if (index.parent / shard).exists():
            try:
                tensors |= open_file(index.parent / shard).tensors
            except InputError as error:
                tensors |= found.stored if (found := found_by(error)) else {}
    return Checkpoint(index, "safetensors", tensors)


def _joined(index: Path, weight_map: Mapping[str, str], shards: Sequence[Archive]) -> Archive:
    """All shards as one archive, if they hold what the index says."""
    tensors: dict[str, ir.Tensor] = {}
    for shard in shards:
        for name in shard.tensors:
            told = weight_map.get(name)
            if told != shard.path.name:
                where = f"in {told}" if told else "in no shard"
                message = f"the tensor is in this shard, and {index.name} says that it is {where}"
                raise MalformedFileError(message, path=shard.path, at=_at(name), hint="download both again")
        tensors.update(shard.tensors)
    for name, told in weight_map.items():
        if name not in tensors:
            path, message = (
                index.parent / told,
                f"{index.name} says that the tensor is in this shard, and it is not",
            )
            raise MalformedFileError(message, path=path, at=_at(name), hint="download both again")
    metadata = {key: value for shard in shards for key, value in shard.metadata.items()}
    return Archive(index, tensors, metadata, tuple(file for shard in shards for file in shard.files))


def load_weight_map(index_path: str | PathLike[str]) -> dict[str, str]:
    """Which shard each tensor is in, from the index of a checkpoint of any format.

    Every shard is a plain file name, and is there.

    Raises:
        MalformedFileError: It is not such an index, or it points out of its folder.
        MissingFileError: The index or a shard is not there.
    """
    index = Path(index_path)
    weight_map = _weight_map(index)
    missing = sorted(shard for shard in set(weight_map.values()) if not (index.parent / shard).exists())
    if missing:
        names = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        message = f"{len(missing)} of {len(set(weight_map.values()))} shards are not there: {names}"
        raise MissingFileError(message, path=index, hint=f"download {missing[0]} again into {index.parent}")
    return weight_map


def load_index(path: Path) -> dict[str, Any]:
    """The index of a checkpoint in parts, whatever is in it.

    Raises:
        MalformedFileError: It is larger than any index, or no JSON object.
    """
    return load_json_object(path, limit=MAX_INDEX_BYTES, max_values=MAX_INDEX_VALUES)


def _weight_map(index: Path) -> dict[str, str]:
    """Which shard each tensor is in; every shard is a plain file name."""
    weight_map = load_index(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        message = "expected an object that maps tensors to shards"
        raise MalformedFileError(message, path=index, at="key weight_map")
    for name, shard in weight_map.items():
        if not isinstance(shard, str) or not _is_plain_name(shard):
            message = f"{printable(shard, 80)} is not the name of a file in the same folder"
            raise MalformedFileError(message, path=index, at=f"key weight_map, {_at(name)}")
    return weight_map


@dataclass(frozen=True, slots=True)
class _Entry:
    """One tensor of a header, every field checked by itself."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    @staticmethod
    def parse(name: str, info: Any, path: Path) -> _Entry:
        def fail(message: str) -> MalformedFileError:
            return MalformedFileError(message, path=path, at=_at(name))

        if not isinstance(info, dict) or info.keys() != {"dtype", "shape", "data_offsets"}:
            raise fail("expected an object with dtype, shape and data_offsets")
        dtype, shape, offsets = info["dtype"], info["shape"], info["data_offsets"]
        if not isinstance(dtype, str) or dtype not in _ENCODINGS:
            raise fail(f"{printable(dtype, 40)} is not a dtype of safetensors")
        if not _are_sizes(shape) or len(shape) > MAX_DIMENSIONS:
            raise fail("the shape is not a list of sizes")
        if not _are_sizes(offsets) or len(offsets) != 2:
            raise fail("data_offsets are not two byte offsets")
        begin, end = offsets
        if begin > end:
            raise fail(f"data_offsets [{begin}, {end}] are reversed")
        entry = _Entry(name, dtype, tuple(shape), begin, end)
        bits = math.prod(shape) * _BITS[dtype]
        if bits != 8 * (end - begin):
            what = f"{dtype} of shape {printable(shape, 90)}"
            raise fail(f"{what} takes {-(-bits // 8)} bytes, and data_offsets hold {end - begin}")
        return entry

    def tensor(self, file: InputFile, start: int) -> ir.Tensor:
        columns = self.shape[-1] if len(self.shape) > 1 else 1
        row_bytes = columns * _BITS[self.dtype] // 8
        source = FileRows(file, start + self.begin, row_bytes, _ENCODINGS[self.dtype], self.name)
        return ir.Tensor.of(source, self.shape)


def _read_header(file: InputFile) -> tuple[dict[str, Any], int]:
    """The header, and the byte where the tensors start."""
    if file.size < 8:
        raise MalformedFileError(f"not a safetensors file: it has {file.size} bytes", path=file.path)
    length = int.from_bytes(file.read_bytes(0, 8), "little")
    if length > MAX_HEADER_BYTES:
        message = f"not a safetensors file: a header of {length} bytes, where {MAX_HEADER_BYTES} are allowed"
        raise MalformedFileError(message, path=file.path, at="byte 0")
    if length > file.size - 8:
        message = f"the header takes {length} bytes, and the file ends at byte {file.size}: it is truncated"
        raise MalformedFileError(message, path=file.path, at="byte 0", hint="download it again")
    data = file.read_bytes(8, length).rstrip(b" ")
    if not data.startswith(b"{") or not data.endswith(b"}"):
        message = "not a safetensors file: the header is no JSON object"
        raise MalformedFileError(message, path=file.path, at="byte 8")
    # It starts with "{", so the parser returns an object or raises.
    return parse_json(data, path=file.path, at="header", max_values=MAX_HEADER_VALUES), 8 + length


def _check_layout(entries: list[_Entry], file: InputFile, start: int) -> None:
    """The tensors must cover the rest of the file: no gap, no byte twice, nothing behind the last one."""
    at = 0
    for entry in sorted(entries, key=lambda e: (e.begin, e.end)):
        if entry.begin != at:
            fault = "overlaps the tensor before it" if entry.begin < at else "leaves a gap before it"
            message = f"starts at byte {entry.begin} of the data, where {at} is expected: it {fault}"
            raise MalformedFileError(message, path=file.path, at=_at(entry.name))
        at = entry.end
        if at > file.size - start:
            message = f"ends at byte {start + at} of the file, which has {file.size}: it is truncated"
            raise MalformedFileError(message, path=file.path, at=_at(entry.name), hint="download it again")
    if at != file.size - start:
        message = f"{file.size - start - at} bytes follow the last tensor, and no tensor owns them"
        raise MalformedFileError(message, path=file.path, at=f"byte {start + at}")


def _metadata(value: Any, path: Path) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(item, str) for item in value.values()):
        raise MalformedFileError("expected an object of strings", path=path, at="key __metadata__")
    return value


def _are_sizes(values: Any) -> bool:
    # bool is an int to Python and not to the format.
    return isinstance(values, list) and all(type(v) is int and 0 <= v < 1 << 63 for v in values)


def _is_plain_name(name: str) -> bool:
    # ":" is a drive, a stream or a URL; control characters are in no honest file name.
    harmless = name.isprintable() and not set(name) & set("/\\:")
    return harmless and name not in (".", "..") and 0 < len(name.encode()) < 256


def _at(name: str) -> str:
    return f"tensor {printable(name)}"
