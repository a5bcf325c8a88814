"""Between which numbers activations lie on some text: what quantized activations are scaled by."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from phiconv.brief import Brief

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from phiconv.ir.model import Role

__all__ = ["MatrixRanges", "Range", "Ranges"]


class Range(NamedTuple):
    """The smallest number and the largest one."""

    low: float
    high: float

    @staticmethod
    def union(ranges: Iterable[Range]) -> Range:
        """Of all of them."""
        found = [*ranges]
        return Range(min(r.low for r in found), max(r.high for r in found))


class MatrixRanges(NamedTuple):
    """Of what goes into a product with a matrix, and of what comes out of it, before a bias is added."""

    inputs: Range
    outputs: Range


@dataclass(frozen=True, slots=True, repr=False)
class Ranges(Brief):
    """The ranges of a model.

    Attributes:
        matrices: By the role of the matrix.
    """

    matrices: Mapping[Role, MatrixRanges]
