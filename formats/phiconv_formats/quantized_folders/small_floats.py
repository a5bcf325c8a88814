"""Bytes of small floats, as codes and as scales: E4M3, E8M0, and E2M1 two to a byte."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from phiconv import ir
from phiconv_formats.quantized_folders.matrices import Numbers
from phiconv_formats.shared.bit_stream import unpack_halves
from phiconv_formats.shared.small_scales import powers

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Bytes = NDArray[np.uint8]

__all__ = ["e4m3_numbers", "e4m3_values", "mxfp4_numbers"]


@cache
def _e4m3() -> ir.FloatArray:
    """The number of every E4M3 byte; 127 and 255 are none."""
    numbers = np.array(ir.MLX_MXFP8.table, np.float32)
    numbers[[127, 255]] = np.nan
    return numbers


def e4m3_values(stored: Bytes) -> ir.FloatArray:
    """E4M3 bytes as float32."""
    numbers: ir.FloatArray = _e4m3()[stored]
    return numbers


def e4m3_numbers(group_size: int, codes: Bytes, scales: NDArray[Any]) -> Numbers:
    """E4M3 codes with a scale for each group of neighbours, a float or an E8M0 byte.

    A code that stands for no number makes the scale of its group none: tables have no such value.
    """
    wide = powers(scales, doubled=False) if scales.dtype == np.uint8 else scales.astype(np.float32)
    row, column = np.nonzero((codes & 127) == 127)
    wide[row, column // group_size] = np.nan
    return Numbers(codes, wide)


def mxfp4_numbers(packed: Bytes, exponents: Bytes) -> Numbers:
    """E2M1 codes, the first in the lower half of a byte, with an E8M0 scale for each group."""
    return Numbers(unpack_halves(packed), powers(exponents, doubled=True))
