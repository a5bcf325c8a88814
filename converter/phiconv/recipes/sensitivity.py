"""How much a matrix suffers from quantization, by NNCF's data-free measure: its weights alone are read."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from phiconv.ir import openvino_affine
from phiconv.quantizers import decode, encode

if TYPE_CHECKING:
    from collections.abc import Sequence

    from phiconv.ir import Tensor

__all__ = ["EPSILON", "EPSILON_16", "sensitivities"]

EPSILON = float(np.finfo(np.float32).eps)
"""What NNCF adds to the error of weights in float32."""

EPSILON_16 = float(np.finfo(np.float16).eps)
"""What NNCF adds to that of weights in 16 bits; it takes bfloat16 for float16 here."""

_TILE = 1 << 20


def sensitivities(tensors: Sequence[Tensor], epsilons: Sequence[float]) -> list[float]:
    """The scores by which NNCF 3.4 chooses between 4 and 8 bits ("weight quantization error").

    ``1 / (error + epsilon)``, where the error is that of the worst row when rows are quantized to 8 bits with
    a zero point each: the mean of its squares. With one epsilon for all, the error alone decides.
    """
    return [1 / (_worst_row(t) + epsilon) for t, epsilon in zip(tensors, epsilons, strict=True)]


def _worst_row(tensor: Tensor) -> float:
    step = max(_TILE // tensor.columns, 1)
    encoding = openvino_affine(8, tensor.columns, symmetric=False)
    worst = 0.0
    for start in range(0, tensor.rows, step):
        weights = decode(tensor.read(start, min(start + step, tensor.rows)), tensor.columns)
        blocks = encode(weights, encoding)
        errors = decode(blocks, tensor.columns) - weights
        worst = max(worst, float(np.mean(errors * errors, axis=1).max()))
    return worst
