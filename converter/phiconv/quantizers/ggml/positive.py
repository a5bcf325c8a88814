"""llama.cpp's search for a scale of weights that are not negative (``make_qp_quants`` of ggml-quants.c)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from phiconv.quantizers.numerics.tiles import column_sums

if TYPE_CHECKING:
    from phiconv.ir import FloatArray

__all__ = ["positive_scale"]

_TRIES = 4
_SWEEPS = 5
_TOO_SMALL = np.float32(1e-15)


def positive_scale(x: FloatArray, weights: FloatArray, last: int) -> FloatArray:
    """The scales with which columns round to 0 to ``last`` with the least weighted squared error.

    Some scales are tried, and from the best one on a code is changed at a time, as long as that helps.

    Args:
        x: Shape (k, n), C-contiguous. Some may be negative, to which ggml gives a code 256 too large.
        weights: What an error in each counts.
        last: The largest code.

    Returns:
        Shape (n,); 0 where no weight is large enough.
    """
    largest = np.maximum(x.max(axis=0), np.float32(0))
    small = largest < _TOO_SMALL
    largest[small] = 1
    inverse = np.float32(last) / largest
    best = _error(x, weights, inverse, _bytes(np.rint(inverse * x)))
    for i in range(-_TRIES, _TRIES + 1):
        if i:
            tried = (np.float32(0.1) * np.float32(i) + np.float32(last)) / largest
            error = _error(x, weights, tried, np.minimum(np.rint(tried * x), np.float32(last)))
            better = error < best
            np.copyto(best, error, where=better)
            np.copyto(inverse, tried, where=better)
    scale = _improve(x, weights, np.minimum(np.rint(inverse * x), np.float32(last)), last)
    scale[small] = 0
    return scale


def _bytes(codes: FloatArray) -> FloatArray:
    """What is left of integers in a byte."""
    return np.asarray(np.where(codes < 0, codes + 256, codes), np.float32)


def _error(x: FloatArray, weights: FloatArray, inverse: FloatArray, codes: FloatArray) -> FloatArray:
    """The weighted squared error of codes: ``sum(w (x - code / inverse)**2)``."""
    difference = x - np.float32(1) / inverse * codes
    return column_sums(weights * difference * difference)


def _improve(x: FloatArray, weights: FloatArray, codes: FloatArray, last: int) -> FloatArray:
    """The scales of columns after their codes were improved, one after the other."""
    weighted = weights * x
    product, square = column_sums(weighted * codes), column_sums(weights * codes * codes)
    codes = _bytes(codes)
    for _ in range(_SWEEPS):
        changed = False
        for xi, wi, wx, code in zip(x, weights, weighted, codes, strict=True):
            rest, rest_square = product - wx * code, square - wi * code * code
            new = np.minimum(np.rint(xi * rest_square / rest), np.float32(last))
            new_product, new_square = rest + wx * new, rest_square + wi * new * new
            better = new_product * new_product * square > product * product * new_square
            better &= (rest > 0) & (rest_square > 0) & (new != code)
            if better.any():
                changed = True
                np.copyto(code, _bytes(new), where=better)
                np.copyto(product, new_product, where=better)
                np.copyto(square, new_square, where=better)
        if not changed:
            break
    return np.divide(product, square, out=np.zeros_like(product), where=square > 0)
