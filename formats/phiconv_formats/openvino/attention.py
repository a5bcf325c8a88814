"""Attention in an IR: rotary embedding, cache, mask, and the operation that the plugin makes one of."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

from phiconv_formats.openvino.inputs import dimension

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from phiconv.forward.ops import Attention
    from phiconv.ir.rope import Rope
    from phiconv_formats.openvino.graph import Graph, Value
    from phiconv_formats.openvino.inputs import Inputs

__all__ = ["AttentionEmitter", "Norm"]

Norm: TypeAlias = "Callable[[Value], Value]"
"""A norm of every head by itself; the last axis is the head's dimensions."""

_TO_THE_END = 2**63 - 1
_HIDDEN = -65504.0
"""What is added to the score of a key that a query does not see: the least float16."""


class AttentionEmitter:
    """Emits attention layers; what they share (angles, mask) is emitted once."""

    def __init__(self, graph: Graph, inputs: Inputs) -> None:
        self._graph = graph
        self._inputs = inputs
        self._angles: dict[Rope, tuple[Value, Value]] = {}
        self._masks: dict[int | None, Value] = {}

    def emit(
        self, q: Value, k: Value, v: Value, layer: int, spec: Attention, norms: Sequence[Norm] = ()
    ) -> Value:
        """Attention from the products with the three matrices, (batch, length, heads * head_dim) each.

        Args:
            q: Queries.
            k: Keys.
            v: Values.
            layer: The layer.
            spec: How it attends.
            norms: What queries and keys go through, head by head.
        """
        g = self._graph
        sizes = (spec.heads, spec.kv_heads, spec.kv_heads)
        q, k, v = (
            self._heads(x, heads, spec.head_dim, norm)
            for x, heads, norm in zip((q, k, v), sizes, (*norms, *[None] * (3 - len(norms))), strict=True)
        )
        cos, sin = self._cos_sin(spec.rope)
        q, k = self._rotate(q, cos, sin, spec), self._rotate(k, cos, sin, spec)
        old_k, k = self._cached(k, f"past_key_values.{layer}.keypresent.{layer}.key", spec)
        _, v = self._cached(v, f"past_key_values.{layer}.valuepresent.{layer}.value", spec)
        mask = self._mask(old_k, spec.window)
        scale = g.constant(spec.head_dim**-0.5, "f32")
        k, v = self._repeated(k, spec), self._repeated(v, spec)
        y = g.add("ScaledDotProductAttention", q, k, v, mask, scale, causal=False)
        y = g.add("Transpose", y, g.constant([0, 2, 1, 3], "i64"))
        return g.add("Reshape", y, g.constant([0, 0, spec.heads * spec.head_dim], "i64"), special_zero=True)

    def _heads(self, x: Value, heads: int, head_dim: int, norm: Norm | None) -> Value:
        """To (batch, heads, length, head_dim)."""
        g = self._graph
        x = g.add("Reshape", x, g.constant([0, 0, heads, head_dim], "i64"), special_zero=True)
        x = x if norm is None else norm(x)
        return g.add("Transpose", x, g.constant([0, 2, 1, 3], "i64"))

    # ------------------------------------------------------------------------------------------------ rotary

    def _cos_sin(self, rope: Rope) -> tuple[Value, Value]:
        """Cos and sin of every position, (batch, 1, length, dimensions): the angles twice."""
        if rope not in self._angles:
            self._angles[rope] = self._emit_cos_sin(rope)
        return self._angles[rope]

    def _emit_cos_sin(self, rope: Rope) -> tuple[Value, Value]:
        g = self._graph
        frequencies, mscale = self._frequencies(rope)
        positions = g.add("Unsqueeze", self._inputs.positions, g.constant(1, "i64"))
        positions = g.add("Convert", positions, type="f32", destination_type="f32")
        angles = g.add("MatMul", frequencies, positions, transpose_a=False, transpose_b=False)
        angles = g.add("Transpose", angles, g.constant([0, 2, 1], "i64"))
        angles = g.add("Concat", angles, angles, axis=-1)

        def table(function: str) -> Value:
            y = g.add(function, angles)
            y = g.add("Multiply", y, mscale) if mscale is not None else y
            return g.add("Unsqueeze", y, g.constant(1, "i64"))

        return table("Cos"), table("Sin")

    def _frequencies(self, rope: Rope) -> tuple[Value, Value | None]:
        """Radians per position, (1, pairs, 1), and what cos and sin are multiplied by if it is not 1.

        LongRoPE's long factors count as soon as one position of the call lies beyond the original context.
        """
        g = self._graph

        def column(*, long: bool) -> Value:
            return g.constant([[[f] for f in rope.inverse_frequencies(long=long)]], "f32")

        def scale(*, long: bool) -> Value:
            return g.constant([[[rope.mscale(long=long)]]], "f32")

        short, long = column(long=False), column(long=True)
        same_scale = rope.short_mscale == rope.long_mscale
        if not rope.long_factor or (short == long and same_scale):
            return short, None if rope.short_mscale == 1 else scale(long=False)
        axes = g.constant([0, 1], "i64")
        last = g.add("ReduceMax", self._inputs.positions, axes, keep_dims=False)
        beyond = g.add("Greater", last, g.constant(rope.original_context - 1, "i64"), type="boolean")
        chosen = g.add("Select", beyond, long, short, type="f32")
        if same_scale:
            return chosen, None if rope.short_mscale == 1 else scale(long=False)
        return chosen, g.add("Select", beyond, scale(long=True), scale(long=False), type="f32")

    def _rotate(self, x: Value, cos: Value, sin: Value, spec: Attention) -> Value:
        """Turns the first dimensions of each head, ``x * cos + [-second half, first half] * sin``."""
        g, size = self._graph, spec.rope.dimensions
        whole = size == spec.head_dim
        part = x if whole else self._slice(x, 0, size)
        negated = g.add("Multiply", self._slice(part, size // 2, _TO_THE_END), g.constant([[[[-1]]]], "f32"))
        swapped = g.add("Concat", negated, self._slice(part, 0, size // 2), axis=-1)
        turned = g.add("Add", g.add("Multiply", part, cos), g.add("Multiply", swapped, sin))
        return turned if whole else g.add("Concat", turned, self._slice(x, size, _TO_THE_END), axis=-1)

    def _slice(self, x: Value, start: int, stop: int) -> Value:
        g = self._graph
        start_stop_step_axis = (g.constant([number], "i64") for number in (start, stop, 1, 3))
        return g.add("Slice", x, *start_stop_step_axis)

    # ------------------------------------------------------------------------------------------------- cache

    def _cached(self, x: Value, name: str, spec: Attention) -> tuple[Value, Value]:
        """What was cached before this call, and that with ``x`` behind it, which is cached in turn."""
        g = self._graph
        numbers = [g.constant([n], "i64") for n in (spec.kv_heads, 0, spec.head_dim)]
        empty = g.add("Broadcast", g.constant(0, "f32"), self._shape(*numbers), mode="numpy")
        shape = f"?,{spec.kv_heads},?,{spec.head_dim}"
        old = g.add("ReadValue", empty, variable_id=name, variable_type="f32", variable_shape=shape)
        old = g.add("Gather", old, self._inputs.beams, g.constant(0, "i64"), batch_dims=0)
        new = g.add("Concat", old, x, axis=-2)
        g.sink("Assign", new, "", variable_id=name)
        return old, new

    def _shape(self, *dimensions: Value) -> Value:
        """A shape whose first number is the batch's."""
        return self._graph.add("Concat", self._inputs.batch, *dimensions, axis=0)

    def _repeated(self, x: Value, spec: Attention) -> Value:
        """Each key/value head as many times as queries share it: the operation wants them so."""
        group = spec.heads // spec.kv_heads
        if group == 1:
            return x
        g = self._graph
        x = g.add("Unsqueeze", x, g.constant(2, "i64"))
        x = g.add("Broadcast", x, g.constant([1, 1, group, 1, 1], "i64"), mode="bidirectional")
        shape = g.constant([0, spec.heads, -1, spec.head_dim], "i64")
        return g.add("Reshape", x, shape, special_zero=True)

    # -------------------------------------------------------------------------------------------------- mask

    def _mask(self, old_keys: Value, window: int | None) -> Value:
        """What is added to the scores, (batch, 1, length, cached + length); the first layer's cache says."""
        if window not in self._masks:
            self._masks[window] = self._emit_mask(old_keys, window)
        return self._masks[window]

    def _emit_mask(self, old_keys: Value, window: int | None) -> Value:
        g = self._graph
        shape = g.add("ShapeOf", old_keys, type="i64", output_type="i64")
        seen = self._causal(shape) if window is None else self._windowed(shape, window)
        zero, hidden = g.constant(0, "f32"), g.constant(_HIDDEN, "f32")
        return g.add("Select", seen, zero, hidden, type="f32")

    def _causal(self, cached_shape: Value) -> Value:
        """Which keys a query sees: those up to its own."""
        g, inputs = self._graph, self._inputs
        cached = dimension(g, cached_shape, 2)
        total = g.add("Add", cached, inputs.length)
        keys = self._unsqueezed(self._range(g.constant([0], "i64"), total), (0, 1, 2))
        queries = self._unsqueezed(self._range(cached, total), (0, 1, 3))
        seen = g.add("LessEqual", keys, queries, type="boolean")
        return g.add("LogicalAnd", seen, self._padding())

    def _windowed(self, cached_shape: Value, window: int) -> Value:
        """Which keys a query sees: among the last ``window`` ones.

        Two backends find the window by looking for exactly this chain, which is what tracing makes of
        transformers' mask. The paged one throws the mask away; it wants the operations on a constant truth.
        The NPU's pads the cache, and mends the mask where ``near`` meets causality; it wants a cached length
        straight from a Gather, sums of these two orders, and one axis in each Unsqueeze. Any other form of
        the same gives wrong answers there.
        """
        g = self._graph
        cached = dimension(g, cached_shape, 2, scalar=True)
        length = g.add("Squeeze", self._inputs.length, g.constant([0], "i64"))
        total = g.add("Add", length, cached)
        one = g.constant(1, "i64")
        keys = g.add("Range", g.constant(0, "i64"), total, one, output_type="i64")
        queries = g.add("Range", cached, g.add("Add", cached, length), one, output_type="i64")
        for axis in (0, 1, 2):
            keys = self._unsqueezed(keys, axis)
        for axis in (0, 1, 3):
            queries = self._unsqueezed(queries, axis)
        true = g.add("Convert", g.constant(1, "u8"), type="boolean", destination_type="boolean")
        lowest = g.add("Add", queries, g.constant([[[[-window]]]], "i64"))
        near = g.add("BitwiseAnd", true, g.add("Greater", keys, lowest, type="boolean"))
        seen = g.add("BitwiseAnd", near, g.add("LessEqual", keys, queries, type="boolean"))
        seen = g.add("BitwiseAnd", g.add("BitwiseAnd", true, seen), self._padding())
        sizes = self._shape(g.constant([1], "i64"), self._inputs.length, self._unsqueezed(total, 0))
        return g.add("Broadcast", seen, sizes, mode="bidirectional")

    def _padding(self) -> Value:
        """Which keys are no padding, (batch, 1, 1, cached + length)."""
        padding = self._graph.add("Convert", self._inputs.padding, type="boolean", destination_type="boolean")
        return self._unsqueezed(padding, (1, 2))

    def _range(self, start: Value, stop: Value) -> Value:
        g = self._graph
        ends = (g.add("Squeeze", x, g.constant([0], "i64")) for x in (start, stop))
        return g.add("Range", *ends, g.constant(1, "i64"), output_type="i64")

    def _unsqueezed(self, x: Value, axes: int | Sequence[int]) -> Value:
        return self._graph.add("Unsqueeze", x, self._graph.constant(axes, "i64"))
