"""What the tensors of an ONNX model are called, and which weights each of them joins.

The names are those of the model builder of ONNX Runtime GenAI (0.18): a matrix is
``<path>.MatMul.weight``, its additive bias ``<path>.Add.bias``, a normalisation ``<path>.weight``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from phiconv.errors import UnsupportedModelError
from phiconv.forward.encoder_ops import record
from phiconv.forward.ops import (
    ATTENTION_ROLES,
    HEAD_NORMS,
    Attention,
    MixtureOfExperts,
    check_weights,
    output_matrix,
)
from phiconv.forward.sound_ops import record_sound
from phiconv.ir import F32
from phiconv.ir.interleaving import interleave
from phiconv.ir.model import Role
from phiconv.quantizers.joining import alike, join
from phiconv_formats.onnx.rotary import rotary_tables
from phiconv_formats.shared.output import OutputTensor

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

    from phiconv import ir
    from phiconv.forward.encoder_ops import EncoderCall
    from phiconv.forward.ops import Call, Forward
    from phiconv.ir.model import Model
    from phiconv.ir.rope import Rope

__all__ = [
    "EMBEDDING",
    "LAYER_ROLES",
    "bias_name",
    "expert_name",
    "matrix_name",
    "norm_name",
    "output_tensors",
    "path_of",
    "rotates_inside",
]

EMBEDDING = "model.embed_tokens.weight"
"""The table of `Ops.embed`; also the output matrix where it is tied."""

_LAYER_PATHS = {
    "attn_norm": "input_layernorm",
    "attn_q": "attn.q_proj",
    "attn_k": "attn.k_proj",
    "attn_v": "attn.v_proj",
    "attn_qkv": "attn.qkv_proj",
    "attn_q_norm": "attn.q_norm.layernorm",
    "attn_k_norm": "attn.k_norm.layernorm",
    "attn_output": "attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "router": "moe.router",
    "experts_gate_up": "moe.experts.gate_up_proj",
    "experts_down": "moe.experts.down_proj",
}
LAYER_ROLES = {path: role for role, path in _LAYER_PATHS.items()} | {
    "mlp.fc1": "ffn_up",
    "mlp.fc2": "ffn_down",
    "final_norm_layernorm": "output_norm",
}
"""Roles by their paths in a layer, those of the model builder included where they are others."""

_PATHS = {
    "token_embedding": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "vision.pre_norm": "vision.pre_layernorm",
    "vision.projection_in": "vision.projection.fc1",
    "vision.projection_out": "vision.projection.fc2",
}
_VISION_PATHS = {
    "vision.attn_norm": "layer_norm1",
    "vision.attn_q": "attn.q_proj",
    "vision.attn_k": "attn.k_proj",
    "vision.attn_v": "attn.v_proj",
    "vision.attn_output": "attn.o_proj",
    "vision.ffn_norm": "layer_norm2",
    "vision.ffn_up": "mlp.fc1",
    "vision.ffn_down": "mlp.fc2",
}
_PATCHES = "vision.patch_embedding"
"""The matrix of an encoder that stays in floats: it is small, and all that follows is made of it."""

_BY_DISTANCE = "audio.distance_bias"
"""What attention adds to scores; not multiplied with."""


def path_of(name: str, layer: int | None = None) -> str:
    """Where a role's tensors are, without their last parts."""
    encoder, _, part = name.rpartition(".")
    if layer is None:
        return _PATHS.get(name, name) if encoder else _PATHS[name]
    if encoder:
        return f"{encoder}.layers.{layer}.{_VISION_PATHS.get(name, part)}"
    return f"model.layers.{layer}.{_LAYER_PATHS[name]}"


def matrix_name(name: str, layer: int | None = None) -> str:
    """The name of a matrix; for joined ones ``attn_qkv`` and ``experts_gate_up``."""
    return EMBEDDING if name == "token_embedding" else f"{path_of(name, layer)}.MatMul.weight"


def expert_name(name: str, layer: int, expert: int) -> str:
    """The name of one expert's matrix, where it is used by itself."""
    return matrix_name(name, layer).replace(".experts.", f".experts.{expert}.")


def bias_name(name: str, layer: int | None = None) -> str:
    """The name of a matrix's additive bias."""
    return f"{path_of(name, layer)}.Add.bias"


def norm_name(role: Role) -> str:
    """The name of a normalisation's weight or bias."""
    return f"{path_of(role.name, role.layer)}.{role.part}"


def rotates_inside(rope: Rope, head_dim: int) -> bool:
    """Whether the attention operator can rotate: it takes 16 dimensions at a time (ONNX Runtime 1.31)."""
    return rope.dimensions % 16 == 0 and head_dim % 16 == 0


