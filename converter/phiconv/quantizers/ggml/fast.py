"""Q4_K and Q5_K with a search a few times shorter than llama.cpp's, for about the same error.

The blocks are not llama.cpp's to the byte. The weights of the errors, the rounding of scales and minima of
sub-blocks, and the choice of the final codes are `kquant`'s; what differs is how scale and minimum of a
sub-block are found. The exact search takes 16 to 37 steps. Each makes codes, solves for the scale and minimum
that are best for these, and measures their error weight by weight; each starts from the minimum of the best
one before it. Here

- the steps are 2 to 6, and farther apart: near its least, the error changes little;
- all start at the lowest weight, so that it is subtracted once. In its place, one step more makes codes from
  the best scale and minimum of all, nearer than any of the first, and solves for these again;
- no error is measured. For the best scale and minimum of given codes, it is the sum of squares less
  ``scale * sum(weight * x * code) + minimum * sum(weight * x)``, and these sums are known from solving.

In float32, that last difference is reliable only where the codes of a sub-block spread and do not fit too
well. Sub-blocks where it is not (all weights above 0 and nearly equal; few of any importance; numbers beyond
what float32 can square) are left to the exact search. Among the weights of a model they are rare, unless it
was quantized before.

The root mean square error, with or without the weights of the errors, is within 1 % of the exact search's on
normal, Laplace and Student-t weights, in less than a third of the time.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from phiconv.ir import Q4_K, Q5_K, Blocks
from phiconv.quantizers.ggml.kquant import affine_blocks
from phiconv.quantizers.ggml.rounding import Rounding
from phiconv.quantizers.ggml.search import AffineFit, AffineSearch, dot, fit_affine, parts, total
from phiconv.quantizers.ggml.searches import IN_NUMPY, Searches
from phiconv.quantizers.numerics.buffering import unbuffered
from phiconv.quantizers.numerics.scratch import scratch

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from phiconv.ir import FloatArray

__all__ = ["q4_k", "q5_k"]

# Fewer steps reach as little error without importance weights, where the exact search is the coarser one.
_Q4_K, _Q4_K_BY_IMPORTANCE = AffineSearch(15, -1.35, 0.55, 3), AffineSearch(15, -1.2, 0.4, 5)
_Q5_K, _Q5_K_BY_IMPORTANCE = AffineSearch(31, -0.7, 0.7, 1), AffineSearch(31, -1.2, 0.4, 4)

_SPREAD = np.float32(0.01)
"""The least variance of codes, against their mean square, for which sums in float32 are trusted."""

_MISFIT = np.float32(2e-5)
"""Likewise the least sum of squares of errors, against that of weights. Rounding to 5 bits leaves 3e-4."""


def q4_k(values: NDArray[Any], importance: FloatArray | None = None) -> Blocks:
    """Quantizes to 4 bits above a minimum.

    Args:
        values: float32, float16 or bfloat16, shape (rows, columns).
        importance: What the error of a weight counts, by its column: shape (columns,), 0 or more.
    """
    steps = _Q4_K if importance is None else _Q4_K_BY_IMPORTANCE
    return affine_blocks(values, importance, Q4_K, _searches(steps))


def q5_k(values: NDArray[Any], importance: FloatArray | None = None) -> Blocks:
    """Quantizes to 5 bits above a minimum; arguments as of `q4_k`."""
    steps = _Q5_K if importance is None else _Q5_K_BY_IMPORTANCE
    return affine_blocks(values, importance, Q5_K, _searches(steps))


def _searches(steps: AffineSearch) -> Searches:
    """The exact ones, but for the scales and minima of sub-blocks."""
    return IN_NUMPY._replace(affine=partial(_fit, steps))


@unbuffered
def _fit(steps: AffineSearch, x: FloatArray, weights: FloatArray, exact: AffineSearch) -> AffineFit:
    """Scales and minima of small weighted error.

    Args:
        steps: The candidates.
        x: Shape (size, n).
        weights: What an error counts, same shape.
        exact: The candidates for groups that are left to `fit_affine`.
    """
    result = AffineFit(*np.empty((4, x.shape[1]), np.float32))
    for part, x_part, weights_part in parts(x, weights):
        search = _Search(x_part, weights_part, steps.limit)
        for span in steps.spans():
            search.first(span)
        search.again()
        fit, left = search.fit, search.left()
        if left.size:
            few = fit_affine(x_part.take(left, axis=1), weights_part.take(left, axis=1), exact)
            for values, corrected in zip(fit, few, strict=True):
                values[left] = corrected
        for whole, values in zip(result, fit, strict=True):
            whole[part] = values
    return result


class _Search:
    """The best fit so far of each group, one value per group in every array."""

    def __init__(self, x: FloatArray, weights: FloatArray, limit: int) -> None:
        self.x, self.weights = x, weights
        self.low = np.minimum(x.min(axis=0), np.float32(0))
        self.span = x.max(axis=0) - self.low
        self.rounding, self.limit = Rounding(x.shape[1], 0, limit), limit
        self.above, self.weighted, self.codes, self.products = (
            scratch(name, x.shape, np.float32) for name in ("above", "weighted", "codes", "products")
        )
        np.subtract(x, self.low, out=self.above)
        np.multiply(weights, self.above, out=self.weighted)
        self.weight, self.weight_x = total(weights), total(self.weighted)
        # A group of one value has scale 0.
        scale, inverse = np.zeros_like(self.low), np.zeros_like(self.low)
        self.fit = AffineFit(scale, self.low.copy(), inverse, self.low.copy())
        self.best = np.full(self.low.shape, -np.inf, np.float32)

    def first(self, codes_spanned: np.float32) -> None:
        """Tries codes of which the range of a group spans so many."""
        inverse = codes_spanned / self.span
        np.multiply(self.above, inverse, out=self.codes)
        self.rounding(self.codes, below=False, above=bool(codes_spanned > self.limit + 0.49))
        self._solve(inverse, self.low)

    def again(self) -> None:
        """Tries the codes nearest under the best scale and minimum."""
        inverse, low = np.float32(1) / self.fit.scale, self.fit.low.copy()
        np.subtract(self.x, low, out=self.codes)
        self.codes *= inverse
        self.rounding(self.codes, below=True, above=True)
        self._solve(inverse, low)

    def left(self) -> NDArray[np.intp]:
        """The groups for which nothing was found that is to be trusted."""
        squares = dot(self.weighted, self.above)
        trusted = squares - self.best > _MISFIT * squares
        trusted &= np.isfinite(self.best)
        return np.flatnonzero(~trusted & (self.span != 0))

    def _solve(self, inverse: FloatArray, shift: FloatArray) -> None:
        """Finds the best scale and minimum for the codes, and keeps them if they are the best so far."""
        np.multiply(self.weights, self.codes, out=self.products)
        sum_l, sum_l2 = total(self.products), dot(self.products, self.codes)
        sum_lx = dot(self.weighted, self.codes)
        square = self.weight * sum_l2
        determinant = square - sum_l * sum_l
        scale: FloatArray = np.divide(self.weight * sum_lx - self.weight_x * sum_l, determinant)
        low: FloatArray = np.divide(sum_l2 * self.weight_x - sum_l * sum_lx, determinant)
        gain = scale * sum_lx + low * self.weight_x
        low += self.low
        above = np.flatnonzero(low > 0)
        if (
            above.size
        ):  # The minimum is to be 0; what is gained is counted from the lowest weight all the same.
            at, l, l2, lx = self.low[above], sum_l[above], sum_l2[above], sum_lx[above]
            from_zero = lx + at * l
            scale[above], low[above] = from_zero / l2, 0
            gain[above] = from_zero * from_zero / l2 - at * (
                2 * self.weight_x[above] + at * self.weight[above]
            )
        better = np.flatnonzero((gain > self.best) & (determinant > _SPREAD * square) & np.isfinite(gain))
        self.best[better] = gain[better]
        for values, found in zip(self.fit, AffineFit(scale, low, inverse, shift), strict=True):
            values[better] = found[better]
