"""The searches for a scale that ggml's quantizers share, each for many groups of weights at once.

Every array is *elements first*: ``x[e, g]`` is weight ``e`` of group ``g``, so that an operation is one long
vector operation over the groups, and a reduction over axis 0 adds a group's terms one after the other, as the
loops of ggml-quants.c do. All is float32 in the order of operations of that file; an operation that is moved
or merged changes the results.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from phiconv.quantizers.ggml.rounding import ExactRounding, Rounding, nearest, rounds_exactly
from phiconv.quantizers.numerics.buffering import unbuffered
from phiconv.quantizers.numerics.scratch import scratch

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from phiconv.ir import FloatArray

__all__ = [
    "AffineFit",
    "AffineSearch",
    "LinearFit",
    "dot",
    "extreme",
    "fit_affine",
    "fit_linear",
    "total",
]

TINY = np.float32(1e-15)
"""A group whose weights are all smaller counts as zeros (GROUP_MAX_EPS)."""

_PART = 1 << 16
"""Weights to search at a time: a few arrays of so many fit the cache that a core has for itself."""

_PART_BESIDE_OTHERS = 1 << 18
"""The same where other threads work, too. Between steps as short as those of small parts, threads would spend
their time on handing each other Python's lock. The codes do not depend on it."""


def _einsum_rounds_products() -> bool:
    """Whether this NumPy's einsum rounds a product before it is added, which not every machine's does."""
    x, y = np.full((2, 2, 64), 1 + 2.0**-12, np.float32)
    y[0] = -(1 + 2.0**-11)
    x[0] = 1
    sums = np.einsum("ij,ij->j", x, y), np.einsum("ij,ij,ij->j", np.ones_like(x), x, y)
    return not np.any(sums)  # a fused addition would leave 2**-24


_EINSUM = _einsum_rounds_products()
"""One pass over memory rather than two or three; a fifth of the time of a search."""


def total(x: FloatArray) -> FloatArray:
    """The sum of every group, its terms added one after the other: (size, ...) to (...)."""
    # One group NumPy would see as one long vector, and add up in another order.
    result: FloatArray = np.add.accumulate(x, axis=0)[-1] if x[0].size == 1 else np.add.reduce(x, axis=0)
    return result


def dot(x: FloatArray, y: FloatArray, z: FloatArray | None = None) -> FloatArray:
    """The sum of products of every group, its terms added one after the other: (size, n) each to (n,).

    Three factors are multiplied from left to right.
    """
    if _EINSUM and x.shape[1] > 1:
        result: FloatArray = np.einsum("ij,ij->j", x, y) if z is None else np.einsum("ij,ij,ij->j", x, y, z)
        return result
    products = np.multiply(x, y, out=scratch("dot", x.shape, x.dtype))
    return total(products if z is None else np.multiply(products, z, out=products))


