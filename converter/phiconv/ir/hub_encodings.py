"""What quantized Hugging Face folders store: integers in groups, small floats with scales of float32.

Most mean the same as an encoding of a runtime, and differ in the name: then the numbers move there unchanged
(`phiconv.ir.encodings.same_meaning`).
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from phiconv.ir.codebooks import MLX_MXFP8, MXFP4, CodebookEncoding
from phiconv.ir.encodings import F32, BlockEncoding, FloatEncoding
from phiconv.ir.server import runtime_suffix

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["HUB_MXFP4", "HUB_MXFP8", "HUB_NVFP4", "grouped_codebook", "grouped_fp8", "grouped_integers"]

_FLOAT32: np.dtype[np.generic] = np.dtype("<f4")


def grouped_integers(
    method: str,
    bits: int,
    group_size: int,
    scale_type: FloatEncoding,
    *,
    symmetric: bool,
    signed: bool = False,
    runtime: bool = False,
) -> BlockEncoding:
    """``group_size`` neighbours have a scale, and a zero point of their own unless symmetric.

    Args:
        method: Who stores them so, for the name; ``gptq``, ``gptq-v2`` and ``awq`` are written, too.
        bits: Bits of a code.
        group_size: A multiple of 4; the whole row for a scale per output channel.
        scale_type: The type of the scales.
        symmetric: Whether all groups have the middle code as their zero point.
        signed: Whether the codes of symmetric groups are signed, and their zero point is 0.
        runtime: Whether scales and codes are found as the method's own tool rounds to nearest.
    """
    kind = "sym" if symmetric else "asym"
    name = f"{method}_int{bits}_{kind}_g{group_size}_{scale_type.name}{runtime_suffix(runtime=runtime)}"
    middle = 1 << (bits - 1) if symmetric and not signed else 0
    return BlockEncoding(name, group_size, bits, middle, scale_type=scale_type, has_zero_point=not symmetric)


def grouped_codebook(
    method: str, table: Sequence[float], group_size: int, scale_bits: float
) -> CodebookEncoding:
    """``group_size`` neighbours have a scale that is computed in float32, and the values of a table.

    Args:
        method: Who stores them so, for the name.
        table: The value of each of 16 codes.
        group_size: A multiple of 4.
        scale_bits: What a scale takes in the file.
    """
    bits = 4 + scale_bits / group_size
    return CodebookEncoding(f"{method}_g{group_size}", group_size, tuple(table), bits, scale_dtype=_FLOAT32)


def grouped_fp8(method: str, group_size: int, rows: int) -> CodebookEncoding:
    """E4M3 numbers: ``group_size`` neighbours of ``rows`` neighbouring rows have a scale of float32.

    A group that has one of the two codes that stand for no number has a scale that is none.
    """
    name = f"{method}_g{group_size}" if rows == 1 else f"{method}_b{rows}x{group_size}"
    bits = 8 + F32.bits_per_weight / (group_size * rows)
    return CodebookEncoding(name, group_size, MLX_MXFP8.table, bits, scale_dtype=_FLOAT32)


# E2M1 with a scale of E4M3 times one of float32 for the whole matrix, in float32. The table is not doubled as
# llama.cpp's and MLX's NVFP4 are: these have nowhere to put the second scale.
_E2M1_VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)
HUB_NVFP4 = CodebookEncoding("nvfp4_two_scales", 16, _E2M1_VALUES, 4.5, scale_dtype=_FLOAT32)

# OCP's microscaling formats, whose numbers every runtime has.
HUB_MXFP4 = replace(MXFP4, name="hub_mxfp4")
HUB_MXFP8 = replace(MLX_MXFP8, name="hub_mxfp8")
