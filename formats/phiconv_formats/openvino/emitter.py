"""The decoder as an OpenVINO graph: the `Ops` whose values are outputs of layers.

Every operation is built in the form that the CPU plugin replaces by one of its own: a form that means the
same and looks different is computed piece by piece, rightly and slowly. Tests count what the plugin made of
them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from phiconv.forward.ops import ATTENTION_ROLES, EXPERT_ROLES, HEAD_NORMS, output_matrix
from phiconv.ir.model import Role
from phiconv_formats.openvino.attention import AttentionEmitter
from phiconv_formats.openvino.experts import emit_experts
from phiconv_formats.openvino.inputs import Inputs, parameter
from phiconv_formats.openvino.layers import layer_norm, product
from phiconv_formats.openvino.names import group_of, module_of

if TYPE_CHECKING:
    from phiconv.forward.ops import Activation, Attention, MixtureOfExperts
    from phiconv.ir.model import Model
    from phiconv_formats.openvino.attention import Norm
    from phiconv_formats.openvino.graph import Graph, Value
    from phiconv_formats.openvino.weights import Weights

__all__ = ["emit_decoder", "emit_embedding"]


def emit_decoder(graph: Graph, weights: Weights, model: Model, *, embedded: bool = False) -> None:
    """Adds a model's decoder to a graph, from its inputs to its logits.

    Args:
        graph: Where it is added.
        weights: Those that it uses.
        model: Says what is computed.
        embedded: It is given embeddings, and looks none up.
    """
    assert model.forward is not None  # noqa: S101 - names.output_tensors has seen that it is a model
    assert model.hyperparameters is not None  # noqa: S101 - the same
    model.forward(IrOps(graph, weights, model, embedded=embedded), model.hyperparameters)


def emit_embedding(graph: Graph, weights: Weights, role: Role) -> None:
    """Adds the look-up of embeddings by itself, from ids to what a decoder is given."""
    found = _look_up(graph, weights, parameter(graph, "input", "i64", "?,?"), role, names="inputs_embeds")
    graph.sink("Result", found, "inputs_embeds")


def _look_up(graph: Graph, weights: Weights, ids: Value, role: Role, *, names: str = "") -> Value:
    ids = graph.add("Convert", ids, type="i32", destination_type="i32")
    return graph.add("Gather", weights.value(role), ids, graph.constant(0, "i32"), names=names, batch_dims=0)


class IrOps:
    """The operations on values of shape (batch, length, width) (see `forward.Ops`)."""

    def __init__(self, graph: Graph, weights: Weights, model: Model, *, embedded: bool = False) -> None:
        assert model.hyperparameters is not None  # noqa: S101 - names.output_tensors has seen it
        self._graph = graph
        self._weights = weights
        self._architecture = model.architecture or ""
        self._roles = model.tensors
        self._embedded = embedded
        self._inputs = Inputs(graph, model.hyperparameters.hidden_size if embedded else None)
        self._attention = AttentionEmitter(graph, self._inputs)

    def embed(self, role: Role, /) -> Value:
        tokens = self._inputs.tokens
        return tokens if self._embedded else _look_up(self._graph, self._weights, tokens, role)

    def linear(self, x: Value, role: Role, /) -> Value:
        return self._product(x, role, role)

    def _product(self, x: Value, matrix: Role, role: Role, *, names: str = "") -> Value:
        bias = role._replace(part="bias")
        last = bias not in self._weights
        y = self._matmul(x, self._weights.value(matrix), role, names=names if last else "")
        return y if last else self._graph.add("Add", y, self._weights.value(bias), names=names)

    def _matmul(self, x: Value, matrix: Value, role: Role, *, names: str = "") -> Value:
        return product(self._graph, x, matrix, module_of(self._architecture, role), names=names)

    def _products(self, x: Value, roles: tuple[Role, ...]) -> list[Value]:
        """Several products with one input; one that is cut where the matrices are stored as one."""
        if group_of(self._architecture, roles[0]) != roles:
            return [self.linear(x, role) for role in roles]
        return self._graph.split(self.linear(x, roles[0]), [self._roles[role].shape[0] for role in roles])

    def rms_norm(self, x: Value, role: Role, epsilon: float, /) -> Value:
        g = self._graph
        squares = g.add("Power", x, g.constant([[[2]]], "f32"))
        mean = g.add("ReduceMean", squares, g.constant([-1], "i64"), keep_dims=True)
        root = g.add("Sqrt", g.add("Add", mean, g.constant([[[epsilon]]], "f32")))
        inverse = g.add("Divide", g.constant([[[1]]], "f32"), root, m_pythondiv=True)
        return g.add("Multiply", self._weights.value(role), g.add("Multiply", x, inverse))

    def layer_norm(self, x: Value, role: Role, epsilon: float, /) -> Value:
        return layer_norm(self._graph, self._weights, x, role, epsilon)

    def add(self, a: Value, b: Value, /) -> Value:
        return self._graph.add("Add", a, b)

    def activate(self, x: Value, kind: Activation, /) -> Value:
        if kind == "gelu_tanh":
            return self._graph.add("Gelu", x, approximation_mode="TANH")
        return self._graph.add("Swish", x)

    def gated(self, x: Value, gate: Role, up: Role, kind: Activation, /) -> Value:
        gated, linear = self._products(x, (gate, up))
        return self._graph.add("Multiply", linear, self.activate(gated, kind))

    def attention(self, x: Value, layer: int, spec: Attention, /) -> Value:
        roles = tuple(Role(name, layer) for name in ATTENTION_ROLES)
        q, k, v = self._products(x, roles)
        norms = [] if spec.norm_epsilon is None else [self._norm(Role(n, layer), spec) for n in HEAD_NORMS]
        return self._attention.emit(q, k, v, layer, spec, norms)

    def _norm(self, role: Role, spec: Attention) -> Norm:
        """The norm that each head of queries or keys goes through."""
        return lambda x: self.rms_norm(x, role, spec.norm_epsilon or 0)

    def moe(self, x: Value, layer: int, spec: MixtureOfExperts, /) -> Value:
        roles = [Role(name, layer) for name in EXPERT_ROLES]
        router, gate, up, down = (self._weights.value(role) for role in roles)

        def scores(tokens: Value) -> Value:
            return self._matmul(tokens, router, roles[0])

        return emit_experts(self._graph, x, scores, (gate, up, down), self.activate, spec)

    def logits(self, x: Value, role: Role, /) -> None:
        y = self._product(x, output_matrix(self._roles), role, names="logits")
        self._graph.sink("Result", y, "logits")
