"""The weights beside an ONNX model, in one file or several: places are fixed before a graph names them.

A quantized matrix is stored as two or three tensors: codes, scales and maybe zero points. Their names are
that of the matrix with an ending: ``_Q4`` or ``_Q8`` (bits of a code), ``_scales``, ``_zero_points``.

For ONNX Runtime's operators codes are UINT8, by block. Where an operator wants the same bytes by row they
have a second name, ``_Q4_rows``. For ONNX's own they are INT4, UINT4, INT8 or UINT8, of the matrix's shape:
see `integers`. One matrix of a stack of experts may have a name of its own (`Store.share`).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, TypeAlias

from onnx import TensorProto

from phiconv import ir
from phiconv_formats.onnx.graph import DATA_TYPES
from phiconv_formats.onnx.integers import (
    element_type,
    has_channels,
    is_standard,
    pack_integers,
    row_sizes,
)
from phiconv_formats.onnx.packing import pack, row_bytes
from phiconv_formats.shared.output import OutputFile, Segment, Stream
from phiconv_formats.shared.splitting import split

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from phiconv_formats.onnx.graph import Graph
    from phiconv_formats.shared.output import OutputTensor

__all__ = ["SCALE_TYPE", "Store"]

_ALIGNMENT = 4096
"""Of every tensor's offset, so that a file that is mapped into memory can be used in place."""

_MOST_FILES = 100
"""As many chunks as transformers.js (4.3) takes."""

SCALE_TYPE = "phiconv.scale_type"
"""Marks scales that are numbers of a narrower type than the graph computes in, so that blocks that came from
another format can go back to it as they were."""


