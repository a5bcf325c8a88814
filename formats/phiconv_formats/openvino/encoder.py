"""Encoders of pictures as OpenVINO graphs: the `EncoderOps` whose values are outputs of layers.

Between a tower and its projection OpenVINO GenAI itself joins patches, lays crops side by side and inserts
separators, so `EncoderOps.arrange` is not here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from phiconv.ir.model import Role
from phiconv_formats.openvino.inputs import dimension, parameter
from phiconv_formats.openvino.layers import layer_norm, product

if TYPE_CHECKING:
    from phiconv.forward.encoder_ops import EncoderAttention, Merging, Positions
    from phiconv.forward.ops import Activation
    from phiconv.ir.senses import Encoder, Vision
    from phiconv_formats.openvino.graph import Graph, Value
    from phiconv_formats.openvino.weights import Weights

__all__ = ["emit_projection", "emit_tower"]

_TO_THE_END = 2**63 - 1
_QUICK = 1.702
"""See `phiconv.forward.ops.Activation`; Swish of OpenVINO is ``x / (1 + exp(-beta * x))``."""

_RESULT = "last_hidden_state"


def emit_tower(graph: Graph, weights: Weights, encoder: Encoder) -> None:
    """Adds a tower to a graph, from the pixels of crops to a vector for each patch."""
    ops = IrEncoderOps(graph, weights, encoder)
    _finish(graph, encoder.tower(ops, encoder.parameters))


def emit_projection(graph: Graph, weights: Weights, encoder: Encoder) -> None:
    """Adds a projection to a graph, from joined patches and separators to features."""
    width = encoder.parameters.hidden_size * (encoder.parameters.merged**2)
    x = parameter(graph, "input", "f32", f"?,?,{width}")
    _finish(graph, encoder.project(IrEncoderOps(graph, weights, encoder), x, encoder.parameters))


def _finish(graph: Graph, x: Value) -> None:
    """The one result, by its name; the layer that carries that changes nothing."""
    x = graph.add("Reshape", x, graph.constant([0, 0, 0], "i64"), names=_RESULT, special_zero=True)
    graph.sink("Result", x, _RESULT)


class IrEncoderOps:
    """The operations on values of shape (crops, patches, width)."""

    def __init__(self, graph: Graph, weights: Weights, encoder: Encoder) -> None:
        self._graph = graph
        self._weights = weights
        self._encoder = encoder
        self._mask: Value | None = None

    def patches(self, role: Role, parameters: Vision, /) -> Value:
        g, size = self._graph, parameters.patch_size
        pixels = parameter(g, "pixel_values", "f32", "?,3,?,?")
        shape = g.constant([parameters.hidden_size, 3, size, size], "i64")
        kernels = g.add("Reshape", self._weights.value(role), shape, special_zero=False)
        x = g.add(
            "Convolution",
            pixels,
            kernels,
            strides=f"{size},{size}",
            dilations="1,1",
            pads_begin="0,0",
            pads_end="0,0",
            auto_pad="explicit",
        )
        x = g.add("Reshape", x, g.constant([0, 0, -1], "i64"), special_zero=True)
        return self._biased(g.add("Transpose", x, g.constant([0, 2, 1], "i64")), role)

    def with_class(self, x: Value, role: Role, /) -> Value:
        g = self._graph
        crops = dimension(g, g.add("ShapeOf", x, type="i64", output_type="i64"), 0)
        shape = g.add("Concat", crops, g.constant([1], "i64"), g.constant([1], "i64"), axis=0)
        first = g.add("Broadcast", self._weights.value(role), shape, mode="bidirectional")
        return g.add("Concat", first, x, axis=1)

    def without_class(self, x: Value, /) -> Value:
        g = self._graph
        one = g.constant([1], "i64")
        return g.add("Slice", x, one, g.constant([_TO_THE_END], "i64"), one, one)

    def positions(self, x: Value, role: Role, how: Positions, /) -> Value:
        g, table = self._graph, self._weights.value(role)
        if how == "buckets":
            patches = self._encoder.parameters.patches
            mask = parameter(g, "patch_attention_mask", "boolean", f"?,{patches},{patches}")
            ids = parameter(g, "patch_position_ids", "i64", f"?,{patches**2}")
            table = g.add("Gather", table, ids, g.constant(0, "i32"), batch_dims=0)
            shape = g.constant([0, 1, 1, patches**2], "i64")
            self._mask = g.add("Reshape", mask, shape, special_zero=True)
        return g.add("Add", x, table)

    def linear(self, x: Value, role: Role, /) -> Value:
        module = self._encoder.names[role].removesuffix(".weight")
        return self._biased(product(self._graph, x, self._weights.value(role), module), role)

    def _biased(self, x: Value, role: Role) -> Value:
        bias = role._replace(part="bias")
        return self._graph.add("Add", x, self._weights.value(bias)) if bias in self._weights else x

    def layer_norm(self, x: Value, role: Role, epsilon: float, /) -> Value:
        return layer_norm(self._graph, self._weights, x, role, epsilon)

    def add(self, a: Value, b: Value, /) -> Value:
        return self._graph.add("Add", a, b)

    def activate(self, x: Value, kind: Activation, /) -> Value:
        g = self._graph
        if kind == "quick_gelu":
            return g.add("Swish", x, g.constant(_QUICK, "f32"))
        return g.add("Gelu", x, approximation_mode="TANH" if kind == "gelu_tanh" else "ERF")

    def attention(self, x: Value, layer: int, spec: EncoderAttention, /) -> Value:
        g = self._graph
        heads = g.constant([0, 0, spec.heads, spec.head_dim], "i64")
        order = g.constant([0, 2, 1, 3], "i64")
        q, k, v = (
            g.add(
                "Transpose",
                g.add("Reshape", self.linear(x, Role(name, layer)), heads, special_zero=True),
                order,
            )
            for name in spec.roles
        )
        mask = () if self._mask is None else (self._mask,)
        y = g.add("ScaledDotProductAttention", q, k, v, *mask, causal=False)
        width = g.constant([0, 0, spec.heads * spec.head_dim], "i64")
        return g.add("Reshape", g.add("Transpose", y, order), width, special_zero=True)

    def merge(self, x: Value, how: Merging, /) -> Value:
        assert how == "mean"  # noqa: S101 - a stack belongs to what GenAI does
        g, vision = self._graph, self._encoder.parameters
        half = vision.patches // 2
        fours = g.constant([0, half, 2, half, 2, vision.hidden_size], "i64")
        x = g.add("Reshape", x, fours, special_zero=True)
        x = g.add("ReduceMean", x, g.constant([2, 4], "i64"), keep_dims=False)
        return g.add("Reshape", x, g.constant([0, half**2, vision.hidden_size], "i64"), special_zero=True)
