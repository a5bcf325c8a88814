"""The error that counts: that of a matrix's outputs, as a quadratic form of the errors of its weights.

With the second moment ``H`` of the inputs, the mean of ``x x^T`` over tokens, a row of weights that is off by
``d`` makes outputs that are off by ``d^T H d`` in the mean square.

Products with H are computed in whole numbers that float64 holds exactly, sums included. So they are the same
whatever the order of the additions: on every processor, with any number of threads, and whatever other rows
are computed in the same call. (The kernels of a BLAS library round differently at the edges of their tiles.)
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from phiconv.quantizers.numerics.scratch import scratch

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from phiconv.ir import FloatArray

    DoubleArray: TypeAlias = NDArray[np.float64]

__all__ = ["Metric", "output_error", "shrunk"]

_UNIT = 2.0**18
"""H, as scaled below, is a multiple of 1 / _UNIT."""

_EXACT = 52
"""Bits of a sum that float64 holds, with one to spare."""

_FLOAT = 23
"""Bits of a whole number that float32 holds, with one to spare."""

_ROWS = 256
"""Rows of H at a time."""


def shrunk(moments: FloatArray, amount: float) -> FloatArray:
    """A second moment that trusts the correlations it was measured with less.

    From few tokens, a part of every correlation is chance. Codes that make use of it fit the text that was
    measured and no other. Hence ``H + amount * diag(H) + 0.01 * mean(diag(H)) * I``.

    Args:
        moments: H: symmetric, float32 of shape (columns, columns).
        amount: 0 or more; infinity leaves no correlation at all.

    Returns:
        A new matrix; of inputs that were all zero the unit matrix.
    """
    diagonal = moments.diagonal().astype(np.float64)
    mean = float(diagonal.mean()) if diagonal.size else 0.0
    if not mean > 0:
        return np.eye(len(diagonal), dtype=np.float32)
    if math.isinf(amount):
        return np.diag((diagonal + 0.01 * mean).astype(np.float32))
    result = moments.copy()
    np.fill_diagonal(result, (1 + amount) * diagonal + 0.01 * mean)
    return result


def output_error(
    values: FloatArray,
    weights: FloatArray,
    *,
    moments: FloatArray | None = None,
    inputs: FloatArray | None = None,
) -> DoubleArray:
    """The mean squared error of every output.

    Args:
        values: The weights of the model, float32 of shape (rows, columns).
        weights: What became of them, of the same shape.
        moments: The second moment of the inputs, shape (columns, columns); or else
        inputs: The inputs themselves, shape (tokens, columns).

    Returns:
        Shape (rows,).
    """
    with np.errstate(all="ignore"):
        errors = values.astype(np.float64) - weights
        total = np.zeros(len(errors))
        if moments is not None:
            for start in range(0, len(moments), _ROWS):
                part = slice(start, start + _ROWS)
                products = errors @ moments[part].T.astype(np.float64)
                total += np.einsum("rk,rk->r", products, errors[:, part])
        elif inputs is not None:
            for start in range(0, len(inputs), _ROWS):
                outputs = errors @ inputs[start : start + _ROWS].T.astype(np.float64)
                total += np.einsum("rn,rn->r", outputs, outputs)
            total /= max(len(inputs), 1)
    return total


class Metric:
    """A second moment in whole numbers.

    Every column is measured in a power of two near the root mean square of its input. In these units the
    diagonal of H is about 1 and nothing in it is larger than 2, so that few bits describe it well.

    Attributes:
        units: The unit of every column's input, float64 of shape (columns, 1); 0 where the input is.
        diagonal: Of H, in whole numbers, shape (columns, 1); 1 where the input is 0.
        weights: Of H, as it is, float32 of shape (columns, 1).
        largest: What no error, in whole numbers, may be larger than.
    """

    def __init__(self, moments: FloatArray) -> None:
        self._moments = moments
        diagonal = np.where(moments.diagonal() > 0, moments.diagonal(), 0).astype(np.float64)
        exponents = np.frexp(diagonal)[1] >> 1
        self.units = np.where(diagonal > 0, np.ldexp(1.0, exponents), 0)[:, None]
        with np.errstate(divide="ignore"):
            inverse = np.where(self.units > 0, 1 / self.units, 0)
        self._panel = np.empty((0, 0))
        self._factors = inverse.astype(np.float32)
        columns = len(diagonal)
        self.largest = 2.0 ** min(_EXACT - 19 - max(columns - 1, 1).bit_length(), _FLOAT)
        scaled = np.rint(diagonal[:, None] * inverse * inverse * _UNIT)
        self.diagonal = np.where(scaled > 0, np.minimum(scaled, 2 * _UNIT), 1)
        self.weights = diagonal.astype(np.float32)[:, None]

    def rows(self, start: int, stop: int) -> DoubleArray:
        """Some rows of H in whole numbers, in memory that the next call overwrites."""
        part = scratch("best_scaled", (stop - start, len(self._moments)), np.float32)
        np.multiply(self._moments[start:stop], self._factors[start:stop], out=part)
        part *= self._factors.T
        part *= np.float32(_UNIT)
        np.rint(part, out=part)
        np.clip(part, np.float32(-2 * _UNIT), np.float32(2 * _UNIT), out=part)
        shape = max(_ROWS, stop - start), part.shape[1]
        if self._panel.shape != shape:  # larger than what is kept for the next tile, so it is kept here
            self._panel = np.empty(shape)
        result = self._panel[: stop - start]
        np.copyto(result, part)
        return result

    def scale(self, errors: FloatArray) -> DoubleArray:
        """A power of two for each row of weights that makes its errors whole numbers, with room to grow.

        Args:
            errors: Shape (columns, rows).
        """
        largest = np.zeros(errors.shape[1])
        for start in range(0, len(errors), _ROWS):
            part = slice(start, start + _ROWS)
            np.maximum(largest, np.abs(errors[part] * self.units[part]).max(axis=0), out=largest)
        exponents = np.frexp(np.where(np.isfinite(largest), largest, 0))[1]
        # What is smaller than any weight that matters need not be told apart, and float32 holds these scales.
        return np.where(largest > 0, np.ldexp(self.largest / 8, -np.maximum(exponents, -90)), 1.0)

    def whole(self, errors: FloatArray, scale: DoubleArray, start: int, out: DoubleArray) -> DoubleArray:
        """Errors of the columns from ``start`` on in whole numbers; ``errors`` is overwritten."""
        errors *= self.units[start : start + len(errors)].astype(np.float32)
        errors *= scale.astype(np.float32)
        np.rint(errors, out=errors)
        np.clip(errors, np.float32(-self.largest), np.float32(self.largest), out=errors)
        np.copyto(out, errors)
        return out

    def total(self, whole: DoubleArray, scale: DoubleArray) -> DoubleArray:
        """The quadratic form of every row of weights: shape (rows,).

        Args:
            whole: Errors in whole numbers, shape (columns, rows).
            scale: What they are scaled by, shape (rows,).
        """
        total = np.zeros(whole.shape[1])
        for start in range(0, len(whole), _ROWS):
            stop = min(start + _ROWS, len(whole))
            part, moments = whole[start:stop], self.rows(start, stop)
            # H is symmetric: what is left of the diagonal counts twice, what is right of it not at all.
            products = moments[:, start:stop] @ part
            if start:
                products += 2 * (moments[:, :start] @ whole[:start])
            products *= part
            total += np.add.reduce(products, axis=0)
        return total / (scale * scale * _UNIT)
