"""A mixture of experts in an IR, in the form of which the plugin makes products with the chosen experts."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from phiconv.forward.ops import Activation, MixtureOfExperts
    from phiconv_formats.openvino.graph import Graph, Value

__all__ = ["emit_experts"]

_FAR = -3.4028234663852886e38


def emit_experts(
    graph: Graph,
    x: Value,
    router: Callable[[Value], Value],
    matrices: tuple[Value, Value, Value],
    activate: Callable[[Value, Activation], Value],
    spec: MixtureOfExperts,
) -> Value:
    """The weighted sum of the chosen experts.

    Args:
        graph: What to add to.
        x: (batch, length, width).
        router: Emits the scores of all experts for tokens, (tokens, width): (tokens, experts).
        matrices: Gate, up and down of all experts: (experts, inner, width) twice, (experts, width, inner).
        activate: Emits an activation.
        spec: How experts are chosen.
    """
    g = graph
    shape = g.add("ShapeOf", x, type="i64", output_type="i64")
    width = g.add("Gather", shape, g.constant([2], "i64"), g.constant(0, "i64"), batch_dims=0)
    tokens = g.add("Reshape", x, g.add("Concat", g.constant([-1], "i64"), width, axis=0), special_zero=False)
    scores = router(tokens)
    chosen, weights = _sparse_mixer(g, scores, spec)

    gate, up, down = matrices
    copies = g.add("Tile", tokens, g.constant([spec.count, 1], "i64"))
    experts = g.constant([spec.count], "i64")
    each = g.add("Concat", experts, g.constant([-1], "i64"), width, axis=0)
    copies = g.add("Reshape", copies, each, special_zero=False)
    inner = activate(_product(g, copies, gate), spec.activation)
    inner = g.add("Multiply", inner, _product(g, copies, up))
    result = g.add(
        "Reshape", _product(g, inner, down), g.add("Concat", experts, shape, axis=0), special_zero=False
    )

    zeros = g.add("Multiply", scores, g.constant(0, "f32"))
    dense = g.add("ScatterElementsUpdate", zeros, chosen, weights, g.constant(1, "i64"), reduction="none")
    dense = g.add("Transpose", dense, g.constant([1, 0], "i64"))
    batch_length = g.add("Gather", shape, g.constant([0, 1], "i64"), g.constant(0, "i64"), batch_dims=0)
    dense = g.add("Reshape", dense, g.add("Concat", experts, batch_length, axis=0), special_zero=False)
    dense = g.add("Unsqueeze", dense, g.constant(-1, "i64"))
    return g.add("ReduceSum", g.add("Multiply", result, dense), g.constant([0], "i64"), keep_dims=False)


def _product(graph: Graph, x: Value, matrices: Value) -> Value:
    return graph.add("MatMul", x, matrices, transpose_a=False, transpose_b=True)


def _sparse_mixer(g: Graph, scores: Value, spec: MixtureOfExperts) -> tuple[Value, Value]:
    """Which experts each token uses, and their weights, (tokens, used) each; see `MixtureOfExperts`."""
    far = g.constant(_FAR, "f32")
    magnitudes = g.add("Abs", scores)
    left, chosen, weights = scores, [], []
    for _ in range(spec.used):
        best, index = g.top_k(left, 1)
        gap = g.add("Divide", g.add("Subtract", best, scores), g.add("Maximum", magnitudes, best))
        is_far = g.add("Greater", gap, g.constant(2 * spec.jitter, "f32"), type="boolean")
        near = g.add("Select", is_far, far, left, type="f32")
        shares = g.add("SoftMax", near, axis=-1)
        weights.append(g.add("GatherElements", shares, index, axis=-1))
        chosen.append(index)
        left = g.add(
            "ScatterElementsUpdate", left, index, _like(g, best, far), g.constant(1, "i64"), reduction="none"
        )
    return _joined(g, chosen), _joined(g, weights)


def _like(g: Graph, x: Value, number: Value) -> Value:
    """A number in the shape of a value."""
    shape = g.add("ShapeOf", x, type="i64", output_type="i64")
    return g.add("Broadcast", number, shape, mode="numpy")


def _joined(g: Graph, columns: list[Value]) -> Value:
    return columns[0] if len(columns) == 1 else g.add("Concat", *columns, axis=-1)
