"""The bytes of OpenVINO's constants: which constants store a tensor, what is in them, and the inverse."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from phiconv import ir
from phiconv.errors import UsageError, WeightError
from phiconv_formats.openvino.graph import ELEMENT_BITS
from phiconv_formats.shared.bit_stream import pack_halves, unpack_halves
from phiconv_formats.shared.small_scales import exponents, powers

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Bytes: TypeAlias = NDArray[np.uint8]

__all__ = ["OpenVinoEncoding", "Part", "encoding_of", "pack", "parts_of", "unpack"]

OpenVinoEncoding: TypeAlias = ir.BlockEncoding | ir.CodebookEncoding
"""What stores a quantized matrix."""

_INTEGERS = {False: ("i4", "i8"), True: ("u4", "u8")}
"""The element types of codes without and with zero points."""

_MICROSCALING = {"f4e2m1": ir.OPENVINO_MXFP4, "f8e4m3": ir.OPENVINO_MXFP8}
"""Floats of 4 and 8 bits, with powers of two as scales."""

_FLOATS = {ir.F32: "f32", ir.F16: "f16", ir.BF16: "bf16"}


@dataclass(frozen=True, slots=True)
class Part:
    """A constant: its element type and its shape."""

    type: str
    shape: tuple[int, ...]


def parts_of(encoding: ir.Encoding, shape: tuple[int, ...]) -> tuple[Part, ...]:
    """The constants that store a tensor: its floats; or codes, scales and, if there are any, zero points.

    Args:
        encoding: How it is stored.
        shape: Of the tensor.

    Raises:
        UsageError: OpenVINO has no such constants.
    """
    if encoding in _FLOATS:
        return (Part(_FLOATS[encoding], shape),)
    kind = _type(encoding)
    groups = shape[-1] // encoding.block_size
    per_group = (*shape[:-1], groups, 1) if groups > 1 else (*shape[:-1], 1)
    codes = Part(kind, (*shape[:-1], groups, encoding.block_size) if groups > 1 else shape)
    scales = Part("f8e8m0" if kind in _MICROSCALING else "f16", per_group)
    has_zero_point = isinstance(encoding, ir.BlockEncoding) and encoding.has_zero_point
    return (codes, scales, Part(kind, per_group)) if has_zero_point else (codes, scales)


def pack(encoded: ir.Encoded) -> tuple[Bytes, ...]:
    """The bytes of rows, one vector for each of the constants that store them, as `parts_of` lists them.

    Two codes, or two zero points, of 4 bits share a byte; the first one is in the lower half.

    Args:
        encoded: Float rows of any shape, or blocks of an encoding that means the same as one of OpenVINO's.

    Raises:
        UsageError: OpenVINO has no such constants.
        WeightError: A code stands for a number in MLX and for none in OpenVINO.
    """
    if not isinstance(encoded, ir.Blocks):
        return (_bytes(encoded),)
    kind = _type(encoded.encoding)
    codes = _bytes(encoded.words().T)
    codes = pack_halves(codes) if ELEMENT_BITS[kind] == 4 else codes
    if kind == "i4":  # two's complement, where codes in memory count from -8
        codes ^= np.uint8(0x88)
    if kind in _MICROSCALING:
        return codes, _exponents(encoded, kind)
    if encoded.zero_points is None:
        return codes, _bytes(encoded.scales)
    zero_points = pack_halves(encoded.zero_points) if kind == "u4" else _bytes(encoded.zero_points)
    return codes, _bytes(encoded.scales), zero_points


def encoding_of(
    element_type: str, block_size: int, scale_type: str, *, has_zero_point: bool
) -> OpenVinoEncoding | None:
    """The inverse of `parts_of`: what constants of these types store; None for what phiconv does not know.

    Args:
        element_type: Of the codes.
        block_size: Codes that share a scale.
        scale_type: The element type of the scales.
        has_zero_point: Whether there are zero points, which have the type of the codes.
    """
    if block_size % 4 or not block_size:
        return None
    if element_type in _MICROSCALING:
        microscaling = _MICROSCALING[element_type]
        known = scale_type == "f8e8m0" and block_size == microscaling.block_size
        return microscaling if known and not has_zero_point else None
    if element_type == "nf4":
        return ir.openvino_nf4(block_size) if scale_type == "f16" and not has_zero_point else None
    if element_type not in _INTEGERS[has_zero_point] or scale_type not in ("f16", "f32"):
        return None
    encoding = ir.openvino_affine(int(element_type[1:]), block_size, symmetric=not has_zero_point)
    if scale_type == "f16":
        return encoding
    return replace(encoding, name=f"{encoding.name}_f32", scale_type=ir.F32)


def unpack(
    encoding: OpenVinoEncoding, codes: Bytes, scales: Bytes, zero_points: Bytes | None = None
) -> ir.Blocks:
    """The inverse of `pack`.

    Args:
        encoding: What the bytes are, one of `encoding_of`.
        codes: Those of the codes of whole blocks.
        scales: Those of the scales.
        zero_points: Those of the zero points, if there are any; they need not fill the last byte.

    Returns:
        Blocks in memory of their own.
    """
    bits = encoding.bits if isinstance(encoding, ir.BlockEncoding) else len(encoding.table).bit_length() - 1
    words = unpack_halves(codes) if bits == 4 else codes
    words = words.view("<u4").reshape(-1, encoding.block_size // 4).T
    quads: Any = np.ascontiguousarray(words)[..., None].view(np.uint8)
    if isinstance(encoding, ir.CodebookEncoding):
        return ir.Blocks(encoding, quads, _codebook_scales(encoding, quads, scales))
    numbers: Any = scales.view(encoding.scale_type.dtype).copy()
    if zero_points is not None:
        zeros = unpack_halves(zero_points)[: len(numbers)] if bits == 4 else zero_points.copy()
        return ir.Blocks(encoding, quads, numbers, zero_points=zeros)
    if bits == 4:
        quads ^= np.uint8(8)
        return ir.Blocks(encoding, quads, numbers)
    return ir.Blocks(encoding, quads.view(np.int8), numbers)


@cache
def _type(encoding: ir.Encoding) -> str:
    """The element type of the codes."""
    if isinstance(encoding, ir.BlockEncoding):
        for bits in (4, 8):
            for symmetric in (True, False):
                known = ir.openvino_affine(bits, encoding.block_size, symmetric=symmetric)
                if ir.same_meaning(encoding, known):
                    return f"{'i' if symmetric else 'u'}{bits}"
    if isinstance(encoding, ir.CodebookEncoding):
        for kind, microscaling in _MICROSCALING.items():
            if ir.same_meaning(encoding, microscaling):
                return kind
        if ir.same_meaning(encoding, ir.openvino_nf4(encoding.block_size)):
            return "nf4"
    raise UsageError(f"OpenVINO has no constants for {encoding.name}")


def _bytes(values: NDArray[np.generic]) -> Bytes:
    return np.ascontiguousarray(values).reshape(-1).view(np.uint8)


def _exponents(blocks: ir.Blocks, kind: str) -> Bytes:
    """E8M0 bytes of powers of two; half the scale belongs to E2M1's table, which has doubled numbers."""
    if kind == "f8e4m3" and np.any(np.isfinite(blocks.scales) & _has_no_number(blocks.codes)):
        raise WeightError("a code that is +-480 in MLX is no number in OpenVINO", hint="choose another type")
    return exponents(blocks.scales, doubled=kind == "f4e2m1")


def _has_no_number(quads: NDArray[Any]) -> NDArray[np.bool_]:
    """Which blocks have one of the two E4M3 codes that stand for none."""
    found: NDArray[np.bool_] = ((quads & 127) == 127).any(axis=(0, 2))
    return found


def _codebook_scales(encoding: ir.CodebookEncoding, quads: Bytes, scales: Bytes) -> NDArray[Any]:
    """Scales of NF4, or powers of two; no number where a block has a code that is none."""
    if encoding not in _MICROSCALING.values():
        return scales.view("<f2").copy()
    if encoding == ir.OPENVINO_MXFP4:
        return powers(scales, doubled=True)
    return np.where(_has_no_number(quads), np.float32(np.nan), powers(scales, doubled=False))
