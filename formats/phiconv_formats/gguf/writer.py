"""GGUF version 3, laid out in full before a weight is read; one file or several.

Layout (ggml's docs/gguf.md): header, key/value pairs, tensor infos, padding, then the tensors, each at a
multiple of the alignment and padded to it. A split file repeats the header; its first part has the metadata.
"""

from __future__ import annotations

import glob
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gguf.constants import GGUFValueType, Keys, LlamaFileType

from phiconv.errors import UnsupportedModelError
from phiconv_formats.gguf.metadata import file_metadata
from phiconv_formats.gguf.names import check_model, runtime_notes
from phiconv_formats.gguf.packing import pack
from phiconv_formats.gguf.scale_types import scale_types
from phiconv_formats.gguf.types import TYPE_OF_ENCODING, GgmlType
from phiconv_formats.gguf.values import (
    MAX_HEADER_BYTES,
    GgufValue,
    serialize_header,
    serialize_kv,
    serialize_tensor_info,
)
from phiconv_formats.gguf.vocabulary import tokenizer_notes
from phiconv_formats.shared.output import OutputFile, Package, Segment, Stream
from phiconv_formats.shared.splitting import split
from phiconv_formats.tokenizers.limits import check_bytes

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from phiconv.ir import Encoded, Encoding
    from phiconv.ir.importance import ImportanceMatrix
    from phiconv.ir.model import Model
    from phiconv_formats.shared.output import OutputTensor, RuntimeSettings

__all__ = ["FILE_TYPES", "one_file", "package"]

_ALIGNMENT = 32
_DIGIT = "[0-9]"
_SUFFIX = ".gguf"
_MAX_DIMENSIONS = 4
_MAX_NAME = 63  # ggml's own reader wants room for a NUL in 64 bytes

FILE_TYPES = {kind.name.removeprefix("ALL_").removeprefix("MOSTLY_"): kind.value for kind in LlamaFileType}
"""``general.file_type`` by the name of the recipe, as llama-quantize spells it."""


@dataclass(frozen=True, slots=True)
class _Entry:
    """A tensor with its type and its size in the file, padding included."""

    output: OutputTensor
    type: GgmlType

    @property
    def shape(self) -> tuple[int, ...]:
        return self.output.tensor.shape or (1,)

    @property
    def nbytes(self) -> int:
        return _aligned(self.type.nbytes(self.shape))


def package(
    model: Model,
    tensors: Sequence[OutputTensor],
    encodings: Sequence[Encoding],
    *,
    file_name: str,
    recipe: str,
    split_max_size: int | None = None,
    importance: ImportanceMatrix | None = None,
    settings: RuntimeSettings | None = None,  # noqa: ARG001 - the file has no place for them
) -> Package:
    """Lays the whole output out.

    Args:
        model: Where the metadata comes from.
        tensors: What is stored, in order.
        encodings: In which encoding, tensor by tensor.
        file_name: The file's name; those of a split output are derived from it.
        recipe: Name of the recipe, a key of `FILE_TYPES`.
        split_max_size: Most bytes of tensors in one file; None for a single file.
        importance: The importance matrix that is used; the metadata names it.
        settings: Not used.

    Raises:
        UnsupportedModelError: A tensor that GGUF cannot hold, or a model that llama.cpp does not load.
        UsageError: A split size smaller than a tensor would make too many files.
    """
    check_model(model)
    check_bytes(model, "llama.cpp aborts at a text that needs it")
    entries = [_entry(t, e, model) for t, e in zip(tensors, encodings, strict=True)]
    metadata, card_notes = file_metadata(model, tensors, FILE_TYPES[recipe], importance)
    metadata += scale_types(tensors, encodings)
    shards = split(entries, split_max_size, 0xFFFF)
    name = next((value.value for key, value in metadata if key == Keys.General.NAME), "")
    notes = [*runtime_notes(model), *tokenizer_notes(model.tokenizer, name), *card_notes] + [
        f"tensor {e.output.name} has a name of more than {_MAX_NAME} bytes, which llama.cpp does not load"
        for e in entries
        if len(e.output.name.encode()) > _MAX_NAME
    ]
    if len(shards) == 1:
        file, streams = _file(file_name, metadata, shards[0])
        return Package((file,), tuple(streams), tuple(notes), stale=_other_parts(file_name))
    files: list[OutputFile] = []
    all_streams: list[Stream] = []
    for number, shard in enumerate(shards):
        name = shard_name(file_name, number, len(shards))
        extra = _split_metadata(number, len(shards), len(entries))
        file, streams = _file(name, [*(metadata if number == 0 else []), *extra], shard)
        files.append(file)
        all_streams += streams
    stale = (*_other_parts(file_name), glob.escape(file_name))
    return Package(tuple(files), tuple(all_streams), tuple(notes), stale=stale)


