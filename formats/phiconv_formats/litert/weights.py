"""Stored weights in a TFLite graph: one buffer for each matrix, whatever signatures read it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from phiconv_formats.litert.graph import Blocks, nbytes
from phiconv_formats.litert.packing import pack, parts_of
from phiconv_formats.litert.schema import ElementType
from phiconv_formats.shared.output import Segment, Stream

if TYPE_CHECKING:
    from collections.abc import Sequence

    from phiconv import ir
    from phiconv.ir.model import Role
    from phiconv_formats.litert.flatbuffer import Table, Vector
    from phiconv_formats.litert.graph import Graph, Laid, Subgraph, Value
    from phiconv_formats.litert.packing import Parts
    from phiconv_formats.shared.output import OutputTensor

__all__ = ["SCALES", "Weights"]

SCALES = "_scales"
"""What the name of a matrix's scales adds to its own."""


@dataclass(frozen=True, slots=True)
class _Entry:
    """A tensor, how it is stored, and where: buffers of codes or floats and of blocks' scales.

    Rows with a scale each have those inside of the FlatBuffer.
    """

    output: OutputTensor
    encoding: ir.Encoding
    parts: Parts
    buffers: tuple[int, ...]
    channels: tuple[Table, Vector] | None


class Weights:
    """The tensors of an output by role."""

    def __init__(
        self, graph: Graph, tensors: Sequence[OutputTensor], encodings: Sequence[ir.Encoding]
    ) -> None:
        self._entries: dict[Role, _Entry] = {}
        self._stored: dict[tuple[Subgraph, Role], Value] = {}
        self._floats: dict[tuple[Subgraph, Role], Value] = {}
        for tensor, encoding in zip(tensors, encodings, strict=True):
            assert tensor.role is not None  # noqa: S101 - a graph has no plain tensors
            shape = tensor.tensor.shape
            parts = parts_of(encoding, shape)
            sizes = [nbytes(parts.type, shape)]
            if parts.block_size:
                sizes.append(nbytes(ElementType.FLOAT16, parts.scales_shape))
            self._entries[tensor.role] = _Entry(
                tensor,
                encoding,
                parts,
                tuple(map(graph.reserve, sizes)),
                graph.channels(tensor.tensor.rows) if parts.channels else None,
            )

    def __contains__(self, role: Role) -> bool:
        return role in self._entries

    def streams(self, file: str, start: int, laid: Laid) -> tuple[Stream, ...]:
        """How the weights come to their places, in the order of the tensors.

        Args:
            file: The name of the file.
            start: Where in it the model begins.
            laid: The model.
        """
        result = []
        for entry in self._entries.values():
            tensor = entry.output.tensor
            places = [start + laid.offsets[number] for number in entry.buffers]
            if entry.channels is not None:
                places.append(start + laid.scales[entry.channels[1]])
            rows = entry.parts.row_bytes(tensor.columns)
            segments = tuple(Segment(file, at, size) for at, size in zip(places, rows, strict=True))
            result.append(Stream(entry.output.name, tensor, entry.encoding, pack, segments))
        return tuple(result)

    def stored(self, graph: Subgraph, role: Role) -> Value:
        """A weight in a subgraph as it is stored: a matrix, or a vector."""
        key = graph, role
        if key not in self._stored:
            entry = self._entries[role]
            name, shape = f"{graph.name}/{entry.output.name}", entry.output.tensor.shape
            quantization: Table | Blocks | None = entry.channels and entry.channels[0]
            if entry.parts.block_size:
                scales = graph.stored(
                    name + SCALES, ElementType.FLOAT16, entry.parts.scales_shape, entry.buffers[1]
                )
                quantization = Blocks(scales, entry.parts.block_size)
            self._stored[key] = graph.stored(name, entry.parts.type, shape, entry.buffers[0], quantization)
        return self._stored[key]

    def matrix(self, graph: Subgraph, role: Role) -> Value:
        """A matrix in a subgraph as a product takes it: integers as they are, and other floats as float32."""
        value = self.stored(graph, role)
        if value.type != ElementType.FLOAT16:
            return value
        key = graph, role
        if key not in self._floats:
            self._floats[key] = graph.add("DEQUANTIZE", value)
        return self._floats[key]
