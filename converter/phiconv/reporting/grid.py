"""The errors of all matrices as a grid: a row for each layer, a column for each kind of matrix."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from phiconv.forward.ops import ATTENTION_ROLES, EXPERT_ROLES

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from phiconv.quality.comparison import Comparison, TensorDifference

__all__ = ["SHADES", "ErrorGrid", "Shades", "error_grid", "matrices"]

SHADES = 6
"""Steps from the palest to the darkest cell."""

_ORDER = (*ATTENTION_ROLES, "attn_output", *EXPERT_ROLES, "ffn_gate", "ffn_up", "ffn_down")
"""Kinds of matrices in the order in which a layer uses them; others come after these."""

_NAME = re.compile(r"(?:layers\.(\d+)\.)?([^.]+)\.weight")


@dataclass(frozen=True, slots=True)
class ErrorGrid:
    """Relative RMSE of every matrix of the decoder.

    Attributes:
        kinds: The columns, such as ``attn_q``.
        layers: One row each, a number for each column; None where a layer has no such matrix.
        others: Matrices that are in no layer, by name.
    """

    kinds: tuple[str, ...]
    layers: tuple[tuple[float | None, ...], ...]
    others: tuple[tuple[str, float], ...]

    def values(self) -> Iterator[float]:
        """All numbers."""
        yield from (value for row in self.layers for value in row if value is not None)
        yield from (value for _, value in self.others)


def matrices(found: Comparison) -> list[TensorDifference]:
    """What is compared and no vector, the worst first."""
    return [each for each in found.tensors if len(each.shape) > 1]


def error_grid(found: Comparison) -> ErrorGrid | None:
    """The grid of a comparison; None where weights have no roles, and so nobody knows their layers."""
    if found.matched_by != "role":
        return None
    cells: dict[tuple[int, str], float] = {}
    others: dict[str, float] = {}
    for each in matrices(found):
        if (match := _NAME.fullmatch(each.name)) is None:
            continue  # of an encoder of pictures, which has layers of its own
        if match[1] is None:
            others[match[2]] = each.difference.relative_rmse
        else:
            cells[int(match[1]), match[2]] = each.difference.relative_rmse
    return _arranged(cells, others) if cells else None


def _arranged(cells: Mapping[tuple[int, str], float], others: Mapping[str, float]) -> ErrorGrid:
    kinds = sorted({kind for _, kind in cells}, key=lambda k: (_ORDER.index(k) if k in _ORDER else 99, k))
    layers = range(max(layer for layer, _ in cells) + 1)
    rows = tuple(tuple(cells.get((layer, kind)) for kind in kinds) for layer in layers)
    return ErrorGrid(
        tuple(kinds), rows, tuple(sorted(others.items(), key=lambda o: o[0] != "token_embedding"))
    )


@dataclass(frozen=True, slots=True)
class Shades:
    """Which shade a number has.

    Attributes:
        edges: Where one shade ends and the next begins, `SHADES` - 1 of them.
    """

    edges: tuple[float, ...]

    @staticmethod
    def of(values: Iterable[float]) -> Shades:
        """Shades whose edges are in equal ratios between the least error and the largest."""
        some = [value for value in values if 0 < value < math.inf]
        low, high = (min(some), max(some)) if some else (1.0, 1.0)
        return Shades(tuple(low * (high / low) ** (k / SHADES) for k in range(1, SHADES)))

    def __call__(self, value: float) -> int:
        """0 for the palest; what is not finite has the darkest."""
        if not math.isfinite(value):
            return SHADES - 1
        return sum(edge < value for edge in self.edges)
