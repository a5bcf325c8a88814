"""What stored numbers mean: floats, blocks with a scale, super-blocks; see also `phiconv.ir.codebooks`."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from typing import TypeAlias

import ml_dtypes
import numpy as np

from phiconv.brief import Brief
from phiconv.ir.codebooks import CodebookEncoding

__all__ = [
    "BF16",
    "F16",
    "F32",
    "F64",
    "MLX_AFFINE",
    "ONNX_AFFINE",
    "Q2_K",
    "Q3_K",
    "Q4_0",
    "Q4_1",
    "Q4_K",
    "Q5_0",
    "Q5_1",
    "Q5_K",
    "Q6_K",
    "Q8_0",
    "AnyBlockEncoding",
    "BlockEncoding",
    "Encoding",
    "FloatEncoding",
    "MixedEncoding",
    "RawEncoding",
    "SuperBlockEncoding",
    "litert_block",
    "litert_channel",
    "mlx_affine",
    "onnx_affine",
    "onnx_channel",
    "openvino_affine",
    "plain_name",
    "same_meaning",
    "with_adapter",
]


@dataclass(frozen=True, slots=True)
class FloatEncoding:
    """Every weight is one floating-point number."""

    name: str
    dtype: np.dtype[np.generic]

    block_size = 1

    @property
    def bits_per_weight(self) -> float:
        """Bits that one weight takes, scales included."""
        return 8.0 * self.dtype.itemsize


F64 = FloatEncoding("f64", np.dtype("<f8"))
F32 = FloatEncoding("f32", np.dtype("<f4"))
F16 = FloatEncoding("f16", np.dtype("<f2"))
BF16 = FloatEncoding("bf16", np.dtype(ml_dtypes.bfloat16))


@dataclass(frozen=True, slots=True)
class BlockEncoding:
    """``block_size`` neighbouring weights of a row share a scale.

    It gives them back as ``weight = scale * (code - offset) + minimum``, or, where every block has a zero
    point of its own, as ``weight = scale * (code - zero_point)``.

    Attributes:
        name: The name the field knows it by.
        block_size: Weights per block, a multiple of 4.
        bits: Bits of a code.
        offset: Subtracted from a code; codes of an encoding with offset 0, no minimum and no zero points are
            signed.
        has_minimum: Whether a block also has a minimum (asymmetric); 0 otherwise.
        scale_type: The type of the scales and of the minima.
        has_zero_point: Whether a block also has a zero point (asymmetric), an integer of as many bits as a
            code. The offset is 0 then, and there is no minimum.
        positive_scales: Whether the runtime takes no scale but a positive one.
    """

    name: str
    block_size: int
    bits: int
    offset: int = 0
    has_minimum: bool = False
    scale_type: FloatEncoding = F16
    has_zero_point: bool = False
    positive_scales: bool = False

    @property
    def bits_per_weight(self) -> float:
        """Bits that one weight takes, scales included."""
        scales = (2 if self.has_minimum else 1) * self.scale_type.bits_per_weight
        zero_point = self.bits if self.has_zero_point else 0
        return self.bits + (scales + zero_point) / self.block_size


@dataclass(frozen=True, slots=True)
class SuperBlockEncoding:
    """Blocks of ``block_size`` weights, cut into sub-blocks whose scales are small integers.

    A block has one float16 scale and, where ``has_minimum``, one float16 minimum. Each of its sub-blocks of
    ``sub_block_size`` neighbouring weights has an integer that multiplies the scale, and one that multiplies
    the minimum. With them, in float32 and in this order of operations, ::

        weight = (scale * sub_scale) * (code - offset) - minimum * sub_minimum

    The minimum is thus subtracted (it is 0 or more), where that of a `BlockEncoding` is added.

    Attributes:
        name: The name the field knows it by.
        bits: Bits of a code; codes are never negative.
        sub_block_size: Weights per sub-block, a multiple of 4.
        scale_bits: Bits of a sub-scale, and of a sub-minimum.
        offset: Subtracted from a code. Where there is one, sub-scales may be negative; else neither they nor
            sub-minima are.
        has_minimum: Whether there are a minimum and sub-minima.
        block_size: Weights per block.
    """

    name: str
    bits: int
    sub_block_size: int
    scale_bits: int
    offset: int = 0
    has_minimum: bool = False
    block_size: int = 256

    @property
    def sub_blocks(self) -> int:
        """Sub-blocks per block."""
        return self.block_size // self.sub_block_size

    @property
    def bits_per_weight(self) -> float:
        """Bits that one weight takes, scales included."""
        scales = 2 if self.has_minimum else 1
        return self.bits + scales * (self.scale_bits / self.sub_block_size + 16.0 / self.block_size)


@dataclass(frozen=True, slots=True)
class RawEncoding:
    """Elements that phiconv lists and copies but cannot compute with: integers, types not decoded yet."""

    name: str
    block_size: int
    block_bytes: int

    @property
    def bits_per_weight(self) -> float:
        """Bits that one weight takes, scales included."""
        return 8.0 * self.block_bytes / self.block_size


@dataclass(frozen=True, slots=True, repr=False)
class MixedEncoding(Brief):
    """What no blocks of one kind describe, and is read as float32; nothing is stored so.

    Parts of several encodings, or numbers whose scales do not lie along the rows.

    Attributes:
        name: What it is made of.
        bits_per_weight: Bits that one weight takes where it comes from; those of float32 if they differ.
    """

    name: str
    bits_per_weight: float = 32.0

    block_size = 1


AnyBlockEncoding: TypeAlias = BlockEncoding | SuperBlockEncoding | CodebookEncoding
"""The encodings of `Blocks`."""

Encoding: TypeAlias = FloatEncoding | AnyBlockEncoding | RawEncoding | MixedEncoding

# llama.cpp's classic blocks (ggml-common.h): one float16 scale for 32 weights, some with a float16 minimum.
Q4_0 = BlockEncoding("q4_0", 32, 4, offset=8)
Q4_1 = BlockEncoding("q4_1", 32, 4, has_minimum=True)
Q5_0 = BlockEncoding("q5_0", 32, 5, offset=16)
Q5_1 = BlockEncoding("q5_1", 32, 5, has_minimum=True)
Q8_0 = BlockEncoding("q8_0", 32, 8)

# llama.cpp's "K-quants": 256 weights with one float16 scale, in sub-blocks of 16 or 32.
Q2_K = SuperBlockEncoding("q2_k", 2, sub_block_size=16, scale_bits=4, has_minimum=True)
Q3_K = SuperBlockEncoding("q3_k", 3, sub_block_size=16, scale_bits=6, offset=4)
Q4_K = SuperBlockEncoding("q4_k", 4, sub_block_size=32, scale_bits=6, has_minimum=True)
Q5_K = SuperBlockEncoding("q5_k", 5, sub_block_size=32, scale_bits=6, has_minimum=True)
Q6_K = SuperBlockEncoding("q6_k", 6, sub_block_size=16, scale_bits=8, offset=32)


def mlx_affine(bits: int, group_size: int, scale_type: FloatEncoding) -> BlockEncoding:
    """MLX's affine quantization: ``group_size`` neighbours have a scale, of either sign, and a minimum.

    The minimum is what code 0 stands for: where the scale is negative it is the largest weight.

    Args:
        bits: Bits of a code: 2, 3, 4, 5, 6 or 8.
        group_size: 32, 64 or 128 weights.
        scale_type: `F16`, `BF16` or `F32`: the type that the weights had.
    """
    name = f"mlx_{bits}bit_g{group_size}_{scale_type.name}"
    return BlockEncoding(name, group_size, bits, has_minimum=True, scale_type=scale_type)


MLX_AFFINE = tuple(
    mlx_affine(bits, group_size, scale_type)
    for bits in (2, 3, 4, 5, 6, 8)
    for group_size in (32, 64, 128)
    for scale_type in (F16, BF16, F32)
)
"""Every affine quantization that MLX can compute with."""


def onnx_affine(
    bits: int, block_size: int, scale_type: FloatEncoding, *, symmetric: bool = True, method: str = "default"
) -> BlockEncoding:
    """ONNX Runtime's blocks: ``block_size`` neighbours have a scale, of either sign, and maybe a zero point.

    All are ``weight = scale * (code - zero_point)`` with codes from 0 on. The zero point is the middle code
    where ``symmetric``. The methods differ in how scales and codes are found, and so only in the name.

    Args:
        bits: Bits of a code: 4 or 8.
        block_size: 16, 32, 64, 128 or 256 weights.
        scale_type: `F16`, `BF16` or `F32`: the type that the runtime computes in.
        symmetric: Whether all blocks have the same zero point.
        method: One of the keys of `ONNX_AFFINE`.
    """
    kind = ("" if method == "default" else f"_{method}") + ("" if symmetric else "_asym")
    name = f"onnx_int{bits}{kind}_g{block_size}_{scale_type.name}"
    middle = 1 << (bits - 1) if symmetric else 0
    return BlockEncoding(name, block_size, bits, middle, scale_type=scale_type, has_zero_point=not symmetric)


def _onnx_affine(
    method: str,
    bits: tuple[int, ...] = (4, 8),
    block_sizes: tuple[int, ...] = (16, 32, 64, 128, 256),
    scale_types: tuple[FloatEncoding, ...] = (F32, F16),
    symmetric: tuple[bool, ...] = (True, False),
) -> tuple[BlockEncoding, ...]:
    """All of one method."""
    return tuple(
        onnx_affine(b, size, scale_type, symmetric=s, method=method)
        for b, size, scale_type, s in itertools.product(bits, block_sizes, scale_types, symmetric)
    )


ONNX_AFFINE = {
    "default": _onnx_affine("default", scale_types=(F32, F16, BF16)),
    "qdq": _onnx_affine("qdq", scale_types=(F32, F16, BF16)),
    "gather": _onnx_affine("gather", bits=(4,)),
    "qmoe": _onnx_affine("qmoe", block_sizes=(32, 64, 128), scale_types=(F16,), symmetric=(True,)),
    "rtn": _onnx_affine("rtn"),
    "k_quant": _onnx_affine("k_quant", symmetric=(False,)),
}
"""Every affine quantization of ONNX Runtime's tools that phiconv has, by its method."""


