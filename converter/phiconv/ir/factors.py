"""Factors of an adapter as views: the other way round, with zeros beside them, times a number."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from phiconv.ir import F32, Tensor

if TYPE_CHECKING:
    from phiconv.ir import Encoded, Encoding, FloatArray

__all__ = ["placed", "transposed", "zeros"]


@dataclass(frozen=True, slots=True)
class _Transposed:
    """The columns of a matrix of floats (an `ir.Source`). Each read takes all of it."""

    matrix: Tensor

    @property
    def label(self) -> str:
        return self.matrix.label

    @property
    def encoding(self) -> Encoding:
        return self.matrix.encoding

    def read(self, start: int, stop: int) -> Encoded:
        rows = np.asarray(self.matrix.read(0, self.matrix.rows))
        return np.ascontiguousarray(rows[:, start:stop].T)

    def changed(self) -> bool:
        return self.matrix.changed()


def transposed(matrix: Tensor) -> Tensor:
    """A matrix of floats with rows and columns exchanged; it is read whole, time and again."""
    return Tensor.of(_Transposed(matrix), matrix.shape[::-1])


@dataclass(frozen=True, slots=True)
class _Placed:
    """Rows of floats times a number, in float32, between columns of zeros (an `ir.Source`)."""

    matrix: Tensor
    before: int
    columns: int
    factor: float
    encoding: Encoding = F32

    @property
    def label(self) -> str:
        return self.matrix.label

    def read(self, start: int, stop: int) -> Encoded:
        rows = np.asarray(self.matrix.read(start, stop))
        result = np.zeros((stop - start, self.columns), np.float32)
        result[:, self.before : self.before + rows.shape[1]] = rows.astype(np.float64) * self.factor
        return result

    def changed(self) -> bool:
        return self.matrix.changed()


def placed(matrix: Tensor, *, before: int, columns: int, factor: float) -> Tensor:
    """A matrix of floats times a number, as columns of a wider one.

    Args:
        matrix: Shape (rows, some columns).
        before: Columns of zeros in front of it.
        columns: Of the result; those behind it are zero as well.
        factor: The number.
    """
    return Tensor.of(_Placed(matrix, before, columns, factor), (matrix.shape[0], columns))


@dataclass(frozen=True, slots=True)
class _Zeros:
    """Rows of zeros (an `ir.Source`)."""

    columns: int
    encoding: Encoding = F32
    label: str = "zeros"

    def read(self, start: int, stop: int) -> FloatArray:
        return np.zeros((stop - start, self.columns), np.float32)

    def changed(self) -> bool:
        return False


def zeros(rows: int, columns: int) -> Tensor:
    """A matrix of zeros."""
    return Tensor.of(_Zeros(columns), (rows, columns))
