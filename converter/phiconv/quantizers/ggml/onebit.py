"""llama.cpp's quantizers to a grid of ternary numbers: IQ1_S and IQ1_M.

The formulas are those of ``quantize_row_iq1_*_impl`` in ggml-quants.c, in float32 and in its order of
operations. The weights that share a sub-scale, 32 or 16, are split into three by size (see `splits`). Eight
neighbours that are then no point of the grid go to a point nearby. Weight i of all such groups of weights is
a row of memory here, and the groups are the columns.

Zeros beside other weights do not stay zeros: ggml gives a group of them the first point of the grid, which is
eight times -1, and the smallest sub-scale. So it is here.

One thing is not as in ggml: where sums of a group overflow (weights from about 1e13 on), it stops the process
or takes the group for zeros. Here the scale of the block is infinite then.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from phiconv.ir import F16, Blocks
from phiconv.ir.codebooks import IQ1_M, IQ1_S
from phiconv.quantizers.ggml.neighbours import Grid, grid_of
from phiconv.quantizers.ggml.rounding import nearest
from phiconv.quantizers.ggml.splits import MINUS, PLUS, best_split
from phiconv.quantizers.ggml.sub_blocks import error_weights, groups
from phiconv.quantizers.numerics.floats import narrow, widen
from phiconv.quantizers.numerics.tiles import column_sums

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from phiconv.ir import FloatArray
    from phiconv.ir.codebooks import CodebookEncoding

__all__ = ["iq1_m", "iq1_s"]

_CHUNK = 256
"""Blocks at a time."""

_DISTANCES = 3
"""Points at so many different distances are looked at."""

_POINTS = 2048
"""Of the grid, without shifts."""

_LAST = 7
"""The largest sub-scale, before it is made odd."""

_LEAST = {IQ1_S: np.float32(1e-12), IQ1_M: np.float32(1e-7)}
"""A group whose weights are all smaller counts as zeros."""

_FACTOR = {IQ1_S: np.float32(1.125), IQ1_M: np.float32(1.1125)}
"""Of the scale of the block; ggml's own finding."""


class _Fit(NamedTuple):
    """What was found for groups of weights.

    Attributes:
        points: Numbers of points of `_grid`, intp, shape (size / 8, m).
        scale: float32, shape (m,), 0 or more.
    """

    points: NDArray[np.intp]
    scale: FloatArray


def iq1_s(values: NDArray[Any], importance: FloatArray | None = None) -> Blocks:
    """Quantizes to IQ1_S, see `_quantize`; ggml asks for importance here."""
    return _quantize(values, importance, IQ1_S)


def iq1_m(values: NDArray[Any], importance: FloatArray | None = None) -> Blocks:
    """Quantizes to IQ1_M, see `_quantize`."""
    return _quantize(values, importance, IQ1_M)


