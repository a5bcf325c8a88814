"""The nodes of a decoder for ONNX Runtime: an `Ops` whose values are names in a graph.

The operators are those that ONNX Runtime's own model builder uses, since they are what its kernels are fast
at: GroupQueryAttention has the rotary embedding, the cache and the mask inside, MatMulNBits reads the blocks
of a quantized matrix, and a norm takes the residual addition before it along.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from onnx import TensorProto

from phiconv import ir
from phiconv.forward.ops import ATTENTION_ROLES, HEAD_NORMS, output_matrix
from phiconv.ir.model import Role
from phiconv_formats.onnx.counting import END
from phiconv_formats.onnx.experts import mixture
from phiconv_formats.onnx.graph import CONTRIB, Graph
from phiconv_formats.onnx.integers import is_standard
from phiconv_formats.onnx.names import bias_name, matrix_name, norm_name, path_of, rotates_inside
from phiconv_formats.onnx.products import Products, node_path
from phiconv_formats.onnx.rotary import has_two_tables, table_names
from phiconv_formats.onnx.standard import rows
from phiconv_formats.onnx.targets import TARGETS

if TYPE_CHECKING:
    from phiconv.forward.ops import Activation, Attention, MixtureOfExperts
    from phiconv.ir.model import Model
    from phiconv.ir.rope import Rope
    from phiconv_formats.onnx.store import Store
    from phiconv_formats.shared.output import RuntimeSettings

__all__ = ["OnnxOps"]


@dataclass(slots=True)
class Sum:
    """A residual sum that no node computes yet: the norm that reads it may do so by the way.

    Attributes:
        a, b: What is added.
        name: The value, once there is one.
    """

    a: str
    b: str
    name: str = ""


Value: TypeAlias = str | Sum


class OnnxOps:
    """Emits nodes (see `phiconv.forward.ops.Ops`). A value has shape (batch, length, width)."""

    ids_type = TensorProto.INT64

    def __init__(
        self, model: Model, store: Store, settings: RuntimeSettings, *, embedded: bool = False
    ) -> None:
        """Begins a graph.

        Args:
            model: The model.
            store: Its weights.
            settings: What the graph is for.
            embedded: It is given embeddings, which another graph has looked up, instead of token ids.
        """
        assert model.hyperparameters is not None  # noqa: S101 - output_tensors has looked
        self.target = TARGETS[settings.target or next(iter(TARGETS))]
        self.store = store
        self._tensors = model.tensors
        self._context = model.hyperparameters.max_position_embeddings
        self._settings = settings
        self._open(self.target.accuracy_level)
        self.float_type = self._products.float_type
        self._rotary: dict[Rope, tuple[str, str]] = {}
        self._total = ""
        self._shifted = ""
        self._int32_lengths: tuple[str, str] | None = None
        self._embedded = embedded

    def _open(self, accuracy_level: int) -> None:
        """Begins a graph.

        Args:
            accuracy_level: Of its products, where nobody chooses.
        """
        level = self._settings.accuracy_level
        level = accuracy_level if level is None else level
        self.graph = Graph(self.target.opset, self.target.ir_version)
        accuracy = {"accuracy_level": level} if level else {}
        ranges = self._settings.ranges
        self._products = Products(self.graph, self.store, accuracy, fused=self.target.fused, ranges=ranges)

    # ---------------------------------------------------------------------------------------- the vocabulary

    def embed(self, role: Role, /) -> Value:
        """See `Ops.embed`."""
        if self._embedded:
            shape = ("batch_size", "sequence_length", self._tensors[role].shape[1])
            return self.graph.input("inputs_embeds", self.float_type, shape)
        return self.rows(
            self.graph.input("input_ids", self.ids_type, ["batch_size", "sequence_length"]), role
        )

    def rows(self, ids: str, role: Role) -> str:
        """The rows of a matrix at some ids."""
        name, path = matrix_name(role.name), _node(role)
        if isinstance(self.store[name].encoding, ir.FloatEncoding):
            found = self.graph.value("Gather", f"{path}/Gather", self.store.floats(self.graph, name), ids)
            return self._products.as_float(found, self.store[name].encoding, f"{path}/Cast")
        encoding = self.store.block_encoding(name)
        if is_standard(encoding):
            return rows(self.graph, self.store, name, ids, path)
        return self.graph.value(
            "GatherBlockQuantized",
            f"{path}/Gather_Q{encoding.bits}",
            self.store.codes(self.graph, name, rows=True),
            ids,
            self.store.scales(self.graph, name),
            self.store.zero_points(self.graph, name),
            domain=CONTRIB,
            bits=encoding.bits,
            block_size=encoding.block_size,
            gather_axis=0,
            quantize_axis=1,
        )

    def linear(self, x: Value, role: Role, /) -> Value:
        """See `Ops.linear`."""
        return self._products.matrix(self._read(x), role.name, role.layer)

    def rms_norm(self, x: Value, role: Role, epsilon: float, /) -> Value:
        """See `Ops.rms_norm`."""
        weight = self.store.floats(self.graph, norm_name(role))
        if self.target.fused and isinstance(x, Sum) and not x.name:
            return self._skip_norm("SkipSimplifiedLayerNormalization", x, role, epsilon, weight)
        path = f"{_node(role)}/RMSNorm"
        return self.graph.value(self.target.rms_norm, path, self._read(x), weight, axis=-1, epsilon=epsilon)

    def layer_norm(self, x: Value, role: Role, epsilon: float, /) -> Value:
        """See `Ops.layer_norm`."""
        parts = (role, role._replace(part="bias"))
        weights = [self.store.floats(self.graph, norm_name(part)) for part in parts]
        if self.target.fused and isinstance(x, Sum) and not x.name:
            return self._skip_norm("SkipLayerNormalization", x, role, epsilon, *weights)
        path = f"{_node(role)}/LayerNorm"
        return self.graph.value("LayerNormalization", path, self._read(x), *weights, axis=-1, epsilon=epsilon)

    def add(self, a: Value, b: Value, /) -> Value:
        """See `Ops.add`. Nothing is emitted before somebody reads the sum."""
        return Sum(self._read(a), self._read(b))

    def activate(self, x: Value, kind: Activation, /) -> Value:
        """See `Ops.activate`."""
        return self._products.activate(self._read(x), kind)

    def gated(self, x: Value, gate: Role, up: Role, kind: Activation, /) -> Value:
        """See `Ops.gated`."""
        x = self._read(x)
        y = self._read(self.activate(self.linear(x, gate), kind))
        z = self._read(self.linear(x, up))
        return self.graph.value("Mul", f"{_node(gate).rpartition('/')[0]}/Mul", y, z)

    def attention(self, x: Value, layer: int, spec: Attention, /) -> Value:
        """See `Ops.attention`."""
        path, projected = f"/model/layers.{layer}/attn", self._projected(self._read(x), layer, spec)
        lengths, inside = self._lengths(), self._rotates(spec)
        tables = self._tables(spec.rope)
        if not inside:
            projected = self._split(projected, path, spec)
            for i, (part, heads) in enumerate((("q", spec.heads), ("k", spec.kv_heads))):
                projected[i] = self._rotate(projected[i], f"{path}/{part}_rotary", heads, spec, tables)
        window = spec.window if spec.window is not None and spec.window < self._context else -1
        projected = [self._for_cache(x) for x in projected]
        result, *_ = self.graph.node(
            "GroupQueryAttention",
            f"{path}/GroupQueryAttention",
            *projected,
            *([""] * (3 - len(projected))),
            *self._cache("past_key_values", layer, spec),
            *lengths,
            *(map(self._for_cache, tables) if inside else ()),
            outputs=(f"{path}/GroupQueryAttention/output_0", *self._cache("present", layer, spec)),
            domain=CONTRIB,
            num_heads=spec.heads,
            kv_num_heads=spec.kv_heads,
            scale=1 / math.sqrt(spec.head_dim),
            local_window_size=window,
            do_rotary=int(inside),
            rotary_interleaved=0,
        )
        return self._from_cache(result)

    def _rotates(self, spec: Attention) -> bool:
        """Whether the attention operator rotates."""
        return self.target.rotates and rotates_inside(spec.rope, spec.head_dim)

    def _projected(self, x: str, layer: int, spec: Attention) -> list[str]:
        """Queries, keys and values, which may be one value."""
        packed = matrix_name("attn_qkv", layer) in self.store
        names = ("attn_qkv",) if packed else ATTENTION_ROLES
        projected = [self._products.matrix(x, name, layer) for name in names]
        if spec.norm_epsilon is not None:
            for i, name in enumerate(HEAD_NORMS):
                projected[i] = self._head_norm(projected[i], Role(name, layer), spec)
        return projected

    def _head_norm(self, x: str, role: Role, spec: Attention) -> str:
        """An RMSNorm of every head by itself; heads stand one after the other, as tokens do."""
        g, path = self.graph, f"/model/layers.{role.layer}/attn/{role.name.removeprefix('attn_')}"
        heads = spec.heads if role.name == HEAD_NORMS[0] else spec.kv_heads
        one, all_ = (g.constant(np.array([0, -1, n * spec.head_dim], np.int64)) for n in (1, heads))
        x = g.value("Reshape", f"{path}/Reshape_1", x, one)
        weight = self.store.floats(g, norm_name(role))
        name = f"{path}/{self.target.rms_norm}"
        x = g.value(self.target.rms_norm, name, x, weight, axis=-1, epsilon=spec.norm_epsilon)
        return g.value("Reshape", f"{path}/Reshape_2", x, all_)

    def moe(self, x: Value, layer: int, spec: MixtureOfExperts, /) -> Value:
        """See `Ops.moe`."""
        x = self._read(x)
        scores = self._products.matrix(x, "router", layer)
        return mixture(self._products, x, scores, layer, spec)

    def logits(self, x: Value, role: Role, /) -> bytes:
        """See `Ops.logits`; the result is the model's file."""
        matrix = output_matrix(self._tensors)
        rows = self._tensors[matrix].shape[0]
        x = self._last(self._read(x)) if self._embedded else self._read(x)
        shape = ("batch_size", 1 if self._embedded else "sequence_length", rows)
        self._products.matrix(x, matrix.name, None, bias=bias_name(role.name), output="logits")
        self.graph.output("logits", self.float_type, shape)
        return self.graph.finish()

    # ------------------------------------------------------------------------------------------------- parts

    def _last(self, x: str) -> str:
        """The last token of a text: GenAI asks for no other where a graph gives only one.

        A picture is thousands of tokens, and logits of all of them would be gigabytes.
        """
        bounds = [self.graph.constant(np.array([n], np.int64)) for n in (-1, END, 1)]
        return self.graph.value("Slice", "/lm_head/Slice", x, *bounds)

    def _read(self, x: Value) -> str:
        """The name of a value; a sum is computed if it has not been."""
        if isinstance(x, str):
            return x
        if not x.name:
            x.name = self.graph.value("Add", f"{x.b.rpartition('/')[0]}/residual/Add", x.a, x.b)
        return x.name

    def _skip_norm(self, operator: str, x: Sum, role: Role, epsilon: float, *weights: str) -> str:
        path = f"{_node(role)}/SkipLayerNorm"
        inputs = (x.a, x.b, *weights)
        result, _, _, x.name = self.graph.node(
            operator, path, *inputs, outputs=4, domain=CONTRIB, epsilon=epsilon
        )
        return result

    # --------------------------------------------------------------------------- positions, mask, cache, rope

    def _lengths(self) -> tuple[str, str]:
        """The last position of every sequence, and the padded length of all of them, as int32."""
        if self._int32_lengths is None:
            path, g = "/model/lengths", self.graph
            mask = g.input("attention_mask", TensorProto.INT64, ["batch_size", "total_sequence_length"])
            one = g.constant(np.array([1], np.int64))
            counts = g.value("ReduceSum", f"{path}/ReduceSum", mask, one, keepdims=0)
            last = g.value("Sub", f"{path}/Sub", counts, one)
            shape = g.value("Shape", f"{path}/Shape", mask)
            self._total = g.value(
                "Gather", f"{path}/Gather", shape, g.constant(np.array(1, np.int64)), axis=0
            )
            self._int32_lengths = (
                g.value("Cast", f"{path}/last/Cast", last, to=TensorProto.INT32),
                g.value("Cast", f"{path}/total/Cast", self._total, to=TensorProto.INT32),
            )
        return self._int32_lengths

    def _for_cache(self, x: str) -> str:
        """A value in the type of the cache, which attention computes in."""
        return x

    def _from_cache(self, x: str) -> str:
        """A value of attention in the type of the rest of the graph."""
        return x

    def _cache(self, name: str, layer: int, spec: Attention) -> tuple[str, str]:
        """Keys and values of a layer: those of the past come in, those of all positions go out."""
        past = name == "past_key_values"
        length = "past_sequence_length" if past else "total_sequence_length"
        shape = ("batch_size", spec.kv_heads, length, spec.head_dim)
        declare = self.graph.input if past else self.graph.output
        key, value = (declare(f"{name}.{layer}.{part}", self.float_type, shape) for part in ("key", "value"))
        return key, value

    def _tables(self, rope: Rope) -> tuple[str, str]:
        """Cos and sin; with LongRoPE the total length decides between two of each."""
        if rope not in self._rotary:
            if has_two_tables(rope, self._context):
                self._rotary[rope] = self._choice(rope) if self.target.rotates else self._joined_tables()
            else:
                cos, sin = (self.store.floats(self.graph, name) for name in table_names(long=None))
                self._rotary[rope] = cos, sin
        return self._rotary[rope]

    def _split(self, projected: list[str], path: str, spec: Attention) -> list[str]:
        """Queries, keys and values by themselves."""
        if len(projected) > 1:
            return projected
        widths = np.array([spec.heads, spec.kv_heads, spec.kv_heads], np.int64) * spec.head_dim
        sizes = self.graph.constant(widths)
        return list(self.graph.node("Split", f"{path}/Split", *projected, sizes, outputs=3, axis=-1))

    def _choice(self, rope: Rope) -> tuple[str, str]:
        path, g = "/model/rotary", self.graph
        self._lengths()
        rows: tuple[str, ...] = ()
        branches = {}
        if self.target.slices_tables:
            zero = g.constant(np.array([0], np.int64))
            rows = (zero, g.value("Unsqueeze", f"{path}/Unsqueeze", self._total, zero))
        for branch, long in (("then_branch", True), ("else_branch", False)):
            tables = [self.store.floats(g, name) for name in table_names(long=long)]
            branches[branch] = g.branch("long" if long else "short", tables, self.float_type, rows)
        original = g.constant(np.array(rope.original_context, np.int64))
        is_long = g.value("Greater", f"{path}/Greater", self._total, original)
        cos, sin = g.node("If", f"{path}/If", is_long, outputs=table_names(long=None), **branches)
        return cos, sin

    def _joined_tables(self) -> tuple[str, str]:
        """The tables for short texts with those for long ones behind them; see `_positions`."""
        short, long = (
            [self.store.floats(self.graph, name) for name in table_names(long=kind)] for kind in (False, True)
        )
        cos, sin = (
            self.graph.value("Concat", f"/model/rotary/{part}/Concat", a, b, axis=0)
            for part, a, b in zip(("cos", "sin"), short, long, strict=True)
        )
        return cos, sin

    def _positions(self, rope: Rope) -> str:
        """Rows of the tables: the positions, in a long text those of the second half of joined tables."""
        g, path = self.graph, "/model/positions"
        positions = g.input("position_ids", TensorProto.INT64, ("batch_size", "sequence_length"))
        if self.target.rotates or not has_two_tables(rope, self._context):
            return positions
        if not self._shifted:
            original = g.constant(np.array(rope.original_context, np.int64))
            largest = g.value("ReduceMax", f"{path}/ReduceMax", positions, keepdims=0)
            is_long = g.value("GreaterOrEqual", f"{path}/GreaterOrEqual", largest, original)
            as_number = g.value("Cast", f"{path}/Cast", is_long, to=TensorProto.INT64)
            shift = g.value("Mul", f"{path}/Mul", as_number, original)
            self._shifted = g.value("Add", f"{path}/Add", positions, shift)
        return self._shifted

    def _rotate(self, x: str, name: str, heads: int, spec: Attention, tables: tuple[str, str]) -> str:
        """The rotary embedding as an operator of its own."""
        positions = self._positions(spec.rope)
        partial = spec.rope.dimensions if spec.rope.dimensions < spec.head_dim else 0
        inputs = (x, positions, *tables)
        return self.graph.value(
            "RotaryEmbedding",
            name,
            *inputs,
            domain=CONTRIB,
            num_heads=heads,
            rotary_embedding_dim=partial,
            interleaved=0,
        )


def _node(role: Role) -> str:
    return node_path(path_of(role.name, role.layer))
