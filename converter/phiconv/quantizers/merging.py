"""A matrix with what an adapter adds to it, computed tile by tile while it is read.

The sum of products in ``B @ A`` is one that BLAS libraries round differently by processor and number of
threads. So rows of B and columns of A are taken in whole numbers of so few bits that float64 holds every sum
exactly, in any order: 23 bits at rank 64, of the largest number in the row or column. That is as precise as
the same product in float32, and the same on every machine.
"""

from __future__ import annotations

import weakref
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np

from phiconv.errors import WeightError
from phiconv.ir import F64, Blocks, FloatEncoding, MixedEncoding, Tensor, with_adapter
from phiconv.quantizers.decoding import decode

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from phiconv.ir import Encoded
    from phiconv.ir.adapter import LowRank

__all__ = ["merge"]

DoubleArray: TypeAlias = "NDArray[np.float64]"

_DOUBLE_BITS = 53  # of a whole number that float64 holds
_SMALLEST = -500  # exponent of a unit, far below float32


class _Factors(NamedTuple):
    """What all tiles of a matrix have in common.

    Attributes:
        columns: A, or B's transpose, in whole numbers, shape (rank, columns).
        units: Of each column, shape (1, columns).
        rows: The other factor as it is stored, where single columns of it cannot be read; else None.
    """

    columns: DoubleArray
    units: DoubleArray
    rows: NDArray[Any] | None


class _Memory:
    """Keeps the factors of a matrix from tile to tile, and lets go of them when others are read.

    A copy in another process starts empty.
    """

    def __init__(self) -> None:
        self.factors: _Factors | None = None

    def __reduce__(self) -> tuple[type[_Memory], tuple[()]]:
        return _Memory, ()

    def keep(self, factors: _Factors) -> _Factors:
        self.factors = factors
        if len(_recent) >= _MOST_KEPT and (old := _recent.popleft()()) is not None:
            old.factors = None
        _recent.append(weakref.ref(self))
        return factors


_MOST_KEPT = 4  # two matrices by turns, in each of two threads
_recent: deque[weakref.ref[_Memory]] = deque()


@dataclass(frozen=True, slots=True)
class _Merged:
    """The rows of a matrix and what an adapter does to them (an `ir.Source`)."""

    base: Tensor
    change: LowRank
    encoding: FloatEncoding | MixedEncoding
    memory: _Memory = field(default_factory=_Memory, compare=False, repr=False)

    @property
    def label(self) -> str:
        return self.base.label

    def read(self, start: int, stop: int) -> Encoded:
        result = self._delta(start, stop)
        with np.errstate(all="ignore"):  # the base may hold what is not finite, which the pipeline counts
            result += _widened(self.base.read(start, stop), self.base.columns)
            if self.change.magnitude is not None:
                lengths = np.sqrt(np.square(result).sum(axis=1))
                result *= (_finite(self.change.magnitude, start, stop)[:, 0] / lengths)[:, None]
            return result.astype(np.float64 if self.encoding == F64 else np.float32, copy=False)

    def changed(self) -> bool:
        parts = (self.base, self.change.a, self.change.b, self.change.magnitude)
        return any(part is not None and part.changed() for part in parts)

    def _delta(self, start: int, stop: int) -> DoubleArray:
        """Rows of ``scale * (B @ A)``."""
        factors = self.memory.factors or self.memory.keep(_factors(self.change))
        if factors.rows is None:
            rows = _finite(self.change.b, start, stop)
        else:
            rows = factors.rows[:, start:stop].T.astype(np.float64)
        units = _units(rows, _bits(self.change), axis=1)
        result: DoubleArray = np.rint(rows / units) @ factors.columns
        result *= units
        result *= factors.units * self.change.scale
        return result


def merge(base: Tensor, change: LowRank) -> Tensor:
    """A matrix with what an adapter does to it, as a view.

    The sum is computed in float64 and rounded once, to float32. PEFT rounds it to the type that the base is
    stored in; what the sum is converted to is left to a recipe here.

    Args:
        base: A matrix, stored in whatever way.
        change: For a matrix of its shape.
    """
    if base.shape != change.shape:
        raise ValueError(f"an adapter for {change.shape} and a matrix of {base.shape}")
    return Tensor.of(_Merged(base, change, with_adapter(base.encoding)), base.shape)


def _bits(change: LowRank) -> int:
    """Bits of whole numbers whose products float64 can add up, without the sign."""
    return (_DOUBLE_BITS - (change.rank - 1).bit_length()) // 2


def _factors(change: LowRank) -> _Factors:
    columns = (
        _finite(change.b, 0, change.b.rows).T if change.transposed else _finite(change.a, 0, change.rank)
    )
    units = _units(columns, _bits(change), axis=0)
    rows = None
    if change.transposed:
        _finite(change.a, 0, change.rank)
        rows = np.asarray(change.a.read(0, change.rank))
    return _Factors(np.rint(columns / units), units, rows)


def _units(values: DoubleArray, bits: int, axis: int) -> DoubleArray:
    """A power of two for each row or column, in which its numbers have so many bits."""
    largest = np.abs(values).max(axis=axis, keepdims=True)
    units: DoubleArray = np.ldexp(1.0, np.maximum(np.frexp(largest)[1] - bits, _SMALLEST))
    return units


def _finite(tensor: Tensor, start: int, stop: int) -> DoubleArray:
    """Rows of an adapter's tensor.

    Raises:
        WeightError: There is one that is NaN or infinite.
    """
    values = _widened(tensor.read(start, stop), tensor.columns)
    if not np.isfinite(values).all():
        raise WeightError(
            "the adapter holds NaN or infinity", path=tensor.label, hint="its training may have failed"
        )
    return values


def _widened(rows: Encoded, columns: int) -> DoubleArray:
    """Rows of weights as float64."""
    if not isinstance(rows, Blocks) and rows.dtype == F64.dtype:
        return rows.astype(np.float64, copy=False)
    return decode(rows, columns).astype(np.float64)