Place: TypeAlias = tuple[str, int, int]
"""The name of a file as the graph says it, an offset, and a number of bytes."""


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor of the model in the file.

    Attributes:
        shape: The logical one.
        encoding: How it is stored.
        places: File, offset and number of bytes of floats; or of codes, scales and, if there are any, zero
            points.
        notes: What a graph is to say beside the scales.
    """

    shape: tuple[int, ...]
    encoding: ir.Encoding
    places: tuple[Place, ...]
    notes: Mapping[str, str]


class Store:
    """All tensors by name, and what a graph says to use them.

    Attributes:
        streams: The tensors on their way into the files, in their order.
    """

    def __init__(
        self,
        file: str,
        tensors: Sequence[OutputTensor],
        encodings: Sequence[ir.Encoding],
        *,
        folder: str = "",
        limit: int | None = None,
    ) -> None:
        """Gives every tensor its place.

        Args:
            file: The name of the file, beside the graph; more of them have a number behind it.
            tensors: What is stored.
            encodings: How.
            folder: Of the graph, inside of the output's folder: "" or "onnx/".
            limit: Most bytes of tensors in one file; None for a single file.
        """
        self.streams: list[Stream] = []
        self._folder = folder
        self._sizes: dict[str, int] = {}
        self._stored: dict[str, Stored] = {}
        entries = [_Entry(t, e) for t, e in zip(tensors, encodings, strict=True)]
        for number, part in enumerate(split(entries, limit, _MOST_FILES)):
            name = f"{file}_{number}" if number else file
            self._sizes[name] = 0
            for entry in part:
                self._reserve(entry, name)

    @property
    def files(self) -> list[OutputFile]:
        """The files of weights, which have nothing else in them."""
        return [OutputFile(self._folder + name, size, ()) for name, size in self._sizes.items()]

    def _reserve(self, entry: _Entry, file: str) -> None:
        output, tensor, encoding = entry.output, entry.output.tensor, entry.encoding
        places, segments = [], []
        packer: Callable[[ir.Encoded], tuple[NDArray[np.uint8], ...]]
        standard = isinstance(encoding, ir.BlockEncoding) and is_standard(encoding)
        packer = pack_integers if standard else partial(pack, columns=tensor.columns)
        for (size, rows), length in zip(entry.sizes, entry.lengths, strict=True):
            offset = -(-self._sizes[file] // _ALIGNMENT) * _ALIGNMENT
            self._sizes[file] = offset + length
            places.append((file, offset, length))
            segments.append(Segment(self._folder + file, offset, size, rows))
        notes = _scale_notes(tensor.encoding, encoding)
        self._stored[output.name] = Stored(tensor.shape, encoding, tuple(places), notes)
        self.streams.append(Stream(output.name, tensor, encoding, packer, tuple(segments)))

    def __contains__(self, name: str) -> bool:
        return name in self._stored

    def __getitem__(self, name: str) -> Stored:
        return self._stored[name]

    def nbytes(self, prefix: str) -> int:
        """Bytes of all tensors whose names begin so."""
        found = (stored.places for name, stored in self._stored.items() if name.startswith(prefix))
        return sum(length for places in found for _, _, length in places)

    @property
    def float_type(self) -> ir.FloatEncoding:
        """The type of the vectors, which is the one that a graph computes in."""
        vectors = (s.encoding for s in self._stored.values() if len(s.shape) == 1)
        return next(e for e in vectors if isinstance(e, ir.FloatEncoding))

    @property
    def has_channels(self) -> bool:
        """Whether some matrices have one scale to a row."""
        return any(has_channels(stored.encoding) for stored in self._stored.values())

    @property
    def standard(self) -> bool:
        """Whether products are for ONNX's own operators."""
        return any(is_standard(stored.encoding) for stored in self._stored.values())

    def floats(self, graph: Graph, name: str) -> str:
        """The name in the graph of a tensor that is stored as floats, whatever their type."""
        stored = self._stored[name]
        assert isinstance(stored.encoding, ir.FloatEncoding)  # noqa: S101 - whoever asks has looked
        return self._weight(graph, name, DATA_TYPES[stored.encoding], stored.shape, stored.places[0])

    def codes(self, graph: Graph, name: str, *, rows: bool = False) -> str:
        """The codes of a matrix: shape (..., rows, blocks, bytes of a block).

        Args:
            graph: Where it is used.
            name: The matrix.
            rows: With the bytes of a row in one dimension, as some operators want the same bytes.
        """
        stored, encoding = self._stored[name], self.block_encoding(name)
        block = encoding.block_size * encoding.bits // 8
        blocks = stored.shape[-1] // encoding.block_size
        tail = (blocks * block,) if rows else (blocks, block)
        suffix = f"_Q{encoding.bits}" + ("_rows" if rows else "")
        shape = (*stored.shape[:-1], *tail)
        return self._weight(graph, name + suffix, TensorProto.UINT8, shape, stored.places[0])

    def scales(self, graph: Graph, name: str) -> str:
        """The scales of a matrix: shape (..., rows, blocks)."""
        stored, encoding = self._stored[name], self.block_encoding(name)
        shape = (*stored.shape[:-1], stored.shape[-1] // encoding.block_size)
        kind = DATA_TYPES[encoding.scale_type]
        return self._weight(graph, f"{name}_scales", kind, shape, stored.places[1], stored.notes)

    def zero_points(self, graph: Graph, name: str) -> str:
        """The zero points of a matrix, packed as the codes are: shape (..., rows, bytes); "" without any."""
        stored = self._stored[name]
        if len(stored.places) < 3:
            return ""
        blocks = stored.shape[-1] // self.block_encoding(name).block_size
        shape = (*stored.shape[:-1], -(-blocks * self.block_encoding(name).bits // 8))
        return self._weight(graph, f"{name}_zero_points", TensorProto.UINT8, shape, stored.places[2])

    def integers(self, graph: Graph, name: str) -> tuple[str, ...]:
        """A matrix for ONNX's own operators: codes, scales and, where blocks have them, zero points.

        Their shapes are (..., rows, columns) for the codes and (..., rows, blocks) for the others, or
        (..., rows) where a row has one scale.
        """
        stored, encoding = self._stored[name], self.block_encoding(name)
        blocks = (*stored.shape[:-1], stored.shape[-1] // encoding.block_size)
        blocks = stored.shape[:-1] if has_channels(encoding) else blocks
        kind, scale = element_type(encoding), DATA_TYPES[encoding.scale_type]
        tensors = (
            (f"_Q{encoding.bits}", kind, stored.shape, None),
            ("_scales", scale, blocks, stored.notes),
            ("_zero_points", kind, blocks, None),
        )
        return tuple(
            self._weight(graph, name + suffix, data_type, shape, place, notes)
            for (suffix, data_type, shape, notes), place in zip(tensors, stored.places, strict=False)
        )

    def block_encoding(self, name: str) -> ir.BlockEncoding:
        """The encoding of a quantized matrix."""
        encoding = self._stored[name].encoding
        assert isinstance(encoding, ir.BlockEncoding)  # noqa: S101 - whoever asks has looked
        return encoding

    def share(self, name: str, part: str, index: int) -> None:
        """Makes one matrix of a stack known by a name of its own; nothing is stored twice.

        Args:
            name: The stack, of shape (count, rows, columns).
            part: The name of the matrix.
            index: Which one.
        """
        stored = self._stored[name]
        count, *shape = stored.shape
        cut = ((file, offset, length // count) for file, offset, length in stored.places)
        places = tuple((file, offset + index * size, size) for file, offset, size in cut)
        self._stored[part] = Stored(tuple(shape), stored.encoding, places, stored.notes)

    def _weight(
        self,
        graph: Graph,
        name: str,
        data_type: int,
        shape: Sequence[int],
        place: Place,
        notes: Mapping[str, str] | None = None,
    ) -> str:
        return graph.weight(name, data_type, shape, place, notes or {})


@dataclass(frozen=True, slots=True)
class _Entry:
    """A tensor that waits for its place."""

    output: OutputTensor
    encoding: ir.Encoding

    @property
    def sizes(self) -> tuple[tuple[int, int], ...]:
        """Bytes of so many rows together, of each of its parts."""
        if isinstance(self.encoding, ir.BlockEncoding) and is_standard(self.encoding):
            return row_sizes(self.encoding, self.output.tensor.columns)
        return tuple((size, 1) for size in row_bytes(self.encoding, self.output.tensor.columns))

    @property
    def lengths(self) -> list[int]:
        """Bytes of each of its parts."""
        return [-(-size * self.output.tensor.rows // rows) for size, rows in self.sizes]

    @property
    def nbytes(self) -> int:
        """Bytes with the gap before each part."""
        return sum(-(-length // _ALIGNMENT) * _ALIGNMENT for length in self.lengths)


def _scale_notes(stored: ir.Encoding, encoding: ir.Encoding) -> dict[str, str]:
    """A note where scales of 16 bits are only widened (see `phiconv.quantizers.repack`)."""
    if not isinstance(stored, ir.BlockEncoding) or not isinstance(encoding, ir.BlockEncoding):
        return {}
    widened = stored.scale_type in (ir.F16, ir.BF16) and encoding.scale_type == ir.F32
    kinds = ((e.bits, e.block_size, e.has_zero_point) for e in (stored, encoding))
    alike = len(set(kinds)) == 1 and not stored.has_minimum
    return {SCALE_TYPE: stored.scale_type.name} if widened and alike else {}
