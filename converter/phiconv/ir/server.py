"""Encodings of compressed-tensors; see `phiconv.ir.hub_encodings` for those of other quantized folders.

What an encoding is called begins with the scheme, which says how its blocks are stored:
those of ``w8a16`` and ``w8a8`` mean the same and lie otherwise. Where the peer's rounding is asked for
(``runtime``), the blocks are of the same meaning again, and only the way to them differs.
"""

from __future__ import annotations

from dataclasses import replace

from phiconv.ir.codebooks import MLX_MXFP8, MXFP4, NVFP4, CodebookEncoding
from phiconv.ir.encodings import BlockEncoding, Encoding, FloatEncoding

__all__ = [
    "CT_MXFP4",
    "CT_MXFP8",
    "CT_NVFP4",
    "FP8_BLOCK",
    "compressed_fp8",
    "compressed_int",
    "is_runtime",
    "runtime_suffix",
    "scheme_of",
]

FP8_BLOCK = 128
"""Rows and columns that share a scale in ``fp8-block``."""

_RUNTIME = "_runtime"


def compressed_int(
    scheme: str,
    group_size: int,
    scale_type: FloatEncoding,
    *,
    symmetric: bool = True,
    runtime: bool = False,
) -> BlockEncoding:
    """Integers of compressed-tensors: ``group_size`` neighbours have a scale and maybe a zero point.

    Args:
        scheme: ``w4a16``, ``w8a16``, ``w4a8`` or ``w8a8``: bits of the weights and of the activations.
        group_size: A multiple of 8; the whole row for a scale per output channel.
        scale_type: The type that the weights had.
        symmetric: Whether codes lie around 0.
        runtime: Whether codes are found as the peer finds them on a processor without a GPU.
    """
    bits = int(scheme[1])
    kind = "" if symmetric else "_asym"
    name = f"ct_{scheme}{kind}_g{group_size}_{scale_type.name}{runtime_suffix(runtime=runtime)}"
    offset = 8 if symmetric and bits == 4 else 0  # codes of 4 bits are never negative in memory
    return BlockEncoding(name, group_size, bits, offset, scale_type=scale_type, has_zero_point=not symmetric)


def compressed_fp8(
    scheme: str, block_size: int, scale_type: FloatEncoding, *, runtime: bool = False
) -> CodebookEncoding:
    """E4M3 of compressed-tensors.

    Args:
        scheme: ``fp8-dynamic``, a scale for every row, or ``fp8-block``, one for 128 rows and columns.
        block_size: The whole row, or the largest size that divides both 128 and the row.
        scale_type: The type that the weights had.
        runtime: As for `compressed_int`.
    """
    sharing = FP8_BLOCK * FP8_BLOCK if scheme == "fp8-block" else block_size
    return replace(
        MLX_MXFP8,
        name=f"ct_{scheme}_c{block_size}_{scale_type.name}{runtime_suffix(runtime=runtime)}",
        block_size=block_size,
        bits_per_weight=8 + scale_type.bits_per_weight / sharing,
        scale_dtype=scale_type.dtype,
    )


# As everywhere, but that NVFP4 has a scale of the tensor, too, which the scales of blocks are divided by.
CT_NVFP4 = replace(NVFP4, name="ct_nvfp4a16", global_scale=0.0)
CT_MXFP4 = replace(MXFP4, name="ct_mxfp4a16")
CT_MXFP8 = replace(MLX_MXFP8, name="ct_mxfp8")


def scheme_of(encoding: Encoding) -> str:
    """The scheme of compressed-tensors that the name of an encoding begins with; "" for others."""
    prefix, _, rest = encoding.name.partition("_")
    return rest.partition("_")[0] if prefix == "ct" else ""


def is_runtime(encoding: Encoding) -> bool:
    """Whether blocks of an encoding are to be found the peer's way."""
    return encoding.name.endswith(_RUNTIME)


def runtime_suffix(*, runtime: bool) -> str:
    """What the name of such an encoding ends with."""
    return _RUNTIME if runtime else ""
