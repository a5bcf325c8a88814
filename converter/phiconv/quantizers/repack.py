"""Blocks of one encoding as blocks of another one that holds the same weights: nothing is quantized again.

Every rule is exact in the arithmetic of the formula, and the target's codes have as many bits as the stored:

    a symmetric block has other codes for the same numbers where they are stored from another offset on;
    it has a minimum too, ``scale * least``, which is its scale times a power of two;
    a zero point is a minimum, ``-scale * zero_point``, where minima are float32: float16 has too few bits;
    a block is several smaller ones with the same scale;
    a scale of 16 bits is one of float32;
    a scale of bfloat16 is one of float16, unless it is very large or very small: which is looked at;
    blocks whose scales may be negative are none of a runtime that takes only positive ones.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from phiconv.errors import UsageError, WeightError
from phiconv.ir import BF16, F16, F32, BlockEncoding, Blocks, same_meaning
from phiconv.quantizers.numerics.floats import narrow

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from phiconv.ir import Encoding, FloatArray

__all__ = ["repack", "repackable", "stays"]


def repackable(stored: Encoding, target: Encoding) -> bool:
    """Whether all blocks of one encoding can be written as blocks of another one, and stand for the same.

    So Q4_0 becomes ONNX Runtime's symmetric 4 bits, with scales of either type, or Q4_1; and OpenVINO's
    symmetric 4 bits in groups of 128 become Q4_0.
    """
    if same_meaning(stored, target):
        return True
    if not isinstance(stored, BlockEncoding) or not isinstance(target, BlockEncoding):
        return False
    wider = target.scale_type == F32 and stored.scale_type in (F16, BF16)
    same_codes = stored.bits == target.bits and stored.block_size % target.block_size == 0
    narrower = (stored.scale_type, target.scale_type) == (BF16, F16) and not target.has_minimum
    too_signed = target.positive_scales and not stored.positive_scales
    if too_signed or not same_codes or not (wider or narrower or stored.scale_type == target.scale_type):
        return False
    if target.has_minimum and not stored.has_minimum:
        exact = stored.scale_type in (F16, BF16)  # of which few bits of float32 are used
        return exact and (target.scale_type == F32 or _is_symmetric(stored))
    if target.has_minimum or target.has_zero_point:
        kinds = ((e.has_minimum, e.has_zero_point, e.offset) for e in (stored, target))
        return len(set(kinds)) == 1
    return _is_symmetric(stored) and _least(stored) == _least(target)


def stays(stored: Encoding, own: Encoding | None, chosen: Encoding | None) -> bool:
    """Whether blocks can be had in a recipe's own encoding, and not in the one that it chose for a tensor.

    Then they stay what they are: more bits than are stored would be for nothing. None is no block encoding.
    """
    return (
        own is not None
        and repackable(stored, own)
        and not (chosen is not None and repackable(stored, chosen))
    )


def repack(blocks: Blocks, target: BlockEncoding) -> Blocks:
    """The same weights as blocks of another encoding.

    Args:
        blocks: Blocks of an encoding that is `repackable`.
        target: What to write them as.

    Raises:
        UsageError: The encodings are not repackable.
        WeightError: A minimum is larger than float16 can hold: its block has weights that large, too. Or a
            scale of bfloat16 is no number of float16.
    """
    stored = blocks.encoding
    if not repackable(stored, target):
        raise UsageError(f"blocks of {stored.name} are no blocks of {target.name}")
    if same_meaning(stored, target) or not isinstance(stored, BlockEncoding):
        return replace(blocks, encoding=target)
    times = stored.block_size // target.block_size
    scales, minima, zero_points = blocks.scales, blocks.minima, blocks.zero_points
    if target.has_minimum and minima is None:
        minima, zero_points = _minima(blocks, stored), None
        if np.any(np.isinf(narrow(minima, target.scale_type)) & np.isfinite(scales)):
            raise WeightError(f"a minimum that {target.scale_type.name} cannot hold", hint="choose float32")
    narrowed = narrow(scales, target.scale_type)
    if (stored.scale_type, target.scale_type) == (BF16, F16):
        _check_scales(scales, narrowed)
    return Blocks(
        target,
        _split(_shifted(blocks.codes, stored, target), times),
        narrowed.repeat(times),
        None if minima is None else narrow(minima, target.scale_type).repeat(times),
        zero_points=None if zero_points is None else zero_points.repeat(times),
    )


def _check_scales(scales: NDArray[Any], narrowed: NDArray[Any]) -> None:
    """Refuses scales that float16 cannot hold."""
    lost = np.isfinite(scales) & (narrowed.astype(np.float32) != scales.astype(np.float32))
    if np.any(lost):
        raise WeightError(
            f"a scale of {float(scales[lost][0]):.6g} is no number of float16, and {np.count_nonzero(lost)} "
            "of these rows are none",
            hint="store this tensor as a float: --tensor-type NAME=f16",
        )


def _minima(blocks: Blocks, stored: BlockEncoding) -> FloatArray:
    """What code 0 stands for in each block, exactly; codes that are signed are counted from the least on."""
    scales: Any = blocks.scales.astype(np.float32)
    if blocks.zero_points is not None:
        return np.asarray(-scales * blocks.zero_points, np.float32)
    return np.asarray(scales * np.float32(_least(stored)), np.float32)


def _shifted(codes: NDArray[Any], stored: BlockEncoding, target: BlockEncoding) -> NDArray[Any]:
    """The codes, counted as the target counts them."""
    if not _is_symmetric(stored):
        return codes
    start = -_least(stored) if target.has_minimum else target.offset
    shift = (start - stored.offset) % 256  # as bytes, signed codes wrap around to the right ones, too
    shifted = codes.view(np.uint8) + np.uint8(shift)
    return shifted.view(np.int8) if _is_symmetric(target) and target.offset == 0 else shifted


def _split(codes: NDArray[Any], times: int) -> NDArray[Any]:
    """The quads of each block as those of several blocks, which follow each other."""
    quads, count, _ = codes.shape
    parts = codes.reshape(times, quads // times, count, 4).transpose(1, 2, 0, 3)
    return np.ascontiguousarray(parts).reshape(quads // times, count * times, 4)


def _is_symmetric(encoding: BlockEncoding) -> bool:
    return not encoding.has_minimum and not encoding.has_zero_point


def _least(encoding: BlockEncoding) -> int:
    """The smallest ``code - offset`` of a symmetric encoding."""
    return -encoding.offset if encoding.offset else -(1 << (encoding.bits - 1))