@dataclass(frozen=True, slots=True)
class _Weights:
    """A model's weights, and where they came from for messages."""

    tensors: Mapping[Role, ir.Tensor]
    path: Path

    def matrix(self, name: str, *roles: Role) -> Iterator[OutputTensor]:
        """A matrix, of the rows of several where it joins them, and its bias if there is one."""
        layer = roles[0].layer
        yield OutputTensor(matrix_name(name, layer), self._joined(roles), roles[0])
        biases = [role._replace(part="bias") for role in roles]
        if any(bias in self.tensors for bias in biases):
            yield OutputTensor(bias_name(name, layer), self._joined(biases), biases[0])

    def norm(self, role: Role) -> Iterator[OutputTensor]:
        for each in (role, role._replace(part="bias")):
            if each in self.tensors:
                yield OutputTensor(norm_name(each), self.tensors[each], each)

    def attention(self, layer: int, spec: Attention) -> Iterator[OutputTensor]:
        """Queries, keys, values: in one matrix if they are stored alike and the operator takes it."""
        roles = [Role(name, layer) for name in ATTENTION_ROLES]
        alike = len({self.tensors[role].encoding for role in roles}) == 1
        if alike and spec.norm_epsilon is None and rotates_inside(spec.rope, spec.head_dim):
            yield from self.matrix("attn_qkv", *roles)
        else:
            for role in roles:
                yield from self.matrix(role.name, role)
        if spec.norm_epsilon is not None:
            for name in HEAD_NORMS:
                yield from self.norm(Role(name, layer))

    def experts(self, layer: int) -> Iterator[OutputTensor]:
        """Router; gate and up rows by turns, as the operator wants them; down."""
        yield from self.matrix("router", Role("router", layer))
        gate, up = (self.tensors[Role(f"experts_{part}", layer)] for part in ("gate", "up"))
        rows = interleave(*alike([gate, up]))
        yield OutputTensor(matrix_name("experts_gate_up", layer), rows, Role("experts_gate", layer))
        yield from self.matrix("experts_down", Role("experts_down", layer))

    def _joined(self, roles: tuple[Role, ...] | list[Role]) -> ir.Tensor:
        try:
            return join([self.tensors[role] for role in roles])
        except (KeyError, ValueError):
            raise self._refusal(", ".join(map(str, roles))) from None

    def _refusal(self, what: str) -> UnsupportedModelError:
        return UnsupportedModelError(
            "cannot be joined for ONNX Runtime: their rows differ, or one is missing",
            path=self.path,
            at=what,
            hint="convert it to --f32 safetensors or from the original checkpoint",
        )


def output_tensors(model: Model) -> list[OutputTensor]:
    """The tensors of an ONNX model, in the order in which the decoder asks for them.

    Raises:
        UnsupportedModelError: A file of plain tensors, or parts of it that cannot be joined.
        MalformedFileError: Its weights are not those that its architecture uses.
    """
    hp = model.hyperparameters
    if model.forward is None or hp is None:
        raise UnsupportedModelError(
            "ONNX Runtime cannot run plain tensors without a config.json",
            path=model.path,
            hint="give a model folder",
        )
    calls = check_weights(cast("Forward", model.forward), hp, model.tensors, model.path)
    weights = _Weights(model.tensors, model.path)
    found: dict[str, OutputTensor] = {}
    for call in calls:
        for tensor in _of_call(call, weights):
            found.setdefault(tensor.name, tensor)
    for name, table in rotary_tables(hp.rope, hp.max_position_embeddings):
        found[name] = OutputTensor(name, table, None)
    if model.senses is not None and (vision := model.senses.vision) is not None:
        found |= {t.name: t for t in _encoder_tensors(vision.tensors, record(vision))}
    if model.senses is not None and (hearing := model.senses.hearing) is not None:
        found |= {t.name: t for t in _encoder_tensors(hearing.tensors, record_sound(hearing))}
    return list(found.values())


def _encoder_tensors(
    tensors: Mapping[Role, ir.Tensor], calls: Iterable[EncoderCall]
) -> Iterator[OutputTensor]:
    """An encoder's matrices, which a recipe may quantize, and what else it has."""
    multiplied = {r for call in calls if call.operation in _PRODUCTS for r in call.roles}
    multiplied -= {Role(_BY_DISTANCE)}
    for role, tensor in tensors.items():
        if role._replace(part="weight") not in multiplied:
            yield OutputTensor(norm_name(role), tensor, role, F32)
        elif role.part == "bias":
            yield OutputTensor(bias_name(role.name, role.layer), tensor, role, F32)
        else:
            required = F32 if role.name == _PATCHES else None
            yield OutputTensor(matrix_name(role.name, role.layer), tensor, role, required)


_PRODUCTS = ("patches", "linear", "attention")
"""The operations of an encoder that are products with matrices."""


def _of_call(call: Call, weights: _Weights) -> Iterator[OutputTensor]:
    """The tensors that an operation reads."""
    match call.operation:
        case "embed" | "linear" | "gated":
            for role in call.roles:
                yield from weights.matrix(role.name, role)
        case "rms_norm" | "layer_norm":
            yield from weights.norm(call.roles[0])
        case "logits":
            yield from _head(weights, call.roles[0])
    match call.arguments:
        case (_, int(layer), Attention() as spec):
            yield from weights.attention(layer, spec)
        case (_, int(layer), MixtureOfExperts()):
            yield from weights.experts(layer)


def _head(weights: _Weights, role: Role) -> Iterator[OutputTensor]:
    """The output matrix, which is there already where it is tied; its bias is its own in any case."""
    if output_matrix(weights.tensors) == role:
        yield from weights.matrix(role.name, role)
    elif (bias := role._replace(part="bias")) in weights.tensors:
        yield OutputTensor(bias_name(role.name), weights.tensors[bias], bias)
