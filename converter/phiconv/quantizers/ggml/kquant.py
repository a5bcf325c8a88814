"""llama.cpp's K-quants: 256 weights, in sub-blocks of 16 or 32 whose scales are small integers.

The formulas are those of ``quantize_row_q*_K_ref`` (and ``_impl``, with importance weights) in ggml-quants.c,
in float32 and in its order of operations, so that all bytes are the very ones that the released x86-64
builds of llama.cpp produce. Every quantizer finds a scale (and a minimum) for each sub-block by a search of
`search` or `descent`, rounds these to integers under a float16 of the block, and then takes the codes that
are nearest under the rounded scales.

A tile is laid out *elements first*: ``x[e, s, b]`` is weight ``e`` of sub-block ``s`` of block ``b``.

A weight that is not finite, or a scale beyond float16, gives a scale or a minimum that is not finite, and no
warning: it is for the caller to look.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np

from phiconv.ir import F16, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K, Blocks, SuperBlockEncoding
from phiconv.quantizers.ggml.elements import elements, spread_importance, to_quads
from phiconv.quantizers.ggml.rounding import nearest
from phiconv.quantizers.ggml.search import TINY, AffineSearch, extreme, total
from phiconv.quantizers.ggml.searches import IN_NUMPY, Searches
from phiconv.quantizers.numerics.floats import narrow, widen
from phiconv.quantizers.numerics.scratch import scratch

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from phiconv.ir import FloatArray
    from phiconv.quantizers.ggml.search import AffineFit, LinearFit

__all__ = ["affine_blocks", "q2_k", "q3_k", "q4_k", "q5_k", "q6_k"]

_Number = TypeVar("_Number", bound=np.generic)


def q2_k(values: NDArray[Any], importance: FloatArray | None = None, searches: Searches = IN_NUMPY) -> Blocks:
    """Quantizes to 2 bits above a minimum.

    Args:
        values: float32, float16 or bfloat16, shape (rows, columns); so for all quantizers here.
        importance: What the error of a weight counts, by its column: shape (columns,), 0 or more.
        searches: What finds scales and minima.
    """
    return affine_blocks(values, importance, Q2_K, searches)


def q4_k(values: NDArray[Any], importance: FloatArray | None = None, searches: Searches = IN_NUMPY) -> Blocks:
    """Quantizes to 4 bits above a minimum."""
    return affine_blocks(values, importance, Q4_K, searches)


def q5_k(values: NDArray[Any], importance: FloatArray | None = None, searches: Searches = IN_NUMPY) -> Blocks:
    """Quantizes to 5 bits above a minimum."""
    return affine_blocks(values, importance, Q5_K, searches)


@np.errstate(all="ignore")
def q3_k(values: NDArray[Any], importance: FloatArray | None = None, searches: Searches = IN_NUMPY) -> Blocks:
    """Quantizes to 3 bits around code 4."""
    x = _elements(values, Q3_K)
    if importance is None:
        found: Callable[[NDArray[np.intp]], NDArray[Any]]
        fitted, codes = searches.descent(_groups(x), Q3_K.offset)
        found = partial(_taken, codes)
        scales = fitted.reshape(x.shape[1:])
        largest = extreme(scales)
        inverse = np.float32(-32) / largest
        sub_scales = nearest(inverse * scales)
        np.clip(sub_scales, -32, 31, out=sub_scales)
        sub_scales[:, largest == 0] = -32
        scale = np.where(largest == 0, np.float32(0), 1 / inverse)
    else:
        weights = _importance(x, values, importance, Q3_K, 2)
        fit = searches.linear(_groups(x), _groups(weights), Q3_K.offset)
        found = partial(_searched, x, fit, Q3_K.offset)
        scales = fit.scale.reshape(x.shape[1:])
        outer = searches.linear(scales, total(weights), 32)
        sub_scales, scale = outer.codes(scales, 32) - 32, outer.scale
    return _linear_blocks(x, Q3_K, scale, sub_scales, found)


@np.errstate(all="ignore")
def q6_k(values: NDArray[Any], importance: FloatArray | None = None, searches: Searches = IN_NUMPY) -> Blocks:
    """Quantizes to 6 bits around code 32."""
    x = _elements(values, Q6_K)
    if importance is None:
        weights = np.multiply(x, x, out=scratch("weights", x.shape, np.float32))
    else:
        weights = _spread_importance(values, importance, Q6_K)
    fit = searches.linear(_groups(x), _groups(weights), Q6_K.offset)
    scales = fit.scale.reshape(x.shape[1:])
    largest = extreme(scales)
    inverse = np.float32(-128) / largest
    sub_scales = np.minimum(nearest(inverse * scales), 127)
    zero = np.abs(largest) < TINY
    sub_scales[:, zero] = 0
    scale = np.where(zero, np.float32(0), 1 / inverse)
    fit = fit._replace(zero=fit.zero | np.tile(zero, Q6_K.sub_blocks))
    found = partial(_searched, x, fit, Q6_K.offset)
    return _linear_blocks(x, Q6_K, scale, sub_scales, found)


class _Rounded(NamedTuple):
    """Scales or minima of sub-blocks as integers, and the block's number that these multiply."""

    unit: FloatArray
    integers: NDArray[np.uint8]


