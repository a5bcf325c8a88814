"""The table of a checkpoint: which stored rows make which weight.

It follows from the names that an architecture gives its roles, and from the shapes that roles have in every
model. One form covers every layout that checkpoints use. A weight is a list of pieces, each some rows of a
stored tensor: a plain tensor is one piece, a part of a fused one is one piece that is not the whole, experts
stored apart are one piece each. Nothing is read; the result are views.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from phiconv.architectures.architecture import ENDS, Layout, full_name
from phiconv.errors import ConfigError, MalformedFileError
from phiconv.ir import RawEncoding, Tensor, concatenate
from phiconv.ir.model import HubTensor, Role, RoleRows

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from phiconv.architectures.architecture import Architecture
    from phiconv.ir.model import Hyperparameters

__all__ = ["Piece", "Weight", "all_roles", "bind", "layout", "pieces_of_role", "role_shape", "table"]


_MISSING = {
    "lm_head.weight": "download the checkpoint again; if its head is the embedding, tie_word_embeddings in "
    "config.json must be true"
}
"""What to do where a tensor is missing, if config.json may be wrong about it."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Rows ``start`` to ``stop`` of the stored tensor ``name``, which must have this shape."""

    name: str
    shape: tuple[int, ...]
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Weight:
    """One weight of the model: its role, its shape, and the stored rows that it is made of.

    An optional weight may be missing from the checkpoint; the tensors decide, not the config's ``*_bias``
    keys, which are known to be wrong in published files.
    """

    role: Role
    shape: tuple[int, ...]
    pieces: tuple[Piece, ...]
    optional: bool = False


def table(architecture: Architecture, hp: Hyperparameters, stored: Collection[str]) -> Iterator[Weight]:
    """The weights of a model, in the layout that the stored names show; in the hub's where they show none.

    Args:
        architecture: The family.
        hp: The sizes.
        stored: Names of tensors.
    """
    for role in all_roles(architecture, hp.num_hidden_layers):
        if role.name != "output" or not hp.tie_word_embeddings:
            yield _weight(architecture, hp, role, stored)
        if role.name in architecture.biases or role.name in architecture.optional_biases:
            yield _bias(architecture, hp, role, stored)


def all_roles(architecture: Architecture, layers: int) -> Iterator[Role]:
    """Every role, one by one: a hostile configuration may name a great many layers."""
    yield Role(ENDS[0])
    for layer in range(layers):
        yield from (Role(name, layer) for name in architecture.names if name not in ENDS)
    yield from map(Role, ENDS[1:])


def _weight(architecture: Architecture, hp: Hyperparameters, role: Role, stored: Collection[str]) -> Weight:
    """A matrix, or the vector of a norm."""
    shape, used = role_shape(role.name, hp), _layout(architecture, role, stored)
    name = full_name(role.name, used.names[role.name], role.layer) + used.suffix
    if "{e}" in name:
        count, rows, columns = shape
        experts = (Piece(name.format(e=e), (rows, columns), 0, rows) for e in range(count))
        return Weight(role, shape, tuple(experts))
    return Weight(role, shape, pieces_of_role(hp, role.name, used.names, name, shape))


def _bias(architecture: Architecture, hp: Hyperparameters, role: Role, stored: Collection[str]) -> Weight:
    shape, names = role_shape(role.name, hp)[:1], _layout(architecture, role, stored).names
    name = full_name(role.name, names[role.name], role.layer) + ".bias"
    optional = role.name not in architecture.biases
    return Weight(
        role._replace(part="bias"), shape, pieces_of_role(hp, role.name, names, name, shape), optional
    )


def _layout(architecture: Architecture, role: Role, stored: Collection[str]) -> Layout:
    """The names of a layer's tensors that hold a role."""
    for layout in architecture.layouts:
        first, name = next(iter(layout.names.items()))
        known = full_name(first, name.format(e=0), role.layer) + layout.suffix
        if role.name in layout.names and known in stored:
            return layout
    return Layout(architecture.names)


def pieces_of_role(
    hp: Hyperparameters, role: str, names: Mapping[str, str], tensor: str, shape: tuple[int, ...]
) -> tuple[Piece, ...]:
    """The rows of a tensor that are a role's: of a fused one, those behind the roles before it.

    Args:
        hp: The sizes.
        role: Its name.
        names: Of the layout.
        tensor: The tensor's name.
        shape: The role's.
    """
    axis = max(len(shape) - 2, 0)  # of the rows; a stack of experts has one before
    group = [role_shape(each, hp)[axis] for each, name in names.items() if name == names[role]]
    before = [each for each, name in names.items() if name == names[role]].index(role)
    whole = (*shape[:axis], sum(group), *shape[axis + 1 :])
    first, size = sum(group[:before]), shape[axis]
    stacks = math.prod(shape[:axis])
    starts = (stack * whole[axis] + first for stack in range(stacks))
    if len(group) == 1:
        return (Piece(tensor, whole, 0, stacks * size),)
    return tuple(Piece(tensor, whole, start, start + size) for start in starts)


