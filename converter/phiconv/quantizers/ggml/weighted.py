"""llama.cpp's classic quantizers with importance weights: searched scales in place of those of `affine`.

The formulas are those of ``quantize_row_q*_impl`` in ggml-quants.c, as exact as those of `kquant`, whose
layout is used: *elements first*, ``x[e, b]`` is weight ``e`` of block ``b``. Without importance weights ggml
has no search here, and the quantizers are those of `affine`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from phiconv.ir import F16, Q4_0, Q4_1, Q5_0, Q5_1, BlockEncoding, Blocks
from phiconv.quantizers.ggml import affine
from phiconv.quantizers.ggml.elements import elements, spread_importance, to_quads
from phiconv.quantizers.ggml.search import AffineSearch
from phiconv.quantizers.ggml.searches import IN_NUMPY, Searches
from phiconv.quantizers.numerics.floats import narrow, widen

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from phiconv.ir import FloatArray

__all__ = ["q4_0", "q4_1", "q5_0", "q5_1"]


def q4_0(values: NDArray[Any], importance: FloatArray | None = None, searches: Searches = IN_NUMPY) -> Blocks:
    """Quantizes to 4 bits around code 8.

    Args:
        values: float32, float16 or bfloat16, shape (rows, columns); so for all quantizers here.
        importance: What the error of a weight counts, by its column: shape (columns,), 0 or more.
        searches: What finds scales and minima by importance.
    """
    if importance is None:
        return affine.q4_0(values)
    return _symmetric(values, importance, Q4_0, searches)


def q5_0(values: NDArray[Any], importance: FloatArray | None = None, searches: Searches = IN_NUMPY) -> Blocks:
    """Quantizes to 5 bits around code 16."""
    if importance is None:
        return affine.q5_0(values)
    return _symmetric(values, importance, Q5_0, searches)


def q4_1(values: NDArray[Any], importance: FloatArray | None = None, searches: Searches = IN_NUMPY) -> Blocks:
    """Quantizes to 4 bits above a minimum."""
    if importance is None:
        return affine.q4_1(values)
    return _asymmetric(values, importance, Q4_1, searches)


def q5_1(values: NDArray[Any], importance: FloatArray | None = None, searches: Searches = IN_NUMPY) -> Blocks:
    """Quantizes to 5 bits above a minimum."""
    if importance is None:
        return affine.q5_1(values)
    return _asymmetric(values, importance, Q5_1, searches)


@np.errstate(all="ignore")
def _symmetric(
    values: NDArray[Any], importance: FloatArray, encoding: BlockEncoding, searches: Searches
) -> Blocks:
    x, weights = _tile(values, importance, encoding)
    fit = searches.linear(x, weights, encoding.offset)
    codes = fit.codes(x, encoding.offset)
    return Blocks(encoding, to_quads(codes[:, None]), narrow(fit.scale, F16))


@np.errstate(all="ignore")
def _asymmetric(
    values: NDArray[Any], importance: FloatArray, encoding: BlockEncoding, searches: Searches
) -> Blocks:
    x, weights = _tile(values, importance, encoding)
    limit = (1 << encoding.bits) - 1
    fit = searches.affine(x, weights, AffineSearch(limit, -0.9, 0.05, 36))
    codes = fit.codes(x, limit)
    return Blocks(encoding, to_quads(codes[:, None]), narrow(fit.scale, F16), narrow(fit.low, F16))


def _tile(
    values: NDArray[Any], importance: FloatArray, encoding: BlockEncoding
) -> tuple[FloatArray, FloatArray]:
    """The tile, and importance * sqrt(mean of the row's squares + x**2): shape (block_size, n) both."""
    rows, columns = values.shape
    x = elements(values, encoding.block_size, 1, "values")[:, 0]
    weights = spread_importance(importance, values.shape, encoding.block_size, 1, "weights")[:, 0]
    squares = x * x
    in_order = widen(values)
    total = np.add.accumulate(in_order * in_order, axis=1)[:, -1:] if columns else np.empty((rows, 1))
    squares += np.repeat(total[:, 0] / np.float32(columns), columns // encoding.block_size)
    weights *= np.sqrt(squares, out=squares)
    return x, weights