def onnx_channel(bits: int, columns: int) -> BlockEncoding:
    """A scale for each row: ``weight = scale * (code - offset)``, the offset being the middle code.

    Args:
        bits: Bits of a code: 4 or 8.
        columns: Weights of a row, a multiple of 4.
    """
    return BlockEncoding(f"onnx_int{bits}_channel_g{columns}", columns, bits, 1 << (bits - 1), scale_type=F32)


def openvino_affine(bits: int, group_size: int, *, symmetric: bool) -> BlockEncoding:
    """OpenVINO's integers: ``group_size`` neighbours have a float16 scale, and a zero point unless symmetric.

    Args:
        bits: Bits of a code: 4 or 8.
        group_size: A multiple of 4; the whole row for a scale per output channel.
        symmetric: Whether codes lie around 0, and the scale may be negative.
    """
    name = f"openvino_int{bits}_{'sym' if symmetric else 'asym'}_g{group_size}"
    offset = 8 if symmetric and bits == 4 else 0  # codes of 4 bits are never negative in memory
    return BlockEncoding(name, group_size, bits, offset, has_zero_point=not symmetric)


def litert_channel(bits: int, columns: int) -> BlockEncoding:
    """LiteRT's integers around 0 with a float32 scale for each row.

    Args:
        bits: Bits of a code: 4 or 8.
        columns: Of the matrix, a multiple of 4.
    """
    offset = 8 if bits == 4 else 0  # codes of 4 bits are never negative in memory
    name = f"litert_int{bits}_g{columns}"
    return BlockEncoding(name, columns, bits, offset, scale_type=F32, positive_scales=True)


