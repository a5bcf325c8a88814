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
from phiconv.forward.ops import ATTENTION_ROLES, output_matrix
from phiconv_formats.onnx.experts import mixture
from phiconv_formats.onnx.graph import CONTRIB, DATA_TYPES, Graph
from phiconv_formats.onnx.integers import is_standard
from phiconv_formats.onnx.names import bias_name, matrix_name, norm_name, path_of, rotates_inside
from phiconv_formats.onnx.rotary import has_two_tables, table_names
from phiconv_formats.onnx.standard import float_product, product, rows
from phiconv_formats.onnx.targets import TARGETS

if TYPE_CHECKING:
    from phiconv.forward.ops import Activation, Attention, MixtureOfExperts
    from phiconv.ir.model import Model, Role, Rope
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

    def __init__(self, model: Model, store: Store, settings: RuntimeSettings) -> None:
        assert model.hyperparameters is not None  # noqa: S101 - output_tensors has looked
        self.target = TARGETS[settings.target or next(iter(TARGETS))]
        self.graph = Graph(self.target.opset, self.target.ir_version)
        self.store = store
        self._tensors = model.tensors
        self._context = model.hyperparameters.max_position_embeddings
        level = self.target.accuracy_level if settings.accuracy_level is None else settings.accuracy_level
        self.accuracy = {"accuracy_level": level} if level else {}
        self._float = DATA_TYPES[store.float_type]
        self._rotary: dict[Rope, tuple[str, str]] = {}
        self._total = ""
        self._shifted = ""
        self._int32_lengths: tuple[str, str] | None = None

    # ---------------------------------------------------------------------------------------- the vocabulary

    def embed(self, role: Role, /) -> Value:
        """See `Ops.embed`."""
        ids = self.graph.input("input_ids", TensorProto.INT64, ["batch_size", "sequence_length"])
        name, path = matrix_name(role.name), _node(role)
        if isinstance(self.store[name].encoding, ir.FloatEncoding):
            found = self.graph.value("Gather", f"{path}/Gather", self.store.floats(self.graph, name), ids)
            return self._as_float(found, self.store[name].encoding, f"{path}/Cast")
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
        return self._matrix(self._read(x), role.name, role.layer)

    def rms_norm(self, x: Value, role: Role, epsilon: float, /) -> Value:
        """See `Ops.rms_norm`."""
        weight = self.store.floats(self.graph, norm_name(role))
        if isinstance(x, Sum) and not x.name:
            return self._skip_norm("SkipSimplifiedLayerNormalization", x, role, epsilon, weight)
        path = f"{_node(role)}/RMSNorm"
        return self.graph.value(self.target.rms_norm, path, self._read(x), weight, axis=-1, epsilon=epsilon)

    def layer_norm(self, x: Value, role: Role, epsilon: float, /) -> Value:
        """See `Ops.layer_norm`."""
        parts = (role, role._replace(part="bias"))
        weights = [self.store.floats(self.graph, norm_name(part)) for part in parts]
        if isinstance(x, Sum) and not x.name:
            return self._skip_norm("SkipLayerNormalization", x, role, epsilon, *weights)
        path = f"{_node(role)}/LayerNorm"
        return self.graph.value("LayerNormalization", path, self._read(x), *weights, axis=-1, epsilon=epsilon)

    def add(self, a: Value, b: Value, /) -> Value:
        """See `Ops.add`. Nothing is emitted before somebody reads the sum."""
        return Sum(self._read(a), self._read(b))

    def activate(self, x: Value, kind: Activation, /) -> Value:
        """See `Ops.activate`."""
        x = self._read(x)
        name = x.rpartition("/")[0]
        if kind == "silu":
            return self.graph.value("QuickGelu", f"{name}/Silu", x, domain=CONTRIB, alpha=1.0)
        return self.graph.value("Gelu", f"{name}/Gelu", x, approximate="tanh")

    def gated(self, x: Value, gate: Role, up: Role, kind: Activation, /) -> Value:
        """See `Ops.gated`."""
        x = self._read(x)
        y = self._read(self.activate(self.linear(x, gate), kind))
        z = self._read(self.linear(x, up))
        return self.graph.value("Mul", f"{_node(gate).rpartition('/')[0]}/Mul", y, z)

    def attention(self, x: Value, layer: int, spec: Attention, /) -> Value:
        """See `Ops.attention`."""
        x, path = self._read(x), f"/model/layers.{layer}/attn"
        packed = matrix_name("attn_qkv", layer) in self.store
        names = ("attn_qkv",) if packed else ATTENTION_ROLES
        projected = [self._matrix(x, name, layer) for name in names]
        lengths, inside = self._lengths(), self.target.rotates and rotates_inside(spec.rope, spec.head_dim)
        tables = self._tables(spec.rope)
        if not inside:
            projected = self._split(projected, path, spec)
            for i, (part, heads) in enumerate((("q", spec.heads), ("k", spec.kv_heads))):
                projected[i] = self._rotate(projected[i], f"{path}/{part}_rotary", heads, spec, tables)
        window = spec.window if spec.window is not None and spec.window < self._context else -1
        result, *_ = self.graph.node(
            "GroupQueryAttention",
            f"{path}/GroupQueryAttention",
            *projected,
            *([""] * (3 - len(projected))),
            *self._cache("past_key_values", layer, spec),
            *lengths,
            *(tables if inside else ()),
            outputs=(f"{path}/GroupQueryAttention/output_0", *self._cache("present", layer, spec)),
            domain=CONTRIB,
            num_heads=spec.heads,
            kv_num_heads=spec.kv_heads,
            scale=1 / math.sqrt(spec.head_dim),
            local_window_size=window,
            do_rotary=int(inside),
            rotary_interleaved=0,
        )
        return result

    def moe(self, x: Value, layer: int, spec: MixtureOfExperts, /) -> Value:
        """See `Ops.moe`."""
        x = self._read(x)
        scores = self._matrix(x, "router", layer)
        return mixture(self, x, scores, layer, spec)

    def logits(self, x: Value, role: Role, /) -> bytes:
        """See `Ops.logits`; the result is the model's file."""
        matrix = output_matrix(self._tensors)
        rows = self._tensors[matrix].shape[0]
        shape = ("batch_size", "sequence_length", rows)
        self._matrix(self._read(x), matrix.name, None, bias=bias_name(role.name), output="logits")
        self.graph.output("logits", self._float, shape)
        return self.graph.finish()

    # ------------------------------------------------------------------------------------------------- parts

    def float_weight(self, name: str) -> str:
        """A tensor of floats, in the type that the graph computes in."""
        value = self.store.floats(self.graph, name)
        return self._as_float(value, self.store[name].encoding, f"/{name.replace('.', '/')}/Cast")

    def product(self, x: str, weight: str, path: str) -> str:
        """``x @ weight.T`` with any stored matrix, by its name."""
        encoding = self.store[weight].encoding
        if isinstance(encoding, ir.FloatEncoding) or is_standard(encoding):
            return self._product(x, weight, path, "")
        return self._quantized(x, weight, path, "", "")

    def _as_float(self, value: str, stored: ir.Encoding, name: str) -> str:
        """A constant is cast when the model is loaded, not at every step."""
        assert isinstance(stored, ir.FloatEncoding)  # noqa: S101 - whoever asks has looked
        if DATA_TYPES[stored] == self._float:
            return value
        return self.graph.value("Cast", name, value, to=self._float)

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

    def _matrix(
        self, x: str, name: str, layer: int | None, *, bias: str | None = None, output: str = ""
    ) -> str:
        """``x @ weight.T + bias``, the bias being optional."""
        weight = matrix_name(name, layer)
        path = _slashes(path_of(name, layer))
        bias = bias_name(name, layer) if bias is None else bias
        has_bias = bias in self.store
        encoding = self.store[weight].encoding
        if not (isinstance(encoding, ir.FloatEncoding) or is_standard(encoding)):
            return self._quantized(x, weight, path, bias if has_bias else "", output)
        y = self._product(x, weight, path, "" if has_bias else output)
        if has_bias:
            name, addend = f"{path}/Add", self.store.floats(self.graph, bias)
            (y,) = self.graph.node("Add", name, y, addend, outputs=(output or f"{name}/output_0",))
        return y

    def _product(self, x: str, weight: str, path: str, output: str) -> str:
        """``x @ weight.T``, of operators that take no bias."""
        if not isinstance(self.store[weight].encoding, ir.FloatEncoding):
            return product(self.graph, self.store, x, weight, path, output)
        values = self.float_weight(weight)
        if self.store.standard:
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

    def _quantized(self, x: str, weight: str, path: str, bias: str, output: str) -> str:
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

    def _cache(self, name: str, layer: int, spec: Attention) -> tuple[str, str]:
        """Keys and values of a layer: those of the past come in, those of all positions go out."""
        past = name == "past_key_values"
        length = "past_sequence_length" if past else "total_sequence_length"
        shape = ("batch_size", spec.kv_heads, length, spec.head_dim)
        declare = self.graph.input if past else self.graph.output
        key, value = (declare(f"{name}.{layer}.{part}", self._float, shape) for part in ("key", "value"))
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
            branches[branch] = g.branch("long" if long else "short", tables, self._float, rows)
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


def _slashes(path: str) -> str:
    """The path of a node: ``/model/layers.0/mlp/up_proj`` for ``model.layers.0.mlp.up_proj``."""
    return "/" + path.replace(".", "/").replace("layers/", "layers.")


def _node(role: Role) -> str:
    return _slashes(path_of(role.name, role.layer))
