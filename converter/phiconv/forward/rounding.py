"""How this machine rounds: processors, and releases of NumPy, add up products of matrices in other orders.

What is computed on several machines is the same as on one of them only where all round alike.
"""

from __future__ import annotations

import hashlib
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from phiconv.forward import threads

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["rounding"]

_SHAPE = (96, 1536)
"""Of the numbers: enough for every loop of a library, its remainders, and a sum in several parts."""


@cache
def rounding() -> str:
    """SHA-256 of some products, sums and functions: the same on machines whose results are the same."""
    count = _SHAPE[0] * _SHAPE[1]
    numbers = np.arange(count, dtype=np.uint32) * np.uint32(2654435761) >> np.uint32(8)
    digest = hashlib.sha256()
    with threads.parallel():
        for kind in ("float32", "float64"):
            x: NDArray[Any] = numbers.astype(kind).reshape(_SHAPE)
            x *= np.exp2(np.array(-23, kind))
            x -= 1
            sums = x @ x.T, x[:, :77].T @ x, np.einsum("ij,ij->j", x, x), x.sum(axis=1)
            for each in (*sums, np.exp(x), np.tanh(x), np.sqrt(np.abs(x))):
                digest.update(np.ascontiguousarray(each).tobytes())
    return digest.hexdigest()
