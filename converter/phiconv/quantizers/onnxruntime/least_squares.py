"""ONNX Runtime's "k_quant": blocks whose scale and minimum are fitted by weighted least squares.

The idea is that of llama.cpp's K-quants. The formula, the order of its steps and of its additions are those
of ``quant_tensor_k_quant_cpu`` in onnxruntime.quantization, so that codes, scales and zero points are the
very ones.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from phiconv.ir import Blocks
from phiconv.quantizers.numerics.floats import narrow
from phiconv.quantizers.numerics.scratch import scratch
from phiconv.quantizers.numerics.tiles import block_max, block_min, scratch_quads, spread
from phiconv.quantizers.onnxruntime.python_tools import double_codes

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from phiconv.ir import BlockEncoding, FloatArray

__all__ = ["k_quant"]

_STEPS = 20


class _Weighted(NamedTuple):
    """What the steps of the search have in common.

    Attributes:
        x: The weights of the model, shape (block_size / 4, n, 4).
        w: What the error of each counts, of the same shape.
        sum_w: Sum of w per block, shape (n,).
        sum_x: Sum of w x.
        largest: The largest code.
    """

    x: FloatArray
    w: FloatArray
    sum_w: FloatArray
    sum_x: FloatArray
    largest: np.float32


@np.errstate(all="ignore")
def k_quant(
    values: NDArray[Any], _importance: FloatArray | None = None, *, encoding: BlockEncoding
) -> Blocks:
    """Quantizes as ``KQuantWeightOnlyQuantConfig``.

    The error of a weight x counts ``w = sqrt(mean x**2) + |x|``. Codes l are tried for 20 steps around
    ``(max - min) / (2**bits - 1)``; for each the scale and the minimum that fit them best are ::

        D       = sum w sum w l**2 - (sum w l)**2
        scale   = (sum w sum w x l - sum w x sum w l) / D
        minimum = (sum w l**2 sum w x - sum w l sum w x l) / D

    A better minimum is also where the codes of later steps start from. At the end the minimum becomes the
    zero point ``rint(-minimum / scale)``, and ``code = rint(x / scale + zero_point)``. (So of equal weights
    below 0.5 nothing is left: scale 1, zero point 0, code 0.)

    Args:
        values: float32 or float16 like the scales, shape (rows, columns).
        encoding: One of ``ONNX_AFFINE["k_quant"]``.
    """
    largest = np.float32((1 << encoding.bits) - 1)
    x = scratch_quads(values, encoding.block_size)
    tile = _weigh(x, encoding.block_size, largest)
    low, high = block_min(x), block_max(x)
    steps = _reciprocal_step(largest, low, high)
    scale: FloatArray = np.float32(1) / steps
    best = _error(tile, _codes(tile, steps, low), scale, low)
    for step in range(_STEPS):
        codes = _codes(tile, _reciprocal_step(np.float32(-1 + 0.1 * step + float(largest)), low, high), low)
        new_scale, new_low = _fit(tile, codes)
        error = _error(tile, codes, new_scale, new_low)
        better = error < best
        scale, low = np.where(better, new_scale, scale), np.where(better, new_low, low)
        best = np.where(better, error, best)
    zero = np.nan_to_num(np.clip(np.rint(-low / scale), np.float32(0), largest))
    nearest = double_codes(x, scale.astype(np.float64), zero.astype(np.float64), encoding.bits)
    return Blocks(encoding, nearest, narrow(scale, encoding.scale_type), zero_points=zero.astype(np.uint8))


def _weigh(x: FloatArray, block_size: int, largest: np.float32) -> _Weighted:
    product = np.multiply(x, x, out=scratch("k_quant_product", x.shape, np.float32))
    root = np.sqrt(_block_sums(product) / np.float32(block_size))
    w = np.abs(x, out=scratch("k_quant_weights", x.shape, np.float32))
    w += spread(root)
    np.multiply(w, x, out=product)
    return _Weighted(x, w, _block_sums(w), _block_sums(product), largest)


def _reciprocal_step(steps: np.float32, low: FloatArray, high: FloatArray) -> FloatArray:
    """How many codes lie between 0 and 1, or 1 where all weights are equal."""
    return np.where(low == high, np.float32(1), steps / (high - low))


def _codes(tile: _Weighted, reciprocal_step: FloatArray, low: FloatArray) -> FloatArray:
    """Codes of every weight, whole numbers in float32; the next call overwrites them."""
    codes: FloatArray = scratch("k_quant_codes", tile.x.shape, np.float32)
    np.subtract(tile.x, spread(low), out=codes)
    codes *= spread(reciprocal_step)
    np.rint(codes, out=codes)
    return np.clip(codes, np.float32(0), tile.largest, out=codes)


def _fit(tile: _Weighted, codes: FloatArray) -> tuple[FloatArray, FloatArray]:
    """The scale and the minimum that fit the codes best."""
    weighted = np.multiply(tile.w, codes, out=scratch("k_quant_weighted", codes.shape, np.float32))
    product = scratch("k_quant_product", codes.shape, np.float32)
    sum_l = _block_sums(weighted)
    sum_l2 = _block_sums(np.multiply(weighted, codes, out=product))
    sum_xl = _block_sums(np.multiply(weighted, tile.x, out=product))
    determinant = tile.sum_w * sum_l2 - sum_l * sum_l
    scale = np.divide(tile.sum_w * sum_xl - tile.sum_x * sum_l, determinant)
    return scale, np.divide(sum_l2 * tile.sum_x - sum_l * sum_xl, determinant)


def _error(tile: _Weighted, codes: FloatArray, scale: FloatArray, minimum: FloatArray) -> FloatArray:
    """The weighted sum of the squared errors, shape (n,)."""
    error = np.multiply(codes, spread(scale), out=scratch("k_quant_product", codes.shape, np.float32))
    error += spread(minimum)
    error -= tile.x
    error *= error
    error *= tile.w
    return _block_sums(error)


def _block_sums(x: FloatArray) -> FloatArray:
    """The sum of every block, (block_size / 4, n, 4) to (n,), in NumPy's order for a contiguous row.

    Eight partial sums of every eighth number, added in pairs; of more than 128 numbers, each half by itself.
    """
    if x.shape[0] > 32:
        half = x.shape[0] // 2
        return _block_sums(x[:half]) + _block_sums(x[half:])
    even, odd = np.add.reduce(x[0::2], axis=0), np.add.reduce(x[1::2], axis=0)
    sums: FloatArray = ((even[:, 0] + even[:, 1]) + (even[:, 2] + even[:, 3])) + (
        (odd[:, 0] + odd[:, 1]) + (odd[:, 2] + odd[:, 3])
    )
    return sums
