"""How ggml's searches round numbers to codes, in NumPy."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from phiconv.ir import FloatArray

__all__ = ["ExactRounding", "Rounding", "nearest", "rounds_exactly"]

_ROUNDS_TO_INTEGER = np.float32(3 << 22)
"""Float32 numbers from here to the next power of two are integers, so adding it rounds, ties to even."""

_EXACT = np.float32(1 << 22)
"""Below this magnitude `nearest` and ``np.rint`` are the same."""


def nearest(values: FloatArray) -> NDArray[np.int32]:
    """Rounds like ggml's ``nearest_int``, also what it cannot round: that gives some integer, but the same.

    Args:
        values: C-contiguous; overwritten, the result is in its memory.
    """
    values += _ROUNDS_TO_INTEGER
    result = values.view(np.int32)
    result &= 0x007FFFFF
    result -= 0x00400000
    return result


class Rounding:
    """Rounds numbers of ``count`` groups, (size, count), to codes from ``low`` to ``high``, in place."""

    def __init__(self, count: int, low: int, high: int) -> None:
        # With limits in arrays, of all places, NumPy is more than twice as fast as with its clip.
        self.low, self.high = _limits(count, low), _limits(count, high)

    def __call__(self, values: FloatArray, *, below: bool, above: bool) -> None:
        """Rounds; ``below`` and ``above`` say whether a number may be beyond the codes on that side."""
        np.rint(values, out=values)
        if below:
            np.maximum(values, self.low, out=values)
        if above:
            np.minimum(values, self.high, out=values)


@lru_cache(maxsize=16)
def _limits(count: int, value: int) -> FloatArray:
    """A limit for every group; the same array every time, not to be changed."""
    return np.full(count, value, np.float32)


class ExactRounding(Rounding):
    """The same as ggml does it, for numbers of any size and for NaN."""

    def __call__(self, values: FloatArray, *, below: bool, above: bool) -> None:  # noqa: ARG002
        """Rounds; a number may be beyond on both sides in any case."""
        np.copyto(values, nearest(values).astype(np.float32))
        np.clip(values, self.low, self.high, out=values)


def rounds_exactly(magnitudes: FloatArray, tightest: FloatArray, limit: int) -> NDArray[np.bool_]:
    """Whether groups are searched right by a search that rounds only numbers below 2**22 as ggml does.

    A minimum that comes close to the largest weight leaves tiny ranges, and numbers too large to round.

    Args:
        magnitudes: The largest of the weights of groups.
        tightest: The smallest range that weights were divided by.
        limit: The largest code.
    """
    reach = magnitudes / tightest * np.float32(2 * limit + 4)
    exact: NDArray[np.bool_] = (tightest > 0) & (reach < _EXACT)
    exact &= np.isfinite(np.float32(limit + 1) / tightest)
    return exact