_SEARCHES = {
    Q2_K: AffineSearch(3, -0.5, 0.1, 15, absolute=True),
    Q4_K: AffineSearch(15, -1, 0.1, 20),
    Q5_K: AffineSearch(31, -0.5, 0.1, 15),
}
"""What ``quantize_row_q*_K_ref`` tries; with importance weights it is the same for all."""


@np.errstate(all="ignore")
def affine_blocks(
    values: NDArray[Any],
    importance: FloatArray | None,
    encoding: SuperBlockEncoding,
    searches: Searches = IN_NUMPY,
) -> Blocks:
    """Quantizes to an encoding with minima.

    Args:
        values: As for all quantizers here.
        importance: Likewise.
        encoding: Q2_K, Q4_K or Q5_K.
        searches: What finds scales and minima. The weights of the errors that they get, and all that
            follows on them, are ggml's.
    """
    x = _elements(values, encoding)
    search = _SEARCHES[encoding]
    limit = (1 << encoding.scale_bits) - 1
    if importance is None:
        weights = _magnitudes(x, encoding)
        fit = searches.affine(_groups(x), _groups(weights), search)
        scales, minima = (_round_to_largest(v.reshape(x.shape[1:]), limit) for v in (fit.scale, -fit.low))
    else:
        weights = _importance(x, values, importance, encoding, 1 if encoding == Q2_K else 2)
        fit = searches.affine(_groups(x), _groups(weights), AffineSearch(search.limit, -0.9, 0.05, 36))
        counts = total(weights)
        scales, minima = (
            _Rounded(*searches.positive(v.reshape(x.shape[1:]), counts, limit)) for v in (fit.scale, -fit.low)
        )
    scale, minimum = narrow(scales.unit, F16), narrow(minima.unit, F16)
    sub_scales, sub_minima = _as_stored(scales.integers, minima.integers, encoding, importance is None)
    factors = widen(scale) * sub_scales
    unused = np.flatnonzero(factors == 0)
    found = _searched(x, fit, search.limit, unused)
    x += widen(minimum) * sub_minima
    codes = _nearest_codes(x, factors, 0, search.limit)
    _groups(codes)[:, unused] = found
    return Blocks(encoding, to_quads(codes), scale, minimum, sub_scales, sub_minima)


def _linear_blocks(
    x: FloatArray,
    encoding: SuperBlockEncoding,
    scale: FloatArray,
    sub_scales: NDArray[np.int32],
    found: Callable[[NDArray[np.intp]], NDArray[Any]],
) -> Blocks:
    """Blocks with given scales; ``found`` gives the codes that the search found, of some groups."""
    half = narrow(scale, F16)
    factors = widen(half) * sub_scales.astype(np.float32)
    unused = np.flatnonzero(factors == 0)
    kept = found(unused)
    codes = _nearest_codes(x, factors, -encoding.offset, encoding.offset - 1)
    _groups(codes)[:, unused] = kept
    return Blocks(encoding, to_quads(codes), half, None, sub_scales.astype(np.int8))


