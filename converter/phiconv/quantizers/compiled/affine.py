"""`phiconv.quantizers.ggml.search.fit_affine`, compiled: the same operations for many groups at a time.

numba sees loops rather than arrays, so that what a group needs stays in a core's own memory from its first
candidate to the last. The inner loops go over `LANES` groups, since additions within a group have an order.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from phiconv.quantizers.compiled.compiler import compiled, part

if TYPE_CHECKING:
    from phiconv.ir import FloatArray

__all__ = ["fit"]

LANES = 64
"""Groups that are searched together. Theirs are ``x``, ``weights`` and ``codes``, shape (size, LANES)."""

# What a group has one of is a row of an array ``s``. First of itself, and of the candidate at hand ...
_HIGH, _LOWEST, _WEIGHT, _WEIGHT_X = range(4)
_INVERSE, _SUM_L, _SUM_L2, _SUM_LX, _DETERMINANT, _SCALE, _MINIMUM, _ERROR = range(4, 12)
# ... and last of the best candidate so far; codes were nearest(BEST_INVERSE * (x - BEST_SHIFT)).
_LOW, _LEAST_ERROR, _BEST_SCALE, _BEST_INVERSE, _BEST_SHIFT, _TIGHTEST = range(12, 18)
_ROWS = 18

_ROUNDS_TO_INTEGER = np.float32(3 << 22)
"""What added, and subtracted again, rounds a number below 2**22 to an integer, ties to even."""

_ZERO = np.float32(0)


@part
def _take(groups: FloatArray, all_: FloatArray, start: int, count: int) -> None:
    """Fills the first lanes; what the others have, if not all do, is of no consequence."""
    for e in range(len(groups)):
        for j in range(count):
            groups[e, j] = all_[e, start + j]


@part
def _load(s: FloatArray, x: FloatArray, weights: FloatArray) -> None:
    """Finds what does not change between candidates; but for the minimum, which does."""
    for j in range(LANES):
        s[_HIGH, j] = s[_LOW, j] = x[0, j]
        s[_WEIGHT, j] = weights[0, j]
        s[_WEIGHT_X, j] = weights[0, j] * x[0, j]
    for e in range(1, len(x)):
        for j in range(LANES):
            value = x[e, j]
            s[_HIGH, j] = max(s[_HIGH, j], value)
            s[_LOW, j] = min(s[_LOW, j], value)
            s[_WEIGHT, j] += weights[e, j]
            s[_WEIGHT_X, j] += weights[e, j] * value
    for j in range(LANES):
        s[_LOW, j] = min(s[_LOW, j], _ZERO)
        s[_LOWEST, j] = s[_LOW, j]
        s[_TIGHTEST, j] = s[_HIGH, j] - s[_LOW, j]


@part
def _round(
    s: FloatArray, x: FloatArray, weights: FloatArray, codes: FloatArray, span: np.float32, limit: np.float32
) -> None:
    """Makes the codes of a candidate, and the sums that they have."""
    for j in range(LANES):
        s[_INVERSE, j] = span / (s[_HIGH, j] - s[_LOW, j])
        s[_SUM_L, j] = s[_SUM_L2, j] = s[_SUM_LX, j] = _ZERO
    for e in range(len(x)):
        for j in range(LANES):
            code = (x[e, j] - s[_LOW, j]) * s[_INVERSE, j]
            code = (code + _ROUNDS_TO_INTEGER) - _ROUNDS_TO_INTEGER
            code = max(_ZERO, code)
            code = min(limit, code)
            codes[e, j] = code
            product = weights[e, j] * code
            s[_SUM_L, j] += product
            s[_SUM_L2, j] += product * code
            s[_SUM_LX, j] += product * x[e, j]


@part
def _solve(s: FloatArray) -> None:
    """Finds the best scale and minimum for the codes."""
    for j in range(LANES):
        weight, weight_x = s[_WEIGHT, j], s[_WEIGHT_X, j]
        sum_l, sum_l2, sum_lx = s[_SUM_L, j], s[_SUM_L2, j], s[_SUM_LX, j]
        determinant = weight * sum_l2 - sum_l * sum_l
        scale = (weight * sum_lx - weight_x * sum_l) / determinant
        minimum = (sum_l2 * weight_x - sum_l * sum_lx) / determinant
        above = minimum > _ZERO
        alone = sum_lx / sum_l2
        s[_SCALE, j] = alone if above else scale
        s[_MINIMUM, j] = _ZERO if above else minimum
        s[_DETERMINANT, j] = determinant


@part
def _measure(s: FloatArray, x: FloatArray, weights: FloatArray, codes: FloatArray, absolute: bool) -> None:
    """Adds up the errors of a candidate."""
    for j in range(LANES):
        s[_ERROR, j] = _ZERO
    if absolute:
        for e in range(len(x)):
            for j in range(LANES):
                difference = (codes[e, j] * s[_SCALE, j] + s[_MINIMUM, j]) - x[e, j]
                s[_ERROR, j] += weights[e, j] * abs(difference)
    else:
        for e in range(len(x)):
            for j in range(LANES):
                difference = (codes[e, j] * s[_SCALE, j] + s[_MINIMUM, j]) - x[e, j]
                s[_ERROR, j] += difference * difference * weights[e, j]


@part
def _keep(s: FloatArray, first: bool) -> None:
    """Keeps the candidate where it is the best one so far; the first one everywhere."""
    for j in range(LANES):
        better = first | ((s[_ERROR, j] < s[_LEAST_ERROR, j]) & (s[_DETERMINANT, j] > _ZERO))
        s[_LEAST_ERROR, j] = s[_ERROR, j] if better else s[_LEAST_ERROR, j]
        s[_BEST_SCALE, j] = s[_SCALE, j] if better else s[_BEST_SCALE, j]
        s[_BEST_INVERSE, j] = s[_INVERSE, j] if better else s[_BEST_INVERSE, j]
        s[_BEST_SHIFT, j] = s[_LOW, j] if better else s[_BEST_SHIFT, j]
        s[_LOW, j] = s[_MINIMUM, j] if better else s[_LOW, j]
        span = s[_HIGH, j] - s[_LOW, j]
        s[_TIGHTEST, j] = min(s[_TIGHTEST, j], span)


@part
def _store(s: FloatArray, result: FloatArray, start: int, count: int) -> None:
    """Puts what was found into the result of `fit`; a group of equal weights has no scale."""
    for j in range(count):
        equal = s[_HIGH, j] == s[_LOWEST, j]
        result[0, start + j] = _ZERO if equal else s[_BEST_SCALE, j]
        result[1, start + j] = s[_LOW, j]
        result[2, start + j] = _ZERO if equal else s[_BEST_INVERSE, j]
        result[3, start + j] = _ZERO if equal else s[_BEST_SHIFT, j]
        result[4, start + j] = np.float32(np.inf) if equal else s[_TIGHTEST, j]
        result[5, start + j] = max(s[_HIGH, j], -s[_LOWEST, j])
        result[6, start + j] = s[_WEIGHT, j] + s[_WEIGHT_X, j]


@compiled("void(f4[:,::1], f4[:,::1], f4[::1], f4, b1, f4[:,::1])")
def fit(
    all_x: FloatArray,
    all_weights: FloatArray,
    spans: FloatArray,
    limit: np.float32,
    absolute: bool,
    result: FloatArray,
) -> None:
    """Finds scales and minima, for finite numbers.

    Args:
        all_x: Shape (size, n).
        all_weights: Likewise.
        spans: How many codes the candidates span, `AffineSearch.spans`.
        limit: The largest code.
        absolute: Whether the error is the sum of magnitudes.
        result: Shape (7, n): the four of an `AffineFit`; the smallest range that weights were divided by;
            the largest magnitude of a weight; and a number that is finite only if all in the group are.
    """
    size = len(all_x)
    s, x, weights, codes = (
        np.zeros((_ROWS, LANES), np.float32),
        np.zeros((size, LANES), np.float32),
        np.zeros((size, LANES), np.float32),
        np.zeros((size, LANES), np.float32),
    )
    for start in range(0, all_x.shape[1], LANES):
        count = min(LANES, all_x.shape[1] - start)
        _take(x, all_x, start, count)
        _take(weights, all_weights, start, count)
        _load(s, x, weights)
        _round(s, x, weights, codes, limit, limit)
        for j in range(LANES):
            s[_SCALE, j] = np.float32(1) / s[_INVERSE, j]
            s[_MINIMUM, j] = s[_LOW, j]
        _measure(s, x, weights, codes, absolute)
        _keep(s, True)
        for span in spans:
            _round(s, x, weights, codes, span, limit)
            _solve(s)
            _measure(s, x, weights, codes, absolute)
            _keep(s, False)
        _store(s, result, start, count)
