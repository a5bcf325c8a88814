"""The table an architecture gives of its checkpoint: which stored rows make which weight.

One form covers every layout that checkpoints use. A weight is a list of pieces, each some rows of a stored
tensor: a plain tensor is one piece, a part of a fused one is one piece that is not the whole, experts stored
apart are one piece each. Nothing is read; the result are views.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from phiconv.errors import ConfigError, MalformedFileError
from phiconv.ir import RawEncoding, Tensor, concatenate
from phiconv.ir.model import HubTensor, RoleRows

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence
    from pathlib import Path

    from phiconv.ir.model import Role

__all__ = ["Piece", "Weight", "bind", "layout", "plain"]


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


def plain(role: Role, name: str, *shape: int, optional: bool = False) -> Weight:
    """A weight that is stored under a name of its own."""
    rows = math.prod(shape[:-1]) if len(shape) > 1 else shape[0]
    return Weight(role, shape, (Piece(name, shape, 0, rows),), optional)


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
            hint="download the checkpoint again, or check its configuration",
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
