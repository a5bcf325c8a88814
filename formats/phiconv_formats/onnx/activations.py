"""Activations in 16 bits around the products of a graph: what makes them products of integers.

A processor computes ``DequantizeLinear, MatMul, QuantizeLinear`` as one product of integers, and only where
the last of them is there. A matrix of 4 bits needs a tensor of zero points: without it the product is wrong.
Facts from onnxruntime-qnn 2.7.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from phiconv.forward.ops import ATTENTION_ROLES
from phiconv.ir.model import Role
from phiconv.ir.ranges import Range

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from phiconv.ir.ranges import MatrixRanges, Ranges
    from phiconv_formats.onnx.graph import Graph

__all__ = ["WIDENED", "Activations", "parameters", "ranges_of"]

WIDENED = 1.5
"""How much wider a range is than what was measured. There are 65536 steps, so that width costs nothing; but a
number that lies beyond is cut off, which costs a lot."""

_STEPS = 65535


def ranges_of(ranges: Ranges, name: str, layer: int | None) -> MatrixRanges:
    """The ranges of a matrix of a graph, which may join several roles.

    Raises:
        KeyError: There are none.
    """
    roles = ATTENTION_ROLES if name == "attn_qkv" else (name,)
    found = [ranges.matrices[Role(role, layer)] for role in roles]
    return type(found[0])(*map(Range.union, zip(*found, strict=True)))


def parameters(measured: Range) -> tuple[NDArray[np.float32], NDArray[np.uint16]]:
    """Scale and zero point, both of shape (): ``code = rint(x / scale) + zero_point``, and 0 has a code."""
    low, high = min(measured.low * WIDENED, 0.0), max(measured.high * WIDENED, 0.0)
    scale = np.array((high - low) / _STEPS or 1.0, np.float32)
    return scale, np.array(np.rint(-low / float(scale)).clip(0, _STEPS), np.uint16)


class Activations:
    """Emits the nodes.

    Args:
        graph: Where they go.
        ranges: What was measured.
    """

    def __init__(self, graph: Graph, ranges: Ranges) -> None:
        self._graph = graph
        self._ranges = ranges
        self._known: dict[str, str] = {}

    def inputs(self, x: str, name: str, layer: int | None) -> str:
        """A value on its way into products; of one value once."""
        if x not in self._known:
            path = f"{x.rpartition('/')[0]}/activations"
            self._known[x] = self._rounded(x, ranges_of(self._ranges, name, layer).inputs, path)
        return self._known[x]

    def outputs(self, y: str, name: str, layer: int | None, path: str) -> str:
        """What comes out of a product."""
        return self._rounded(y, ranges_of(self._ranges, name, layer).outputs, f"{path}/outputs")

    def _rounded(self, x: str, measured: Range, path: str) -> str:
        pair = [self._graph.constant(each) for each in parameters(measured)]
        codes = self._graph.value("QuantizeLinear", f"{path}/QuantizeLinear", x, *pair)
        return self._graph.value("DequantizeLinear", f"{path}/DequantizeLinear", codes, *pair)
