"""The weights that stored numbers stand for: one formula for each kind of blocks, for all runtimes."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from phiconv import ir
from phiconv.ir import BlockEncoding, Blocks, CodebookEncoding, SuperBlockEncoding
from phiconv.quantizers.numerics.floats import widen
from phiconv.quantizers.numerics.scratch import scratch
from phiconv.quantizers.numerics.tiles import from_quads, spread

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from phiconv.ir import FloatArray

__all__ = ["decode", "multiplies", "product"]

_FEW_QUADS = 8
"""Quads of a block, as those of 32 weights have."""

_APART = 4
"""Blocks between the rows of a tile: one line of a cache."""


def decode(encoded: ir.Encoded, columns: int, out: FloatArray | None = None) -> ir.FloatArray:
    """The weights that rows stand for.

    Args:
        encoded: Rows in a stored float type, or their blocks.
        columns: Weights in a row.
        out: C-contiguous float32 memory for the result, of as many weights; fresh if None.

    Returns:
        float32, shape (rows, columns); a float64 is rounded to it.
    """
    if not isinstance(encoded, ir.Blocks):
        weights = widen(encoded, None if out is None else out.reshape(encoded.shape))
    elif isinstance(encoded.encoding, ir.CodebookEncoding):
        weights = _codebook(encoded, out)
    elif isinstance(encoded.encoding, ir.SuperBlockEncoding):
        weights = _super_blocks(encoded, out)
    else:
        weights = _affine(encoded, out)
    return weights.reshape(-1, columns) if columns else weights  # -1 means nothing there


def multiplies(encoded: ir.Encoded) -> bool:
    """Whether `product` takes these rows: blocks whose quads are few, so that each is a long vector."""
    return (
        isinstance(encoded, Blocks)
        and isinstance(encoded.encoding, BlockEncoding)
        and (len(encoded.codes) <= _FEW_QUADS)
    )


def product(vector: FloatArray, blocks: Blocks) -> FloatArray:
    """``decode(blocks) @ vector``, without putting the weights in their order.

    The first quads of all blocks of a row meet the first quads of the vector's blocks, and so on.

    Args:
        vector: float32, as long as a row.
        blocks: Those of whole rows, for which `multiplies` holds.

    Returns:
        float32, shape (rows,).
    """
    x = _affine_quads(blocks)
    quads = np.ascontiguousarray(vector.reshape(-1, len(x), 4).transpose(1, 0, 2)).reshape(len(x), -1)
    columns = quads.shape[1]
    result: FloatArray = x[0].reshape(-1, columns) @ quads[0]
    for weights, part in zip(x[1:], quads[1:], strict=True):
        result += weights.reshape(-1, columns) @ part
    return result


def _affine(blocks: Blocks, out: FloatArray | None) -> FloatArray:
    """The weights of any blocks, in their order: a float32 vector."""
    return from_quads(_affine_quads(blocks), out)


def _affine_quads(blocks: Blocks) -> FloatArray:
    """The weights of any blocks, quads first, in memory that the thread's next tile overwrites.

    They are ``scale * (code - offset) + minimum``, or ``scale * (code - zero_point)``.
    """
    encoding = blocks.encoding
    if not isinstance(encoding, BlockEncoding):
        raise TypeError(encoding.name)
    x = _codes(blocks)
    with np.errstate(all="ignore"):
        if encoding.offset:
            x -= encoding.offset
        if blocks.zero_points is not None:
            x -= _lanes(blocks.zero_points.astype(np.float32))
        x *= _lanes(widen(blocks.scales))
        if blocks.minima is not None:
            x += _lanes(widen(blocks.minima))
    return x


def _super_blocks(blocks: Blocks, out: FloatArray | None) -> FloatArray:
    """The weights of blocks of a `SuperBlockEncoding`, in their order: a float32 vector."""
    encoding, sub_scales, sub_minima = blocks.encoding, blocks.sub_scales, blocks.sub_minima
    if not isinstance(encoding, SuperBlockEncoding) or sub_scales is None:
        raise TypeError(f"{encoding.name} has no sub-blocks")
    codes = _codes(blocks)
    x = codes.reshape(encoding.sub_blocks, encoding.sub_block_size // 4, len(blocks), 4)
    with np.errstate(all="ignore"):
        if encoding.offset:
            x -= encoding.offset
        x *= _spread(widen(blocks.scales) * sub_scales)
        if blocks.minima is not None and sub_minima is not None:
            x -= _spread(widen(blocks.minima) * sub_minima)
    return from_quads(codes, out)


@np.errstate(all="ignore")
def _codebook(blocks: Blocks, out: FloatArray | None) -> FloatArray:
    """The weights of any blocks of a codebook: a float32 vector.

    They are ``scale [/ global_scale] [* sub_scale] * table[code]``.
    """
    encoding = blocks.encoding
    if not isinstance(encoding, CodebookEncoding):
        raise TypeError(encoding.name)
    x = _values(blocks.codes, encoding)
    scales: NDArray[Any] = widen(blocks.scales)
    if blocks.global_scales is not None:
        scales = scales / blocks.global_scales
    if blocks.sub_scales is None:
        x *= _lanes(scales)
    else:
        products = scales * blocks.sub_scales.astype(np.float32)
        quads_per_scale = x.shape[0] // len(products)
        for sub, product in enumerate(products):
            x[sub * quads_per_scale : (sub + 1) * quads_per_scale] *= _lanes(product)
    return from_quads(x, out)


def _codes(blocks: Blocks) -> FloatArray:
    """The codes as float32, to compute in: memory that the thread's next tile overwrites."""
    x = _room(blocks.codes.shape)
    np.copyto(x, blocks.codes)
    return x


