"""The weights of an ONNX model under the names of Hugging Face checkpoints.

phiconv and the model builder of ONNX Runtime GenAI call them alike, but for a few names. Queries, keys and
values may be one matrix, and the experts' gate and up rows stand by turns.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from phiconv.ir.interleaving import deinterleave
from phiconv_formats.onnx.initializers import FLOATS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from phiconv import ir
    from phiconv_formats.onnx.initializers import Initializers
    from phiconv_formats.onnx.stored_matrices import Matrix

__all__ = ["Heads", "Weights", "checkpoint_names", "find_weights"]

_LAYER = re.compile(r"model\.layers\.([0-9]+)\.(.+)")
_VECTOR = re.compile(r"(.+?)(?:\.Add)?\.(weight|bias)")

# What phiconv or the builder calls it -> the checkpoint's name; the family's own come first.
_INSIDE = {
    "input_layernorm": "input_layernorm",
    "post_attention_layernorm": "post_attention_layernorm",
    "attn.q_proj": "self_attn.q_proj",
    "attn.k_proj": "self_attn.k_proj",
    "attn.v_proj": "self_attn.v_proj",
    "attn.o_proj": "self_attn.o_proj",
    "mlp.gate_proj": "mlp.gate_proj",
    "mlp.up_proj": "mlp.up_proj",
    "mlp.down_proj": "mlp.down_proj",
    "moe.router": "block_sparse_moe.gate",
    "moe.experts.down_proj": "block_sparse_moe.switch_mlp.down_proj",
}
_OWN = {
    "phi": {
        "attn.o_proj": "self_attn.dense",
        "mlp.up_proj": "mlp.fc1",
        "mlp.fc1": "mlp.fc1",
        "mlp.down_proj": "mlp.fc2",
        "mlp.fc2": "mlp.fc2",
    }
}
_FINAL_NORM = {"phi": "model.final_layernorm"}
_QKV = "attn.qkv_proj"
_GATE_UP = "moe.experts.gate_up_proj"
_EXPERT = re.compile(r"moe\.experts\.([0-9]+)\.(gate_up_proj|down_proj)")
_TABLES = ("cos_cache", "sin_cache", "constants/", "/")
"""How names of tensors begin that are no weights: rotary tables, and constants of the graph."""


class Heads(NamedTuple):
    """Attention heads, as the graph has them.

    Attributes:
        queries: How many heads.
        keys: How many key/value heads.
    """

    queries: int
    keys: int


@dataclass(frozen=True, slots=True)
class Weights:
    """The weights of a graph under the graph's own names.

    Attributes:
        tensors: By path and part: "model.layers.0.attn.qkv_proj.weight".
        tied: One matrix is both the embedding and the output matrix.
    """

    tensors: Mapping[str, ir.Tensor]
    tied: bool


def find_weights(matrices: Sequence[Matrix], tensors: Initializers) -> Weights:
    """The matrices and vectors of a graph, each under one name.

    Raises:
        MalformedFileError: Two matrices have the same name.
    """
    result: dict[str, ir.Tensor] = {}
    places: dict[str, set[tuple[str, int]]] = {}
    for matrix in matrices:
        name, parts = matrix.path + ".weight", [tensors.tensors[part] for part in matrix.parts]
        place = {(part.file, part.offset) for part in parts}
        if places.setdefault(name, place) != place:  # a matrix may be used twice
            raise tensors.error(parts[0], "another matrix has the same name")
        result[name] = matrix.tensor
    tables = [matrix.path for matrix in matrices if matrix.lookup]
    products = {matrix.path for matrix in matrices if not matrix.lookup}
    used = {name for matrix in matrices for name in matrix.parts}
    for name, tensor in tensors.tensors.items():
        if name in used or tensor.data_type not in FLOATS or name.startswith(_TABLES) or not tensor.shape:
            continue
        match = _VECTOR.fullmatch(name)
        result[f"{match[1]}.{match[2]}" if match else name] = tensors.floats(tensor)
    tied = len(tables) == 1 and tables[0] in products
    if tied and tables[0] == "lm_head":  # the builder's name of the one matrix
        result["model.embed_tokens.weight"] = result.pop("lm_head.weight")
    return Weights(result, tied)


def checkpoint_names(weights: Weights, architecture: str, heads: Heads) -> dict[str, ir.Tensor]:
    """The weights under the checkpoint's names; one that has none there keeps its own.

    Args:
        weights: The graph's.
        architecture: The family, as phiconv calls it.
        heads: Of the attention.
    """
    result: dict[str, ir.Tensor] = {}
    for name, tensor in weights.tensors.items():
        path, _, part = name.rpartition(".")
        for new, view in _renamed(path, tensor, architecture, heads):
            result[f"{new}.{part}"] = view
    return result


def _renamed(
    path: str, tensor: ir.Tensor, architecture: str, heads: Heads
) -> Iterator[tuple[str, ir.Tensor]]:
    match = _LAYER.fullmatch(path)
    layer, inside = (f"model.layers.{match[1]}.", match[2]) if match else ("", path)
    names = _INSIDE | _OWN.get(architecture, {})
    if path == "model.norm" or (match and inside == "final_norm_layernorm"):
        yield _FINAL_NORM.get(architecture, "model.norm"), tensor
    elif match and inside in names:
        yield layer + names[inside], tensor
    elif match and inside == _QKV and (parts := _unfused(tensor, heads)):
        yield from ((layer + names[f"attn.{each}_proj"], view) for each, view in parts.items())
    elif match and inside == _GATE_UP and len(tensor.shape) == 3 and tensor.shape[1] % 2 == 0:
        for each, view in zip(("gate", "up"), deinterleave(tensor), strict=True):
            yield f"{layer}block_sparse_moe.switch_mlp.{each}_proj", view
    elif match and (expert := _EXPERT.fullmatch(inside)) and len(tensor.shape) == 2:
        stem = f"{layer}block_sparse_moe.experts.{expert[1]}"
        if expert[2] == "down_proj" or tensor.shape[0] % 2:
            yield f"{stem}.w2", tensor
        else:
            yield from zip((f"{stem}.w1", f"{stem}.w3"), deinterleave(tensor), strict=True)
    else:
        yield path, tensor


def _unfused(tensor: ir.Tensor, heads: Heads) -> dict[str, ir.Tensor]:
    """Queries, keys and values of one matrix or bias; {} if it has not their number of rows."""
    groups = heads.queries + 2 * heads.keys
    if len(tensor.shape) > 2 or groups < 1 or tensor.rows % groups:
        return {}
    size = tensor.rows // groups
    first, second = heads.queries * size, (heads.queries + heads.keys) * size
    ends = {"q": (0, first), "k": (first, second), "v": (second, tensor.rows)}
    return {each: tensor.slice_rows(start, stop) for each, (start, stop) in ends.items()}
