"""Folders of safetensors: tensors in shards, the index that says which is where, and the files around them.

Every writer of such folders says which arrays store a tensor, and what else is in the folder.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, TypeAlias

from phiconv_formats.folders.companions import json_bytes
from phiconv_formats.shared.output import OutputFile, Package, Segment, Stream
from phiconv_formats.shared.safetensors import lay_out
from phiconv_formats.shared.safetensors_check import check_written
from phiconv_formats.shared.splitting import split

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from phiconv.ir import Encoded, Encoding, Tensor
    from phiconv_formats.shared.output import OutputTensor

__all__ = ["INDEX", "Entry", "Pack", "Part", "Shards", "lay_out_shards"]

INDEX = "model.safetensors.index.json"
"""The file that says which shard a tensor is in."""

_MOST_SHARDS = 99_999  # their names have five digits


@dataclass(frozen=True, slots=True)
class Part:
    """One array of a file: a tensor as it is, or the codes, scales or minima of one.

    Attributes:
        name: Its name in the file.
        dtype: Its type, as safetensors call it.
        shape: Its shape.
        row_bytes: Bytes that a row of the tensor takes in it; so many rows, or one in each line, where:
        rows, lines: As of a `phiconv_formats.shared.output.Segment`.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    row_bytes: int
    rows: int = 1
    lines: int = 1

    def segment(self, file: str, offset: int) -> Segment:
        """Where its rows go in a file."""
        return Segment(file, offset, self.row_bytes, self.rows, self.lines)


Pack: TypeAlias = "Callable[[Encoded], tuple[NDArray[np.uint8], ...]]"
"""Turns encoded rows into the bytes of each part of an entry."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A tensor of the output, its encoding, and the arrays that store it.

    Attributes:
        output: The tensor.
        encoding: Its encoding.
        parts: The arrays.
        pack: Makes their bytes; None for the way of the whole folder.
        scaled_with: See `phiconv_formats.shared.output.Stream`.
    """

    output: OutputTensor
    encoding: Encoding
    parts: tuple[Part, ...]
    pack: Pack | None = None
    scaled_with: tuple[Tensor, ...] = ()

    @property
    def nbytes(self) -> int:
        """Bytes of all its arrays."""
        rows = self.output.tensor.rows
        return sum(part.segment("", 0).line_bytes(rows) * part.lines for part in self.parts)


@dataclass(frozen=True, slots=True)
class Shards:
    """The weights of a folder.

    Attributes:
        files: One or more.
        streams: The tensors, in order.
        weight_map: Which file each array is in, sorted by name.
    """

    files: tuple[OutputFile, ...]
    streams: tuple[Stream, ...]
    weight_map: dict[str, str]

    def index(self, *, indent: int = 2, **counts: int) -> bytes:
        """The contents of `INDEX`.

        Args:
            indent: Spaces of a level.
            **counts: What its metadata tells beyond the total size.
        """
        metadata = {"total_size": sum(stream.nbytes for stream in self.streams), **counts}
        return json_bytes({"metadata": metadata, "weight_map": self.weight_map}, indent=indent)

    def package(self, others: Mapping[str, bytes], notes: Iterable[str] = ()) -> Package:
        """The whole folder.

        Args:
            others: Names and contents of what is not weights; the file that a runtime opens comes first.
            notes: What the user should know.
        """
        small = [OutputFile(name, len(data), ((0, data),)) for name, data in others.items()]
        return Package((*small, *self.files), self.streams, tuple(notes), own_folder=True)


def lay_out_shards(
    entries: Sequence[Entry],
    limit: int,
    metadata: Mapping[str, str],
    pack: Pack,
) -> Shards:
    """Lays the weights out.

    Args:
        entries: The tensors, in order.
        limit: Most bytes of tensors in one file.
        metadata: What the header of every file says.
        pack: The usual way to pack rows.

    Raises:
        UsageError: The limit would make too many files.
    """
    shards = split(entries, limit, _MOST_SHARDS)
    files, streams = [], []
    weight_map: dict[str, str] = {}
    for name, shard in zip(_names(len(shards)), shards, strict=True):
        parts = [part for entry in shard for part in entry.parts]
        tensors = [(part.name, part.dtype, part.shape) for part in parts]
        layout = lay_out(tensors, metadata)
        check = partial(check_written, name=name, tensors=tensors, metadata=metadata)
        files.append(OutputFile(name, layout.size, ((0, layout.head),), check))
        weight_map |= {part.name: name for part in parts}
        for entry in shard:
            output, packer = entry.output, entry.pack or pack
            segments = tuple(part.segment(name, layout.offsets[part.name]) for part in entry.parts)
            stream = Stream(output.name, output.tensor, entry.encoding, packer, segments)
            streams.append(replace(stream, scaled_with=entry.scaled_with))
    return Shards(tuple(files), tuple(streams), dict(sorted(weight_map.items())))


def _names(count: int) -> list[str]:
    if count == 1:
        return ["model.safetensors"]
    return [f"model-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)]