def _taken(codes: FloatArray, groups: NDArray[np.intp]) -> FloatArray:
    """The codes of some groups."""
    return codes[:, groups]


def _searched(
    x: FloatArray, fit: LinearFit | AffineFit, limit: int, groups: NDArray[np.intp]
) -> NDArray[np.int32]:
    """The codes that a search found, of some groups: shape (size, k)."""
    return fit.at(groups).codes(_groups(x).take(groups, axis=1), limit)


def _nearest_codes(x: FloatArray, factors: FloatArray, low: int, high: int) -> NDArray[np.int32]:
    """The codes nearest under the rounded scales, in the memory of ``x``; the lowest one counts as 0."""
    codes = nearest(np.divide(x, factors, out=x))
    np.clip(codes, low, high, out=codes)
    if low:
        codes -= low
    return codes


def _round_to_largest(numbers: FloatArray, limit: int) -> _Rounded:
    """Rounds numbers of sub-blocks so that the block's largest one is the largest integer."""
    largest = np.maximum(numbers.max(axis=0), np.float32(0))
    inverse = np.where(largest > 0, np.float32(limit) / largest, np.float32(0))
    integers = nearest(inverse * numbers).astype(np.uint8)
    return _Rounded(largest / np.float32(limit), integers)


def _as_stored(
    scales: NDArray[np.uint8], minima: NDArray[np.uint8], encoding: SuperBlockEncoding, plain: bool
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """What ggml's blocks hold: a negative scale, there a large byte, is cut off or spills into others.

    A negative scale can only be best where most of a sub-block has no importance.
    """
    if encoding == Q2_K:
        return scales & np.uint8(15), minima | scales >> np.uint8(4)
    if encoding == Q5_K or plain:
        return np.minimum(scales, np.uint8(63)), np.minimum(minima, np.uint8(63))
    first, second = scales[:4], scales[4:]
    above = (second >> np.uint8(4) | first >> np.uint8(6)) & np.uint8(3)
    return np.concatenate([first & np.uint8(63), second & np.uint8(15) | above << np.uint8(4)]), minima


def _elements(values: NDArray[Any], encoding: SuperBlockEncoding) -> FloatArray:
    return elements(values, encoding.sub_block_size, encoding.sub_blocks, "values")


def _groups(x: NDArray[_Number]) -> NDArray[_Number]:
    """A tile (size, sub-blocks, n) with all sub-blocks side by side, (size, sub-blocks * n)."""
    return x.reshape(len(x), -1)


# ------------------------------------------------------------------------------------------------ weights


def _magnitudes(x: FloatArray, encoding: SuperBlockEncoding) -> FloatArray:
    """What an error counts without importance weights: |x|, plus a mean of its sub-block but for 2 bits."""
    weights = scratch("weights", x.shape, np.float32)
    if encoding == Q2_K:
        return np.abs(x, out=weights)
    squares = total(np.multiply(x, x, out=weights))
    average = np.sqrt(squares / np.float32(encoding.sub_block_size))
    np.abs(x, out=weights)
    weights += average
    return weights


def _spread_importance(
    values: NDArray[Any], importance: FloatArray, encoding: SuperBlockEncoding
) -> FloatArray:
    size, parts = encoding.sub_block_size, encoding.sub_blocks
    return spread_importance(importance, values.shape, size, parts, "weights")


def _importance(
    x: FloatArray, values: NDArray[Any], importance: FloatArray, encoding: SuperBlockEncoding, factor: int
) -> FloatArray:
    """What an error counts: importance * sqrt(factor * the mean of the block's squares + x**2)."""
    weights = _spread_importance(values, importance, encoding)
    squares = np.multiply(x, x, out=scratch("squares", x.shape, np.float32))
    total = np.zeros(x.shape[2], np.float32)
    for part in range(x.shape[1]):
        for element in squares[:, part]:
            total += element
    squares += np.float32(factor) * total / np.float32(encoding.block_size)
    weights *= np.sqrt(squares, out=squares)
    return weights
