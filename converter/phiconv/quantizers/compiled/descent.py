"""`phiconv.quantizers.ggml.descent`, compiled: the same operations, many groups of weights at a time.

See `affine` for how and why.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from phiconv.quantizers.compiled.compiler import compiled, part

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from phiconv.ir import FloatArray

__all__ = ["positive", "signed"]

LANES = 64
"""Groups that are searched together. Theirs are the arrays ``x``, ``weights``, ``weighted`` (weights * x) and
``codes``, (size, LANES)."""

# What a group has one of, the rows of ``s``: its weight of largest magnitude, a sum of everything; the factor
# from weights to codes that is tried, and its error; the best one, and its error; the sums for the codes at
# hand, and those without the code that may change.
_LARGEST, _SUM, _CANDIDATE, _ERROR, _INVERSE, _LEAST_ERROR, _SUM_LX, _SUM_L2, _REST_LX, _REST_L2 = range(10)

_ROUNDS_TO_INTEGER = np.float32(3 << 22)
_ZERO = np.float32(0)
_SWEEPS = 5
_LOWEST = -(1 << 30)  # no limit


@part
def _take(groups: FloatArray, all_: FloatArray, start: int, count: int) -> None:
    """Fills the first lanes; what the others have, if not all do, is of no consequence."""
    for e in range(len(groups)):
        for j in range(count):
            groups[e, j] = all_[e, start + j]


@part
def _integer(bits: Any) -> Any:
    """What `phiconv.quantizers.ggml.rounding.nearest` makes of these bits, of a number of any size."""
    return (bits & np.int32(0x007FFFFF)) - np.int32(0x00400000)


@part
def _round(
    factor: FloatArray, x: FloatArray, codes: FloatArray, sums: FloatArray, low: int, high: int
) -> None:
    """Makes codes; ``sums`` is memory."""
    bits = sums.view(np.int32)
    for e in range(len(x)):
        for j in range(LANES):
            sums[j] = x[e, j] * factor[j] + _ROUNDS_TO_INTEGER
        for j in range(LANES):
            integer = _integer(bits[j])
            integer = integer if integer > low else np.int32(low)
            integer = integer if integer < high else np.int32(high)
            codes[e, j] = np.float32(integer)


@part
def _as_bytes(codes: FloatArray) -> None:
    """Leaves what C's unsigned bytes hold: a negative code wraps."""
    for e in range(len(codes)):
        for j in range(LANES):
            codes[e, j] = np.float32(np.int32(codes[e, j]) & np.int32(255))


@part
def _measure(s: FloatArray, x: FloatArray, weights: FloatArray, codes: FloatArray) -> None:
    """Adds up the errors of a candidate."""
    for j in range(LANES):
        s[_ERROR, j] = _ZERO
    for e in range(len(x)):
        for j in range(LANES):
            difference = x[e, j] - (np.float32(1) / s[_CANDIDATE, j]) * codes[e, j]
            s[_ERROR, j] += weights[e, j] * difference * difference


@part
def _keep(s: FloatArray, first: bool) -> None:
    """Keeps the candidate where it is the best one so far; the first one everywhere."""
    for j in range(LANES):
        better = first | (s[_ERROR, j] < s[_LEAST_ERROR, j])
        s[_LEAST_ERROR, j] = s[_ERROR, j] if better else s[_LEAST_ERROR, j]
        s[_INVERSE, j] = s[_CANDIDATE, j] if better else s[_INVERSE, j]


@part
def _try_all(
    s: FloatArray, x: FloatArray, weights: FloatArray, codes: FloatArray, sums: FloatArray, limit: int
) -> None:
    """Chooses among nine factors the one of least error, for codes from 0."""
    for candidate in range(-5, 5):
        # First the one that gives the largest weight the largest code, and the only one without a limit.
        first = candidate == -5
        if candidate == 0:
            continue
        step = _ZERO if first else np.float32(0.1) * np.float32(candidate)
        for j in range(LANES):
            s[_CANDIDATE, j] = (step + np.float32(limit)) / s[_LARGEST, j]
        _round(s[_CANDIDATE], x, codes, sums, _LOWEST, -_LOWEST if first else limit)
        if first:
            _as_bytes(codes)
        _measure(s, x, weights, codes)
        _keep(s, first)


@part
def _add_up(s: FloatArray, weights: FloatArray, weighted: FloatArray, codes: FloatArray) -> None:
    """The sums for the codes at hand."""
    for j in range(LANES):
        s[_SUM_LX, j] = s[_SUM_L2, j] = _ZERO
    for e in range(len(codes)):
        for j in range(LANES):
            s[_SUM_LX, j] += weighted[e, j] * codes[e, j]
            s[_SUM_L2, j] += weights[e, j] * codes[e, j] * codes[e, j]


@part
def _sweep(
    s: FloatArray,
    x: FloatArray,
    weights: FloatArray,
    weighted: FloatArray,
    codes: FloatArray,
    sums: FloatArray,
    low: int,
    high: int,
    positive: bool,
) -> bool:
    """Lets every code change once. Whether one did."""
    changed, bits = np.int32(0), sums.view(np.int32)
    for e in range(len(x)):
        for j in range(LANES):
            code = codes[e, j]
            s[_REST_LX, j] = s[_SUM_LX, j] - weighted[e, j] * code
            s[_REST_L2, j] = s[_SUM_L2, j] - weights[e, j] * code * code
            sums[j] = x[e, j] * s[_REST_L2, j] / s[_REST_LX, j] + _ROUNDS_TO_INTEGER
        for j in range(LANES):
            integer = _integer(bits[j])
            integer = integer if integer > low else np.int32(low)
            integer = integer if integer < high else np.int32(high)
            new = np.float32(integer)
            lx = s[_REST_LX, j] + weighted[e, j] * new
            l2 = s[_REST_L2, j] + weights[e, j] * new * new
            better = lx * lx * s[_SUM_L2, j] > s[_SUM_LX, j] * s[_SUM_LX, j] * l2
            allowed = (s[_REST_L2, j] if positive else l2) > _ZERO
            change = better & allowed & (s[_REST_LX, j] > _ZERO) & (new != codes[e, j])
            stored = np.float32(integer & np.int32(255)) if positive else new
            codes[e, j] = stored if change else codes[e, j]
            s[_SUM_LX, j] = lx if change else s[_SUM_LX, j]
            s[_SUM_L2, j] = l2 if change else s[_SUM_L2, j]
            changed |= np.int32(change)
    return bool(changed != 0)