def litert_block(block_size: int) -> BlockEncoding:
    """LiteRT's 4-bit integers around 0 in blocks with a float16 scale, of which there are 8 bits at most.

    Args:
        block_size: A multiple of 32 weights.
    """
    return BlockEncoding(f"litert_int4_b{block_size}", block_size, 4, offset=8, positive_scales=True)


_ADAPTER = "+lora"


def with_adapter(encoding: Encoding) -> FloatEncoding | MixedEncoding:
    """What the sum of a stored matrix and what an adapter adds to it is read as: float32.

    The name tells how the matrix is stored, since that is the precision which the sum is worth. A float64
    stays one.
    """
    if encoding == F64:
        return F64
    name = plain_name(encoding) + _ADAPTER
    return FloatEncoding(name, F32.dtype) if isinstance(encoding, FloatEncoding) else MixedEncoding(name)


def plain_name(encoding: Encoding) -> str:
    """The name of an encoding; that of the stored matrix where an adapter is added."""
    return encoding.name.removesuffix(_ADAPTER)


def same_meaning(a: Encoding, b: Encoding) -> bool:
    """Whether two encodings differ in nothing but the name.

    Blocks of one are then blocks of the other: a conversion between them leaves every code and scale as it
    is. So it is with Q4_1 and MLX's 4 bits in groups of 32 with float16 scales, and with Q4_0 and ONNX
    Runtime's symmetric 4 bits.
    """
    if isinstance(a, RawEncoding | MixedEncoding) or isinstance(b, RawEncoding | MixedEncoding):
        return a == b  # of these, the name is all that is known
    return replace(a, name=b.name) == b
