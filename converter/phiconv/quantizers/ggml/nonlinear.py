"""llama.cpp's quantizers to 16 values at uneven distances: IQ4_NL and IQ4_XS.

The search for a scale is ``quantize_row_iq4_nl_impl`` of ggml-quants.c in float32 and in its order of
operations: 16 scales are tried on every 32 weights, and of the best one the scale with the least weighted
squared error is taken. Sums run along the 32 weights one after the other, for many blocks at once: weight j
of all blocks is a row of memory here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from phiconv.ir import F16, IQ4_NL, IQ4_XS, Blocks
from phiconv.quantizers.numerics.floats import narrow, widen
from phiconv.quantizers.numerics.scratch import scratch
from phiconv.quantizers.numerics.tiles import column_sums

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from phiconv.ir import CodebookEncoding, FloatArray

__all__ = ["iq4_nl", "iq4_xs"]

_SUB = 32
"""Weights that share a scale."""

_CHUNK = 1024
"""Blocks at a time: what the search for the scales of 32 weights of each needs is in a core's own cache."""

_TRIES = 7
_TOO_SMALL = np.float32(1e-15)

_VALUES = np.array(IQ4_NL.table, np.float32)
_LEAST = np.float32(_VALUES[0])

# Codes of numbers by ``floor(2 x) + 270``: neighbours are halved at a whole number of halves, and what lies
# there goes to the upper one. A weight times any scale that is tried is less than 134.5 in magnitude.
_OFFSET = 270
_CODES = np.searchsorted(_VALUES[1:] + _VALUES[:-1], np.arange(-_OFFSET, _OFFSET), side="right").astype(
    np.uint8
)
_NEAREST = _VALUES[_CODES]


@np.errstate(all="ignore")
def iq4_nl(values: NDArray[Any], importance: FloatArray | None = None) -> Blocks:
    """Quantizes 32 weights with a float16 scale; the codes come from the scale in float32.

    Args:
        values: float32, float16 or bfloat16, shape (rows, columns).
        importance: What an error in a column counts, shape (columns,); if None, every error counts by the
            square of its weight.
    """
    codes, scales = _empty(values, IQ4_NL)
    for part, x, weights in _parts(values, _SUB, importance):
        scale = _search(x, weights)
        scales[part] = scale
        _encode(x, _reciprocal(scale), codes[:, part])
    return Blocks(IQ4_NL, codes, narrow(scales, F16))


