"""A model's weights for one token at a time, where reading them costs more than the products.

What is read of a matrix stays in memory as it is stored, as far as the machine has memory to spare: floats of
16 bits are not widened before they are used. Tiles are so small that a core's own cache holds them widened.
"""

from __future__ import annotations

import os
import re
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from phiconv.forward import threads
from phiconv.forward.interpreter import Weights
from phiconv.ir import Blocks
from phiconv.quantizers import decode
from phiconv.quantizers.decoding import multiplies, product
from phiconv.quantizers.numerics.scratch import scratch

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from phiconv.forward.layers import Array
    from phiconv.ir import Tensor
    from phiconv.ir.model import Role
    from phiconv.ir.tensors import Encoded

__all__ = ["HeldWeights", "spare_memory"]

_FEW = 16
"""Fewer tokens than this are few."""

_ONE_TILE = 1 << 19
"""Weights of a tile for one token: two megabytes when widened."""

_FEW_PRODUCTS = 1 << 19
"""Weights times tokens of a tile for a few: OpenBLAS multiplies small matrices without copying them first."""

_SMALL = 1 << 19
"""A matrix of fewer weights is not worth waking another thread."""


class HeldWeights(Weights):
    """Weights by role, some of which stay in memory once they were read.

    Attributes:
        holding: Whether what is read now may stay.
    """

    def __init__(self, tensors: Mapping[Role, Tensor], dtype: np.dtype[Any], memory: int) -> None:
        """Reads nothing yet.

        Args:
            tensors: The weights.
            dtype: What to compute in.
            memory: Bytes that may stay in memory, beside vectors.
        """
        super().__init__(tensors, dtype)
        self._memory = memory
        self._held: dict[object, Encoded] = {}
        self._vectors: dict[tuple[Role, str], Array | None] = {}
        self.holding = False

    def vector(self, role: Role, part: str = "weight") -> Array | None:
        """All of a vector, or None where the model has none; it stays in memory."""
        key = role, part
        if key not in self._vectors:
            vector = super().vector(role, part)
            self._vectors[key] = None if vector is None else vector.copy()
        return self._vectors[key]

    def _by_tiles(self, matrix: Tensor, tokens: int, multiply: Callable[[int, int], None]) -> None:
        if tokens >= _FEW:
            super()._by_tiles(matrix, tokens, multiply)
            return
        size = min(_ONE_TILE, _FEW_PRODUCTS // tokens)
        step = max(size // max(matrix.columns, 1), 1)
        starts = range(0, matrix.rows, step)

        def some(first: int, count: int) -> None:
            for start in starts[first::count]:
                multiply(start, min(start + step, matrix.rows))

        count = 1 if matrix.size < _SMALL else min(os.cpu_count() or 1, len(starts))
        if count == 1:
            some(0, 1)
        else:
            threads.run(partial(some, first, count) for first in range(count))

    def _times(self, x: Array, matrix: Tensor, start: int, stop: int) -> Array:
        if self.holding and len(x) == 1 and self.dtype == np.float32:
            rows = self._stored(matrix.slice_rows(start, stop))
            if isinstance(rows, Blocks) and multiplies(rows):
                return product(x[0], rows)[None]
        return super()._times(x, matrix, start, stop)

    def _rows(self, tensor: Tensor, start: int, stop: int) -> Array:
        """Rows of a matrix, in memory that the thread's next call overwrites."""
        tile: Array = scratch("rows", (stop - start, tensor.columns), self.dtype)
        if not self.holding:
            self._read_into(tile, tensor, start, stop)
            return tile
        rows = self._stored(tensor.slice_rows(start, stop))
        if self.dtype == np.float32:
            return decode(rows, tensor.columns, tile)
        tile[...] = decode(rows, tensor.columns)
        return tile

    def _stored(self, rows: Tensor) -> Encoded:
        """Rows as they are stored, from memory if they were read before."""
        key = tuple((id(run.source), run.start, run.stop) for run in rows.runs)
        found = self._held.get(key)
        if found is None:
            found = rows.read(0, rows.rows)
            if found.nbytes <= self._memory:
                self._memory -= found.nbytes
                self._held[key] = found
        return found


def spare_memory() -> int:
    """Half of the memory that Linux says is available, and of a container's; 0 where nothing says it."""
    try:
        text = Path("/proc/meminfo").read_text(encoding="ascii", errors="replace")
    except OSError:
        return 0
    found = re.search(r"^MemAvailable: +(\d+) kB", text, re.MULTILINE)
    available = int(found[1]) << 10 if found else 0
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        limit = "max"
    return min(available, int(limit) if limit.isdigit() else available) // 2
