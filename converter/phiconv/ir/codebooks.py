"""Encodings whose weights are values of a small table, and the grids that some take the codes from."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "IQ1_M",
    "IQ1_S",
    "IQ2_S",
    "IQ2_XS",
    "IQ2_XXS",
    "IQ3_S",
    "IQ3_XXS",
    "IQ4_NL",
    "IQ4_XS",
    "MLX_MXFP4",
    "MLX_MXFP8",
    "MLX_NVFP4",
    "MXFP4",
    "NVFP4",
    "OPENVINO_MXFP4",
    "OPENVINO_MXFP8",
    "OPENVINO_NF4",
    "TQ1_0",
    "TQ2_0",
    "CodebookEncoding",
    "grid",
    "openvino_nf4",
]

_FLOAT16: np.dtype[np.generic] = np.dtype("<f2")
_FLOAT32: np.dtype[np.generic] = np.dtype("<f4")


@dataclass(frozen=True, slots=True)
class CodebookEncoding:
    """Every weight is one of a few values, times the scale of its block.

    Without sub-blocks ``weight = scale * table[code]``. With them, every ``sub_block_size`` neighbours have
    an integer of their own: ``weight = scale * sub_scale * table[code]``. Which codes may stand next to each
    other is for the quantizer and the packer to know.

    Attributes:
        name: The name the field knows it by.
        block_size: Weights per block, a multiple of 4.
        table: The value of every code.
        bits_per_weight: Bits that one weight takes, scales included.
        sub_block_size: Weights per integer sub-scale, a multiple of 4; 0 where there is none.
        scale_dtype: The type of the scales in memory.
        global_scale: What the scales of all blocks are divided by, a float32; 0 where that is a number of the
            whole tensor, which `Blocks.global_scales` have. A quantizer is told it.
    """

    name: str
    block_size: int
    table: tuple[float, ...]
    bits_per_weight: float
    sub_block_size: int = 0
    scale_dtype: np.dtype[np.generic] = _FLOAT16
    global_scale: float = 1.0


# llama.cpp's codebooks (kvalues_* and the grids of ggml-common.h).
_IQ4_VALUES = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
IQ4_NL = CodebookEncoding("iq4_nl", 32, _IQ4_VALUES, 4.5)
IQ4_XS = CodebookEncoding("iq4_xs", 256, _IQ4_VALUES, 4.25, sub_block_size=32)

# Doubled E2M1 (OCP Microscaling Formats 1.0) with half its E8M0 scale, 2.0 ** (exponent - 128) for exponents
# from 0 to 255; for NVFP4 half its unsigned E4M3 scale. A code above 7 is negative; ggml's 8 is no -0.
_E2M1_VALUES = (0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12)
MXFP4 = CodebookEncoding("mxfp4", 32, _E2M1_VALUES, 4.25, scale_dtype=_FLOAT32)
NVFP4 = CodebookEncoding("nvfp4", 16, _E2M1_VALUES, 4.5, scale_dtype=_FLOAT32)

# The same numbers and bytes in MLX, which computes them otherwise.
MLX_MXFP4 = replace(MXFP4, name="mlx_mxfp4")
MLX_NVFP4 = replace(NVFP4, name="mlx_nvfp4")

# And in OpenVINO.
OPENVINO_MXFP4 = replace(MXFP4, name="openvino_mxfp4")

# E4M3 with an E8M0 scale, 2.0 ** (exponent - 127). The two codes of NaN are +-480 in MLX.
_E4M3_VALUES = tuple(
    math.copysign(math.ldexp(code % 8 + 8 * (code % 128 > 7), max(code % 128 // 8, 1) - 10), 127.5 - code)
    for code in range(256)
)
MLX_MXFP8 = CodebookEncoding("mlx_mxfp8", 32, _E4M3_VALUES, 8.25, scale_dtype=_FLOAT32)

# The same in OpenVINO, where those two codes are NaN.
OPENVINO_MXFP8 = replace(MLX_MXFP8, name="openvino_mxfp8")

# NormalFloat (https://arxiv.org/abs/2305.14314): quantiles of a normal distribution, in float32.
_NF4_VALUES = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
    -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
    0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023,
    1.0,
)  # fmt: skip


def openvino_nf4(group_size: int) -> CodebookEncoding:
    """OpenVINO's NF4: ``group_size`` neighbours have a float16 scale."""
    return CodebookEncoding(f"openvino_nf4_g{group_size}", group_size, _NF4_VALUES, 4 + 16 / group_size)


