"""The numbers that codes stand for before they are scaled, and the nearest one."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from phiconv.ir import FloatArray

__all__ = ["Integers", "Levels", "Table"]


class Levels(Protocol):
    """What a code may stand for, in units of the scale."""

    @property
    def least(self) -> float:
        """The lowest level."""

    @property
    def greatest(self) -> float:
        """The highest level."""

    def nearest(self, x: FloatArray, out: FloatArray) -> FloatArray:
        """The level nearest to every number; ``out`` may be ``x``."""

    def codes(self, levels: FloatArray) -> NDArray[Any]:
        """The codes of levels, uint8 or int8."""

    def of(self, codes: NDArray[Any]) -> FloatArray:
        """The levels of codes."""


@dataclass(frozen=True)
class Integers:
    """Neighbouring whole numbers.

    Attributes:
        first: The lowest.
        last: The highest.
        offset: What the code of 0 is.
        signed: Whether codes are signed.
    """

    first: int
    last: int
    offset: int = 0
    signed: bool = False

    @property
    def least(self) -> float:
        """The lowest."""
        return float(self.first)

    @property
    def greatest(self) -> float:
        """The highest."""
        return float(self.last)

    def nearest(self, x: FloatArray, out: FloatArray) -> FloatArray:
        """The nearest one; see `Levels`."""
        np.rint(x, out=out)
        return np.clip(out, np.float32(self.first), np.float32(self.last), out=out)

    def codes(self, levels: FloatArray) -> NDArray[Any]:
        """Their codes."""
        return (levels + np.float32(self.offset)).astype(np.int8 if self.signed else np.uint8)

    def of(self, codes: NDArray[Any]) -> FloatArray:
        """The levels of codes."""
        levels: FloatArray = codes.astype(np.float32)
        levels -= np.float32(self.offset)
        return levels


@dataclass(frozen=True)
class Table:
    """The numbers of a codebook.

    Attributes:
        values: The number of every code; of equal ones the first code is used.
    """

    values: tuple[float, ...]

    @cached_property
    def _order(self) -> NDArray[np.intp]:
        """The codes in the order of their numbers, each number once."""
        return np.unique(np.array(self.values, np.float32), return_index=True)[1]

    @cached_property
    def _sorted(self) -> FloatArray:
        return np.array(self.values, np.float32)[self._order]

    @cached_property
    def _between(self) -> FloatArray:
        return (self._sorted[1:] + self._sorted[:-1]) / np.float32(2)

    @property
    def least(self) -> float:
        """The lowest."""
        return float(self._sorted[0])

    @property
    def greatest(self) -> float:
        """The highest."""
        return float(self._sorted[-1])

    def nearest(self, x: FloatArray, out: FloatArray) -> FloatArray:
        """The nearest one; see `Levels`."""
        np.copyto(out, self._sorted[np.searchsorted(self._between, x)])
        return out

    def codes(self, levels: FloatArray) -> NDArray[Any]:
        """Their codes."""
        return self._order.astype(np.uint8)[np.searchsorted(self._sorted, levels)]

    def of(self, codes: NDArray[Any]) -> FloatArray:
        """The levels of codes."""
        levels: FloatArray = np.array(self.values, np.float32)[codes]
        return levels
