"""Attention in a TFLite graph: rotary embedding, cache, mask, and products that XNNPACK takes.

XNNPACK takes no slice whose size is open until the model runs, nor a reshape with two such sizes. So halves
are swapped by a product with a matrix of 0, 1 and -1, which is exact, and queries that share a key/value head
stand one behind the other on the axis of the tokens.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from phiconv_formats.litert.graph import DYNAMIC
from phiconv_formats.litert.schema import ElementType

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from phiconv.forward.ops import Attention
    from phiconv.ir import FloatArray
    from phiconv_formats.litert.graph import Subgraph, Value
    from phiconv_formats.litert.inputs import Inputs
    from phiconv_formats.litert.rotary import Tables

__all__ = ["AttentionEmitter", "Norm", "swapping"]

Norm: TypeAlias = "Callable[[Value], Value]"
"""A norm of every head by itself; the last axis is the head's dimensions."""

_HIDDEN = 45824.0
"""What a key outside of the window loses: the runtime's own number for float16."""


class AttentionEmitter:
    """Emits attention layers; what they share (cos, sin, masks) is emitted once."""

    def __init__(self, graph: Subgraph, inputs: Inputs, tables: Tables) -> None:
        self._graph = graph
        self._inputs = inputs
        self._tables = tables
        self._length, self._context = inputs.step.length, inputs.step.context
        self._angles: tuple[Value, Value] | None = None
        self._masks: dict[tuple[int | None, int], Value] = {}

    def emit(
        self, q: Value, k: Value, v: Value, layer: int, spec: Attention, norms: Sequence[Norm] = ()
    ) -> Value:
        """Attention from the products with the three matrices, (1, length, heads * head_dim) each.

        Args:
            q: Queries.
            k: Keys.
            v: Values.
            layer: The layer.
            spec: How it attends.
            norms: What queries and keys go through, head by head.
        """
        g, length = self._graph, self._length
        q, k, v = (
            g.reshape(x, (1, length, heads, spec.head_dim))
            for x, heads in ((q, spec.heads), (k, spec.kv_heads), (v, spec.kv_heads))
        )
        if norms:
            q, k = norms[0](q), norms[1](k)
        q, k = self._rotate(q, spec), self._rotate(k, spec)
        keys = self._cached("k", layer, g.transpose(k, (0, 2, 1, 3)), 2)
        values = self._cached("v", layer, g.transpose(v, (0, 2, 3, 1)), 3)
        q = g.add("MUL", q, g.constant(spec.head_dim**-0.5))
        q = g.transpose(q, (0, 2, 1, 3))
        group = spec.heads // spec.kv_heads
        rows = length if length == DYNAMIC else length * group
        q = g.reshape(q, (1, spec.kv_heads, rows, spec.head_dim))
        shape = (1, spec.kv_heads, rows, self._context)
        scores = g.add("BATCH_MATMUL", q, keys, shape=shape, adj_y=True)
        window = spec.window if spec.window is not None and spec.window < self._tables.context else None
        scores = g.add("ADD", scores, self._mask(window, group), shape=shape)
        weights = g.add("SOFTMAX", scores, beta=1.0)
        y = g.add("BATCH_MATMUL", weights, values, shape=(*shape[:3], spec.head_dim), adj_y=True)
        y = g.reshape(y, (1, spec.heads, length, spec.head_dim))
        return g.reshape(g.transpose(y, (0, 2, 1, 3)), (1, length, spec.heads * spec.head_dim))

    # ------------------------------------------------------------------------------------------------ rotary

    def _rotate(self, x: Value, spec: Attention) -> Value:
        """Turns the first dimensions of each head: ``x * cos + [-second half, first half] * sin``."""
        g = self._graph
        cos, sin = self._cos_sin(spec)
        matrix = g.constant(swapping(spec.head_dim, spec.rope.dimensions))
        swapped = g.add("FULLY_CONNECTED", x, matrix, None, shape=x.shape, keep_num_dims=True)
        return g.add("ADD", g.add("MUL", x, cos), g.add("MUL", swapped, sin))

    def _cos_sin(self, spec: Attention) -> tuple[Value, Value]:
        """Cos and sin of the tokens, (1, length, 1, head_dim); 1 and 0 for what is not rotated."""
        if self._angles is None:
            cos, sin = (self._looked_up(table, spec) for table in self._tables.values(self._graph))
            self._angles = cos, sin
        return self._angles

    def _looked_up(self, table: Value, spec: Attention) -> Value:
        """The rows of a table at the tokens, each pair's number once for each of its two dimensions."""
        g, length, half = self._graph, self._length, spec.rope.dimensions // 2
        rows = g.add("GATHER", table, self._inputs.positions, shape=(length, table.shape[1]), axis=0)
        pairs = rows
        if table.shape[1] > half:
            start, size = (g.constant(c, ElementType.INT32) for c in ((0, 0), (length, half)))
            pairs = g.add("SLICE", rows, start, size, shape=(length, half))
        return g.reshape(g.concatenate([pairs, rows], 1), (1, length, 1, spec.head_dim))

    # ------------------------------------------------------------------------------------------------- cache

    def _cached(self, part: str, layer: int, x: Value, axis: int) -> Value:
        """The cache with these tokens in it; the positions are on this axis."""
        g, name = self._graph, f"kv_cache_{part}_{layer}"
        shape = [*x.shape]
        shape[axis] = self._context
        old = g.input(name, shape)
        new = g.add("DYNAMIC_UPDATE_SLICE", old, x, self._inputs.start(axis), shape=shape)
        g.output(name, new)
        return new

    # -------------------------------------------------------------------------------------------------- mask

    def _mask(self, window: int | None, group: int) -> Value:
        """What is added to the scores, once for each query that shares a key/value head."""
        if (window, group) not in self._masks:
            if group > 1:
                mask = self._graph.concatenate([self._mask(window, 1)] * group, 2)
            else:
                mask = self._inputs.mask if window is None else self._windowed(window)
            self._masks[window, group] = mask
        return self._masks[window, group]

    def _windowed(self, window: int) -> Value:
        """The mask where it hides more than the window does, and the window elsewhere: nothing is added up.

        With a distance of ``window - 0.5`` positions at most, ``max(-1, min(0, 2 * room))`` is 0 within the
        window and -1 outside, since all positions are whole numbers.
        """
        g, length = self._graph, self._length
        queries = g.add("CAST", self._inputs.positions, shape=(length,))
        queries = g.reshape(queries, (1, 1, length, 1))
        room = g.add("SUB", g.constant(window - 0.5), g.add("SUB", queries, self._keys()))
        twice = g.add("MUL", room, g.constant(2.0))
        outside = g.add("MAXIMUM", g.add("MINIMUM", twice, g.constant(0.0)), g.constant(-1.0))
        return g.add("MINIMUM", g.add("MUL", outside, g.constant(_HIDDEN)), self._inputs.mask)

    def _keys(self) -> Value:
        """The positions of the cache: a constant, or, where their number is open, a running sum of ones."""
        g = self._graph
        if self._context != DYNAMIC:
            return g.constant(np.arange(self._context, dtype=np.float32).reshape(1, 1, 1, -1))
        ones = g.add("ADD", g.add("MUL", self._inputs.mask, g.constant(0.0)), g.constant(1.0))
        axis = g.constant(3, ElementType.INT32)
        return g.add("CUMSUM", ones, axis, shape=self._inputs.mask.shape, exclusive=True)


def swapping(head_dim: int, dimensions: int) -> FloatArray:
    """The matrix by which a head becomes ``[-second half, first half]`` of its rotated dimensions, else 0.

    Shape (head_dim, head_dim), as FULLY_CONNECTED has it: ``y = x @ matrix.T``.
    """
    half = dimensions // 2
    matrix = np.zeros((head_dim, head_dim), np.float32)
    i = np.arange(half)
    matrix[i, i + half] = -1
    matrix[i + half, i] = 1
    return matrix