def one_file(
    file_name: str,
    metadata: Sequence[tuple[str, GgufValue]],
    tensors: Sequence[OutputTensor],
    encodings: Sequence[Encoding],
    model: Model,
) -> Package:
    """A file of tensors under any metadata.

    Raises:
        UnsupportedModelError: A tensor that GGUF cannot hold.
    """
    entries = [_entry(t, e, model) for t, e in zip(tensors, encodings, strict=True)]
    file, streams = _file(file_name, metadata, entries)
    return Package((file,), tuple(streams))


def shard_name(file_name: str, number: int, count: int) -> str:
    """llama.cpp's name of one file of a split model, counted from 1."""
    return f"{_stem(file_name)}-{number + 1:05d}-of-{count:05d}.gguf"


def _other_parts(file_name: str) -> tuple[str, ...]:
    """What parts of the same model are called, in any number: people give them to programs with a ``*``."""
    return (f"{glob.escape(_stem(file_name))}-{_DIGIT * 5}-of-{_DIGIT * 5}.gguf",)


def _stem(file_name: str) -> str:
    return file_name[: -len(_SUFFIX)] if file_name.lower().endswith(_SUFFIX) else file_name


def _entry(output: OutputTensor, encoding: Encoding, model: Model) -> _Entry:
    kind = TYPE_OF_ENCODING.get(encoding)
    shape = output.tensor.shape
    if kind is None:
        problem = f"GGUF has no type for {encoding.name}"
    elif len(shape) > _MAX_DIMENSIONS:
        problem = f"GGUF holds at most {_MAX_DIMENSIONS} dimensions, not {len(shape)}"
    elif output.tensor.size == 0:
        problem = "GGUF cannot hold an empty tensor"
    else:
        return _Entry(output, kind)
    raise UnsupportedModelError(problem, path=model.path, at=f"tensor {output.name}")


def _file(
    name: str, metadata: Sequence[tuple[str, GgufValue]], entries: Sequence[_Entry]
) -> tuple[OutputFile, list[Stream]]:
    infos, offset = [], 0
    for entry in entries:
        infos.append(serialize_tensor_info(entry.output.name, entry.shape, entry.type.id, offset))
        offset += entry.nbytes
    head = b"".join(
        [
            serialize_header(len(entries), len(metadata)),
            *(serialize_kv(key, value) for key, value in metadata),
            *infos,
        ]
    )
    if len(head) > MAX_HEADER_BYTES:
        raise UnsupportedModelError(
            f"tokenizer and settings take {len(head)} bytes, and {MAX_HEADER_BYTES} are what a GGUF may have"
        )
    start = _aligned(len(head))
    streams, at = [], start
    for entry in entries:
        streams.append(_stream(entry, name, at))
        at += entry.nbytes
    return OutputFile(name, start + offset, ((0, head),)), streams


def _stream(entry: _Entry, file: str, offset: int) -> Stream:
    tensor = entry.output.tensor
    segment = Segment(file, offset, entry.type.row_bytes(tensor.columns))
    return Stream(entry.output.name, tensor, entry.type.encoding, _pack_one, (segment,))


def _split_metadata(number: int, count: int, tensors: int) -> list[tuple[str, GgufValue]]:
    return [
        ("split.no", GgufValue(GGUFValueType.UINT16, number)),
        ("split.count", GgufValue(GGUFValueType.UINT16, count)),
        ("split.tensors.count", GgufValue(GGUFValueType.INT32, tensors)),
    ]


def _aligned(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT


def _pack_one(encoded: Encoded) -> tuple[NDArray[np.uint8], ...]:
    return (pack(encoded),)
