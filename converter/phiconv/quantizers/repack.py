"""Blocks of one encoding as blocks of another one that holds the same weights: nothing is quantized again."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from phiconv.errors import UsageError
from phiconv.ir import BF16, F16, F32, BlockEncoding, same_meaning
from phiconv.quantizers.floats import narrow

if TYPE_CHECKING:
    from phiconv.ir import Blocks, Encoding

__all__ = ["repack", "repackable"]


def repackable(stored: Encoding, target: Encoding) -> bool:
    """Whether all blocks of one encoding can be written as blocks of another one, and stand for the same.

    That is so where both mean the same; and where both are symmetric, with blocks of one size and codes of as
    many bits, and the target's scales have the same type or are float32. So Q4_0 becomes ONNX Runtime's
    symmetric 4 bits with scales of either type, and Q8_0 its 8 bits, and back from scales that are float16.
    """
    if same_meaning(stored, target):
        return True
    if not isinstance(stored, BlockEncoding) or not isinstance(target, BlockEncoding):
        return False
    if any(e.has_minimum or e.has_zero_point for e in (stored, target)):
        return False
    if (stored.block_size, stored.bits, _lowest(stored)) != (target.block_size, target.bits, _lowest(target)):
        return False
    return stored.scale_type == target.scale_type or (
        target.scale_type == F32 and stored.scale_type in (F16, BF16)
    )


def repack(blocks: Blocks, target: BlockEncoding) -> Blocks:
    """The same weights as blocks of another encoding.

    Args:
        blocks: Blocks of an encoding that is `repackable`.
        target: What to write them as.

    Raises:
        UsageError: The encodings are not repackable.
    """
    stored = blocks.encoding
    if not repackable(stored, target):
        raise UsageError(f"blocks of {stored.name} are no blocks of {target.name}")
    if same_meaning(stored, target) or not isinstance(stored, BlockEncoding):
        return replace(blocks, encoding=target)
    # As bytes, signed codes wrap around to the right ones, too.
    codes = blocks.codes.view(np.uint8) + np.uint8((target.offset - stored.offset) % 256)
    codes = codes.view(np.int8) if _is_signed(target) else codes
    return replace(blocks, encoding=target, codes=codes, scales=narrow(blocks.scales, target.scale_type))


def _is_signed(encoding: BlockEncoding) -> bool:
    return encoding.offset == 0


def _lowest(encoding: BlockEncoding) -> int:
    """The smallest ``code - offset`` of a symmetric encoding."""
    return -(1 << (encoding.bits - 1)) if _is_signed(encoding) else -encoding.offset
