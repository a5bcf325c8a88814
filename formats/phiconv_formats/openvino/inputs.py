"""What an OpenVINO language model is given: tokens, a mask of padding, positions, and which beam goes on."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from phiconv_formats.openvino.graph import Graph, Value

__all__ = ["Inputs", "dimension", "parameter"]


class Inputs:
    """The inputs by the names that OpenVINO GenAI feeds, and the shape of a call.

    Args:
        graph: Where they are added.
        width: Hidden size, where the model is given embeddings, because some are features of a picture; None
            where it is given ids.

    Attributes:
        tokens: Token ids, i64 (batch, length), or embeddings, f32 (batch, length, width).
        padding: 1 for a token and 0 for padding, i64 (batch, cached + length).
        positions: Of the tokens, i64 (batch, length).
        beams: For each sequence the one of the call before whose cache it goes on with, i32 (batch,).
        batch: i64 (1,).
        length: Of the tokens, i64 (1,).
    """

    def __init__(self, graph: Graph, width: int | None = None) -> None:
        if width is None:
            self.tokens = parameter(graph, "input_ids", "i64", "?,?")
        else:
            self.tokens = parameter(graph, "inputs_embeds", "f32", f"?,?,{width}")
        self.padding = parameter(graph, "attention_mask", "i64", "?,?")
        self.positions = parameter(graph, "position_ids", "i64", "?,?")
        self.beams = parameter(graph, "beam_idx", "i32", "?")
        shape = graph.add("ShapeOf", self.tokens, type="i64", output_type="i64")
        self.batch, self.length = (dimension(graph, shape, axis) for axis in (0, 1))


def dimension(graph: Graph, shape: Value, axis: int, *, scalar: bool = False) -> Value:
    """One number of a shape, as a vector of one or as a scalar."""
    index, zero = graph.constant(axis if scalar else [axis], "i64"), graph.constant(0, "i64")
    return graph.add("Gather", shape, index, zero, batch_dims=0)


def parameter(graph: Graph, name: str, element_type: str, shape: str) -> Value:
    """An input by its name; a question mark in its shape is for any size."""
    return graph.add(
        "Parameter", type=element_type, name=name, names=name, shape=shape, element_type=element_type
    )
