"""What mlx-lm calls the weights of each architecture, and in which order it stores them.

Facts from mlx-lm 0.32 (models/phi.py, phi3.py, phimoe.py). A module of its network is a path; the matrix is
``<path>.weight``, an additive bias ``<path>.bias``. Experts are stacked, fused matrices stay fused.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from phiconv import ir
from phiconv.errors import UnsupportedModelError
from phiconv.ir.model import Role
from phiconv.quantizers.joining import join
from phiconv_formats.shared.output import OutputTensor

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from phiconv.ir.model import Model

__all__ = ["Module", "modules", "output_tensors"]


@dataclass(frozen=True, slots=True)
class Module:
    """A part of mlx-lm's network that has weights.

    Attributes:
        path: Its name, with ``{n}`` for the layer.
        roles: Names of the roles whose rows it joins, in order.
        bias: The runtime asks for an additive bias, also where the model has none.
    """

    path: str
    roles: tuple[str, ...]
    bias: bool = False


def _module(path: str, *roles: str, bias: bool = False) -> Module:
    return Module(path, roles, bias)


_LAYER = "model.layers.{n}."

_MODULES: dict[str, tuple[Module, ...]] = {
    "phi": (
        _module("model.embed_tokens", "token_embedding"),
        _module(f"{_LAYER}self_attn.q_proj", "attn_q", bias=True),
        _module(f"{_LAYER}self_attn.k_proj", "attn_k", bias=True),
        _module(f"{_LAYER}self_attn.v_proj", "attn_v", bias=True),
        _module(f"{_LAYER}self_attn.dense", "attn_output", bias=True),
        _module(f"{_LAYER}input_layernorm", "attn_norm", bias=True),
        _module(f"{_LAYER}mlp.fc1", "ffn_up", bias=True),
        _module(f"{_LAYER}mlp.fc2", "ffn_down", bias=True),
        _module("model.final_layernorm", "output_norm", bias=True),
        _module("lm_head", "output", bias=True),
    ),
    "phi3": (
        _module("model.embed_tokens", "token_embedding"),
        _module(f"{_LAYER}self_attn.qkv_proj", "attn_q", "attn_k", "attn_v"),
        _module(f"{_LAYER}self_attn.o_proj", "attn_output"),
        _module(f"{_LAYER}mlp.gate_up_proj", "ffn_gate", "ffn_up"),
        _module(f"{_LAYER}mlp.down_proj", "ffn_down"),
        _module(f"{_LAYER}input_layernorm", "attn_norm"),
        _module(f"{_LAYER}post_attention_layernorm", "ffn_norm"),
        _module("model.norm", "output_norm"),
        _module("lm_head", "output"),
    ),
    "phimoe": (
        _module("model.embed_tokens", "token_embedding"),
        _module(f"{_LAYER}self_attn.q_proj", "attn_q", bias=True),
        _module(f"{_LAYER}self_attn.k_proj", "attn_k", bias=True),
        _module(f"{_LAYER}self_attn.v_proj", "attn_v", bias=True),
        _module(f"{_LAYER}self_attn.o_proj", "attn_output", bias=True),
        _module(f"{_LAYER}block_sparse_moe.gate", "router"),
        _module(f"{_LAYER}block_sparse_moe.switch_mlp.gate_proj", "experts_gate"),
        _module(f"{_LAYER}block_sparse_moe.switch_mlp.up_proj", "experts_up"),
        _module(f"{_LAYER}block_sparse_moe.switch_mlp.down_proj", "experts_down"),
        _module(f"{_LAYER}input_layernorm", "attn_norm", bias=True),
        _module(f"{_LAYER}post_attention_layernorm", "ffn_norm", bias=True),
        _module("model.norm", "output_norm", bias=True),
        _module("lm_head", "output", bias=True),
    ),
}

# Architectures whose runtime has a head of its own even where it is the embedding.
_NO_TIED_HEAD = {"phi", "phimoe"}


def modules(architecture: str, layers: int) -> Iterator[tuple[str, Module, int | None]]:
    """Every module in the runtime's order: its full path, its entry in the table, its layer."""
    table = _MODULES[architecture]
    inner = [m for m in table if m.path.startswith(_LAYER)]
    first = table.index(inner[0])
    for module in table[:first]:
        yield module.path, module, None
    for n in range(layers):
        for module in inner:
            yield module.path.format(n=n), module, n
    for module in table[first + len(inner) :]:
        yield module.path, module, None


def output_tensors(model: Model) -> list[OutputTensor]:
    """The weights of an MLX folder, in mlx-lm's order.

    Raises:
        UnsupportedModelError: A file of plain tensors, or an architecture that mlx-lm does not know.
    """
    hp = model.hyperparameters
    if model.architecture not in _MODULES or hp is None:
        what = model.architecture or "plain tensors without a config.json"
        raise UnsupportedModelError(f"mlx-lm cannot run {what}", path=model.path, hint="give a model folder")
    result: list[OutputTensor] = []
    for path, module, layer in modules(model.architecture, hp.num_hidden_layers):
        result += _of_module(path, module, layer, model.tensors, model.architecture)
    return result


def _of_module(
    path: str, module: Module, layer: int | None, tensors: Mapping[Role, ir.Tensor], architecture: str
) -> Iterator[OutputTensor]:
    roles = [Role(name, layer) for name in module.roles]
    if module.roles == ("output",) and roles[0] not in tensors:
        if architecture not in _NO_TIED_HEAD:
            return
        roles = [Role("token_embedding")]
    weight = join([tensors[role] for role in roles])
    yield OutputTensor(f"{path}.weight", weight, Role(module.roles[0], layer))
    bias = Role(module.roles[0], layer, "bias")
    if bias in tensors:
        yield OutputTensor(f"{path}.bias", tensors[bias], bias)
    elif module.bias:
        zeros = ir.constant([0.0] * weight.shape[0], f"{path}.bias, which is zero")
        yield OutputTensor(f"{path}.bias", zeros, bias)
