"""litert-quantizer's integers around 0, ``min_max_uniform_quantize``: a scale for each row, or for blocks.

The formulas are those of litert-quantizer 0.11, in float32 and in its order of operations, so that codes and
scales are the very ones. Halves are rounded to the even code.

phiconv differs in one thing. A block that is all zero, or nearly, has a scale of 0 there, or a subnormal
float16, and XNNPACK loads no model with such a one: here no scale of a block is less than 2**-14.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from phiconv.ir import BF16, F16, F32, Blocks
from phiconv.quantizers.numerics.floats import narrow, widen
from phiconv.quantizers.numerics.tiles import block_max, block_min, scratch_quads, spread

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from phiconv.ir import BlockEncoding, FloatArray

__all__ = ["LEAST_BLOCK_SCALE", "symmetric"]

LEAST_BLOCK_SCALE = np.float32(2.0**-14)
"""The least normal float16."""

_LEAST_BOUND = np.float32(1e-9)


@np.errstate(all="ignore")
def symmetric(
    values: NDArray[Any], _importance: FloatArray | None = None, *, encoding: BlockEncoding
) -> Blocks:
    """Quantizes so that the weight of largest size becomes the largest code, ``m = 2**(bits - 1) - 1``.

    ::

        scale = max(|min x|, |max x|, 1e-9) / m; of a block rounded to bfloat16, which float16 then holds
        code  = rint(x / scale), within -m - 1 and m; within -m and m for 8 bits

    Args:
        values: float32, float16 or bfloat16, shape (rows, columns).
        encoding: One of `phiconv.ir.litert_channel` or `phiconv.ir.litert_block`.
    """
    largest = np.float32((1 << (encoding.bits - 1)) - 1)
    least = -largest if encoding.bits == 8 else -largest - 1
    x = scratch_quads(values, encoding.block_size)
    bound: FloatArray = np.maximum(np.maximum(np.abs(block_min(x)), np.abs(block_max(x))), _LEAST_BOUND)
    scale: FloatArray = np.divide(bound, largest)
    if encoding.scale_type == F16:
        scale = widen(narrow(widen(narrow(scale, BF16)), F16))
        scale = np.maximum(scale, LEAST_BLOCK_SCALE)
    x /= spread(scale)
    np.clip(np.rint(x, out=x), least, largest, out=x)
    scales = scale if encoding.scale_type == F32 else narrow(scale, F16)
    if not encoding.offset:
        return Blocks(encoding, x.astype(np.int8), scales)
    x += encoding.offset
    return Blocks(encoding, x.astype(np.uint8), scales)