def _room(shape: Sequence[int]) -> FloatArray:
    """Memory for a tile, whose rows are a little apart.

    At a distance of a power of two the weights of a block would contend for one place of a core's cache.
    """
    per_block, n, lanes = shape
    x: FloatArray = scratch("decoded", (per_block, n + _APART, lanes), np.float32)[:, :n]
    return x


def _lanes(per_block: NDArray[Any]) -> NDArray[Any]:
    """`spread` in memory that the thread's next call overwrites."""
    return spread(per_block, scratch("lanes", (per_block.size, 4), per_block.dtype))


def _spread(per_sub_block: FloatArray) -> FloatArray:
    """A value per sub-block, (sub-blocks, n), to be used against a tile (sub-blocks, size / 4, n, 4)."""
    parts, n = per_sub_block.shape
    lanes: FloatArray = _lanes(per_sub_block.reshape(-1)).reshape(parts, 1, n, 4)
    return lanes


def _values(codes: NDArray[Any], encoding: CodebookEncoding) -> FloatArray:
    """The value of every code; of codes of 4 bits, two at a time."""
    if len(encoding.table) > 16:
        values: FloatArray = np.array(encoding.table, np.float32)[codes]
        return values
    pairs = codes.view(np.uint16)
    keys = scratch("keys", pairs.shape, np.uint16)
    np.right_shift(pairs, 4, out=keys)
    keys |= pairs
    keys &= 255
    # take() wants indices of its own type; any mode but the default one writes into `out` without a copy.
    indices = scratch("indices", pairs.shape, np.intp)
    np.copyto(indices, keys)
    result = _room(codes.shape)
    for row, each in zip(result.view(np.complex64), indices, strict=True):
        _pairs_of_values(encoding.table).take(each, mode="clip", out=row)
    return result


@cache
def _pairs_of_values(table: tuple[float, ...]) -> NDArray[np.complex64]:
    """Two values, only copied as one, by the bits of the first one's code and, above, of the second one's."""
    values = np.zeros(16, np.float32)
    values[: len(table)] = table
    codes = np.arange(256)
    return np.stack([values[codes & 15], values[codes >> 4]], axis=-1).view(np.complex64)[:, 0]
