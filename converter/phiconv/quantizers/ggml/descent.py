"""Searches of ggml's quantizers that change one code at a time; for the layout see `search`."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from phiconv.quantizers.ggml.rounding import nearest
from phiconv.quantizers.ggml.search import TINY, dot, extreme
from phiconv.quantizers.numerics.scratch import scratch

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
    best = _squares(x, weights, _as_bytes(nearest(x * inverse)), 1 / inverse)
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
    weighted = weights * x
    sums = _Sums(dot(weighted, codes), dot(weights, codes, codes))
    codes = _as_bytes(integers)
    _descend(_Groups(x, weights, weighted, codes, *sums), _Positive(0, limit), _SWEEPS)
    return sums.scale(high < TINY), np.where(high < TINY, np.float32(0), codes).astype(np.uint8)


def _as_bytes(codes: NDArray[np.int32]) -> FloatArray:
    """Codes as C's unsigned bytes hold them: a negative one wraps."""
    return (codes & 255).astype(np.float32)


def _squares(x: FloatArray, weights: FloatArray, codes: FloatArray, scale: FloatArray) -> FloatArray:
    difference = x - scale * codes
    return dot(weights, difference, difference)


def descend(x: FloatArray, limit: int) -> tuple[FloatArray, FloatArray]:
    """Scales, and codes from 0 to 2 * limit - 1, with x**2 as the weights (``make_q3_quants``).

    The extreme weight gets code -limit; then every code in turn may change, in up to five sweeps.

    Args:
        x: Shape (size, n).
        limit: Half the number of codes.

    Returns:
        The scales, and the codes; those of a group of zeros are 0.
    """
    largest = extreme(x)
    weights, weighted, scaled = (scratch(name, x.shape, np.float32) for name in ("w", "wx", "scaled"))
    integers = nearest(np.multiply(x, np.float32(-limit) / largest, out=scaled))
    codes: FloatArray = np.clip(integers, -limit, limit - 1, out=integers).astype(np.float32)
    np.multiply(x, x, out=weights)
    np.multiply(weights, x, out=weighted)
    sums = _Sums(dot(weighted, codes), dot(weights, codes, codes))
    _descend(_Groups(x, weights, weighted, codes, *sums), _Signed(-limit, limit - 1), _SWEEPS)
    codes += limit
    zero = np.abs(largest) < TINY
    codes[:, zero] = 0
    return sums.scale(zero), codes


class _Sums(NamedTuple):
    """The sums over every group that a change of a code updates."""

    lx: FloatArray
    """Of weight * x * code."""
    l2: FloatArray
    """Of weight * code**2."""

    def scale(self, zero: NDArray[np.bool_]) -> FloatArray:
        """The best scale for the codes; 0 for groups of zeros."""
        scale: FloatArray = np.where(zero | (self.l2 <= 0), np.float32(0), self.lx / self.l2)
        return scale


class _Groups(NamedTuple):
    """The groups that still change; codes and sums are updated in place."""

    x: FloatArray
    weights: FloatArray
    weighted: FloatArray
    """weights * x."""
    codes: FloatArray
    lx: FloatArray
    l2: FloatArray


class _Signed(NamedTuple):
    """How ``make_q3_quants`` changes codes."""

    low: int
    high: int

    def limited(self, codes: NDArray[np.int32]) -> FloatArray:
        """Whole numbers as codes."""
        return np.clip(codes, self.low, self.high, out=codes).astype(np.float32)

    def allows(self, rest_l2: FloatArray, new_l2: FloatArray) -> NDArray[np.bool_]:  # noqa: ARG002
        """Whether the sum without the changed code, and with it, allow the change."""
        return new_l2 > 0

    def stored(self, codes: FloatArray) -> FloatArray:
        """Codes as the C code stores them."""
        return codes


class _Positive(_Signed):
    """How ``make_qp_quants`` does."""

    def limited(self, codes: NDArray[np.int32]) -> FloatArray:
        return np.minimum(codes, self.high, out=codes).astype(np.float32)

    def allows(self, rest_l2: FloatArray, new_l2: FloatArray) -> NDArray[np.bool_]:  # noqa: ARG002
        return rest_l2 > 0

    def stored(self, codes: FloatArray) -> FloatArray:
        return _as_bytes(codes.astype(np.int32))


def _descend(groups: _Groups, rule: _Signed, sweeps: int) -> None:
    """Sweeps over all groups, then over those in which something changed: elsewhere nothing would."""
    changed = _sweep(groups, rule)
    at = np.flatnonzero(changed)
    if sweeps == 1 or not at.size:
        return
    few = _Groups(*(array.take(at, axis=-1) for array in groups))
    _descend(few, rule, sweeps - 1)
    groups.codes[:, at], groups.lx[at], groups.l2[at] = few.codes, few.lx, few.l2


def _sweep(groups: _Groups, rule: _Signed) -> NDArray[np.bool_]:
    """Lets every code of all groups change once. In which groups one did."""
    any_changed = np.zeros(groups.lx.size, np.bool_)
    lx, l2 = groups.lx, groups.l2
    for x, weight, weight_x, code in zip(*groups[:4], strict=True):
        rest_lx = lx - weight_x * code
        rest_l2 = weight * code
        rest_l2 *= code
        np.subtract(l2, rest_l2, out=rest_l2)
        wanted = x * rest_l2
        wanted /= rest_lx
        new = rule.limited(nearest(wanted))
        at = np.flatnonzero(new != code)
        new, rest_lx, rest_l2, weight_at = new[at], rest_lx[at], rest_l2[at], weight[at]
        lx_at, l2_at = lx[at], l2[at]
        new_lx = rest_lx + weight_x[at] * new
        new_l2 = rest_l2 + weight_at * new * new
        better = new_lx * new_lx * l2_at > lx_at * lx_at * new_l2
        better &= rest_lx > 0
        better &= rule.allows(rest_l2, new_l2)
        keep = np.flatnonzero(better)
        at = at[keep]
        code[at] = rule.stored(new[keep])
        lx[at], l2[at] = new_lx[keep], new_l2[keep]
        any_changed[at] = True
    return any_changed
