"""A decoder in graphs of fixed sizes, one after the other, as Qualcomm's processors want them.

The first graph has the embedding and the last one the output matrix; both stay on the CPU and take texts of
any length. What is between takes a fixed number of tokens at once, and a cache of fixed length comes in and
goes out. It is cut before a layer where it would be too large for the processor's memory.

    past_seq_len    int32 (1, 1)  position of the last token that comes in
    total_seq_len   int32 (1,)    longest text; GenAI (0.18) feeds the other one only where this is, too
    past_key_values.N.key, .value (1, kv_heads, context, head_dim); present.N.key, .value have the same shape

Facts on operators from onnxruntime-qnn 2.7 (QAIRT 2.51): it has no norm that takes a sum along, no product
that takes a bias along, and none with a transposed matrix of floats.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from onnx import TensorProto, helper

from phiconv_formats.onnx.emitter import OnnxOps, Sum
from phiconv_formats.onnx.targets import TARGETS

if TYPE_CHECKING:
    from collections.abc import Collection

    from phiconv.forward.ops import Attention
    from phiconv.ir.model import Model, Role
    from phiconv.ir.rope import Rope
    from phiconv_formats.onnx.emitter import Value
    from phiconv_formats.onnx.graph import Graph
    from phiconv_formats.onnx.store import Store
    from phiconv_formats.shared.output import RuntimeSettings

__all__ = ["Piece", "StaticOps"]

_HIDDEN_PLACE = -1e4
"""Is added to scores that do not count; float16 has it."""


class Piece(NamedTuple):
    """A graph of a decoder.

    Attributes:
        graph: Its file.
        inputs, outputs: Names of values; an output of one piece is the next one's input of the same name.
    """

    graph: bytes
    inputs: list[str]
    outputs: list[str]


class StaticOps(OnnxOps):
    """Emits the pieces of a decoder (see `phiconv.forward.ops.Ops`).

    Args:
        model: The model; its ``max_position_embeddings`` are the length of the cache.
        store: Its weights.
        settings: What the user wants.
        length: Tokens that come in at once.
        cuts: Layers before which a new piece begins.

    Attributes:
        pieces: The graphs that are complete: all but the last one, which `logits` returns the file of.
    """

    ids_type = TensorProto.INT32

    def __init__(
        self, model: Model, store: Store, settings: RuntimeSettings, length: int, cuts: Collection[int] = ()
    ) -> None:
        super().__init__(model, store, settings)
        assert model.hyperparameters is not None  # noqa: S101 - output_tensors has looked
        self._open(TARGETS["cpu"].accuracy_level)  # for the embedding
        self.pieces: list[Piece] = []
        self._layers = model.hyperparameters.num_hidden_layers
        self._width = model.hyperparameters.hidden_size
        self._length = length
        self._cuts = cuts
        self._standard = settings.attention == "standard"
        self._shared: dict[str, str] = {}
        # Beside integers float32 would double the cache, which the processor computes in float16 with anyway.
        self._cache_type = TensorProto.FLOAT16 if store.has_channels else self.float_type

    # ---------------------------------------------------------------------------------------- the vocabulary

    def embed(self, role: Role, /) -> Value:
        """See `Ops.embed`; the first piece."""
        return self._cut(super().embed(role), 0)

    def rms_norm(self, x: Value, role: Role, epsilon: float, /) -> Value:
        """See `Ops.rms_norm`."""
        return super().rms_norm(self._at_layer(x, role), role, epsilon)

    def layer_norm(self, x: Value, role: Role, epsilon: float, /) -> Value:
        """See `Ops.layer_norm`."""
        return super().layer_norm(self._at_layer(x, role), role, epsilon)

    def attention(self, x: Value, layer: int, spec: Attention, /) -> Value:
        """See `Ops.attention`."""
        if not self._standard:
            return super().attention(x, layer, spec)
        g, path = self.graph, f"/model/layers.{layer}/attn"
        queries, new_keys, new_values = self._split(self._projected(self._read(x), layer, spec), path, spec)
        queries = self._by_head(queries, f"{path}/q", spec.heads, spec, rotated=True)
        new_keys = self._by_head(new_keys, f"{path}/k", spec.kv_heads, spec, rotated=True)
        new_values = self._by_head(new_values, f"{path}/v", spec.kv_heads, spec, rotated=False)
        queries, new_keys, new_values = map(self._for_cache, (queries, new_keys, new_values))
        places = self._places(spec)
        cache = [
            g.node(
                "ScatterElements", f"{path}/{part}/ScatterElements", old, places, new, outputs=(all_,), axis=2
            )
            for part, old, new, all_ in zip(
                "kv",
                self._cache("past_key_values", layer, spec),
                (new_keys, new_values),
                self._cache("present", layer, spec),
                strict=True,
            )
        ]
        keys, values = (all_ for (all_,) in cache)
        attended = g.value(
            "Attention",
            f"{path}/Attention",
            queries,
            keys,
            values,
            self._mask(spec),
            scale=1 / math.sqrt(spec.head_dim),
        )
        attended = self._from_cache(attended)
        by_token = g.value("Transpose", f"{path}/Transpose", attended, perm=[0, 2, 1, 3])
        return g.value("Reshape", f"{path}/Reshape", by_token, _shape(g, 1, self._length, -1))

    def logits(self, x: Value, role: Role, /) -> bytes:
        """See `Ops.logits`; the last piece."""
        x = self._cut(x, self._layers)
        data = super().logits(x, role)
        self.pieces.append(Piece(data, self.graph.inputs, self.graph.outputs))
        return data

    # ------------------------------------------------------------------------------------------- pieces

    def _at_layer(self, x: Value, role: Role) -> Value:
        """The value that a norm reads, in a new piece where one begins with it."""
        begins = role.name == "attn_norm" and role.layer in self._cuts
        return self._cut(x, role.layer or 0) if begins else x

    def _cut(self, x: Value, layer: int) -> Value:
        """Ends a piece with the value before a layer, its only one that is needed further on.

        The values are called as transformers numbers its hidden states, the last one normalised.
        """
        name, first = self.graph.rename(self._read(x), f"hidden_states.{layer}"), not self.pieces
        any_length = ("batch_size", "sequence_length", self._width)
        fixed = (1, self._length, self._width)
        self.graph.output(name, self.float_type, any_length if first else fixed)
        data = self.graph.finish()
        self.pieces.append(Piece(data, self.graph.inputs, self.graph.outputs))
        last = layer == self._layers
        self._open((TARGETS["cpu"] if last else self.target).accuracy_level)
        self._rotary, self._int32_lengths, self._shared = {}, None, {}
        self.graph.input(name, self.float_type, any_length if last else fixed)
        if not last:
            self.graph.input("past_seq_len", TensorProto.INT32, (1, 1))
            self.graph.input("total_seq_len", TensorProto.INT32, (1,))
        if isinstance(x, Sum):
            x.name = name  # of the new piece: it is read again by the residual sum
            return x
        return name

    # ------------------------------------------------------------------------ positions, mask, cache, rope

    def _lengths(self) -> tuple[str, str]:
        """The last position, as a vector, and the length of the cache."""
        if self._int32_lengths is None:
            last = self.graph.value(
                "Reshape", "/model/lengths/Reshape", "past_seq_len", _shape(self.graph, 1)
            )
            self._int32_lengths = last, "total_seq_len"
        return self._int32_lengths

    def _cache(self, name: str, layer: int, spec: Attention) -> tuple[str, str]:
        """Keys and values of a layer, those of positions that are still to come included."""
        shape = (1, spec.kv_heads, self._context, spec.head_dim)
        declare = self.graph.input if name == "past_key_values" else self.graph.output
        key, value = (declare(f"{name}.{layer}.{part}", self._cache_type, shape) for part in ("key", "value"))
        return key, value

    def _for_cache(self, x: str) -> str:
        """See `OnnxOps`; of one value once."""
        if self._cache_type == self.float_type:
            return x
        if x not in self._shared:
            name = f"{x.removesuffix('/output_0')}/ForCache"
            self._shared[x] = self.graph.value("Cast", name, x, to=self._cache_type)
        return self._shared[x]

    def _from_cache(self, x: str) -> str:
        """See `OnnxOps`."""
        if self._cache_type == self.float_type:
            return x
        return self.graph.value("Cast", f"{x.removesuffix('/output_0')}/FromCache", x, to=self.float_type)

    def _positions_row(self) -> str:
        """The positions of the tokens that come in: int32 of shape (length,)."""
        if "positions" not in self._shared:
            g, path = self.graph, "/model/positions"
            steps = g.constant(np.arange(1 - self._length, 1, dtype=np.int32))
            last, _ = self._lengths()
            self._shared["positions"] = g.value("Add", f"{path}/Add", last, steps)
        return self._shared["positions"]

    def _rotary_rows(self, rope: Rope) -> tuple[str, str]:
        """Cos and sin of the positions of the tokens that come in: shape (1, length, pairs)."""
        g, path = self.graph, "/model/rotary"
        for part, table in zip(("cos", "sin"), self._tables(rope), strict=True):
            if part not in self._shared:
                rows = g.value("Gather", f"{path}/{part}/Gather", table, self._positions_row(), axis=0)
                shape = _shape(g, 1, self._length, -1)
                self._shared[part] = g.value("Reshape", f"{path}/{part}/Reshape", rows, shape)
        return self._shared["cos"], self._shared["sin"]

    def _rotates(self, spec: Attention) -> bool:
        """Of heads that are rotated in part, Qualcomm's GroupQueryAttention rotates other dimensions."""
        return super()._rotates(spec) and spec.rope.dimensions == spec.head_dim

    def _rotate(self, x: str, name: str, heads: int, spec: Attention, *_: object) -> str:
        """The rotary embedding as an operator of its own; heads one after the other, or by themselves."""
        partial = spec.rope.dimensions if spec.rope.dimensions < spec.head_dim else 0
        rows = self._rotary_rows(spec.rope)
        return self.graph.value(
            "RotaryEmbedding", name, x, *rows, num_heads=heads, rotary_embedding_dim=partial, interleaved=0
        )

    def _by_head(self, x: str, path: str, heads: int, spec: Attention, *, rotated: bool) -> str:
        """Vectors with heads as a dimension of their own: shape (1, heads, length, head_dim)."""
        g = self.graph
        shape = _shape(g, 1, self._length, heads, spec.head_dim)
        x = g.value("Reshape", f"{path}/Reshape", x, shape)
        x = g.value("Transpose", f"{path}/Transpose", x, perm=[0, 2, 1, 3])
        return self._rotate(x, f"{path}/RotaryEmbedding", heads, spec) if rotated else x

    def _places(self, spec: Attention) -> str:
        """Where in the cache new vectors go: int32 of shape (1, kv_heads, length, head_dim)."""
        if "places" not in self._shared:
            g, path = self.graph, "/model/places"
            column = g.value("Reshape", f"{path}/Reshape", self._positions_row(), _shape(g, 1, 1, -1, 1))
            shape = _shape(g, 1, spec.kv_heads, self._length, spec.head_dim)
            self._shared["places"] = g.value("Expand", f"{path}/Expand", column, shape)
        return self._shared["places"]

    def _mask(self, spec: Attention) -> str:
        """What is added to scores: shape (length, context)."""
        if "mask" not in self._shared:
            g, path = self.graph, "/model/mask"
            columns = g.constant(np.arange(self._context, dtype=np.int32)[None])
            rows = g.value("Reshape", f"{path}/Reshape", self._positions_row(), _shape(g, -1, 1))
            seen = g.value("LessOrEqual", f"{path}/LessOrEqual", columns, rows)
            if spec.window is not None and spec.window < self._context:
                first = g.value("Sub", f"{path}/Sub", rows, g.constant(np.array([spec.window], np.int32)))
                near = g.value("Greater", f"{path}/Greater", columns, first)
                seen = g.value("And", f"{path}/And", seen, near)
            dtype = helper.tensor_dtype_to_np_dtype(self._cache_type)
            numbers = (g.constant(np.array(number, dtype)) for number in (0, _HIDDEN_PLACE))
            self._shared["mask"] = g.value("Where", f"{path}/Where", seen, *numbers)
        return self._shared["mask"]


def _shape(graph: Graph, *sizes: int) -> str:
    return graph.constant(np.array(sizes, np.int64))
