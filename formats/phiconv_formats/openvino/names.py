"""Under which names an IR stores the weights: those of Hugging Face checkpoints, fused where they are."""

from __future__ import annotations

from typing import TYPE_CHECKING

from phiconv import ir
from phiconv.errors import UnsupportedModelError
from phiconv.ir.model import Role
from phiconv.quantizers.joining import join
from phiconv_formats.shared.output import OutputTensor

if TYPE_CHECKING:
    from collections.abc import Iterator

    from phiconv.ir.model import Model

__all__ = ["group_of", "output_tensors"]

_ENDS = {"token_embedding": "model.embed_tokens", "output": "lm_head"}

_NAMES: dict[str, dict[str, str]] = {
    "phi": {
        "attn_norm": "input_layernorm",
        "attn_q": "self_attn.q_proj",
        "attn_k": "self_attn.k_proj",
        "attn_v": "self_attn.v_proj",
        "attn_output": "self_attn.dense",
        "ffn_up": "mlp.fc1",
        "ffn_down": "mlp.fc2",
        "output_norm": "model.final_layernorm",
        **_ENDS,
    },
    "phi3": {
        "attn_norm": "input_layernorm",
        "attn_q": "self_attn.qkv_proj",
        "attn_output": "self_attn.o_proj",
        "ffn_norm": "post_attention_layernorm",
        "ffn_gate": "mlp.gate_up_proj",
        "ffn_down": "mlp.down_proj",
        "output_norm": "model.norm",
        **_ENDS,
    },
    "phimoe": {
        "attn_norm": "input_layernorm",
        "attn_q": "self_attn.q_proj",
        "attn_k": "self_attn.k_proj",
        "attn_v": "self_attn.v_proj",
        "attn_output": "self_attn.o_proj",
        "ffn_norm": "post_attention_layernorm",
        "router": "mlp.router",
        "experts_gate": "mlp.experts.gate_proj",
        "experts_up": "mlp.experts.up_proj",
        "experts_down": "mlp.experts.down_proj",
        "output_norm": "model.norm",
        **_ENDS,
    },
}
"""The name of each matrix and norm by its role, per architecture; inside a layer below ``model.layers.N``."""

_JOINED = {"phi3": {"attn_q": ("attn_q", "attn_k", "attn_v"), "ffn_gate": ("ffn_gate", "ffn_up")}}
"""What is stored as one matrix, by the first of its roles."""


def group_of(architecture: str, role: Role) -> tuple[Role, ...]:
    """The roles whose rows are stored in one matrix with this one, in order."""
    for names in _JOINED.get(architecture, {}).values():
        if role.name in names:
            return tuple(Role(name, role.layer) for name in names)
    return (role,)


def output_tensors(model: Model) -> list[OutputTensor]:
    """The weights of an IR: the embedding, the layers, the head.

    Raises:
        UnsupportedModelError: A file of plain tensors, or an architecture that has no IR.
    """
    if model.architecture not in _NAMES or model.forward is None:
        what = model.architecture or "plain tensors without a config.json"
        raise UnsupportedModelError(
            f"OpenVINO cannot run {what}", path=model.path, hint="give a model folder"
        )
    return list(_tensors(model, model.architecture))


def _tensors(model: Model, architecture: str) -> Iterator[OutputTensor]:
    done: set[Role] = set()
    for role in sorted(model.tensors, key=lambda role: _order(role, architecture)):
        group = group_of(architecture, role)
        if role in done:
            continue
        done.update(group)
        tensor = join([model.tensors[r] for r in group])
        name = _NAMES[architecture][role.name]
        path = name if role.layer is None else f"model.layers.{role.layer}.{name}"
        required = ir.F32 if len(tensor.shape) == 1 else None
        yield OutputTensor(f"{path}.{role.part}", tensor, group[0], required)


def _order(role: Role, architecture: str) -> tuple[int, int, int, bool]:
    """The order of the computation: the embedding first, the head last."""
    names = [*_NAMES[architecture]]
    last = role.name in ("output_norm", "output")
    place = -1 if role.name == "token_embedding" else len(names) if last else 0
    first = group_of(architecture, role)[0].name
    return place, role.layer or 0, names.index(first), role.part != "weight"