def role_shape(role: str, hp: Hyperparameters) -> tuple[int, ...]:
    """The shape that the weight of a role has in every model, outermost dimension first."""
    hidden, inner, head_dim = hp.hidden_size, hp.intermediate_size, hp.head_dim
    queries, keys = hp.num_attention_heads * head_dim, hp.num_key_value_heads * head_dim
    experts = hp.experts.count if hp.experts else 0
    return {
        "token_embedding": (hp.vocab_size, hidden),
        "attn_norm": (hidden,),
        "attn_q": (queries, hidden),
        "attn_k": (keys, hidden),
        "attn_v": (keys, hidden),
        "attn_q_norm": (head_dim,),
        "attn_k_norm": (head_dim,),
        "attn_output": (hidden, queries),
        "ffn_norm": (hidden,),
        "ffn_gate": (inner, hidden),
        "ffn_up": (inner, hidden),
        "ffn_down": (hidden, inner),
        "router": (experts, hidden),
        "experts_gate": (experts, inner, hidden),
        "experts_up": (experts, inner, hidden),
        "experts_down": (experts, hidden, inner),
        "output_norm": (hidden,),
        "output": (hp.vocab_size, hidden),
    }[role]


def bind(
    weights: Iterable[Weight], stored: Mapping[str, Tensor], *, path: Path, ignored: Sequence[str] = ()
) -> dict[Role, Tensor]:
    """Finds every weight among the stored tensors.

    Args:
        weights: The architecture's table.
        stored: The checkpoint's tensors by name.
        path: The checkpoint, for messages.
        ignored: Regular expressions of stored names that carry no weight of their own (rotary tables).

    Raises:
        MalformedFileError: A tensor is missing, has another shape than config.json says, is of a type that is
            no weight, or is not known to the architecture.
    """
    result: dict[Role, Tensor] = {}
    used: set[str] = set()
    for weight in weights:
        if weight.optional and weight.pieces[0].name not in stored:
            continue
        views = [_piece(piece, stored, path) for piece in weight.pieces]
        try:
            result[weight.role] = concatenate(views).reshape(weight.shape)
        except ValueError:
            names = f"{weight.pieces[0].name} and its siblings"
            raise MalformedFileError(
                "parts of one weight have different types", path=path, at=names
            ) from None
        used.update(piece.name for piece in weight.pieces)
    unknown = [n for n in stored if n not in used and not any(re.fullmatch(p, n) for p in ignored)]
    if unknown:
        raise MalformedFileError(
            f"{len(unknown)} tensor(s) that this architecture does not have, the first is {unknown[0]}",
            path=path,
            hint="the configuration may be another model's, or this is an adapter or a multimodal checkpoint",
        )
    return result


def layout(weights: Iterable[Weight], roles: Collection[Role]) -> dict[str, HubTensor]:
    """What the tensors of a table are made of: the inverse of `bind`.

    Args:
        weights: The table, in the layout to write.
        roles: The weights that the model has.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    parts: dict[str, list[tuple[int, RoleRows]]] = {}
    for weight in weights:
        at = 0
        for piece in weight.pieces if weight.role in roles else ():
            end = at + piece.stop - piece.start
            shapes[piece.name] = piece.shape
            parts.setdefault(piece.name, []).append((piece.start, RoleRows(weight.role, at, end)))
            at = end
    return {name: HubTensor(shapes[name], tuple(r for _, r in sorted(rows))) for name, rows in parts.items()}


def _piece(piece: Piece, stored: Mapping[str, Tensor], path: Path) -> Tensor:
    tensor = stored.get(piece.name)
    if tensor is None:
        raise MalformedFileError(
            "this tensor is missing",
            path=path,
            at=f"tensor {piece.name}",
            hint=_MISSING.get(piece.name, "download the checkpoint again, or check its configuration"),
        )
    if tensor.shape != piece.shape:
        raise ConfigError(
            f"has shape {list(tensor.shape)}, but the configuration asks for {list(piece.shape)}",
            path=path,
            at=f"tensor {piece.name}",
        )
    if isinstance(tensor.encoding, RawEncoding):
        raise MalformedFileError(
            f"is stored as {tensor.encoding.name}, which is no weight type that phiconv reads yet",
            path=path,
            at=f"tensor {piece.name}",
        )
    matrix = tensor.reshape((tensor.rows, tensor.columns)) if len(tensor.shape) > 1 else tensor
    return matrix.slice_rows(piece.start, piece.stop)