@np.errstate(all="ignore")
def _quantize(values: NDArray[Any], importance: FloatArray | None, encoding: CodebookEncoding) -> Blocks:
    """Quantizes a tile.

    Args:
        values: float32, float16 or bfloat16, shape (rows, columns).
        importance: What an error in a column counts, shape (columns,); if None, errors count by the square of
            the weight.
        encoding: IQ1_S or IQ1_M.
    """
    size, sub = encoding.block_size, encoding.sub_block_size
    blocks = values.reshape(-1, size)
    count = len(blocks)
    codes = np.empty((size // 4, count, 4), np.uint8)
    scales, sub_scales = np.empty(count, np.float32), np.empty((size // sub, count), np.int8)
    for start in range(0, count, _CHUNK):
        part = slice(start, min(start + _CHUNK, count))
        block = np.ascontiguousarray(widen(blocks[part]))
        x, weights = groups(block, sub), error_weights(block, importance, start, sub)
        fit = _fit(x, weights, encoding)
        per_block = fit.scale.reshape(-1, size // sub)
        largest = per_block.max(axis=1)
        step = largest / np.float32(15)
        halved = nearest((per_block * (1 / step)[:, None] - 1) * np.float32(0.5)).clip(0, _LAST)
        if encoding == IQ1_M:
            step = _refined(x, weights, fit, halved.reshape(-1), step)
        zero = largest == 0
        step[zero], halved[zero] = 0, 0
        fit.points[:, np.repeat(zero, size // sub)] %= _POINTS
        sub_scales[:, part] = 2 * halved.T + 1
        scales[part] = step * _FACTOR[encoding]
        codes[:, part] = _codes(fit)
        scales[part][~(np.isfinite(block).all(axis=1) & np.isfinite(largest))] = np.inf
    return Blocks(encoding, codes, narrow(scales, F16), sub_scales=sub_scales)


@cache
def _grid() -> Grid:
    """The grid twice, as its points are shifted up and, after these, down. So are the keys."""
    grid = grid_of(IQ1_S, _DISTANCES)
    return Grid(
        levels=grid.levels,
        length=grid.length,
        codes=np.concatenate([grid.codes, grid.codes | 4]),
        values=np.concatenate([PLUS[grid.codes], MINUS[grid.codes]]),
        numbers=np.concatenate([grid.numbers, np.where(grid.numbers < 0, -1, grid.numbers + _POINTS)]),
        counts=np.tile(grid.counts, 2),
        first=np.concatenate([grid.first, grid.first + len(grid.neighbours)]),
        neighbours=np.concatenate([grid.neighbours, grid.neighbours + _POINTS]),
    )


def _fit(x: FloatArray, weights: FloatArray, encoding: CodebookEncoding) -> _Fit:
    """Points and scales of groups, each a column of weights; of zeros the first point and scale 0."""
    size, m = x.shape
    fit = _Fit(np.zeros((size // 8, m), np.intp), np.zeros(m, np.float32))
    live = np.flatnonzero((np.abs(x).max(axis=0) >= _LEAST[encoding]) & (weights.max(axis=0) > 0))
    if not live.size:
        return fit
    if live.size < m:
        x, weights = x.take(live, axis=1), weights.take(live, axis=1)
    codes, down, scale = best_split(x, weights, halves=encoding == IQ1_M)
    negative = scale < 0
    np.subtract(2, codes, out=codes, where=negative)
    down ^= negative
    np.abs(scale, out=scale)
    points, moved = _to_grid(codes, np.repeat(down, size // 16, axis=0), x, weights, scale)
    q = _values(points)
    weighted = weights * q
    product, square = column_sums(weighted * x), column_sums(weighted * q)
    np.divide(product, square, out=scale, where=moved & (product > 0) & (square > 0))
    fit.points[:, live], fit.scale[live] = points, scale
    return fit


def _to_grid(
    codes: NDArray[np.uint8], down: NDArray[np.bool_], x: FloatArray, weights: FloatArray, scale: FloatArray
) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
    """The numbers of the points, (size / 8, m), and which groups had codes that are no points, (m,)."""
    grid, m = _grid(), codes.shape[1]
    keys = down * np.intp(len(grid.numbers) // 2)
    for i in range(8):
        keys += codes[i::8] * np.intp(3**i)
    points = grid.numbers.take(keys)
    off = points < 0
    at = np.flatnonzero(off)
    x_off, w_off = (_by_point(values).take(at, axis=0) for values in (x, weights))
    points.reshape(-1)[at] = grid.nearest(keys.reshape(-1)[at], x_off, w_off, scale[at % m])
    return points, np.asarray(off.any(axis=0))


def _by_point(x: FloatArray) -> FloatArray:
    """Columns (size, m) as a row for every eight, (size / 8 m, 8)."""
    return np.ascontiguousarray(x.reshape(-1, 8, x.shape[1]).transpose(0, 2, 1)).reshape(-1, 8)


def _values(points: NDArray[np.intp]) -> FloatArray:
    """The values of points, as columns (size, m)."""
    values = _grid().values.T
    q = np.empty((len(points), 8, points.shape[1]), np.float32)
    for i in range(8):
        values[i].take(points, out=q[:, i], mode="clip")
    return q.reshape(-1, points.shape[1])


def _refined(
    x: FloatArray, weights: FloatArray, fit: _Fit, halved: NDArray[np.int32], step: FloatArray
) -> FloatArray:
    """The scales of blocks that are best for the codes and sub-scales that were chosen."""
    q = _values(fit.points)
    q *= (2 * halved + 1).astype(np.float32)
    weighted = weights * q
    product, square = (
        column_sums(groups(np.ascontiguousarray(terms.T).reshape(len(step), -1), terms.size // len(step)))
        for terms in (weighted * x, weighted * q)
    )
    return np.divide(product, square, out=step, where=square > 0)


def _codes(fit: _Fit) -> NDArray[np.uint8]:
    """The codes of groups, quads first."""
    codes = _grid().codes[fit.points]  # (size / 8, m, 8)
    subs = 32 // len(codes)
    return codes.reshape(len(codes), -1, subs, 2, 4).transpose(2, 0, 3, 1, 4).reshape(64, -1, 4)
