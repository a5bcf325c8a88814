"""Are these numbers finite? One integer pass, so that it may run over every weight."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from phiconv import ir
from phiconv.quantizers.decoding import decode
from phiconv.quantizers.numerics.floats import widen

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["count_nonfinite", "first_nonfinite", "may_overflow"]

# The exponent's bits: a number that has all of them is infinite or NaN.
_EXPONENTS = {
    ir.BF16.dtype: ("2", 0x7F80),
    ir.F16.dtype: ("2", 0x7C00),
    ir.F32.dtype: ("4", 0x7F80_0000),
    ir.F64.dtype: ("8", 0x7FF0_0000_0000_0000),
}

_LARGE = 1e30
"""Times any code, and any sub-scale, it is still a float32."""


def count_nonfinite(encoded: ir.Encoded) -> int:
    """How many weights, or scales and minima of blocks, are NaN or infinite; or make weights that are."""
    if isinstance(encoded, ir.Blocks):
        minima = 0 if encoded.minima is None else count_nonfinite(encoded.minima)
        return count_nonfinite(encoded.scales) + minima + _overflowing(encoded)
    width, exponent = _EXPONENTS.get(encoded.dtype, ("", 0))
    if not width or encoded.size == 0:  # bytes of a `RawEncoding`
        return 0
    values = np.ascontiguousarray(encoded)
    # As signed integers the positive numbers are the largest, as unsigned the negative ones. Two maxima need
    # no memory of their own, and everything is finite nearly always.
    signed, unsigned = values.view(f"<i{width}"), values.view(f"<u{width}")
    sign = 1 << (8 * unsigned.itemsize - 1)
    if signed.max() < exponent and unsigned.max() < exponent + sign:
        return 0
    return int(np.count_nonzero((unsigned & (sign - 1)) >= exponent))


def _overflowing(blocks: ir.Blocks) -> int:
    """How many blocks of finite scales and minima have weights beyond float32."""
    if blocks.scales.dtype == ir.F16.dtype and blocks.global_scales is None:
        return 0
    with np.errstate(all="ignore"):
        sizes = np.abs(widen(blocks.scales))
        finite = np.isfinite(sizes)
        if blocks.global_scales is not None:
            sizes = sizes / blocks.global_scales
        if blocks.minima is not None:
            minima = np.abs(widen(blocks.minima))
            finite &= np.isfinite(minima)
            sizes = np.maximum(sizes, minima)
        large = np.flatnonzero(finite & ~(sizes <= _LARGE))
    if not large.size:
        return 0
    weights = decode(blocks.take(large), blocks.encoding.block_size)
    return int(np.count_nonzero(~np.isfinite(weights).all(axis=1)))


def first_nonfinite(values: NDArray[np.generic]) -> tuple[int, int]:
    """Row and column of the first weight that is NaN or infinite."""
    with np.errstate(invalid="ignore"):  # a signalling NaN
        row, column = np.argwhere(~np.isfinite(values))[0]
    return int(row), int(column)


def may_overflow(stored: ir.Encoding, target: ir.Encoding) -> bool:
    """Whether finite weights of one encoding may be too large for another (float16 ends at 65504)."""
    return stored != target and (target != ir.F32 or stored == ir.F64)
