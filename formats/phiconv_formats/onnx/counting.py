"""Whole numbers that a graph computes from the sizes of its inputs: lengths, places, masks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from onnx import TensorProto

if TYPE_CHECKING:
    from phiconv_formats.onnx.graph import Graph

__all__ = ["END", "Counting"]

END = (1 << 63) - 1
"""Behind the last, for a Slice."""


class Counting:
    """Emits nodes of INT64 and BOOL, whose names nobody looks at: they are numbered."""

    def __init__(self, graph: Graph, path: str) -> None:
        """Begins to count.

        Args:
            graph: Where nodes go.
            path: What their names begin with.
        """
        self._graph = graph
        self._path = path
        self._names = 0

    def node(self, operator: str, *inputs: str, **attributes: int) -> str:
        """A node with one output."""
        self._names += 1
        return self._graph.value(operator, f"{self._path}/{operator}_{self._names}", *inputs, **attributes)

    def number(self, value: int) -> str:
        """A constant without dimensions."""
        return self._graph.constant(np.array(value, np.int64))

    def vector(self, values: list[int]) -> str:
        """A constant of one dimension."""
        return self._graph.constant(np.array(values, np.int64))

    def add(self, x: str, number: int) -> str:
        """``x + number``."""
        return self.node("Add", x, self.number(number))

    def mul(self, a: str, b: str) -> str:
        """``a * b``."""
        return self.node("Mul", a, b)

    def times(self, x: str, number: int) -> str:
        """``x * number``."""
        return self.node("Mul", x, self.number(number))

    def div(self, x: str, number: int) -> str:
        """``x // number`` of what is not below 0."""
        return self.node("Div", x, self.number(number))

    def mod(self, x: str, number: int) -> str:
        """``x % number``."""
        return self.node("Mod", x, self.number(number))

    def to_int(self, x: str) -> str:
        """Numbers, or 0 and 1 for False and True."""
        return self.node("Cast", x, to=TensorProto.INT64)

    def column(self, x: str) -> str:
        """A vector as a matrix of one column."""
        return self.node("Unsqueeze", x, self.vector([1]))

    def numbers(self, count: str) -> str:
        """0, 1, ... below a number."""
        return self.node("Range", self.number(0), count, self.number(1))

    def size(self, x: str, axis: int) -> str:
        """How long a value is, a number."""
        return self.node("Squeeze", self.node("Shape", x, start=axis, end=axis + 1), self.vector([0]))

    def total(self, x: str, axis: int) -> str:
        """The sums over a dimension, which is gone."""
        return self.node("ReduceSum", x, self.vector([axis]), keepdims=0)

    def where_true(self, x: str) -> str:
        """The places of what is True in a value, row by row, as if it had one dimension."""
        flat = self.node("Reshape", x, self.vector([-1]))
        return self.node("Squeeze", self.node("NonZero", flat), self.vector([0]))

    def starts(self, counts: str) -> str:
        """How many elements lists of these lengths have before each."""
        return self.node("CumSum", counts, self.number(0), exclusive=1)

    def ragged(self, counts: str) -> tuple[str, str]:
        """For every element of lists of these lengths, one after the other: which list, and which of it."""
        numbers, starts = self.numbers(self.total(counts, 0)), self.starts(counts)
        begun = self.node("GreaterOrEqual", self.column(numbers), starts)
        which = self.add(self.total(self.to_int(begun), 1), -1)
        return which, self.node("Sub", numbers, self.node("Gather", starts, which, axis=0))
