"""A rounding of matrices that no runtime has: a yardstick, the same for every target."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from phiconv.ir import FloatArray

__all__ = ["coarse"]

_GROUP = 32
_LARGEST = 7


def coarse(values: FloatArray) -> FloatArray:
    """Rounds weights to 15 levels, ``-7 * scale`` to ``7 * scale``, ``scale`` being that of 32 neighbours.

    Args:
        values: Shape (rows, columns); the last group of a row may be shorter.

    Returns:
        The same shape; what is not finite makes its group not finite.
    """
    result = np.empty_like(values)
    for start in range(0, values.shape[1], _GROUP):
        group = values[:, start : start + _GROUP]
        scale = np.abs(group).max(axis=1, keepdims=True) / np.float32(_LARGEST)
        inverse = np.divide(1, scale, out=np.zeros_like(scale), where=scale != 0)
        result[:, start : start + _GROUP] = np.rint(group * inverse) * scale
    return result
