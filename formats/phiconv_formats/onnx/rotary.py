"""Tables of cos and sin for rotary embeddings, computed row by row while they are written.

For 131072 positions they take 50 MB, which is why nobody holds them in memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from phiconv import ir

if TYPE_CHECKING:
    from collections.abc import Iterator

    from phiconv.model import Rope

__all__ = ["has_two_tables", "rotary_tables", "table_names"]


@dataclass(frozen=True, slots=True)
class _Table:
    """``mscale * cos(position * frequency)``, or the sine, in float32 (an `ir.Source`)."""

    label: str
    frequencies: tuple[float, ...]
    mscale: float
    sine: bool
    encoding: ir.Encoding = ir.F32

    def read(self, start: int, stop: int) -> ir.FloatArray:
        positions = np.arange(start, stop, dtype=np.float32)[:, None]
        angles = positions * np.array(self.frequencies, np.float32)
        table: ir.FloatArray = np.sin(angles) if self.sine else np.cos(angles)
        table *= np.float32(self.mscale)
        return table

    def changed(self) -> bool:
        return False


def has_two_tables(rope: Rope, context: int) -> bool:
    """Whether longer texts have a table of their own (LongRoPE); else there is one for all lengths."""
    same = (rope.short_factor, rope.short_mscale) == (rope.long_factor, rope.long_mscale)
    return bool(rope.long_factor) and not same and context > rope.original_context


def table_names(*, long: bool | None) -> tuple[str, str]:
    """The names of cos and sin: of the long factors, of the short ones, or (None) of the only ones."""
    suffix = "" if long is None else "_large" if long else "_small"
    return f"cos_cache{suffix}", f"sin_cache{suffix}"


def rotary_tables(rope: Rope, context: int) -> Iterator[tuple[str, ir.Tensor]]:
    """The tables of a rotary embedding by name, each of shape (positions, rotated pairs).

    Args:
        rope: The embedding.
        context: The longest text.
    """
    if has_two_tables(rope, context):
        kinds: tuple[tuple[bool | None, int], ...] = ((True, context), (False, rope.original_context))
    else:
        kinds = ((None, context),)
    for long, rows in kinds:
        frequencies = rope.inverse_frequencies(long=bool(long))
        for name, sine in zip(table_names(long=long), (False, True), strict=True):
            table = _Table(name, frequencies, rope.mscale(long=bool(long)), sine)
            yield name, ir.Tensor.of(table, (rows, len(frequencies)))
