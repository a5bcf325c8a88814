"""Searches for the parameters of a group, where the error of a weight counts by its column alone.

All work on ``x[j, r]``, column ``j`` of the group in row ``r``, with weights of shape (size, 1). The sums run
down the columns, one after the other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from phiconv.quantizers.numerics.scratch import scratch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from phiconv.ir import FloatArray
    from phiconv.quantizers.best.levels import Levels

__all__ = ["Line", "affine", "error", "linear", "reciprocal", "total", "zero_points"]

_SHRINK = {2: 0.35, 3: 0.45, 4: 0.55, 5: 0.72, 6: 0.84, 8: 0.95}
"""How much of a group's range the codes are to span at least, by their bits."""

_TRIES = 18
_ROUNDS = 2


class Line(NamedTuple):
    """``weight = scale * level + low``; all of shape (rows,)."""

    scale: FloatArray
    low: FloatArray


def total(x: FloatArray) -> FloatArray:
    """Sums down the columns, each strictly in order."""
    result: FloatArray = np.add.reduce(x, axis=0)
    return result


def reciprocal(scale: FloatArray) -> FloatArray:
    """``1 / scale``, and 0 where that is no number to count with."""
    result: FloatArray = np.divide(np.float32(1), scale)
    result[~np.isfinite(result)] = 0
    return result


def spans(bits: int, count: int = _TRIES) -> FloatArray:
    """Which parts of its range to try, the largest first."""
    least = _SHRINK.get(bits, 0.95)
    return np.linspace(1 + (1 - least) / 6, least, count).astype(np.float32)


def linear(x: FloatArray, weights: FloatArray, levels: Levels, bits: int, *, signed: bool) -> FloatArray:
    """The scale of least error under which levels alone give the weights; 0 where all are 0.

    Args:
        x: Shape (size, rows).
        weights: What an error counts, shape (size, 1).
        levels: What there is to scale.
        bits: Of a code.
        signed: Whether the scale may be negative: then the largest weight gets the lowest level.
    """
    high, low = x.max(axis=0), x.min(axis=0)
    if signed:
        start = np.float32(levels.least) * reciprocal(np.where(high > -low, high, low))
    else:
        start = np.float32(min(levels.greatest, -levels.least)) * reciprocal(np.maximum(high, -low))
    best, scale = np.zeros_like(start), np.zeros_like(start)
    u, weighted = scratch("best_levels", x.shape, np.float32), scratch("best_products", x.shape, np.float32)
    for span in spans(bits):
        np.multiply(x, start / span, out=u)
        levels.nearest(u, u)
        np.multiply(u, weights, out=weighted)
        u *= weighted
        weighted *= x
        square, product = total(u), total(weighted)
        gain = product * product / square
        better = gain > best
        np.copyto(best, gain, where=better)
        np.copyto(scale, product / square, where=better)
    return scale


def affine(x: FloatArray, weights: FloatArray, largest: int, bits: int, *, below_zero: bool) -> Line:
    """Scale and low of least error, for levels from 0 to ``largest``.

    Args:
        x: As for `linear`.
        weights: As for `linear`.
        largest: The highest level.
        bits: Of a code.
        below_zero: Whether low must be at most 0; then so must the lowest of the weights that are spanned.
    """
    low, high = x.min(axis=0), x.max(axis=0)
    if below_zero:
        low, high = np.minimum(low, np.float32(0)), np.maximum(high, np.float32(0))
    search = _Affine(x, weights, largest, low, below_zero=below_zero)
    middle, half = (high + low) / 2, (high - low) / 2
    for span in spans(bits):
        search.attempt(middle - half * span, half * span * np.float32(2 / largest))
    for _ in range(_ROUNDS):
        search.attempt(search.low.copy(), search.scale.copy())
    return Line(search.scale, search.low)


