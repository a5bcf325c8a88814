"""The quads-first layout of a tile of blocks, and the few operations on it that need care to be fast.

A tile of ``n`` blocks is ``x[i, b, j]``: weight ``4 * i + j`` of block ``b``. An operation on weights is
one long vector operation over all blocks; a reduction over ``i`` leaves four lanes per block, ``[n, 4]``;
and a value per block is spread to four equal lanes to be used against ``x``. Four neighbours move as one
unit, which makes the transposition several times as fast as one weight at a time, and leaves four codes as
one word for a packer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from phiconv.quantizers.numerics.floats import widen
from phiconv.quantizers.numerics.scratch import scratch

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from phiconv.ir import FloatArray

__all__ = [
    "UNITS",
    "block_max",
    "block_min",
    "column_sums",
    "first_equal",
    "from_quads",
    "quads",
    "scratch_quads",
    "spread",
]

UNITS = {2: np.dtype(np.uint64), 4: np.dtype(np.complex128)}
"""A type as wide as four weights, by the bytes of one; only copied, never computed with."""


def quads(values: NDArray[Any], block_size: int, out: FloatArray | None = None) -> FloatArray:
    """Lays a tile out quads first, in float32.

    Args:
        values: float32, float16 or bfloat16, shape (rows, columns); columns is a multiple of ``block_size``.
        block_size: Weights per block, a multiple of 4.
        out: Memory for the result; fresh if None.

    Returns:
        float32, shape (block_size / 4, n, 4), C-contiguous, never memory of ``values``.
    """
    per_block = block_size // 4
    shape = (per_block, values.size // block_size, 4)
    result = np.empty(shape, np.float32) if out is None else out
    unit = UNITS[values.dtype.itemsize]
    units = np.ascontiguousarray(values).reshape(-1).view(unit).reshape(-1, per_block).T
    if values.dtype == np.float32:
        np.copyto(result.view(unit)[..., 0], units)
    else:  # half the bytes are moved before they are widened
        moved = scratch("quads", units.shape, unit)
        np.copyto(moved, units)
        widen(moved.view(values.dtype).reshape(shape), out=result)
    return result


def scratch_quads(values: NDArray[Any], block_size: int) -> FloatArray:
    """`quads` in memory of this thread, to compute in: the next tile overwrites it."""
    shape = (block_size // 4, values.size // block_size, 4)
    return quads(values, block_size, scratch("tile", shape, np.float32))


def from_quads(x: FloatArray, out: FloatArray | None = None) -> FloatArray:
    """The inverse of `quads`: float32 (block_size / 4, n, 4) to a vector of the weights in their order.

    Args:
        x: The tile.
        out: C-contiguous memory for the result, of as many weights; fresh if None.
    """
    unit = UNITS[4]
    result = np.empty(x.size, np.float32) if out is None else out.reshape(-1)
    units = (x if x.strides[1:] == (16, 4) else np.ascontiguousarray(x)).view(unit)[..., 0]
    np.copyto(result.view(unit).reshape(x.shape[1], x.shape[0]), units.T)
    return result


def block_max(x: FloatArray) -> FloatArray:
    """The largest weight of every block: (block_size / 4, n, 4) to (n,)."""
    return _reduce(np.maximum, x)


def block_min(x: FloatArray) -> FloatArray:
    """The smallest weight of every block: (block_size / 4, n, 4) to (n,)."""
    return _reduce(np.minimum, x)


def _reduce(operation: np.ufunc, x: FloatArray) -> FloatArray:
    # `reduce(axis=1)` for the last step would cost more than all the rest: NumPy is slow over a short axis.
    lanes = operation.reduce(x, axis=0)
    result: FloatArray = operation(operation(lanes[:, 0], lanes[:, 1]), operation(lanes[:, 2], lanes[:, 3]))
    return result


def spread(per_block: NDArray[Any], out: NDArray[Any] | None = None) -> NDArray[Any]:
    """A value per block, (n,), as four equal lanes, (n, 4), to be used against a tile (block_size / 4, n, 4).

    Broadcasting (n, 1) would leave NumPy with an inner loop of four; against (n, 4) it is one of 4 n.
    ``out`` is memory for the result; fresh if None.
    """
    lanes = np.empty((per_block.size, 4), per_block.dtype) if out is None else out
    for j in range(4):
        lanes[:, j] = per_block
    return lanes


def column_sums(x: FloatArray) -> FloatArray:
    """The sums down the columns of a C-contiguous matrix, strictly one number after the other, as C adds."""
    if x.shape[1] == 1:  # contiguous numbers NumPy would add in pairs
        x = np.add.accumulate(x, axis=0)[-1:]
    result: FloatArray = np.add.reduce(x, axis=0)
    return result


def first_equal(x: FloatArray, blocks: NDArray[np.intp], magnitudes: FloatArray) -> FloatArray:
    """The first weight, in the block's order, that has the given magnitude, with its sign.

    Args:
        x: Shape (block_size / 4, n, 4).
        blocks: Indices of the k blocks to look at; meant for few.
        magnitudes: What ``|weight|`` is to be equal to, shape (k,).

    Returns:
        Shape (k,); the block's first weight where none is equal.
    """
    weights = x[:, blocks].transpose(1, 0, 2).reshape(blocks.size, -1)
    first = (np.abs(weights) == magnitudes[:, None]).argmax(axis=1)
    result: FloatArray = weights[np.arange(blocks.size), first]
    return result
