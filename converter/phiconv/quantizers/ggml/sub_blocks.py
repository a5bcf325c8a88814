"""The layout of quantizers to points of a grid: the weights that share a sub-scale are a column."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from phiconv.quantizers.numerics.tiles import column_sums

if TYPE_CHECKING:
    from phiconv.ir import FloatArray

__all__ = ["error_weights", "groups"]


def groups(x: FloatArray, size: int) -> FloatArray:
    """The weights of blocks (n, block_size) as columns that share a sub-scale: (size, m), C-contiguous."""
    return np.ascontiguousarray(x.reshape(-1, size).T)


def error_weights(
    x: FloatArray,
    importance: FloatArray | None,
    start: int,
    size: int,
    *,
    factor: float = 2,
    unweighted_share: float = 0,
) -> FloatArray:
    """What an error in every weight counts: ``importance * sqrt(factor * mean of squares + x**2)``.

    Without importance it is ``x**2``, and a share of the mean in some types.

    Args:
        x: Blocks, shape (n, block_size).
        importance: Shape (columns,), a row of blocks; or None.
        start: The number of the first block in the tile, counted from the beginning of a row.
        size: Weights that share a sub-scale.
        factor: Of the mean square of the block.
        unweighted_share: Of that product, added where there is no importance.

    Returns:
        As `groups`.
    """
    block_size = x.shape[1]
    squares = x * x
    mean = column_sums(np.ascontiguousarray(squares.T)) * np.float32(factor / block_size)
    mean = np.repeat(mean, block_size // size)
    weights = groups(squares, size)
    if importance is None:
        if unweighted_share:
            weights += np.float32(unweighted_share) * mean
        return weights
    weights += mean
    np.sqrt(weights, out=weights)
    columns = importance.reshape(-1, block_size)
    columns = columns[np.arange(start, start + len(x)) % len(columns)]
    weights *= groups(columns, size)
    return weights
