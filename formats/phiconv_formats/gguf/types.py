"""The tensor types of ggml: ids and block sizes as the `gguf` package has them, and what each means."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

from phiconv import ir

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["GGML_TYPES", "TYPE_OF_ENCODING", "WITH_BF16_SCALES", "GgmlType"]


@dataclass(frozen=True, slots=True)
class GgmlType:
    """One tensor type of ggml.

    Attributes:
        id: Its number in a GGUF file.
        name: As llama.cpp prints it, in upper case.
        block_size: Weights per block; a row holds a whole number of blocks.
        block_bytes: Bytes per block.
        encoding: What its numbers mean, or a `RawEncoding` where phiconv cannot decode it.
    """

    id: int
    name: str
    block_size: int
    block_bytes: int
    encoding: ir.Encoding

    def row_bytes(self, columns: int) -> int:
        """Bytes of a row of ``columns`` weights."""
        return columns // self.block_size * self.block_bytes

    def nbytes(self, shape: Sequence[int]) -> int:
        """Bytes of a tensor of this shape (outermost dimension first)."""
        return math.prod(shape) // self.block_size * self.block_bytes


_FLOATS = (ir.F64, ir.F32, ir.F16, ir.BF16)
_CLASSIC = (ir.Q4_0, ir.Q4_1, ir.Q5_0, ir.Q5_1, ir.Q8_0)
_SUPER = (ir.Q2_K, ir.Q3_K, ir.Q4_K, ir.Q5_K, ir.Q6_K)

_CODEBOOK = (ir.IQ4_NL, ir.IQ4_XS, ir.MXFP4, ir.NVFP4, ir.TQ1_0, ir.TQ2_0)
_GRIDS = (ir.IQ1_S, ir.IQ1_M, ir.IQ2_XXS, ir.IQ2_XS, ir.IQ2_S, ir.IQ3_XXS, ir.IQ3_S)

_ENCODINGS: dict[str, ir.Encoding] = {
    e.name.upper(): e for e in (*_FLOATS, *_CLASSIC, *_SUPER, *_CODEBOOK, *_GRIDS)
}


def _make(kind: GGMLQuantizationType) -> GgmlType:
    block_size, block_bytes = GGML_QUANT_SIZES[kind]
    raw = ir.RawEncoding(kind.name.lower(), block_size, block_bytes)
    return GgmlType(kind.value, kind.name, block_size, block_bytes, _ENCODINGS.get(kind.name, raw))


GGML_TYPES: dict[int, GgmlType] = {kind.value: _make(kind) for kind in GGML_QUANT_SIZES}
"""Every type that the `gguf` package knows, by its number in a file."""

WITH_BF16_SCALES: dict[ir.Encoding, ir.BlockEncoding] = {
    encoding: replace(encoding, name=f"{encoding.name}_bf16", scale_type=ir.BF16)
    for encoding in (ir.Q4_0, ir.Q5_0, ir.Q8_0)
}
"""Symmetric blocks, and the same whose float16 scales are numbers of bfloat16, too."""

TYPE_OF_ENCODING: dict[ir.Encoding, GgmlType] = {t.encoding: t for t in GGML_TYPES.values()}
TYPE_OF_ENCODING |= {marked: TYPE_OF_ENCODING[plain] for plain, marked in WITH_BF16_SCALES.items()}
"""The type that stores an encoding."""
