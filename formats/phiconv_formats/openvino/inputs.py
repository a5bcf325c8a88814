"""What an OpenVINO language model is given: ids, a mask of padding, positions, and which beam goes on."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from phiconv_formats.openvino.graph import Graph, Value

__all__ = ["Inputs", "dimension"]


class Inputs:
    """The inputs by the names that OpenVINO GenAI feeds, and the shape of a call.

    Attributes:
        ids: Token ids, i64 (batch, length).
        padding: 1 for a token and 0 for padding, i64 (batch, cached + length).
        positions: Of the tokens, i64 (batch, length).
        beams: For each sequence the one of the call before whose cache it goes on with, i32 (batch,).
        batch: i64 (1,).
        length: Of the ids, i64 (1,).
    """

    def __init__(self, graph: Graph) -> None:
        self.ids = _parameter(graph, "input_ids", "i64", "?,?")
        self.padding = _parameter(graph, "attention_mask", "i64", "?,?")
        self.positions = _parameter(graph, "position_ids", "i64", "?,?")
        self.beams = _parameter(graph, "beam_idx", "i32", "?")
        shape = graph.add("ShapeOf", self.ids, type="i64", output_type="i64")
        self.batch, self.length = (dimension(graph, shape, axis) for axis in (0, 1))


def dimension(graph: Graph, shape: Value, axis: int, *, scalar: bool = False) -> Value:
    """One number of a shape, as a vector of one or as a scalar."""
    index, zero = graph.constant(axis if scalar else [axis], "i64"), graph.constant(0, "i64")
    return graph.add("Gather", shape, index, zero, batch_dims=0)


def _parameter(graph: Graph, name: str, element_type: str, shape: str) -> Value:
    return graph.add(
        "Parameter", type=element_type, name=name, names=name, shape=shape, element_type=element_type
    )
