"""Memory that a thread uses again for every tile."""

from __future__ import annotations

import math
import threading
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import DTypeLike, NDArray

__all__ = ["scratch"]

_KEPT_BYTES = 4 << 20
"""The largest buffer that is kept: a tile of a million weights."""

_LINE = 64
"""Memory starts at a multiple of a cache line: where vectors straddle two, NumPy is half as fast."""


class _Buffers(threading.local):
    def __init__(self) -> None:
        self.by_name: dict[str, NDArray[np.uint8]] = {}


_buffers = _Buffers()


def scratch(name: str, shape: Sequence[int], dtype: DTypeLike) -> NDArray[Any]:
    """Memory with undefined contents, the same at every call of a thread under one name.

    Fresh memory of the size of a tile costs a page fault per 4 KiB, more than the arithmetic on it.

    Args:
        name: Belongs to one function, which must not let the memory outlive its call.
        shape: The shape of the array.
        dtype: Its type.
    """
    dtype = np.dtype(dtype)
    size = math.prod(shape) * dtype.itemsize
    buffer = _buffers.by_name.get(name)
    if buffer is None or buffer.size < size:
        buffer = np.empty(size + _LINE, np.uint8)
        buffer = buffer[-buffer.ctypes.data % _LINE :]
        if size <= _KEPT_BYTES:
            _buffers.by_name[name] = buffer
    return buffer[:size].view(dtype).reshape(shape)
