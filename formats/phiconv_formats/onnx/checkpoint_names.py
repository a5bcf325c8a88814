"""The weights of an ONNX model under the names of Hugging Face checkpoints.

phiconv and the model builder of ONNX Runtime GenAI call them alike, but for a few names. Queries, keys and
values may be one matrix, and the experts' gate and up rows stand by turns.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from phiconv.architectures.architecture import ENDS
from phiconv.ir.interleaving import deinterleave
from phiconv_formats.onnx.initializers import FLOATS
from phiconv_formats.onnx.names import LAYER_ROLES

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from phiconv import ir
    from phiconv.architectures import Architecture
    from phiconv_formats.onnx.initializers import Initializers
    from phiconv_formats.onnx.stored_matrices import Matrix

__all__ = ["Heads", "Weights", "checkpoint_names", "find_weights"]

_LAYER = re.compile(r"model\.layers\.([0-9]+)\.(.+)")
_VECTOR = re.compile(r"(.+?)(?:\.Add)?\.(weight|bias)")

_EXPERT = re.compile(r"moe\.experts\.([0-9]+)\.(gate_up_proj|down_proj)")
_GATE_UP = ("experts_gate", "experts_up")
_ROLES_OF_ENDS = {"model.norm": "output_norm"}
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
    matrices = [matrix for matrix in matrices if not matrix.path.startswith(_TABLES)]
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


def checkpoint_names(
    weights: Weights, architecture: Architecture | None, heads: Heads
) -> dict[str, ir.Tensor]:
    """The weights under the checkpoint's names; one that has none there keeps its own.

    Args:
        weights: The graph's.
        architecture: The family; None for one that phiconv does not know.
        heads: Of the attention.
    """
    if architecture is None:
        return dict(weights.tensors)
    result: dict[str, ir.Tensor] = {}
    for name, tensor in weights.tensors.items():
        path, _, part = name.rpartition(".")
        for new, view in _renamed(path, tensor, architecture, heads):
            result[f"{new}.{part}"] = view
    return result


def _renamed(
    path: str, tensor: ir.Tensor, architecture: Architecture, heads: Heads
) -> Iterator[tuple[str, ir.Tensor]]:
    match = _LAYER.fullmatch(path)
    layer, inside = (f"model.layers.{match[1]}.", match[2]) if match else ("", path)
    role = (LAYER_ROLES if match else _ROLES_OF_ENDS).get(inside, "")
    if role in ENDS:
        yield architecture.names[role], tensor
    elif role in architecture.names:
        yield layer + architecture.apart(role), tensor
    elif role == "attn_qkv" and (parts := _unfused(tensor, heads)):
        yield from ((layer + architecture.apart(each), view) for each, view in parts.items())
    elif role == "experts_gate_up" and len(tensor.shape) == 3 and tensor.shape[1] % 2 == 0:
        for each, view in zip(_GATE_UP, deinterleave(tensor), strict=True):
            yield layer + architecture.apart(each), view
    elif match and (expert := _EXPERT.fullmatch(inside)) and len(tensor.shape) == 2:
        yield from (
            (layer + architecture.separate(each, int(expert[1])), view)
            for each, view in _of_expert(tensor, expert[2])
        )
    else:
        yield path, tensor


def _of_expert(tensor: ir.Tensor, name: str) -> Iterator[tuple[str, ir.Tensor]]:
    """The matrices of one expert, by their roles."""
    if name == "down_proj" or tensor.shape[0] % 2:
        yield "experts_down", tensor
    else:
        yield from zip(_GATE_UP, deinterleave(tensor), strict=True)


def _unfused(tensor: ir.Tensor, heads: Heads) -> dict[str, ir.Tensor]:
    """Queries, keys and values of one matrix or bias; {} if it has not their number of rows."""
    groups = heads.queries + 2 * heads.keys
    if len(tensor.shape) > 2 or groups < 1 or tensor.rows % groups:
        return {}
    size = tensor.rows // groups
    first, second = heads.queries * size, (heads.queries + heads.keys) * size
    ends = {"attn_q": (0, first), "attn_k": (first, second), "attn_v": (second, tensor.rows)}
    return {each: tensor.slice_rows(start, stop) for each, (start, stop) in ends.items()}
