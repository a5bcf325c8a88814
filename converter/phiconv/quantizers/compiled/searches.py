"""The searches of `phiconv.quantizers.ggml`, compiled, for all groups that they can do exactly alike.

Groups with numbers that are not finite, or too large to round by adding, are few if any; NumPy searches them.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypeVar

import numpy as np

from phiconv.quantizers.ggml.rounding import rounds_exactly
from phiconv.quantizers.ggml.search import TINY, AffineFit, AffineSearch, LinearFit
from phiconv.quantizers.ggml.searches import IN_NUMPY, Searches

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from phiconv.ir import FloatArray

__all__ = ["COMPILED"]

P = ParamSpec("P")
R = TypeVar("R")


class _Checked(Generic[P, R]):
    """A search that is compiled when it is first called, and used if its numbers are then NumPy's.

    Args:
        compiled: The search; it imports what is compiled.
        in_numpy: What it has to equal.
        *args: What it is tried with.
        **kwargs: Likewise.
    """

    def __init__(
        self, compiled: Callable[P, R], in_numpy: Callable[P, R], *args: P.args, **kwargs: P.kwargs
    ) -> None:
        self._compiled, self._in_numpy, self._args, self._kwargs = compiled, in_numpy, args, kwargs
        self._chosen: Callable[P, R] | None = None
        self._lock = threading.Lock()

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        with self._lock:
            if self._chosen is None:
                self._chosen = self._choice()
        return self._chosen(*args, **kwargs)

    def _choice(self) -> Callable[P, R]:
        try:
            found = self._compiled(*self._args, **self._kwargs)
        except Exception:  # noqa: BLE001 - of a compiler that may not know this machine
            return self._in_numpy
        expected = self._in_numpy(*self._args, **self._kwargs)
        return self._compiled if _same(found, expected) else self._in_numpy


def _same(found: Any, expected: Any) -> bool:
    """Whether all arrays of two results have the same bits."""
    return all(a.tobytes() == b.tobytes() for a, b in zip(found, expected, strict=True))


def _fit_affine(x: FloatArray, weights: FloatArray, search: AffineSearch) -> AffineFit:
    """`phiconv.quantizers.ggml.search.fit_affine`."""
    from phiconv.quantizers.compiled.affine import fit

    result = np.empty((7, x.shape[1]), np.float32)
    limit = np.float32(search.limit)
    fit(x, weights, np.array(search.spans()), limit, search.absolute, result)
    *found, tightest, magnitudes, sums = result
    left = np.flatnonzero(~(rounds_exactly(magnitudes, tightest, search.limit) & np.isfinite(sums)))
    if left.size:
        again = IN_NUMPY.affine(x.take(left, axis=1), weights.take(left, axis=1), search)
        for values, corrected in zip(found, again, strict=True):
            values[left] = corrected
    return AffineFit(*found)


def _fit_linear(x: FloatArray, weights: FloatArray, limit: int) -> LinearFit:
    """`phiconv.quantizers.ggml.search.fit_linear`."""
    from phiconv.quantizers.compiled.linear import fit

    result = np.empty((4, x.shape[1]), np.float32)
    fit(x, weights, np.float32(limit), result)
    scale, inverse, largest, sums = result
    found = LinearFit(scale, inverse, np.abs(largest) < TINY)
    scale[found.zero] = 0
    left = np.flatnonzero(~np.isfinite(sums))
    if left.size:
        again = IN_NUMPY.linear(x.take(left, axis=1), weights.take(left, axis=1), limit)
        for values, corrected in zip(found, again, strict=True):
            values[left] = corrected
    return found


def _fit_positive(x: FloatArray, weights: FloatArray, limit: int) -> tuple[FloatArray, NDArray[np.uint8]]:
    """`phiconv.quantizers.ggml.descent.fit_positive`."""
    from phiconv.quantizers.compiled.descent import positive

    scales, codes = np.empty((2, x.shape[1]), np.float32), np.empty(x.shape, np.uint8)
    positive(x, weights, limit, TINY, scales, codes)
    left = np.flatnonzero(~np.isfinite(scales[1]))
    if left.size:
        few = IN_NUMPY.positive(x.take(left, axis=1), weights.take(left, axis=1), limit)
        scales[0, left], codes[:, left] = few
    return scales[0], codes


def _descend(x: FloatArray, limit: int) -> tuple[FloatArray, FloatArray]:
    """`phiconv.quantizers.ggml.descent.descend`."""
    from phiconv.quantizers.compiled.descent import signed

    scales, codes = np.empty((2, x.shape[1]), np.float32), np.empty(x.shape, np.float32)
    signed(x, limit, TINY, scales, codes)
    left = np.flatnonzero(~np.isfinite(scales[1]))
    if left.size:
        scales[0, left], codes[:, left] = IN_NUMPY.descent(x.take(left, axis=1), limit)
    return scales[0], codes


def _sample(size: int, count: int) -> FloatArray:
    """Numbers from -1/2 to 1/2, those of every group of another size."""
    numbers = np.arange(size * count, dtype=np.uint32).reshape(size, count) * np.uint32(2654435761)
    result: FloatArray = (numbers >> np.uint32(8)).astype(np.float32) / np.float32(1 << 24) - np.float32(0.5)
    return result * np.linspace(0, 1, count, dtype=np.float32)


_X = _sample(32, 80)
COMPILED = Searches(
    _Checked(_fit_affine, IN_NUMPY.affine, _X, np.abs(_X), AffineSearch(15, -1, 0.1, 20)),
    _Checked(_fit_linear, IN_NUMPY.linear, _X, _X * _X, 32),
    _Checked(_fit_positive, IN_NUMPY.positive, np.abs(_X), np.abs(_X), 63),
    _Checked(_descend, IN_NUMPY.descent, _X, 4),
)