@np.errstate(all="ignore")
def iq4_xs(values: NDArray[Any], importance: FloatArray | None = None) -> Blocks:
    """Quantizes 256 weights with a float16 scale and every 32 with an integer scale of 6 bits.

    Args:
        values: As of `iq4_nl`.
        importance: As of `iq4_nl`.
    """
    codes, scales = _empty(values, IQ4_XS)
    groups = IQ4_XS.block_size // _SUB
    sub_scales = np.empty((groups, len(scales)), np.int8)
    for part, x, weights in _parts(values, IQ4_XS.block_size, importance):
        rows = [slice(g * _SUB, (g + 1) * _SUB) for g in range(groups)]
        found = np.stack([_search(x[r], weights[r]) for r in rows]) + np.float32(0)  # a positive zero
        largest = np.take_along_axis(found, np.abs(found).argmax(axis=0)[None], axis=0)[0]
        scale = -largest / np.float32(32)
        rounded = np.rint(found * _reciprocal(scale)).clip(-32, 31)
        scales[part], sub_scales[:, part] = scale, rounded
        inverse = _reciprocal(scale * rounded)
        for g, r in enumerate(rows):
            _encode(x[r], inverse[g], codes[g * _SUB // 4 : (g + 1) * _SUB // 4, part])
    return Blocks(IQ4_XS, codes, narrow(scales, F16), sub_scales=sub_scales)


def _empty(values: NDArray[Any], encoding: CodebookEncoding) -> tuple[NDArray[np.uint8], FloatArray]:
    """Memory for the codes and the scales of a tile."""
    count = values.size // encoding.block_size
    return np.empty((encoding.block_size // 4, count, 4), np.uint8), np.empty(count, np.float32)


def _parts(
    values: NDArray[Any], size: int, importance: FloatArray | None
) -> Iterator[tuple[slice, FloatArray, FloatArray]]:
    """The blocks of a tile, some at a time: which, their weights, and what an error in each counts.

    Both are of shape (size, blocks), in memory that the next part takes.
    """
    blocks = values.reshape(-1, size)
    columns = None if importance is None else importance.reshape(-1, size)
    for start in range(0, len(blocks), _CHUNK):
        part = slice(start, min(start + _CHUNK, len(blocks)))
        x, weights = scratch("nonlinear_part", (2, size, part.stop - start), np.float32)
        np.copyto(x, widen(blocks[part]).T)
        np.multiply(x, x, out=weights)
        if columns is not None:
            mean = column_sums(weights)
            mean *= np.float32(2 / size)
            weights += mean
            np.sqrt(weights, out=weights)
            weights *= columns[np.arange(start, part.stop) % len(columns)].T
        yield part, x, weights


def _search(x: FloatArray, weights: FloatArray) -> FloatArray:
    """The scale of every group, (32, n) to (n,), of which the weighted squared error is the least."""
    extreme = _extreme(x)
    magnitude = np.abs(extreme)
    extreme[magnitude < _TOO_SMALL] = 1
    product, square = _sums(x, weights, np.float32(1) / (-extreme / _LEAST))
    scale = np.where(square > 0, product / square, np.float32(0))
    best = scale * product
    for step in range(-_TRIES, _TRIES + 1):
        product, square = _sums(x, weights, np.float32(step - 127) / extreme)
        better = (square > 0) & (product * product > best * square)
        np.divide(product, square, out=scale, where=better)
        np.multiply(scale, product, out=best, where=better)
    scale[magnitude < _TOO_SMALL] = 0
    np.copyto(scale, magnitude, where=~np.isfinite(magnitude))
    return scale


def _sums(x: FloatArray, weights: FloatArray, inverse: FloatArray) -> tuple[FloatArray, FloatArray]:
    """With the values ``q`` nearest to ``x * inverse``, the sums of ``weight q x`` and of ``weight q q``."""
    y, q = scratch("nonlinear_sums", (2, *x.shape), np.float32)
    indices = scratch("nonlinear_indices", x.shape, np.intp)
    np.multiply(x, 2 * inverse, out=y)
    np.floor(y, out=y)
    y += _OFFSET
    np.copyto(indices, y, casting="unsafe")
    _NEAREST.take(indices, mode="clip", out=q)  # any mode but the default one writes without a copy
    np.multiply(weights, q, out=y)
    q *= y
    y *= x
    return column_sums(y), column_sums(q)


def _encode(x: FloatArray, inverse: FloatArray, out: NDArray[np.uint8]) -> None:
    """The codes nearest to ``x * inverse``, (32, n) to (8, n, 4)."""
    y = scratch("nonlinear_sums", x.shape, np.float32)
    indices = scratch("nonlinear_indices", x.shape, np.intp)
    np.multiply(x, inverse, out=y)
    if not np.isfinite(inverse).all():
        y[np.isnan(y)] = _OFFSET  # C finds the last code for what is no number
    y += y
    np.floor(y, out=y)
    y += _OFFSET
    np.clip(y, np.float32(0), np.float32(2 * _OFFSET - 1), out=y)
    np.copyto(indices, y, casting="unsafe")
    codes = _CODES.take(indices, mode="clip", out=scratch("nonlinear_codes", x.shape, np.uint8))
    np.copyto(out, codes.reshape(-1, 4, x.shape[1]).transpose(0, 2, 1))


def _extreme(x: FloatArray) -> FloatArray:
    """The weight of largest magnitude with its sign, the first one of equals: (32, n) to (n,)."""
    high, low = x.max(axis=0), x.min(axis=0)
    extreme: FloatArray = np.where(high > -low, high, low)
    ties = np.flatnonzero((high == -low) & (high > 0))
    if ties.size:
        columns = x[:, ties]
        extreme[ties] = columns[np.abs(columns).argmax(axis=0), np.arange(ties.size)]
    return extreme


def _reciprocal(scale: FloatArray) -> FloatArray:
    """``1 / scale``, and 0 for a scale of 0."""
    inverse = np.zeros_like(scale)
    return np.divide(1, scale, out=inverse, where=scale != 0)
