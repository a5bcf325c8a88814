"""A matrix with what an adapter adds to it, computed tile by tile while it is read.

The sum of products in ``B @ A`` is one that BLAS libraries round differently by processor and number of
threads. So rows of B and columns of A are taken in whole numbers of so few bits that float64 holds every sum
exactly, in any order: 23 bits at rank 64, of the largest number in the row or column. That is as precise as
the same product in float32, and the same on every machine.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeAlias

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


@dataclass(frozen=True, slots=True)
class _Merged:
    """The rows of a matrix and what an adapter does to them (an `ir.Source`)."""

    base: Tensor
    change: LowRank
    encoding: FloatEncoding | MixedEncoding

    @property
    def label(self) -> str:
        return self.base.label

    def read(self, start: int, stop: int) -> Encoded:
        result = _delta(self.change, start, stop)
        with np.errstate(all="ignore"):  # the base may hold what is not finite, which the pipeline counts
            result += _widened(self.base.read(start, stop), self.base.columns)
            if self.change.magnitude is not None:
                lengths = np.sqrt(np.square(result).sum(axis=1))
                result *= (_finite(self.change.magnitude, start, stop)[:, 0] / lengths)[:, None]
            return result.astype(np.float64 if self.encoding == F64 else np.float32, copy=False)

    def changed(self) -> bool:
        parts = (self.base, self.change.a, self.change.b, self.change.magnitude)
        return any(part is not None and part.changed() for part in parts)


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


def _delta(change: LowRank, start: int, stop: int) -> DoubleArray:
    """Rows of ``scale * (B @ A)``."""
    bits = (_DOUBLE_BITS - (change.rank - 1).bit_length()) // 2
    if change.transposed:
        rows = _whole(change.a).T[start:stop].astype(np.float64)
        columns, column_units = _in_whole_numbers(change.b, bits, transposed=True)
    else:
        rows = _finite(change.b, start, stop)
        columns, column_units = _in_whole_numbers(change.a, bits, transposed=False)
    row_units = _units(rows, bits, axis=1)
    result: DoubleArray = np.rint(rows / row_units) @ columns
    result *= row_units
    result *= column_units * change.scale
    return result


@lru_cache(maxsize=4)  # tile after tile asks for the same ones; of two matrices by turns, in two threads
def _in_whole_numbers(matrix: Tensor, bits: int, *, transposed: bool) -> tuple[DoubleArray, DoubleArray]:
    """A, or B's transpose, in whole numbers of so many bits, and the unit of each column, shape (1, columns).

    Args:
        matrix: A; or B.
        bits: Of a whole number, without the sign.
        transposed: It is B.
    """
    values = _finite(matrix, 0, matrix.rows)
    values = np.ascontiguousarray(values.T) if transposed else values
    units = _units(values, bits, axis=0)
    values /= units
    return np.rint(values, out=values), units


def _units(values: DoubleArray, bits: int, axis: int) -> DoubleArray:
    """A power of two for each row or column, in which its numbers have so many bits."""
    largest = np.abs(values).max(axis=axis, keepdims=True)
    units: DoubleArray = np.ldexp(1.0, np.maximum(np.frexp(largest)[1] - bits, _SMALLEST))
    return units


@lru_cache(maxsize=1)  # a table of thousands of tokens, of which every tile takes some columns
def _whole(matrix: Tensor) -> NDArray[Any]:
    """All of a matrix as it is stored."""
    _finite(matrix, 0, matrix.rows)
    return np.asarray(matrix.read(0, matrix.rows))


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