OPENVINO_NF4 = tuple(openvino_nf4(group_size) for group_size in (32, 64, 128))
"""Those that NNCF's recipes use."""

TQ1_0 = CodebookEncoding("tq1_0", 256, (-1, 0, 1), 1.6875)
TQ2_0 = CodebookEncoding("tq2_0", 256, (-1, 0, 1, 2), 2.0625)

# llama.cpp's grids. The magnitudes of 8 neighbours (of 4 in IQ3_*) are one of a few hundred points of a grid,
# and a negative sign is the highest bit of a code. In IQ2_XXS, IQ2_XS and IQ3_XXS the negative signs of 8
# neighbours are even in number. Sub-scales are odd. Code 3 of the two-bit grids does not occur.
_IQ2_VALUES = (1, 3.125, 5.375, 0, -1, -3.125, -5.375)  # 8, 25 and 43, by 8
_IQ3_XXS_VALUES = (1, 3, 5, 7, 9, 11, 13, 15.5, -1, -3, -5, -7, -9, -11, -13, -15.5)  # 4 to 62, by 4
_IQ3_S_VALUES = (1, 3, 5, 7, 9, 11, 13, 15, -1, -3, -5, -7, -9, -11, -13, -15)
IQ2_XXS = CodebookEncoding("iq2_xxs", 256, _IQ2_VALUES, 2.0625, sub_block_size=32)
IQ2_XS = CodebookEncoding("iq2_xs", 256, _IQ2_VALUES, 2.3125, sub_block_size=16)
IQ2_S = CodebookEncoding("iq2_s", 256, _IQ2_VALUES, 2.5625, sub_block_size=16)
IQ3_XXS = CodebookEncoding("iq3_xxs", 256, _IQ3_XXS_VALUES, 3.0625, sub_block_size=32)
IQ3_S = CodebookEncoding("iq3_s", 256, _IQ3_S_VALUES, 3.4375, sub_block_size=32)

# Points of 8 ternary numbers, all shifted by 1/8 up, or down where the highest bit of the codes is set: the
# same bit for 32 neighbours in IQ1_S, for 8 in IQ1_M. Sub-scales are odd; codes 3 do not occur.
_IQ1_VALUES = (-0.875, 0.125, 1.125, 0, -1.125, -0.125, 0.875)
IQ1_S = CodebookEncoding("iq1_s", 256, _IQ1_VALUES, 1.5625, sub_block_size=32)
IQ1_M = CodebookEncoding("iq1_m", 256, _IQ1_VALUES, 1.75, sub_block_size=16)


# A grid is stored as one number for each of its points, the codes from the lowest bits on: in grids.bin, one
# grid after the other, in little-endian words of 16 bits. fixtures/make_grids.py wrote it.
_GRIDS = (
    ("iq2_xxs", 256, 8),
    ("iq2_xs", 512, 8),
    ("iq2_s", 1024, 8),
    ("iq1_s", 2048, 8),
    ("iq3_xxs", 256, 4),
    ("iq3_s", 512, 4),
)


@cache
def grid(encoding: CodebookEncoding) -> NDArray[np.uint8]:
    """The points of the grid of an IQ1, IQ2 or IQ3 encoding, in the order of their numbers.

    Returns:
        Codes without their highest bit (the sign, or the shift): shape (points, 8), of IQ3_* (points, 4).
    """
    name = "iq1_s" if encoding == IQ1_M else encoding.name
    numbers, at = np.frombuffer(Path(__file__).with_name("grids.bin").read_bytes(), "<u2"), 0
    for other, points, length in _GRIDS:
        if other == name:
            bits = 2 if length == 8 else 3
            shifts = bits * np.arange(length, dtype=np.uint16)
            codes = numbers[at : at + points, None] >> shifts & ((1 << bits) - 1)
            return np.asarray(codes, np.uint8)
        at += points
    raise KeyError(name)
