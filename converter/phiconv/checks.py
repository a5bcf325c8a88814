"""Are these numbers finite? One integer pass, so that it may run over every weight."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from phiconv import ir

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["count_nonfinite", "first_nonfinite", "may_overflow"]

# Sign cleared, every number at or above this pattern is infinite or NaN: all bits of the exponent are set.
_EXPONENTS: dict[ir.Encoding, tuple[str, int]] = {
    ir.BF16: ("<u2", 0x7F80),
    ir.F16: ("<u2", 0x7C00),
    ir.F32: ("<u4", 0x7F80_0000),
    ir.F64: ("<u8", 0x7FF0_0000_0000_0000),
}
_OF_DTYPE = {e.dtype: bits for e, bits in _EXPONENTS.items() if isinstance(e, ir.FloatEncoding)}


def count_nonfinite(encoded: ir.Encoded) -> int:
    """How many weights, or scales and minima of blocks, are NaN or infinite."""
    if isinstance(encoded, ir.Blocks):
        minima = 0 if encoded.minima is None else count_nonfinite(encoded.minima)
        return count_nonfinite(encoded.scales) + minima
    bits = _OF_DTYPE.get(encoded.dtype)
    if bits is None or encoded.size == 0:  # integers
        return 0
    integers, exponent = np.ascontiguousarray(encoded).view(bits[0]), bits[1]
    magnitude = integers & integers.dtype.type((1 << (8 * integers.itemsize - 1)) - 1)
    return 0 if magnitude.max() < exponent else int(np.count_nonzero(magnitude >= exponent))


def first_nonfinite(values: NDArray[np.generic]) -> tuple[int, int]:
    """Row and column of the first weight that is NaN or infinite."""
    row, column = np.argwhere(~np.isfinite(values.astype(np.float64)))[0]
    return int(row), int(column)


def may_overflow(stored: ir.Encoding, target: ir.Encoding) -> bool:
    """Whether finite weights of one encoding may be too large for another (float16 ends at 65504)."""
    return stored != target and (target != ir.F32 or stored == ir.F64)
