"""The nodes of an encoder of pictures for ONNX Runtime GenAI: an `EncoderOps` whose values are names.

GenAI hands over all pictures of a prompt at once: ``pixel_values`` (pictures, crops, 3, height, width), with
more crops than a picture may have, and ``image_sizes`` (pictures, 2) in pixels. The graph takes the crops
that are there, and gives the features of all pictures one after the other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from onnx import TensorProto

from phiconv_formats.onnx.graph import CONTRIB, Graph
from phiconv_formats.onnx.names import norm_name, path_of
from phiconv_formats.onnx.products import Products, node_path

if TYPE_CHECKING:
    from phiconv.forward.encoder_ops import EncoderAttention, Merging, Positions
    from phiconv.forward.ops import Activation
    from phiconv.ir.model import Role
    from phiconv.ir.senses import Encoder, Vision
    from phiconv_formats.onnx.store import Store
    from phiconv_formats.onnx.targets import Target

__all__ = ["encoder_graph"]

_PATH = "/vision"


def encoder_graph(encoder: Encoder, store: Store, target: Target, accuracy_level: int | None) -> bytes:
    """The file of the graph from pixels to features.

    Args:
        encoder: What it computes.
        store: The weights.
        target: The processor that it is for.
        accuracy_level: Of products with quantized matrices; None for the target's usual one.
    """
    level = target.accuracy_level if accuracy_level is None else accuracy_level
    graph = Graph(target.opset, target.ir_version)
    ops = OnnxEncoderOps(graph, store, encoder.parameters, {"accuracy_level": level} if level else {})
    x = encoder.arrange(ops, encoder.tower(ops, encoder.parameters), encoder.parameters)
    features = encoder.project(ops, x, encoder.parameters)
    graph.rename(features, "image_features")
    width = encoder.parameters.features
    graph.output("image_features", ops.float_type, ("num_image_tokens", width))
    return graph.finish()


class OnnxEncoderOps:
    """Emits nodes (see `phiconv.forward.encoder_ops.EncoderOps`).

    A value has shape (crops of all pictures, patches, width), after `arrange` (features of all, width).
    """

    def __init__(self, graph: Graph, store: Store, parameters: Vision, accuracy: dict[str, int]) -> None:
        self._graph = graph
        self._store = store
        self._products = Products(graph, store, accuracy)
        self.float_type = self._products.float_type
        self._parameters = parameters
        self._side = parameters.patches
        self._count = 0
        self._pictures = _Pictures(graph, parameters)

    # ---------------------------------------------------------------------------------------- the vocabulary

    def patches(self, role: Role, parameters: Vision, /) -> str:
        """See `EncoderOps.patches`."""
        side, size = self._side, parameters.patch_size
        cut = self._reshaped(self._pictures.crops(), (-1, 3, side, size, side, size))
        order = (0, 2, 4, 3, 5, 1) if parameters.channels_last else (0, 2, 4, 1, 3, 5)
        turned = self._add_node("Transpose", cut, perm=order)
        flat = self._reshaped(turned, (-1, side * side, 3 * size * size))
        if self.float_type != TensorProto.FLOAT:
            flat = self._add_node("Cast", flat, to=self.float_type)
        return self.linear(flat, role)

    def with_class(self, x: str, role: Role, /) -> str:
        """See `EncoderOps.with_class`."""
        one = self._reshaped(self._store.floats(self._graph, norm_name(role)), (1, 1, -1))
        shape = self._add_node("Shape", x, start=0, end=1)
        rest = self._graph.constant(np.array([1, self._parameters.hidden_size], np.int64))
        shape = self._add_node("Concat", shape, rest, axis=0)
        return self._add_node("Concat", self._add_node("Expand", one, shape), x, axis=1)

    def without_class(self, x: str, /) -> str:
        """See `EncoderOps.without_class`."""
        return self._add_node("Slice", x, *self._integers([1], [_END], [1]))

    def positions(self, x: str, role: Role, how: Positions, /) -> str:
        """See `EncoderOps.positions`."""
        assert how == "table"  # noqa: S101 - `Format.sees` has no kind with another
        return self.add(x, self._store.floats(self._graph, norm_name(role)))

    def linear(self, x: str, role: Role, /) -> str:
        """See `EncoderOps.linear`."""
        return self._products.matrix(x, role.name, role.layer)

    def layer_norm(self, x: str, role: Role, epsilon: float, /) -> str:
        """See `EncoderOps.layer_norm`."""
        parts = (role, role._replace(part="bias"))
        weights = [self._store.floats(self._graph, norm_name(part)) for part in parts]
        path = node_path(path_of(role.name, role.layer))
        return self._graph.value(
            "LayerNormalization", f"{path}/LayerNorm", x, *weights, axis=-1, epsilon=epsilon
        )

    def add(self, a: str, b: str, /) -> str:
        """See `EncoderOps.add`."""
        return self._add_node("Add", a, b)

    def activate(self, x: str, kind: Activation, /) -> str:
        """See `EncoderOps.activate`."""
        if kind == "quick_gelu":
            return self._add_node("QuickGelu", x, domain=CONTRIB, alpha=1.702)
        return self._add_node("Gelu", x, approximate="tanh" if kind == "gelu_tanh" else "none")

    def attention(self, x: str, layer: int, spec: EncoderAttention, /) -> str:
        """See `EncoderOps.attention`."""
        q, k, v = (self._products.matrix(x, name, layer) for name in spec.roles)
        name = f"{_PATH}/layers.{layer}/attn/MultiHeadAttention"
        return self._graph.value("MultiHeadAttention", name, q, k, v, domain=CONTRIB, num_heads=spec.heads)

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
        own = [self._store.floats(self._graph, norm_name(role)) for role in (row_end, separator)]
        table = self._add_node("Concat", self._reshaped(x, (-1, width)), *own, axis=0)
        return self._add_node("Gather", table, self._pictures.places(self._side), axis=0)

    # ------------------------------------------------------------------------------------------------- parts

    def _add_node(self, operator: str, *inputs: str, **attributes: float | str | tuple[int, ...]) -> str:
        self._count += 1
        return self._graph.value(operator, f"{_PATH}/{operator}_{self._count}", *inputs, **attributes)

    def _integers(self, *values: list[int]) -> list[str]:
        return [self._graph.constant(np.array(value, np.int64)) for value in values]

    def _reshaped(self, x: str, shape: tuple[int, ...]) -> str:
        return self._add_node("Reshape", x, *self._integers([*shape]))


_END = (1 << 63) - 1
"""Behind the last, for a Slice."""


class _Pictures:
    """What follows from the sizes of pictures: which crops there are, and where every feature comes from."""

    def __init__(self, graph: Graph, parameters: Vision) -> None:
        self._graph = graph
        self._side = parameters.crop_size or 0
        self._names = 0
        shape = ("num_images", "max_num_crops", 3, self._side, self._side)
        self._pixels = graph.input("pixel_values", TensorProto.FLOAT, shape)
        sizes = graph.input("image_sizes", TensorProto.INT64, ("num_images", 2))
        grid = self._node("Div", sizes, self._number(self._side))
        self._down, self._across = (self._node("Gather", grid, self._number(i), axis=1) for i in (0, 1))
        self._crops = self._node("Add", self._node("Mul", self._down, self._across), self._number(1))

    def crops(self) -> str:
        """The crops of all pictures, (crops, 3, height, width); of each the small view of the whole first."""
        shape = self._node("Shape", self._pixels, start=1, end=2)
        most = self._node("Squeeze", shape, self._vector([0]))
        numbers = self._node("Range", self._number(0), most, self._number(1))
        there = self._node("Less", numbers, self._column(self._crops))
        flat = self._node("Reshape", there, self._vector([-1]))
        indices = self._node("Squeeze", self._node("NonZero", flat), self._vector([0]))
        all_crops = self._node("Reshape", self._pixels, self._vector([-1, 3, self._side, self._side]))
        return self._node("Gather", all_crops, indices, axis=0)

    def places(self, side: int) -> str:
        """For every feature of every picture the row of a table: crop by crop ``side * side`` patches.

        Behind these the table has the end of a row, and the separator.
        """
        row = self._add(self._times(self._across, side), 1)  # features of a row of all crops
        large = self._mul(self._times(self._down, side), row)
        count = self._add(large, 1 + side * (side + 1))
        picture, place = self._ragged(count)
        row, large, across = (self._node("Gather", x, picture, axis=0) for x in (row, large, self._across))
        first = self._node("Gather", self._starts(self._crops), picture, axis=0)
        crops = self._node("ReduceSum", self._crops, self._vector([0]), keepdims=0)
        whole = self._of_whole(place, row, across, side)
        small = self._of_small(self._node("Sub", place, self._add(large, 1)), side)
        in_whole = self._node("Less", place, large)
        inner = self._node("Where", in_whole, whole[0], small[0])
        in_small = self._node("Not", in_whole)
        either = (self._node("And", a, b) for a, b in ((in_whole, whole[1]), (in_small, small[1])))
        ends = self._node("Or", *either)
        patch = self._node("Add", self._times(first, side * side), inner)
        end = self._times(crops, side * side)
        separator = self._add(end, 1)
        found = self._node("Where", ends, end, patch)
        return self._node("Where", self._node("Equal", place, large), separator, found)

    def _ragged(self, counts: str) -> tuple[str, str]:
        """For every element of lists of these lengths, one after the other: which list, and which of it."""
        total = self._node("ReduceSum", counts, self._vector([0]), keepdims=0)
        numbers = self._node("Range", self._number(0), total, self._number(1))
        starts = self._starts(counts)
        begun = self._node("GreaterOrEqual", self._column(numbers), starts)
        lists = self._node("ReduceSum", self._int(begun), self._vector([1]), keepdims=0)
        which = self._node("Sub", lists, self._number(1))
        return which, self._node("Sub", numbers, self._node("Gather", starts, which, axis=0))

    def _of_whole(self, place: str, row: str, across: str, side: int) -> tuple[str, str]:
        """In the rows of all crops: which patch of the picture's, and whether it is the end of a row."""
        down, right = self._node("Div", place, row), self._node("Mod", place, row)
        crop = self._mul(self._div(down, side), across)
        crop = self._add(self._node("Add", crop, self._div(right, side)), 1)  # the first is the small one
        inner = self._node("Add", self._times(self._mod(down, side), side), self._mod(right, side))
        ends = self._node("Equal", right, self._node("Sub", row, self._number(1)))
        return self._node("Add", self._times(crop, side * side), inner), ends

    def _of_small(self, place: str, side: int) -> tuple[str, str]:
        """The same in the small view; what stands before it is counted below 0, and not looked at."""
        down, right = self._div(place, side + 1), self._mod(place, side + 1)
        ends = self._node("Equal", right, self._number(side))
        return self._node("Add", self._times(down, side), right), ends

    def _starts(self, counts: str) -> str:
        """How many elements lists of these lengths have before each."""
        return self._node("CumSum", counts, self._number(0), exclusive=1)

    # --------------------------------------------------------------------------------------------- arithmetic

    def _node(self, operator: str, *inputs: str, **attributes: int) -> str:
        self._names += 1
        return self._graph.value(operator, f"{_PATH}/places/{operator}_{self._names}", *inputs, **attributes)

    def _number(self, value: int) -> str:
        return self._graph.constant(np.array(value, np.int64))

    def _vector(self, values: list[int]) -> str:
        return self._graph.constant(np.array(values, np.int64))

    def _column(self, x: str) -> str:
        return self._node("Unsqueeze", x, self._vector([1]))

    def _int(self, x: str) -> str:
        return self._node("Cast", x, to=TensorProto.INT64)

    def _add(self, x: str, number: int) -> str:
        return self._node("Add", x, self._number(number))

    def _mul(self, a: str, b: str) -> str:
        return self._node("Mul", a, b)

    def _times(self, x: str, number: int) -> str:
        return self._node("Mul", x, self._number(number))

    def _div(self, x: str, number: int) -> str:
        return self._node("Div", x, self._number(number))

    def _mod(self, x: str, number: int) -> str:
        return self._node("Mod", x, self._number(number))
