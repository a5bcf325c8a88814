"""Stored weights in an IR: the constants of each tensor, and the layers that turn them into floats.

The CPU plugin recognises these chains and multiplies with the stored integers: it never makes the floats.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

from phiconv import ir
from phiconv_formats.openvino.graph import ELEMENT_BITS
from phiconv_formats.openvino.packing import pack, parts_of
from phiconv_formats.shared.output import Segment, Stream

if TYPE_CHECKING:
    from collections.abc import Sequence

    from phiconv.ir.model import Role
    from phiconv_formats.openvino.graph import Graph, Place, Value
    from phiconv_formats.shared.output import OutputTensor

__all__ = ["Weights"]


@dataclass(frozen=True, slots=True)
class _Entry:
    """A tensor, how it is stored, and where."""

    output: OutputTensor
    encoding: ir.Encoding
    places: tuple[Place, ...]


class Weights:
    """The tensors of an output by role; their places in the .bin are fixed at once."""

    def __init__(
        self, graph: Graph, tensors: Sequence[OutputTensor], encodings: Sequence[ir.Encoding]
    ) -> None:
        self._graph = graph
        self._values: dict[str, Value] = {}
        self._entries: dict[Role, _Entry] = {}
        for tensor, encoding in zip(tensors, encodings, strict=True):
            assert tensor.role is not None  # noqa: S101 - an IR has no plain tensors
            parts = parts_of(encoding, _shape(tensor))
            places = tuple(graph.reserve(p.type, p.shape) for p in parts)
            self._entries[tensor.role] = _Entry(tensor, encoding, places)

    def __contains__(self, role: Role) -> bool:
        return role in self._entries

    @property
    def all_floats(self) -> bool:
        """Whether none is quantized."""
        return all(isinstance(entry.encoding, ir.FloatEncoding) for entry in self._entries.values())

    def streams(self, file: str) -> tuple[Stream, ...]:
        """How the weights come to their places, in the order of the tensors."""
        return tuple(
            Stream(
                e.output.name,
                e.output.tensor,
                e.encoding,
                pack,
                tuple(_segment(file, p, e.output.tensor.rows) for p in e.places),
            )
            for e in self._entries.values()
        )

    def value(self, role: Role) -> Value:
        """The weights as float32, as the graph sees them: a matrix, a stack of them, or a vector."""
        entry = self._entries[role]
        if entry.output.name not in self._values:
            self._values[entry.output.name] = self._decompressed(entry)
        return self._values[entry.output.name]

    def _decompressed(self, entry: _Entry) -> Value:
        graph, name, places = self._graph, entry.output.name, entry.places
        codes = graph.stored(name, places[0])
        if codes.type == "f32":
            return codes
        if isinstance(entry.encoding, ir.FloatEncoding):
            return graph.add("Convert", codes, type="f32", decompression=True, destination_type="f32")
        x = graph.add("Convert", codes, type="f16", destination_type="f16")
        if len(places) == 3:
            zeros = graph.stored(f"{name}/zero_point", places[2])
            zeros = graph.add("Convert", zeros, type="f16", destination_type="f16")
            x = graph.add("Subtract", x, zeros, name=f"{name}/zero_point/subtract")
        scale = graph.stored(f"{name}/scale", places[1])
        if scale.type != "f16":
            scale = graph.add("Convert", scale, type="f16", destination_type="f16")
        x = graph.add("Multiply", x, scale, name=f"{name}/fq_weights_1")
        shape = entry.output.tensor.shape
        if places[0].shape != shape:
            x = graph.add("Reshape", x, graph.constant(shape, "i64"), special_zero=False)
        return graph.add("Convert", x, type="f32", decompression=True, destination_type="f32")


def _segment(file: str, place: Place, rows: int) -> Segment:
    bits = prod(place.shape) * ELEMENT_BITS[place.type] // rows
    return Segment(file, place.offset, bits // 4, 2) if bits % 8 else Segment(file, place.offset, bits // 8)


def _shape(tensor: OutputTensor) -> tuple[int, ...]:
    """The shape to store: a vector is one for all tokens of all sequences."""
    shape = tensor.tensor.shape
    return (1, 1, *shape) if len(shape) == 1 else shape
