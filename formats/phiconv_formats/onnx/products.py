"""Products with stored matrices, and what else of a decoder's nodes reads one value and knows no layer."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from phiconv import ir
from phiconv_formats.onnx.activations import Activations
from phiconv_formats.onnx.graph import CONTRIB, DATA_TYPES
from phiconv_formats.onnx.integers import element_type, has_channels, is_standard
from phiconv_formats.onnx.names import bias_name, matrix_name, path_of
from phiconv_formats.onnx.standard import float_product, product

if TYPE_CHECKING:
    from phiconv.forward.ops import Activation
    from phiconv.ir.ranges import Ranges
    from phiconv_formats.onnx.graph import Graph
    from phiconv_formats.onnx.store import Store

__all__ = ["Products", "node_path"]


class Products:
    """Emits products.

    Attributes:
        graph: Where nodes go.
        store: The weights.
        accuracy: The attribute of quantized products; {} for float32.
        fused: Whether an operator multiplies with floats as they are stored, and one takes a bias along.
        float_type: ONNX's number of the type that the graph computes in.
        activations: Quantizes what goes into products, and what comes out, where ranges are known.
    """

    def __init__(
        self,
        graph: Graph,
        store: Store,
        accuracy: dict[str, int],
        *,
        fused: bool = True,
        ranges: Ranges | None = None,
    ) -> None:
        self.graph = graph
        self.store = store
        self.accuracy = accuracy
        self.fused = fused
        self.float_type = DATA_TYPES[store.float_type]
        self.activations = None if ranges is None else Activations(graph, ranges)

    def matrix(
        self, x: str, name: str, layer: int | None, *, bias: str | None = None, output: str = ""
    ) -> str:
        """``x @ weight.T + bias``, the bias being optional."""
        weight = matrix_name(name, layer)
        path = node_path(path_of(name, layer))
        bias = bias_name(name, layer) if bias is None else bias
        has_bias = bias in self.store
        encoding = self.store[weight].encoding
        blocks = not (isinstance(encoding, ir.FloatEncoding) or is_standard(encoding))
        if blocks and self.fused:
            return self._quantized(x, weight, path, bias if has_bias else "", output)
        if has_channels(encoding):
            y = self._of_channels(x, name, layer)
        else:
            product = partial(self._quantized, bias="") if blocks else self._product
            y = product(x, weight, path, output="" if has_bias else output)
        if has_bias:
            name, addend = f"{path}/Add", self.store.floats(self.graph, bias)
            (y,) = self.graph.node("Add", name, y, addend, outputs=(output or f"{name}/output_0",))
        return y

    def product(self, x: str, weight: str, path: str) -> str:
        """``x @ weight.T`` with any stored matrix, by its name."""
        encoding = self.store[weight].encoding
        if isinstance(encoding, ir.FloatEncoding) or is_standard(encoding):
            return self._product(x, weight, path, "")
        return self._quantized(x, weight, path, "", "")

    def float_weight(self, name: str) -> str:
        """A tensor of floats, in the type that the graph computes in."""
        value = self.store.floats(self.graph, name)
        return self.as_float(value, self.store[name].encoding, f"/{name.replace('.', '/')}/Cast")

    def as_float(self, value: str, stored: ir.Encoding, name: str) -> str:
        """A constant is cast when the model is loaded, not at every step."""
        assert isinstance(stored, ir.FloatEncoding)  # noqa: S101 - whoever asks has looked
        if DATA_TYPES[stored] == self.float_type:
            return value
        return self.graph.value("Cast", name, value, to=self.float_type)

    def activate(self, x: str, kind: Activation) -> str:
        """See `Ops.activate`."""
        name = x.rpartition("/")[0]
        if kind == "silu":
            return self.graph.value("QuickGelu", f"{name}/Silu", x, domain=CONTRIB, alpha=1.0)
        return self.graph.value("Gelu", f"{name}/Gelu", x, approximate="tanh")

    def _product(self, x: str, weight: str, path: str, output: str) -> str:
        """``x @ weight.T``, of operators that take no bias."""
        if not isinstance(self.store[weight].encoding, ir.FloatEncoding):
            return product(self.graph, self.store, x, weight, path, output)
        values = self.float_weight(weight)
        if not self.fused or self.store.standard:
            return float_product(self.graph, x, values, path, output)
        # Unlike MatMul it takes the rows as they are stored.
        (y,) = self.graph.node(
            "FusedMatMul",
            f"{path}/MatMul",
            x,
            values,
            outputs=(output or f"{path}/MatMul/output_0",),
            domain=CONTRIB,
            transB=1,
        )
        return y

    def _of_channels(self, x: str, name: str, layer: int | None) -> str:
        """A product of integers: of quantized activations with a matrix that has one scale to a row."""
        assert self.activations is not None  # noqa: S101 - the recipe has asked for ranges
        weight, path = matrix_name(name, layer), node_path(path_of(name, layer))
        x = self.activations.inputs(x, name, layer)
        codes, scales = self.store.integers(self.graph, weight)
        rows, kind = self.store[weight].shape[0], element_type(self.store.block_encoding(weight))
        columns = self.graph.value("Transpose", f"{path}/codes/Transpose", codes, perm=[1, 0])
        parts = columns, scales, self.graph.zeros(kind, rows)
        matrix = self.graph.value("DequantizeLinear", f"{path}/DequantizeLinear", *parts, axis=1)
        y = self.graph.value("MatMul", f"{path}/MatMul", x, matrix)
        return self.activations.outputs(y, name, layer, path)

    def _quantized(self, x: str, weight: str, path: str, bias: str, output: str) -> str:
        """``x @ weight.T + bias`` of blocks."""
        encoding, (rows, columns) = self.store.block_encoding(weight), self.store[weight].shape
        node = f"{path}/MatMul_Q{encoding.bits}"
        (y,) = self.graph.node(
            "MatMulNBits",
            node,
            x,
            self.store.codes(self.graph, weight),
            self.store.scales(self.graph, weight),
            self.store.zero_points(self.graph, weight),
            "",
            self.store.floats(self.graph, bias) if bias else "",
            outputs=(output or f"{node}/output_0",),
            domain=CONTRIB,
            K=columns,
            N=rows,
            bits=encoding.bits,
            block_size=encoding.block_size,
            **self.accuracy,
        )
        return y


def node_path(path: str) -> str:
    """The path of a node: ``/model/layers.0/mlp/up_proj`` for ``model.layers.0.mlp.up_proj``."""
    return "/" + path.replace(".", "/").replace("layers/", "layers.")
