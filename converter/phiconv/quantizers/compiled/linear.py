"""`phiconv.quantizers.ggml.search.fit_linear`, compiled: the same operations for many groups at a time.

See `affine` for how and why.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from phiconv.quantizers.compiled.compiler import compiled, part

if TYPE_CHECKING:
    from phiconv.ir import FloatArray

__all__ = ["fit"]

LANES = 64
"""Groups that are searched together. Theirs are ``x``, ``weights`` and ``weighted``, (size, LANES)."""

# What a group has one of, the rows of ``s``: its weight of largest magnitude, and a sum of everything; then
# of the candidate at hand, and of the best one so far.
_LARGEST, _SUM, _CANDIDATE, _SUM_LX, _SUM_L2, _LEAST, _SCALE, _INVERSE = range(8)

_ROUNDS_TO_INTEGER = np.float32(3 << 22)
_ZERO = np.float32(0)


@part
def _take(groups: FloatArray, all_: FloatArray, start: int, count: int) -> None:
    """Fills the first lanes; what the others have, if not all do, is of no consequence."""
    for e in range(len(groups)):
        for j in range(count):
            groups[e, j] = all_[e, start + j]


@part
def _load(s: FloatArray, x: FloatArray, weights: FloatArray, weighted: FloatArray) -> None:
    """Finds the largest weights, of equal ones the first, and multiplies all by what they count."""
    for j in range(LANES):
        s[_LARGEST, j] = s[_SUM, j] = _ZERO
    for e in range(len(x)):
        for j in range(LANES):
            value, largest = x[e, j], s[_LARGEST, j]
            weighted[e, j] = value * weights[e, j]
            s[_SUM, j] += weighted[e, j] + weights[e, j]
            s[_LARGEST, j] = value if abs(value) > abs(largest) else largest


@part
def _round(
    s: FloatArray,
    x: FloatArray,
    weights: FloatArray,
    weighted: FloatArray,
    span: np.float32,
    limit: np.float32,
) -> None:
    """Makes codes such that the largest weight would have the code -span, and adds up what they have."""
    low, high = -limit, limit - np.float32(1)
    for j in range(LANES):
        s[_CANDIDATE, j] = -span / s[_LARGEST, j]
        s[_SUM_LX, j] = s[_SUM_L2, j] = _ZERO
    for e in range(len(x)):
        for j in range(LANES):
            code = x[e, j] * s[_CANDIDATE, j]
            code = (code + _ROUNDS_TO_INTEGER) - _ROUNDS_TO_INTEGER
            code = max(low, code)
            code = min(high, code)
            s[_SUM_LX, j] += weighted[e, j] * code
            s[_SUM_L2, j] += weights[e, j] * code * code


@part
def _keep(s: FloatArray, first: bool) -> None:
    """Keeps the candidate where it is the best one so far; the first one everywhere."""
    for j in range(LANES):
        sum_lx, sum_l2 = s[_SUM_LX, j], s[_SUM_L2, j]
        better = first | (sum_lx * sum_lx > s[_LEAST, j] * sum_l2)
        scale = sum_lx / sum_l2
        scale = _ZERO if sum_l2 == _ZERO else scale
        s[_SCALE, j] = scale if better else s[_SCALE, j]
        s[_LEAST, j] = scale * sum_lx if better else s[_LEAST, j]
        s[_INVERSE, j] = s[_CANDIDATE, j] if better else s[_INVERSE, j]


@compiled("void(f4[:,::1], f4[:,::1], f4, f4[:,::1])")
def fit(all_x: FloatArray, all_weights: FloatArray, limit: np.float32, result: FloatArray) -> None:
    """Finds scales, for finite numbers.

    Args:
        all_x: Shape (size, n).
        all_weights: Likewise.
        limit: Half the number of codes.
        result: Shape (4, n): scales; factors from weights to codes; the weights of largest magnitude; and
            a number that is finite only if all in the group are.
    """
    size = len(all_x)
    s, x, weights, weighted = (
        np.zeros((8, LANES), np.float32),
        np.zeros((size, LANES), np.float32),
        np.zeros((size, LANES), np.float32),
        np.zeros((size, LANES), np.float32),
    )
    for start in range(0, all_x.shape[1], LANES):
        count = min(LANES, all_x.shape[1] - start)
        _take(x, all_x, start, count)
        _take(weights, all_weights, start, count)
        _load(s, x, weights, weighted)
        _round(s, x, weights, weighted, limit, limit)
        _keep(s, True)
        for step in range(-9, 10):
            if step != 0:
                span = limit + np.float32(0.1) * np.float32(step)
                _round(s, x, weights, weighted, span, limit)
                _keep(s, False)
        for j in range(count):
            result[0, start + j] = s[_SCALE, j]
            result[1, start + j] = s[_INVERSE, j]
            result[2, start + j] = s[_LARGEST, j]
            result[3, start + j] = s[_SUM, j]