class _Affine:
    """The best line so far. Errors are counted from the lowest weight on, where fewer digits cancel."""

    def __init__(
        self, x: FloatArray, weights: FloatArray, largest: int, base: FloatArray, *, below_zero: bool
    ) -> None:
        self.x, self.weights, self.largest, self.base = x, weights, np.float32(largest), base
        self.below_zero = below_zero
        self.u, self.weighted, self.above = (
            scratch(name, x.shape, np.float32) for name in ("best_levels", "best_products", "best_above")
        )
        np.subtract(x, base, out=self.above)
        np.multiply(self.above, weights, out=self.weighted)
        self.sum_w, self.sum_x = weights.sum(dtype=np.float32), total(self.weighted)
        self.scale: FloatArray = np.zeros_like(base)
        self.low: FloatArray = np.add(base, self.sum_x / self.sum_w, dtype=np.float32)
        if below_zero:
            np.minimum(self.low, np.float32(0), out=self.low)
        at = self.low - base
        self.best = at * (2 * self.sum_x - at * self.sum_w)

    def attempt(self, low: FloatArray, scale: FloatArray) -> None:
        """Solves for the levels nearest under some line, and keeps the solution if it is the best so far."""
        np.subtract(self.x, low, out=self.u)
        self.u *= reciprocal(scale)
        np.rint(self.u, out=self.u)
        np.clip(self.u, np.float32(0), self.largest, out=self.u)
        np.multiply(self.u, self.weights, out=self.weighted)
        sum_u = total(self.weighted)
        self.u *= self.weighted
        self.weighted *= self.above
        sum_uu, sum_ux = total(self.u), total(self.weighted)
        determinant = self.sum_w * sum_uu - sum_u * sum_u
        scale = (self.sum_w * sum_ux - self.sum_x * sum_u) / determinant
        at = (sum_uu * self.sum_x - sum_u * sum_ux) / determinant
        if self.below_zero:
            above = at + self.base > 0
            np.copyto(at, -self.base, where=above)
            np.copyto(scale, (sum_ux - at * sum_u) / sum_uu, where=above)
        # What is left of the error is lessened by this.
        gain = scale * (2 * sum_ux - scale * sum_uu) + at * (2 * self.sum_x - at * self.sum_w)
        gain -= 2 * at * scale * sum_u
        better = (gain > self.best) & (scale > 0) & np.isfinite(at)
        np.copyto(self.best, gain, where=better)
        np.copyto(self.scale, scale, where=better)
        np.copyto(self.low, at + self.base, where=better)


def zero_points(x: FloatArray, weights: FloatArray, largest: int, bits: int) -> Line:
    """Scale and zero point of least error, for levels from 0 to ``largest``.

    Returns:
        The scale, positive, or 0 where all weights are 0; and, as ``low``, the zero point.
    """
    low, high = np.minimum(x.min(axis=0), np.float32(0)), np.maximum(x.max(axis=0), np.float32(0))
    best, scale, zero = np.zeros((3, x.shape[1]), np.float32)
    u, weighted = scratch("best_levels", x.shape, np.float32), scratch("best_products", x.shape, np.float32)
    for first, last in _ends(spans(bits, 6)):
        inverse = np.float32(largest) * reciprocal(high * last - low * first)
        point = np.clip(np.rint(-low * first * inverse), np.float32(0), np.float32(largest))
        np.multiply(x, inverse, out=u)
        np.rint(u, out=u)
        np.clip(u, -point, np.float32(largest) - point, out=u)
        np.multiply(u, weights, out=weighted)
        u *= weighted
        weighted *= x
        square, product = total(u), total(weighted)
        gain = product * product / square
        better = (gain > best) & (product > 0)
        np.copyto(best, gain, where=better)
        np.copyto(scale, product / square, where=better)
        np.copyto(zero, point, where=better)
    return Line(scale, zero)


def _ends(parts: FloatArray) -> Sequence[tuple[np.float32, np.float32]]:
    return [(first, last) for first in parts for last in parts]


def error(x: FloatArray, weights: FloatArray, levels: FloatArray, line: Line) -> FloatArray:
    """The weighted squared error of levels under a line: shape (rows,)."""
    missing = np.multiply(levels, line.scale, out=scratch("best_missing", x.shape, np.float32))
    missing += line.low
    missing -= x
    missing *= missing
    missing *= weights
    return total(missing)