@part
def _store(
    s: FloatArray,
    codes: FloatArray,
    offset: int,
    tiny: np.float32,
    scales: FloatArray,
    result: NDArray[Any],
    start: int,
    count: int,
) -> None:
    """Puts scales and codes of the first lanes into a result; a group of zeros has code 0."""
    for j in range(count):
        zero = abs(s[_LARGEST, j]) < tiny
        scale = s[_SUM_LX, j] / s[_SUM_L2, j]
        scales[0, start + j] = _ZERO if zero or s[_SUM_L2, j] <= _ZERO else scale
        scales[1, start + j] = s[_SUM, j]
        for e in range(len(codes)):
            result[e, start + j] = _ZERO if zero else codes[e, j] + np.float32(offset)


@compiled("void(f4[:,::1], i4, f4, f4[:,::1], f4[:,::1])")
def signed(all_x: FloatArray, limit: int, tiny: np.float32, scales: FloatArray, result: FloatArray) -> None:
    """What `phiconv.quantizers.ggml.descent.descend` does, for finite numbers.

    Args:
        all_x: Shape (size, n).
        limit: Half the number of codes.
        tiny: Groups whose weights are smaller count as zeros.
        scales: For the result, shape (2, n); the second row is finite only if all in the group are.
        result: Likewise for the codes, shape (size, n): 0 to 2 * limit - 1.
    """
    size = len(all_x)
    s, sums, x, weights, weighted, codes = (
        np.zeros((10, LANES), np.float32),
        np.zeros(LANES, np.float32),
        np.zeros((size, LANES), np.float32),
        np.zeros((size, LANES), np.float32),
        np.zeros((size, LANES), np.float32),
        np.zeros((size, LANES), np.float32),
    )
    for start in range(0, all_x.shape[1], LANES):
        count = min(LANES, all_x.shape[1] - start)
        _take(x, all_x, start, count)
        for j in range(LANES):
            s[_LARGEST, j] = s[_SUM, j] = _ZERO
        for e in range(size):
            for j in range(LANES):
                value, largest = x[e, j], s[_LARGEST, j]
                weights[e, j] = value * value
                weighted[e, j] = weights[e, j] * value
                s[_SUM, j] += weighted[e, j] + weights[e, j]
                s[_LARGEST, j] = value if abs(value) > abs(largest) else largest
        for j in range(LANES):
            s[_INVERSE, j] = np.float32(-limit) / s[_LARGEST, j]
        _round(s[_INVERSE], x, codes, sums, -limit, limit - 1)
        _add_up(s, weights, weighted, codes)
        for _ in range(_SWEEPS):
            if not _sweep(s, x, weights, weighted, codes, sums, -limit, limit - 1, False):
                break
        _store(s, codes, limit, tiny, scales, result, start, count)


@compiled("void(f4[:,::1], f4[:,::1], i4, f4, f4[:,::1], u1[:,::1])")
def positive(
    all_x: FloatArray,
    all_weights: FloatArray,
    limit: int,
    tiny: np.float32,
    scales: FloatArray,
    result: NDArray[np.uint8],
) -> None:
    """What `phiconv.quantizers.ggml.descent.fit_positive` does, for finite numbers.

    Args:
        all_x: Shape (size, n).
        all_weights: Likewise.
        limit: The largest code.
        tiny: Groups whose largest weight is smaller count as zeros.
        scales: For the result, shape (2, n); the second row is finite only if all in the group are.
        result: Likewise for the codes, shape (size, n).
    """
    size = len(all_x)
    s, sums, x, weights, weighted, codes = (
        np.zeros((10, LANES), np.float32),
        np.zeros(LANES, np.float32),
        np.zeros((size, LANES), np.float32),
        np.zeros((size, LANES), np.float32),
        np.zeros((size, LANES), np.float32),
        np.zeros((size, LANES), np.float32),
    )
    for start in range(0, all_x.shape[1], LANES):
        count = min(LANES, all_x.shape[1] - start)
        _take(x, all_x, start, count)
        _take(weights, all_weights, start, count)
        for j in range(LANES):
            s[_LARGEST, j] = s[_SUM, j] = _ZERO
        for e in range(size):
            for j in range(LANES):
                value, largest = x[e, j], s[_LARGEST, j]
                weighted[e, j] = weights[e, j] * value
                s[_SUM, j] += weighted[e, j] + weights[e, j]
                s[_LARGEST, j] = max(largest, value)
        _try_all(s, x, weights, codes, sums, limit)
        _round(s[_INVERSE], x, codes, sums, _LOWEST, limit)
        _add_up(s, weights, weighted, codes)
        _as_bytes(codes)
        for _ in range(_SWEEPS):
            if not _sweep(s, x, weights, weighted, codes, sums, _LOWEST, limit, True):
                break
        _store(s, codes, 0, tiny, scales, result, start, count)
