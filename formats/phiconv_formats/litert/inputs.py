"""What LiteRT-LM gives a graph: tokens, their positions, a causal mask, and the cache of every layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from phiconv_formats.litert.graph import DYNAMIC
from phiconv_formats.litert.schema import ElementType

if TYPE_CHECKING:
    from phiconv_formats.litert.graph import Subgraph, Value

__all__ = ["Inputs", "Step"]


@dataclass(frozen=True, slots=True)
class Step:
    """A signature: a call of the model with so many tokens.

    Attributes:
        name: "decode", or "prefill" and what tells one from the others.
        length: How many tokens it is given.
        context: Positions of the cache.
        logits: Whether it says what comes next.
    """

    name: str
    length: int
    context: int
    logits: bool

    @staticmethod
    def dynamic() -> tuple[Step, ...]:
        """The signatures of a file whose cache grows with the text."""
        return Step("decode", 1, DYNAMIC, True), Step("prefill", DYNAMIC, DYNAMIC, False)

    @staticmethod
    def static(context: int, lengths: tuple[int, ...]) -> tuple[Step, ...]:
        """Those of a file whose shapes are fixed; lengths beyond the context are left out."""
        fitting = [n for n in lengths if n <= context] or [context]
        prefills = (Step(f"prefill_{n}", n, context, False) for n in fitting)
        return Step("decode", 1, context, True), *prefills


class Inputs:
    """The inputs of a signature.

    Attributes:
        ids: Token ids, int32 (length,).
        positions: Of the tokens, int32 (length,).
        mask: 0 where a token sees a position of the cache and far below 0 elsewhere, (1, 1, length, context).
        step: The signature.
    """

    def __init__(self, graph: Subgraph, step: Step) -> None:
        self.step = step
        self._graph = graph
        tokens = graph.input("tokens", (1, step.length), ElementType.INT32)
        self.positions = graph.input("input_pos", (step.length,), ElementType.INT32)
        self.mask = graph.input("mask", (1, 1, step.length, step.context))
        self.ids = graph.reshape(tokens, (step.length,))
        zero, one = (graph.constant([n], ElementType.INT32) for n in (0, 1))
        self._first = graph.add("SLICE", self.positions, zero, one, shape=(1,), type=ElementType.INT32)
        self._starts: dict[int, Value] = {}

    def start(self, axis: int) -> Value:
        """Where in a cache the tokens begin: the first position on one of the four axes, and 0 on others."""
        if axis not in self._starts:
            before, after = ([0] * n for n in (axis, 3 - axis))
            zeros = [self._graph.constant(n, ElementType.INT32) if n else None for n in (before, after)]
            parts = [value for value in (zeros[0], self._first, zeros[1]) if value is not None]
            self._starts[axis] = self._graph.concatenate(parts, 0)
        return self._starts[axis]
