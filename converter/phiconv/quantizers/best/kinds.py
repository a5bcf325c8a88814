"""Which kind of parameters an encoding has, and which numbers a file of it may hold."""

from __future__ import annotations

from typing import TYPE_CHECKING

from phiconv.ir import IQ4_NL, IQ4_XS, Q8_0, BlockEncoding, CodebookEncoding, SuperBlockEncoding, openvino_nf4
from phiconv.quantizers.best.levels import Integers, Table
from phiconv.quantizers.best.nested import NestedMinimum, NestedScale
from phiconv.quantizers.best.single import Minimum, Scale, ZeroPoint

if TYPE_CHECKING:
    from phiconv.ir import Encoding
    from phiconv.quantizers.best.fits import Kind

__all__ = ["kind_of"]

_SUB_SCALE_BITS = 6
"""Of IQ4_XS."""


def kind_of(encoding: Encoding) -> Kind | None:
    """The kind of an encoding; None of those that are left to their own quantizers."""
    if isinstance(encoding, BlockEncoding):
        return _block_kind(encoding)
    if isinstance(encoding, SuperBlockEncoding):
        levels = _codes(encoding.bits, encoding.offset)
        if encoding.has_minimum:
            return NestedMinimum(encoding, levels)
        limit = 1 << (encoding.scale_bits - 1)
        return NestedScale(encoding, levels, encoding.bits, encoding.sub_block_size, limit)
    if isinstance(encoding, CodebookEncoding):
        return _codebook_kind(encoding)
    return None


def _block_kind(encoding: BlockEncoding) -> Kind:
    bits = encoding.bits
    if encoding.has_minimum:
        return Minimum(encoding, _codes(bits, 0))
    if encoding.has_zero_point:
        return ZeroPoint(encoding, _codes(bits, 0))
    if encoding.name == Q8_0.name:
        # llama.cpp writes neither code -128 nor a negative scale, and not all its kernels were made for them.
        return Scale(encoding, Integers(-127, 127, signed=True), bits, signed=False)
    if encoding.positive_scales and bits == 8:  # LiteRT's, which has no code -128 either
        return Scale(encoding, Integers(-127, 127, signed=True), bits, signed=False)
    if encoding.offset:
        return Scale(encoding, _codes(bits, encoding.offset), bits, signed=not encoding.positive_scales)
    middle = 1 << (bits - 1)
    return Scale(encoding, Integers(-middle, middle - 1, signed=True), bits, signed=True)


def _codebook_kind(encoding: CodebookEncoding) -> Kind | None:
    levels = Table(encoding.table)
    if encoding == IQ4_XS:
        return NestedScale(encoding, levels, 4, encoding.sub_block_size, 1 << (_SUB_SCALE_BITS - 1))
    if encoding == IQ4_NL:
        return Scale(encoding, levels, 4, signed=True)
    if encoding == openvino_nf4(encoding.block_size):  # NNCF's scales are never negative
        return Scale(encoding, levels, 4, signed=False)
    return None


def _codes(bits: int, offset: int) -> Integers:
    return Integers(-offset, (1 << bits) - 1 - offset, offset)
