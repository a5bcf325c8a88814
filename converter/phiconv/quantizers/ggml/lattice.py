"""llama.cpp's quantizers to points of a grid: IQ2_XXS, IQ2_XS, IQ2_S, IQ3_XXS and IQ3_S.

The formulas are those of ``quantize_row_iq2_*_impl`` and ``quantize_row_iq3_*_impl`` in ggml-quants.c, in
float32 and in its order of operations. For the 16 or 32 weights that share a sub-scale, some scales are
tried: every weight is rounded, and 8 (or 4) neighbours that are then no point of the grid go to a point
nearby. The scale with the least weighted squared error is taken. Weight i of all such groups of weights is
a row of memory here, and the groups are the columns.

One thing is not as in ggml: where 32 weights of an IQ3_S block are all 0, it stores the low bits and signs of
the ones behind them in wrong places, and reads other weights back. Here they stand where they belong.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from phiconv.ir import F16, Blocks
from phiconv.ir.codebooks import IQ2_S, IQ2_XS, IQ2_XXS, IQ3_S, IQ3_XXS
from phiconv.quantizers.ggml.neighbours import Grid, grid_of
from phiconv.quantizers.ggml.positive import positive_scale
from phiconv.quantizers.ggml.sub_blocks import error_weights, groups
from phiconv.quantizers.numerics.floats import narrow, widen
from phiconv.quantizers.numerics.scratch import scratch
from phiconv.quantizers.numerics.tiles import column_sums

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from phiconv.ir import FloatArray
    from phiconv.ir.codebooks import CodebookEncoding

__all__ = ["iq2_s", "iq2_xs", "iq2_xxs", "iq3_s", "iq3_xxs"]

_CHUNK = 256
"""Blocks at a time."""

_ROUNDING = np.float32(12582912)
"""1.5 * 2**23: the low bits of its sum with a number are the number, rounded, from 0x400000 on."""


@dataclass(frozen=True, slots=True)
class _Method:
    """What distinguishes the quantizers.

    Attributes:
        encoding: What the blocks are to be.
        neighbours: At how many different distances points are looked for.
        tries: Scales that are tried to either side.
        step: Between two of them.
        least: Weights are 0 where none is as large.
        even: Whether the negative signs of 8 neighbours must be even in number.
        all_again: Whether all weights are rounded again with the best scale; else what was off the grid.
        sigma: The factor of the mean square in the weights of errors.
        factor: Of the scale of the block.
        unweighted_share: Of the mean square in the weights of errors where there is no importance.
    """

    encoding: CodebookEncoding
    neighbours: int
    tries: int
    step: float
    least: float
    even: bool
    all_again: bool
    sigma: float
    factor: float
    unweighted_share: float = 0


_IQ2_XXS = _Method(IQ2_XXS, 2, 6, 0.1, 1e-15, even=True, all_again=True, sigma=1, factor=1)
_IQ2_XS = _Method(IQ2_XS, 2, 9, 0.1, 1e-15, even=True, all_again=False, sigma=1, factor=1)
_IQ2_S = _Method(
    IQ2_S, 1, 9, 0.1, 1e-8, even=False, all_again=False, sigma=2, factor=0.9875, unweighted_share=0.25
)
_IQ3_XXS = _Method(IQ3_XXS, 2, 15, 0.2, 1e-8, even=True, all_again=False, sigma=2, factor=1.0125)
_IQ3_S = _Method(IQ3_S, 3, 9, 0.2, 2.0**-149, even=False, all_again=True, sigma=2, factor=1.033)


def iq2_xxs(values: NDArray[Any], importance: FloatArray | None = None) -> Blocks:
    """Quantizes to IQ2_XXS, see `_quantize`; ggml asks for importance here."""
    return _quantize(values, importance, _IQ2_XXS)


def iq2_xs(values: NDArray[Any], importance: FloatArray | None = None) -> Blocks:
    """Quantizes to IQ2_XS, see `_quantize`; ggml asks for importance here."""
    return _quantize(values, importance, _IQ2_XS)


def iq2_s(values: NDArray[Any], importance: FloatArray | None = None) -> Blocks:
    """Quantizes to IQ2_S, see `_quantize`."""
    return _quantize(values, importance, _IQ2_S)


def iq3_xxs(values: NDArray[Any], importance: FloatArray | None = None) -> Blocks:
    """Quantizes to IQ3_XXS, see `_quantize`."""
    return _quantize(values, importance, _IQ3_XXS)


def iq3_s(values: NDArray[Any], importance: FloatArray | None = None) -> Blocks:
    """Quantizes to IQ3_S, see `_quantize`."""
    return _quantize(values, importance, _IQ3_S)


@np.errstate(all="ignore")
def _quantize(values: NDArray[Any], importance: FloatArray | None, method: _Method) -> Blocks:
    """Quantizes a tile.

    Args:
        values: float32, float16 or bfloat16, shape (rows, columns).
        importance: What an error in a column counts, shape (columns,); if None, ggml's own rule.
        method: How.
    """
    encoding = method.encoding
    blocks = values.reshape(-1, encoding.block_size)
    count, subs = len(blocks), encoding.block_size // encoding.sub_block_size
    codes = np.empty((encoding.block_size // 4, count, 4), np.uint8)
    scales, sub_scales = np.empty(count, np.float32), np.empty((subs, count), np.int8)
    for start in range(0, count, _CHUNK):
        part = slice(start, min(start + _CHUNK, count))
        x = np.ascontiguousarray(widen(blocks[part]))
        weights = error_weights(
            x,
            importance,
            start,
            encoding.sub_block_size,
            factor=method.sigma,
            unweighted_share=method.unweighted_share,
        )
        points, negative, found = _search(groups(x, encoding.sub_block_size), weights, method)
        per_block = found.reshape(-1, subs).T
        largest = per_block.max(axis=0)
        step = largest / np.float32(31)
        rounded = _round((per_block * (1 / step) - 1) * np.float32(0.5), 15)
        sub_scales[:, part] = 2 * np.where(largest > 0, rounded, 0) + 1
        scales[part] = step * np.float32(method.factor)
        codes[:, part] = _codes(points, negative, encoding)
        np.copyto(scales[part], np.abs(x).max(axis=1), where=~np.isfinite(x).all(axis=1))
    return Blocks(encoding, codes, narrow(scales, F16), sub_scales=sub_scales)


def _round(x: FloatArray, last: int) -> NDArray[np.int32]:
    """Rounds to 0 to ``last`` in the memory of ``x``, also what is out of range as C does."""
    x += _ROUNDING
    bits = x.view(np.int32)
    bits &= 0x7FFFFF
    bits -= 0x400000
    return np.clip(bits, np.int32(0), np.int32(last), out=bits)


def _magnitudes(x: FloatArray, weights: FloatArray, method: _Method) -> tuple[FloatArray, NDArray[np.bool_]]:
    """The weights without sign, and which are negative.

    Where their number must be even and is not, the sign of the least important one is changed, and the
    magnitude is negative instead.
    """
    negative = x < 0
    magnitudes = np.abs(x)
    if method.even:
        eights = negative.reshape(-1, 8, x.shape[1])
        k, column = np.nonzero(np.logical_xor.reduce(eights, axis=1))
        cost = (weights * x * x).reshape(eights.shape)[k, :, column]
        flipped = 8 * k + cost.argmin(axis=1), column
        magnitudes[flipped] *= -1
        negative[flipped] ^= True
    return magnitudes, negative


def _search(
    x: FloatArray, weights: FloatArray, method: _Method
) -> tuple[NDArray[np.intp], NDArray[np.bool_], FloatArray]:
    """The points, the signs and the scales of groups of weights.

    Returns:
        The numbers of the points, shape (points of a group, m); which weights are negative, (weights, m); and
        the scales, (m,).
    """
    grid = grid_of(method.encoding, method.neighbours)
    magnitudes, negative = _magnitudes(x, weights, method)
    largest = magnitudes.max(axis=0)
    zero = ~(largest >= np.float32(method.least))
    largest[zero] = 1
    search = _Search(grid, magnitudes, weights)
    last = 2 * grid.levels - 1
    scale, best = largest / np.float32(last), np.zeros_like(largest)
    if method is _IQ2_XXS:
        scale = positive_scale(magnitudes, weights, grid.levels + 1)
        largest = scale * np.float32(grid.levels)
        zero |= largest <= 0
        largest[zero] = 1
    points = np.zeros((len(x) // grid.length, len(scale)), np.intp)
    off_grid = np.full(points.shape, method.all_again)
    for i in range(-method.tries, method.tries + 1):
        inverse = (np.float32(last) + np.float32(i) * np.float32(method.step)) / largest
        tried, off = search.round(inverse, 1 / inverse)
        product, square = search.sums(tried)
        better = (square > 0) & (product * product > best * square)
        np.divide(product, square, out=scale, where=better)
        np.multiply(scale, product, out=best, where=better)
        np.copyto(points, tried, where=better)
        np.copyto(off_grid, off, where=better)
    again = (off_grid.any(axis=0) | (method is _IQ2_XXS)) & (scale > 0)
    tried, _ = search.round(1 / scale, scale)
    np.copyto(points, tried, where=again if method.all_again else again & off_grid)
    product, square = search.sums(points)
    np.divide(product, square, out=scale, where=again & (square > 0))
    negative ^= scale < 0
    scale = np.abs(scale)
    points[:, zero], negative[:, zero], scale[zero] = 0, False, 0
    return points, negative, scale


class _Search:
    """What is the same for all scales that are tried on groups of weights."""

    def __init__(self, grid: Grid, magnitudes: FloatArray, weights: FloatArray) -> None:
        self.grid = grid
        self.magnitudes = magnitudes
        self.weights = weights
        self.weighted = weights * magnitudes
        self.values = np.ascontiguousarray(grid.values.T)
        # The choice of a point nearby is by the square roots of the weights, a point after the other.
        self.rows, self.roots = self._by_point(magnitudes), self._by_point(np.sqrt(weights))

    def _by_point(self, x: FloatArray) -> FloatArray:
        parts = x.reshape(-1, self.grid.length, x.shape[1]).transpose(0, 2, 1)
        return np.ascontiguousarray(parts).reshape(-1, self.grid.length)

    def round(self, inverse: FloatArray, scale: FloatArray) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
        """The points for ``magnitudes * inverse``, and which of them are only nearby."""
        codes = np.multiply(
            self.magnitudes, inverse, out=scratch("lattice", self.magnitudes.shape, np.float32)
        )
        codes -= 1
        codes *= np.float32(0.5)
        length = self.grid.length
        bits = _round(codes, self.grid.levels - 1).reshape(-1, length, codes.shape[1])
        keys = bits[:, length - 1].copy()
        for i in range(length - 2, -1, -1):
            keys *= self.grid.levels
            keys += bits[:, i]
        indices = keys.astype(np.intp)
        points = self.grid.numbers.take(indices)
        off = points < 0
        at = np.flatnonzero(off)
        if at.size:
            rows, roots = self.rows.take(at, axis=0), self.roots.take(at, axis=0)
            keys_off = indices.reshape(-1)[at]
            points.reshape(-1)[at] = self.grid.nearest(keys_off, rows, roots, scale[at % len(scale)])
        return points, off

    def sums(self, points: NDArray[np.intp]) -> tuple[FloatArray, FloatArray]:
        """With the values ``q`` of the points, the sums of ``weight q x`` and of ``weight q q``."""
        q, square = scratch("lattice", (2, *self.magnitudes.shape), np.float32)
        by_point = q.reshape(-1, self.grid.length, q.shape[1])
        for i in range(self.grid.length):
            by_point[:, i] = self.values[i].take(points)
        np.multiply(self.weights, q, out=square)
        square *= q
        q *= self.weighted
        return column_sums(q), column_sums(square)


def _codes(
    points: NDArray[np.intp], negative: NDArray[np.bool_], encoding: CodebookEncoding
) -> NDArray[np.uint8]:
    """The codes of groups, quads first."""
    grid = grid_of(encoding, 0)
    codes = grid.codes[points]  # (points of a group, m, length)
    sign = np.uint8(1 << (3 if grid.length == 4 else 2))
    codes |= negative.reshape(-1, grid.length, points.shape[1]).transpose(0, 2, 1) * sign
    subs = encoding.block_size // encoding.sub_block_size
    parts = codes.reshape(len(points), -1, subs, grid.length // 4, 4)
    return parts.transpose(2, 0, 3, 1, 4).reshape(encoding.block_size // 4, -1, 4)
