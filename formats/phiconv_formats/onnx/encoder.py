"""The nodes of an encoder of pictures for ONNX Runtime GenAI: an `EncoderOps` whose values are names.

The graph takes the crops that are there (see `pictures`), and gives the features of all pictures one after
the other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from onnx import TensorProto

from phiconv_formats.onnx.counting import END
from phiconv_formats.onnx.graph import CONTRIB, Graph
from phiconv_formats.onnx.names import norm_name, path_of
from phiconv_formats.onnx.pictures import Pictures
from phiconv_formats.onnx.products import Products, node_path

if TYPE_CHECKING:
    from phiconv.forward.encoder_ops import EncoderAttention, Merging, Positions
    from phiconv.forward.ops import Activation
    from phiconv.ir.model import Role
    from phiconv.ir.senses import Encoder, Vision
    from phiconv_formats.onnx.store import Store
    from phiconv_formats.onnx.targets import Target

__all__ = ["EncoderNodes", "encoder_graph"]


def encoder_graph(encoder: Encoder, store: Store, target: Target, accuracy_level: int | None) -> bytes:
    """The file of the graph from pixels to features.

    Args:
        encoder: What it computes.
        store: The weights.
        target: The processor that it is for.
        accuracy_level: Of products with quantized matrices; None for the target's usual one.
    """
    ops = OnnxEncoderOps(encoder.parameters, store, target, accuracy_level)
    x = encoder.arrange(ops, encoder.tower(ops, encoder.parameters), encoder.parameters)
    features = encoder.project(ops, x, encoder.parameters)
    return ops.finish(features, "image_features", ("num_image_tokens", encoder.parameters.features))


class EncoderNodes:
    """The operations that all encoders have.

    Attributes:
        graph: Where nodes go.
        float_type: ONNX's number of the type that it computes in.
    """

    def __init__(self, store: Store, target: Target, accuracy_level: int | None, path: str) -> None:
        """Begins a graph.

        Args:
            store: The weights.
            target: The processor that it is for.
            accuracy_level: Of products with quantized matrices; None for the target's usual one.
            path: What names of nodes begin with that belong to no weight.
        """
        level = target.accuracy_level if accuracy_level is None else accuracy_level
        self.graph = Graph(target.opset, target.ir_version)
        self._products = Products(self.graph, store, {"accuracy_level": level} if level else {})
        self.float_type = self._products.float_type
        self._store = store
        self._path = path
        self._count = 0

    def finish(self, x: str, name: str, shape: tuple[str | int, ...]) -> bytes:
        """The file, with a value as its only output."""
        self.graph.rename(x, name)
        self.graph.output(name, self.float_type, shape)
        return self.graph.finish()

    def linear(self, x: str, role: Role, /) -> str:
        """See `EncoderOps.linear`."""
        return self._products.matrix(x, role.name, role.layer)

    def layer_norm(self, x: str, role: Role, epsilon: float, /) -> str:
        """See `EncoderOps.layer_norm`."""
        weights = [self._floats(part) for part in (role, role._replace(part="bias"))]
        path = node_path(path_of(role.name, role.layer))
        return self.graph.value(
            "LayerNormalization", f"{path}/LayerNorm", x, *weights, axis=-1, epsilon=epsilon
        )

    def add(self, a: str, b: str, /) -> str:
        """See `EncoderOps.add`."""
        return self._add_node("Add", a, b)

    def activate(self, x: str, kind: Activation, /) -> str:
        """See `EncoderOps.activate`."""
        if kind in _SIGMOIDS:
            return self._add_node("QuickGelu", x, domain=CONTRIB, alpha=_SIGMOIDS[kind])
        if kind == "relu":
            return self._add_node("Relu", x)
        return self._add_node("Gelu", x, approximate="tanh" if kind == "gelu_tanh" else "none")

    def _attention(self, x: str, layer: int, spec: EncoderAttention, mask: str, added: str = "") -> str:
        """Every vector attends to all.

        Args:
            x: Shape (batch, length, width).
            layer: Whose matrices.
            spec: How.
            mask: Which keys count, int32 of shape (batch, length); "" for all.
            added: To the scores, of shape (1, heads, length, length); "" for nothing.
        """
        q, k, v = (self._products.matrix(x, name, layer) for name in spec.roles)
        name = f"{self._path}/layers.{layer}/attn/MultiHeadAttention"
        inputs = (q, k, v, "", mask, added)
        return self.graph.value("MultiHeadAttention", name, *inputs, domain=CONTRIB, num_heads=spec.heads)

    def _floats(self, role: Role) -> str:
        return self._store.floats(self.graph, norm_name(role))

    def _as_float(self, x: str) -> str:
        """What is handed over, float32, in the type that the graph computes in."""
        return x if self.float_type == TensorProto.FLOAT else self._add_node("Cast", x, to=self.float_type)

    def _add_node(self, operator: str, *inputs: str, **attributes: float | str | tuple[int, ...]) -> str:
        self._count += 1
        return self.graph.value(operator, f"{self._path}/{operator}_{self._count}", *inputs, **attributes)

    def _integers(self, *values: list[int]) -> list[str]:
        return [self.graph.constant(np.array(value, np.int64)) for value in values]

    def _reshaped(self, x: str, shape: tuple[int, ...]) -> str:
        return self._add_node("Reshape", x, *self._integers([*shape]))


_SIGMOIDS: dict[Activation, float] = {"quick_gelu": 1.702, "silu": 1.0}
"""Activations that are ``x * sigmoid(alpha * x)``, which ONNX Runtime calls QuickGelu."""


class OnnxEncoderOps(EncoderNodes):
    """Emits nodes (see `phiconv.forward.encoder_ops.EncoderOps`).

    A value has shape (crops of all pictures, patches, width), after `arrange` (features of all, width).
    """

    def __init__(self, parameters: Vision, store: Store, target: Target, accuracy_level: int | None) -> None:
        super().__init__(store, target, accuracy_level, "/vision")
        self._parameters = parameters
        self._side = parameters.patches
        self._pictures = Pictures(self.graph, parameters)
        self._mask = ""

    def patches(self, role: Role, parameters: Vision, /) -> str:
        """See `EncoderOps.patches`."""
        side, size = self._side, parameters.patch_size
        cut = self._reshaped(self._pictures.crops(), (-1, 3, side, size, side, size))
        order = (0, 2, 4, 3, 5, 1) if parameters.channels_last else (0, 2, 4, 1, 3, 5)
        turned = self._add_node("Transpose", cut, perm=order)
        flat = self._reshaped(turned, (-1, side * side, 3 * size * size))
        return self.linear(self._as_float(flat), role)

    def with_class(self, x: str, role: Role, /) -> str:
        """See `EncoderOps.with_class`."""
        one = self._reshaped(self._floats(role), (1, 1, -1))
        shape = self._add_node("Shape", x, start=0, end=1)
        rest = self.graph.constant(np.array([1, self._parameters.hidden_size], np.int64))
        shape = self._add_node("Concat", shape, rest, axis=0)
        return self._add_node("Concat", self._add_node("Expand", one, shape), x, axis=1)

    def without_class(self, x: str, /) -> str:
        """See `EncoderOps.without_class`."""
        return self._add_node("Slice", x, *self._integers([1], [END], [1]))

    def positions(self, x: str, role: Role, how: Positions, /) -> str:
        """See `EncoderOps.positions`."""
        assert how != "resized"  # noqa: S101 - `Format.sees` has no kind with these
        table = self._floats(role)
        if how == "buckets":
            shown = self._pictures.shown()
            flat = self._reshaped(shown, (-1, self._side**2))
            self._mask = self._add_node("Cast", flat, to=TensorProto.INT32)
            table = self._add_node("Gather", table, self._pictures.place_ids(shown), axis=0)
        return self.add(x, table)

    def attention(self, x: str, layer: int, spec: EncoderAttention, /) -> str:
        """See `EncoderOps.attention`."""
        return self._attention(x, layer, spec, self._mask)

    def merge(self, x: str, how: Merging, /) -> str:
        """See `EncoderOps.merge`."""
        half, width = self._side // 2, self._parameters.hidden_size
        fours = self._reshaped(x, (-1, half, 2, half, 2, width))
        self._side = half
        if how == "mean":
            mean = self._add_node("ReduceMean", fours, *self._integers([2, 4]), keepdims=0)
            return self._reshaped(mean, (-1, half * half, width))
        turned = self._add_node("Transpose", fours, perm=(0, 1, 3, 2, 4, 5))
        return self._reshaped(turned, (-1, half * half, 4 * width))

    def arrange(self, x: str, row_end: Role, separator: Role, /) -> str:
        """See `EncoderOps.arrange`: every feature looks its vector up, the two of the model's own behind."""
        width = self._parameters.hidden_size * self._parameters.merged**2
        own = [self._floats(role) for role in (row_end, separator)]
        table = self._add_node("Concat", self._reshaped(x, (-1, width)), *own, axis=0)
        return self._add_node("Gather", table, self._pictures.places(self._side), axis=0)
