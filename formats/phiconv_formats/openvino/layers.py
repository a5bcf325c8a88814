"""Layers that decoders and encoders have in common, in the forms that the CPU plugin knows."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from phiconv.ir.model import Role
    from phiconv_formats.openvino.graph import Graph, Value
    from phiconv_formats.openvino.weights import Weights

__all__ = ["layer_norm", "product"]


def product(graph: Graph, x: Value, matrix: Value, module: str, *, names: str = "") -> Value:
    """A product under the name that tracing gives it: GenAI looks for an adapter's modules in it."""
    name = f"__module.{module}/aten::linear/MatMul"
    return graph.add("MatMul", x, matrix, name=name, names=names, transpose_a=False, transpose_b=True)


def layer_norm(graph: Graph, weights: Weights, x: Value, role: Role, epsilon: float) -> Value:
    """``(x - mean(x)) / sqrt(variance(x) + epsilon) * weight + bias``."""
    axes = graph.constant([-1], "i32")
    y = graph.add("MVN", x, axes, eps=repr(epsilon), normalize_variance=True, eps_mode="INSIDE_SQRT")
    y = graph.add("Multiply", y, weights.value(role))
    return graph.add("Add", y, weights.value(role._replace(part="bias")))
