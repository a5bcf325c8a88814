"""MLX's affine quantizer: groups of weights with a scale and a minimum, rounded to nearest.

The formula is that of ``mx.quantize`` on the CPU, in float32 and in its order of operations, so that codes,
scales and minima are the very ones (on a GPU, MLX rounds halves otherwise). Codes come from scale and
minimum in float32, which are only then rounded to the type that the encoding stores.

A weight that is not finite, or a scale or minimum beyond its type, gives one that is not finite, and no
warning: it is for the caller to look.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from phiconv.ir import Blocks
from phiconv.quantizers.numerics.floats import narrow
from phiconv.quantizers.numerics.tiles import block_max, block_min, scratch_quads, spread

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from phiconv.ir import BlockEncoding, FloatArray

__all__ = ["affine"]

_LEAST_SCALE = np.float32(1e-7)


@np.errstate(all="ignore")
def affine(values: NDArray[Any], _importance: FloatArray | None = None, *, encoding: BlockEncoding) -> Blocks:
    """Quantizes such that the end of larger size, and 0 if it lies between both ends, lose nothing.

    With ``n = 2**bits - 1`` a group spans ``n`` steps of ``(max - min) / n``. Codes count from the end of
    larger size, so the scale is negative where that is the maximum. The step is then changed a little, such
    that 0 lies on a whole number of them. ::

        scale   = +-max((max - min) / n, 1e-7)
        steps   = rint(end / scale)
        scale   = end / steps,  minimum = end      if steps is not 0, else minimum = 0
        code    = min(rint((x - minimum) / scale), n)

    Args:
        values: float32, float16 or bfloat16, shape (rows, columns).
        encoding: One of `MLX_AFFINE`.
    """
    largest_code = np.float32((1 << encoding.bits) - 1)
    x = scratch_quads(values, encoding.block_size)
    low, high = block_min(x), block_max(x)
    from_below = np.abs(low) > np.abs(high)
    end = np.where(from_below, low, high)
    scale = np.maximum((high - low) / largest_code, _LEAST_SCALE)
    scale = np.where(from_below, scale, -scale)
    steps = np.rint(end / scale)
    scale = np.where(steps == 0, scale, end / steps)
    minimum = np.where(steps == 0, np.float32(0), end)
    x -= spread(minimum)
    x /= spread(scale)
    np.rint(x, out=x)
    # None is below 0, but rounding may lead one step too far. (Twice as fast as a minimum with a number.)
    np.minimum(x, np.full(x.shape[1:], largest_code), out=x)
    kind = encoding.scale_type
    return Blocks(encoding, x.astype(np.uint8), narrow(scale, kind), narrow(minimum, kind))