def parts(x: FloatArray, weights: FloatArray) -> Iterator[tuple[slice, FloatArray, FloatArray]]:
    """Cuts groups and their weights into parts, contiguous ones, that stay in a core's own cache."""
    size, count = x.shape
    # A pool of one thread is the second one of its process.
    alone = threading.active_count() <= 2
    step = max((_PART if alone else _PART_BESIDE_OTHERS) // size, 1)
    if count <= step:
        yield slice(None), x, weights
        return
    for start in range(0, count, step):
        part = slice(start, start + step)
        yield part, _local("part of x", x[:, part]), _local("part of weights", weights[:, part])


def _local(name: str, x: FloatArray) -> FloatArray:
    """A copy in memory of this thread."""
    result: FloatArray = scratch(name, x.shape, x.dtype)
    np.copyto(result, x)
    return result


def extreme(x: FloatArray) -> FloatArray:
    """The weight of largest magnitude in every group, with its sign, the first one of equals."""
    high, low = x.max(axis=0), x.min(axis=0)
    result: FloatArray = np.where(high > -low, high, low)
    ties = np.flatnonzero((high == -low) & (high > 0))
    if ties.size:
        tied = x[:, ties]
        first = (np.abs(tied) == high[ties]).argmax(axis=0)
        result[ties] = tied[first, np.arange(ties.size)]
    return result


# ------------------------------------------------------------------------------------------- scale alone


class LinearFit(NamedTuple):
    """What `fit_linear` found, one value per group."""

    scale: FloatArray
    inverse: FloatArray
    """The factor from weights to codes that was best; not 1 / scale."""
    zero: NDArray[np.bool_]
    """Whether the group counts as zeros."""

    def at(self, groups: NDArray[np.intp]) -> LinearFit:
        """The fit of some groups."""
        return LinearFit(self.scale[groups], self.inverse[groups], self.zero[groups])

    def codes(self, x: FloatArray, limit: int) -> NDArray[np.int32]:
        """The codes from 0 to 2 * limit - 1 that belong to the fit; all 0 for a group of zeros."""
        codes = nearest(x * self.inverse)
        np.clip(codes, -limit, limit - 1, out=codes)
        codes += limit
        codes[:, self.zero] = 0
        return codes


@unbuffered
def fit_linear(x: FloatArray, weights: FloatArray, limit: int) -> LinearFit:
    """Scales of least weighted squared error for codes from -limit to limit - 1 (``make_qx_quants``).

    19 factors put the extreme weight near code -limit; to the codes of each belongs a best scale.

    Args:
        x: Shape (size, n).
        weights: What an error counts, same shape.
        limit: Half the number of codes.
    """
    scale, inverse = np.empty((2, x.shape[1]), np.float32)
    zero = np.empty(x.shape[1], np.bool_)
    for part, x_part, weights_part in parts(x, weights):
        scale[part], inverse[part], zero[part] = _fit_linear(x_part, weights_part, limit)
    return LinearFit(scale, inverse, zero)


def _fit_linear(x: FloatArray, weights: FloatArray, limit: int) -> LinearFit:
    largest = extreme(x)
    weighted = np.multiply(x, weights, out=scratch("weighted", x.shape, x.dtype))
    inverse = np.float32(-limit) / largest
    rounding = Rounding(x.shape[1], -limit, limit - 1)
    codes = scratch("codes", x.shape, np.float32)

    def sums(step: int) -> tuple[FloatArray, FloatArray]:
        """The sums of weight * x * code and of weight * code**2."""
        np.multiply(x, candidate, out=codes)
        # No number is larger than limit + step / 10.
        rounding(codes, below=step > 4, above=step > -6)
        return dot(weighted, codes), dot(weights, codes, codes)

    candidate = inverse.copy()
    sum_lx, sum_l2 = sums(0)
    scale = np.where(sum_l2 == 0, np.float32(0), sum_lx / sum_l2)
    best = scale * sum_lx
    for step in range(-9, 10):
        if step == 0:
            continue
        candidate = -(np.float32(limit) + np.float32(0.1) * np.float32(step)) / largest
        sum_lx, sum_l2 = sums(step)
        better = np.flatnonzero(sum_lx * sum_lx > best * sum_l2)  # false if both sums are 0
        scale[better] = sum_lx[better] / sum_l2[better]
        best[better] = scale[better] * sum_lx[better]
        inverse[better] = candidate[better]
    zero = np.abs(largest) < TINY
    scale[zero] = 0
    return LinearFit(scale, inverse, zero)


# ------------------------------------------------------------------------------------- scale and minimum


@dataclass(frozen=True, slots=True)
class AffineSearch:
    """The candidates of `fit_affine`: the range of a group is to span ``limit + start + step * i`` codes.

    Attributes:
        limit: The largest code; the smallest is 0.
        start: See above.
        step: See above.
        steps: i goes from 0 to steps, both included.
        absolute: Whether the error is the sum of magnitudes rather than of squares.
    """

    limit: int
    start: float
    step: float
    steps: int
    absolute: bool = False

    def spans(self) -> list[np.float32]:
        """How many codes the candidates span."""
        start, step = np.float32(self.start), np.float32(self.step)
        return [start + step * np.float32(i) + np.float32(self.limit) for i in range(self.steps + 1)]


class AffineFit(NamedTuple):
    """What `fit_affine` found: ``x`` is about ``scale * code + low``; one value per group."""

    scale: FloatArray
    low: FloatArray
    """0 or less."""
    inverse: FloatArray
    """With ``shift``, how the best codes came from the weights: ``nearest(inverse * (x - shift))``."""
    shift: FloatArray

    def at(self, groups: NDArray[np.intp]) -> AffineFit:
        """The fit of some groups."""
        return AffineFit(*(values[groups] for values in self))

    def codes(self, x: FloatArray, limit: int) -> NDArray[np.int32]:
        """The codes from 0 to limit that belong to the fit."""
        result = x - self.shift
        result *= self.inverse
        codes = nearest(result)
        np.clip(codes, 0, limit, out=codes)
        return codes


@unbuffered
def fit_affine(x: FloatArray, weights: FloatArray, search: AffineSearch) -> AffineFit:
    """Scales and minima of least weighted error (``make_qkx2_quants``, ``make_qkx3_quants``).

    To the codes of every candidate belong a best scale and minimum; a minimum is never above 0.

    Args:
        x: Shape (size, n).
        weights: What an error counts, same shape.
        search: The candidates.
    """
    result = AffineFit(*np.empty((4, x.shape[1]), np.float32))
    for part, x_part, weights_part in parts(x, weights):
        fit, tightest = _fit_affine(x_part, weights_part, search, Rounding(x_part.shape[1], 0, search.limit))
        odd = np.flatnonzero(~rounds_exactly(np.abs(x_part).max(axis=0), tightest, search.limit))
        if odd.size:
            few = x_part.take(odd, axis=1), weights_part.take(odd, axis=1)
            again, _ = _fit_affine(*few, search, ExactRounding(odd.size, 0, search.limit))
            for values, corrected in zip(fit, again, strict=True):
                values[odd] = corrected
        for whole, values in zip(result, fit, strict=True):
            whole[part] = values
    return result


def _fit_affine(
    x: FloatArray, weights: FloatArray, search: AffineSearch, rounding: Rounding
) -> tuple[AffineFit, FloatArray]:
    """The fit, and the smallest range that weights were divided by."""
    high, low = x.max(axis=0), lowest(x)
    low[low > 0] = 0
    same = high == low
    weight, weight_x = total(weights), dot(weights, x)
    codes, products = scratch("codes", x.shape, np.float32), scratch("products", x.shape, np.float32)
    span = high - low
    tightest = span.copy()
    fit = AffineFit(np.zeros_like(low), low, np.float32(search.limit) / span, low.copy())
    np.divide(1, fit.inverse, out=fit.scale)
    np.subtract(x, fit.low, out=codes)
    codes *= fit.inverse
    rounding(codes, below=False, above=False)
    best = _error(x, weights, codes, fit.scale, fit.low, products, search.absolute)
    for codes_spanned in search.spans():
        inverse = codes_spanned / span
        np.subtract(x, fit.low, out=codes)
        codes *= inverse
        rounding(codes, below=True, above=bool(codes_spanned > search.limit + 0.4))
        np.multiply(weights, codes, out=products)
        sum_l, sum_l2, sum_lx = total(products), dot(products, codes), dot(products, x)
        determinant = weight * sum_l2 - sum_l * sum_l
        scale: FloatArray = np.divide(weight * sum_lx - weight_x * sum_l, determinant)
        minimum: FloatArray = np.divide(sum_l2 * weight_x - sum_l * sum_lx, determinant)
        above = np.flatnonzero(minimum > 0)
        minimum[above] = 0
        scale[above] = sum_lx[above] / sum_l2[above]
        error = _error(x, weights, codes, scale, minimum, products, search.absolute)
        better = np.flatnonzero((error < best) & (determinant > 0))
        best[better] = error[better]
        fit.inverse[better], fit.shift[better] = inverse[better], fit.low[better]
        fit.scale[better], fit.low[better] = scale[better], minimum[better]
        np.subtract(high, fit.low, out=span)
        np.minimum(tightest, span, out=tightest)
    for values, of_same in ((fit.scale, 0), (fit.inverse, 0), (fit.shift, 0), (tightest, np.inf)):
        values[same] = of_same
    return fit, tightest


def _error(
    x: FloatArray,
    weights: FloatArray,
    codes: FloatArray,
    scale: FloatArray,
    low: FloatArray,
    memory: FloatArray,
    absolute: bool,
) -> FloatArray:
    """The weighted error of a fit, in the memory given."""
    np.multiply(codes, scale, out=memory)
    memory += low
    memory -= x
    if absolute:
        return dot(weights, np.abs(memory, out=memory))
    return dot(memory, memory, weights)


def lowest(x: FloatArray) -> FloatArray:
    """The smallest weight of every group, of zeros with either sign the first one."""
    low: FloatArray = x.min(axis=0)
    zeros = np.flatnonzero(low == 0)
    if zeros.size:
        columns = x[:, zeros]
        low[zeros] = columns[(columns == 0).argmax(axis=0), np.arange(zeros.size)]
    return low
