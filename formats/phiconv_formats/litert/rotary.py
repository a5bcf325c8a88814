"""Cos and sin of every position, which a graph looks up; one set of LongRoPE's factors for all of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from phiconv.ir.trigonometry import cosine, sine
from phiconv_formats.litert.schema import ElementType

if TYPE_CHECKING:
    from phiconv.ir import FloatArray
    from phiconv.ir.rope import Rope
    from phiconv_formats.litert.graph import Graph, Subgraph, Value

__all__ = ["TABLE_NAMES", "Tables", "rotary_tables"]

TABLE_NAMES = ("rope/cos", "rope/sin")
"""What the tables are called in every subgraph, behind its own name."""

_ROWS = 4096
"""Positions at a time."""


class Tables:
    """The tables of a model, in two buffers for all subgraphs.

    Attributes:
        context: How many positions there are.
    """

    def __init__(self, graph: Graph, rope: Rope, head_dim: int, context: int) -> None:
        self.context = context
        self._shape = (context, head_dim - rope.dimensions // 2)
        self._buffers = [graph.behind(t.tobytes()) for t in rotary_tables(rope, head_dim, context)]

    def values(self, graph: Subgraph) -> tuple[Value, Value]:
        """Cos and sin in a subgraph, as `rotary_tables` makes them."""
        cos, sin = (
            graph.stored(f"{graph.name}/{name}", ElementType.FLOAT32, self._shape, buffer)
            for name, buffer in zip(TABLE_NAMES, self._buffers, strict=True)
        )
        return cos, sin


def rotary_tables(rope: Rope, head_dim: int, context: int) -> tuple[FloatArray, FloatArray]:
    """Cos and sin of each pair times LongRoPE's factor, then 1 and 0 for each dimension that is not rotated.

    The long factors count at all positions if the context is longer than the original one. Angles are
    float32, as in training.

    Args:
        rope: The embedding.
        head_dim: Dimensions of a head.
        context: How many positions there are.

    Returns:
        float32, shape (context, head_dim - pairs) each.
    """
    long = rope.is_long(context)
    frequencies = np.array(rope.inverse_frequencies(long=long), np.float32)
    scale = np.float32(rope.mscale(long=long))
    half = len(frequencies)
    cos, sin = (np.full((context, head_dim - half), rest, np.float32) for rest in (1, 0))
    for start in range(0, context, _ROWS):
        rows = slice(start, min(start + _ROWS, context))
        angles = np.arange(rows.start, rows.stop, dtype=np.float32)[:, None] * frequencies
        for table, function in ((cos, cosine), (sin, sine)):
            table[rows, :half] = function(angles) * scale
    return cos, sin
