"""Quantized matrices in nothing but ONNX's own operators (since opset 21), for any runtime that has these.

ONNX Runtime recognises a `product` when it loads a model, and makes one MatMulNBits of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from phiconv_formats.onnx.graph import Graph
    from phiconv_formats.onnx.store import Store

__all__ = ["float_product", "product", "rows"]


def product(graph: Graph, store: Store, x: str, weight: str, path: str, output: str = "") -> str:
    """``x @ weight.T`` with a quantized matrix.

    It is the integers that are transposed: they are constants, so that a runtime does it when it loads the
    model. A transposition of the floats would hide the product from ONNX Runtime (1.31), which would then
    dequantize the whole matrix at every step.

    Args:
        graph: Where the nodes go.
        store: Where the matrix is.
        x: Shape (..., columns).
        weight: The matrix, of shape (rows, columns).
        path: Of the nodes.
        output: The name of the result, shape (..., rows).
    """
    parts = [
        graph.value("Transpose", f"{path}/{part}/Transpose", tensor, perm=[1, 0])
        for part, tensor in zip(
            ("codes", "scales", "zero_points"), store.integers(graph, weight), strict=False
        )
    ]
    size = store.block_encoding(weight).block_size
    floats = graph.value("DequantizeLinear", f"{path}/DequantizeLinear", *parts, axis=0, block_size=size)
    return _product(graph, x, floats, path, output)


def float_product(graph: Graph, x: str, weight: str, path: str, output: str = "") -> str:
    """``x @ weight.T`` with a matrix of floats."""
    columns = graph.value("Transpose", f"{path}/Transpose", weight, perm=[1, 0])
    return _product(graph, x, columns, path, output)


def _product(graph: Graph, x: str, columns: str, path: str, output: str) -> str:
    name = f"{path}/MatMul"
    (y,) = graph.node("MatMul", name, x, columns, outputs=(output or f"{name}/output_0",))
    return y


def rows(graph: Graph, store: Store, weight: str, ids: str, path: str) -> str:
    """Rows of a quantized matrix: those alone are dequantized.

    Args:
        graph: Where the nodes go.
        store: Where the matrix is.
        weight: The matrix; its codes have 8 bits, since Gather takes no others.
        ids: Which rows, shape (batch, length).
        path: Of the nodes.

    Returns:
        Shape (batch, length, columns).
    """
    parts = [
        graph.value("Gather", f"{path}/rows/{part}/Gather", tensor, ids, axis=0)
        for part, tensor in zip(
            ("codes", "scales", "zero_points"), store.integers(graph, weight), strict=False
        )
    ]
    size = store.block_encoding(weight).block_size
    return graph.value("DequantizeLinear", f"{path}/rows/DequantizeLinear", *parts, axis=2, block_size=size)
