"""Searches of ggml's quantizers that change one code at a time; for the layout see `search`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from phiconv.quantizers.search import TINY, dot, extreme, nearest

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from phiconv.ir import FloatArray

__all__ = ["descend", "fit_positive"]

_SWEEPS = 5


def fit_positive(x: FloatArray, weights: FloatArray, limit: int) -> tuple[FloatArray, NDArray[np.uint8]]:
    """Scales, and codes from 0 to limit, of least weighted squared error (``make_qp_quants``).

    A scale is chosen among nine; then every code in turn may change, in up to five sweeps.

    Args:
        x: Shape (size, n), 0 or more.
        weights: What an error counts, same shape.
        limit: The largest code.
    """
    high = np.maximum(x.max(axis=0), np.float32(0))
    inverse = np.float32(limit) / high
    codes = _as_bytes(nearest(x * inverse))
    best = _squares(x, weights, codes, 1 / inverse)
    for step in range(-4, 5):
        if step == 0:
            continue
        candidate = (np.float32(0.1) * np.float32(step) + np.float32(limit)) / high
        codes = np.minimum(nearest(x * candidate), limit).astype(np.float32)
        error = _squares(x, weights, codes, 1 / candidate)
        better = error < best
        best[better] = error[better]
        inverse[better] = candidate[better]
    integers = np.minimum(nearest(x * inverse), limit)
    codes = integers.astype(np.float32)
    sum_lx, sum_l2 = dot(weights * x, codes), dot(weights * codes, codes)
    codes = _as_bytes(integers)
    for _ in range(_SWEEPS):
        if not _sweep(x, weights, codes, sum_lx, sum_l2, limit):
            break
    scale = np.where(sum_l2 <= 0, np.float32(0), sum_lx / sum_l2)
    zero = high < TINY
    scale[zero] = 0
    codes[:, zero] = 0
    return scale, codes.astype(np.uint8)


def _as_bytes(codes: NDArray[np.int32]) -> FloatArray:
    """Codes as C's unsigned bytes hold them: a negative one wraps."""
    return (codes & 255).astype(np.float32)


def _squares(x: FloatArray, weights: FloatArray, codes: FloatArray, scale: FloatArray) -> FloatArray:
    difference = x - scale * codes
    return dot(weights * difference, difference)


def _sweep(
    x: FloatArray, weights: FloatArray, codes: FloatArray, sum_lx: FloatArray, sum_l2: FloatArray, limit: int
) -> bool:
    """Lets every code of all groups change once; codes and sums are updated. Whether one did.

    A group in which nothing changed is left as it is by further sweeps, so none has to be kept out of them.
    """
    any_changed = False
    for e in range(len(x)):
        weight, code = weights[e], codes[e]
        weight_x = weight * x[e]
        rest_lx = sum_lx - weight_x * code
        rest_l2 = sum_l2 - weight * code * code
        new = np.minimum(nearest(x[e] * rest_l2 / rest_lx), limit).astype(np.float32)
        new_lx = rest_lx + weight_x * new
        new_l2 = rest_l2 + weight * new * new
        changed = (rest_lx > 0) & (rest_l2 > 0) & (new != code)
        changed &= new_lx * new_lx * sum_l2 > sum_lx * sum_lx * new_l2
        at = np.flatnonzero(changed)
        if at.size:
            any_changed = True
            code[at] = _as_bytes(new[at].astype(np.int32))
            sum_lx[at], sum_l2[at] = new_lx[at], new_l2[at]
    return any_changed


def descend(x: FloatArray, limit: int) -> tuple[FloatArray, NDArray[np.int32]]:
    """Scales, and codes from 0 to 2 * limit - 1, with x**2 as the weights (``make_q3_quants``).

    The extreme weight gets code -limit; then every code in turn may change, in up to five sweeps.

    Args:
        x: Shape (size, n).
        limit: Half the number of codes.

    Returns:
        The scales, and the codes; those of a group of zeros are 0.
    """
    largest = extreme(x)
    codes = np.clip(nearest(x * (np.float32(-limit) / largest)), -limit, limit - 1).astype(np.float32)
    weights = x * x
    weighted = weights * x
    sum_lx, sum_l2 = dot(weighted, codes), dot(weights * codes, codes)
    for _ in range(_SWEEPS):
        if not _signed_sweep(x, weights, weighted, codes, sum_lx, sum_l2, limit):
            break
    scale = np.where(sum_l2 <= 0, np.float32(0), sum_lx / sum_l2)
    codes += limit
    zero = np.abs(largest) < TINY
    scale[zero] = 0
    codes[:, zero] = 0
    return scale, codes.astype(np.int32)


def _signed_sweep(
    x: FloatArray,
    weights: FloatArray,
    weighted: FloatArray,
    codes: FloatArray,
    sum_lx: FloatArray,
    sum_l2: FloatArray,
    limit: int,
) -> bool:
    """As `_sweep`, with codes of both signs."""
    any_changed = False
    for e in range(len(x)):
        code = codes[e]
        rest_lx = sum_lx - weighted[e] * code
        rest_l2 = sum_l2 - weights[e] * code * code
        new = np.clip(nearest(x[e] * rest_l2 / rest_lx), -limit, limit - 1).astype(np.float32)
        new_lx = rest_lx + weighted[e] * new
        new_l2 = rest_l2 + weights[e] * new * new
        changed = (rest_lx > 0) & (new_l2 > 0) & (new != code)
        changed &= new_lx * new_lx * sum_l2 > sum_lx * sum_lx * new_l2
        at = np.flatnonzero(changed)
        if at.size:
            any_changed = True
            code[at] = new[at]
            sum_lx[at], sum_l2[at] = new_lx[at], new_l2[at]
    return any_changed
