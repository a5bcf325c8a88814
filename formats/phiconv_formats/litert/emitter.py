"""The decoder as a TFLite graph: the `Ops` whose values are tensors of a subgraph, one signature at a time.

XNNPACK takes over every operation on floats in this form; tests count what is left to TFLite's own kernels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from phiconv.errors import UnsupportedModelError
from phiconv.forward.ops import ATTENTION_ROLES, HEAD_NORMS, output_matrix
from phiconv.ir.model import Role
from phiconv_formats.litert.attention import AttentionEmitter
from phiconv_formats.litert.inputs import Inputs
from phiconv_formats.litert.schema import ElementType

if TYPE_CHECKING:
    from collections.abc import Sequence

    from phiconv.forward.ops import Activation, Attention, MixtureOfExperts
    from phiconv.ir.model import Model
    from phiconv_formats.litert.attention import Norm
    from phiconv_formats.litert.graph import Graph, Value
    from phiconv_formats.litert.inputs import Step
    from phiconv_formats.litert.rotary import Tables
    from phiconv_formats.litert.weights import Weights

__all__ = ["emit_decoder"]


def emit_decoder(
    graph: Graph, weights: Weights, tables: Tables, model: Model, steps: Sequence[Step], norm_scale: float
) -> None:
    """Adds a model's decoder to a graph, once for each signature.

    Args:
        graph: The graph.
        weights: Those of the model, in the graph.
        tables: Of the rotary embedding.
        model: The model.
        steps: The signatures.
        norm_scale: A power of two that what goes into an RMSNorm is multiplied by: squares of large numbers
            are beyond float16, in which a GPU computes.
    """
    assert model.forward is not None  # noqa: S101 - names.output_tensors has seen that it is a model
    assert model.hyperparameters is not None  # noqa: S101 - the same
    for step in steps:
        model.forward(TfLiteOps(graph, weights, tables, model, step, norm_scale), model.hyperparameters)


class TfLiteOps:
    """The operations on values of shape (1, length, width) (see `forward.Ops`)."""

    def __init__(
        self, graph: Graph, weights: Weights, tables: Tables, model: Model, step: Step, norm_scale: float
    ) -> None:
        self._graph = graph.subgraph(step.name)
        self._weights = weights
        self._model = model
        self._step = step
        self._norm_scale = norm_scale
        self._inputs = Inputs(self._graph, step)
        self._attention = AttentionEmitter(self._graph, self._inputs, tables)

    def embed(self, role: Role, /) -> Value:
        g, table, length = self._graph, self._weights.stored(self._graph, role), self._step.length
        shape = (length, table.shape[1])
        if table.type == ElementType.FLOAT16:
            x = g.add("GATHER", table, self._inputs.ids, shape=shape, type=table.type, axis=0)
            x = g.add("DEQUANTIZE", x)
        else:
            version = 1 if table.type == ElementType.FLOAT32 else 4
            x = g.add("EMBEDDING_LOOKUP", self._inputs.ids, table, shape=shape, version=version)
        return g.reshape(x, (1, *shape))

    def linear(self, x: Value, role: Role, /) -> Value:
        return self._product(x, role, role)

    def _product(self, x: Value, matrix: Role, role: Role) -> Value:
        weight = self._weights.matrix(self._graph, matrix)
        bias = role._replace(part="bias")
        added = self._weights.stored(self._graph, bias) if bias in self._weights else None
        version = 0 if weight.type == ElementType.FLOAT32 else 12
        shape = (*x.shape[:-1], weight.shape[0])
        return self._graph.add(
            "FULLY_CONNECTED", x, weight, added, shape=shape, version=version, keep_num_dims=True
        )

    def rms_norm(self, x: Value, role: Role, epsilon: float, /) -> Value:
        g, scale = self._graph, self._norm_scale
        if scale != 1:
            x = g.add("MUL", x, g.constant(scale))
        mean = self._mean(g.add("MUL", x, x))
        return self._scaled(x, mean, epsilon * scale**2, role)

    def layer_norm(self, x: Value, role: Role, epsilon: float, /) -> Value:
        g = self._graph
        x = g.add("SUB", x, self._mean(x))
        y = self._scaled(x, self._mean(g.add("MUL", x, x)), epsilon, role)
        return g.add("ADD", y, self._weights.stored(g, role._replace(part="bias")))

    def _mean(self, x: Value) -> Value:
        axis = self._graph.constant([len(x.shape) - 1], ElementType.INT32)
        return self._graph.add("MEAN", x, axis, shape=(*x.shape[:-1], 1), keep_dims=True)

    def _scaled(self, x: Value, mean: Value, epsilon: float, role: Role) -> Value:
        """``x / sqrt(mean + epsilon) * weight``."""
        g = self._graph
        inverse = g.add("RSQRT", g.add("ADD", mean, g.constant(epsilon)))
        return g.add("MUL", g.add("MUL", x, inverse), self._weights.stored(g, role))

    def add(self, a: Value, b: Value, /) -> Value:
        return self._graph.add("ADD", a, b)

    def activate(self, x: Value, kind: Activation, /) -> Value:
        if kind == "gelu_tanh":
            return self._graph.add("GELU", x, approximate=True)
        return self._graph.add("MUL", x, self._graph.add("LOGISTIC", x))

    def gated(self, x: Value, gate: Role, up: Role, kind: Activation, /) -> Value:
        gated, linear = self.linear(x, gate), self.linear(x, up)
        return self._graph.add("MUL", self.activate(gated, kind), linear)

    def attention(self, x: Value, layer: int, spec: Attention, /) -> Value:
        q, k, v = (self.linear(x, Role(name, layer)) for name in ATTENTION_ROLES)
        norms = [] if spec.norm_epsilon is None else [self._norm(Role(n, layer), spec) for n in HEAD_NORMS]
        return self._attention.emit(q, k, v, layer, spec, norms)

    def _norm(self, role: Role, spec: Attention) -> Norm:
        """The norm that each head of queries or keys goes through."""
        return lambda x: self.rms_norm(x, role, spec.norm_epsilon or 0)

    def moe(self, x: Value, layer: int, spec: MixtureOfExperts, /) -> Value:  # noqa: ARG002 - an `Ops`
        raise UnsupportedModelError("LiteRT has no operation for a mixture of experts", path=self._model.path)

    def logits(self, x: Value, role: Role, /) -> None:
        if self._step.logits:
            self._graph.output("logits", self._product(x, output_matrix(self._model.tensors), role))
