"""Tables of cos and sin for rotary embeddings, computed row by row while they are written.

For 131072 positions they take 50 MB, which is why nobody holds them in memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from phiconv import ir
from phiconv.ir.rope import Rope
from phiconv.ir.trigonometry import cosine, sine

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

__all__ = ["find_theta", "has_two_tables", "rotary_tables", "table_names"]


@dataclass(frozen=True, slots=True)
class _Table:
    """``mscale * function(position * frequency)`` in float32, of cosine or sine (an `ir.Source`).

    Angles are float32, as in training.
    """

    label: str
    frequencies: tuple[float, ...]
    mscale: float
    function: Callable[[ir.FloatArray], ir.FloatArray]
    encoding: ir.Encoding = ir.F32

    def read(self, start: int, stop: int) -> ir.FloatArray:
        positions = np.arange(start, stop, dtype=np.float32)[:, None]
        angles = positions * np.array(self.frequencies, np.float32)
        table = self.function(angles)
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
        for name, function in zip(table_names(long=long), (cosine, sine), strict=True):
            table = _Table(name, frequencies, rope.mscale(long=bool(long)), function)
            yield name, ir.Tensor.of(table, (rows, len(frequencies)))


# ------------------------------------------------------------------------------------------------ and back

_ROWS = 4096  # of a table that are looked at: its first ones
_DIGITS = 7  # of a theta, at most


def find_theta(cos: ir.Tensor, sin: ir.Tensor) -> float | None:
    """The base of the frequencies that two tables were made with, where nothing else scales them.

    It is the number of the fewest digits whose tables are these, to the accuracy of the type they are in.

    Args:
        cos: Shape (positions, pairs), as `rotary_tables` makes them.
        sin: Of the same shape.

    Returns:
        The base; None where no base gives these tables.
    """
    rows, pairs = min(cos.rows, _ROWS), cos.columns
    if len(cos.shape) != 2 or cos.shape != sin.shape or rows < 2 or pairs < 2:
        return None
    with np.errstate(invalid="ignore"):  # a NaN in a table, which is that of no base
        tables = [np.asarray(table.read(0, rows)).astype(np.float64) for table in (cos, sin)]
    precision = {ir.F16.name: 2.0**-10, ir.BF16.name: 2.0**-7}.get(cos.encoding.name, 0.0)
    estimate = _estimate(*tables)
    for digits in range(1, _DIGITS + 1) if np.isfinite(estimate) and 1 < estimate < 1e12 else ():
        theta = float(f"{estimate:.{digits - 1}e}")
        if _are_tables_of(theta, tables, precision):
            return theta
    return None


def _estimate(cos: NDArray[np.float64], sin: NDArray[np.float64]) -> float:
    """The base, from the pair that says it best."""
    with np.errstate(all="ignore"):
        angles = np.arctan2(sin, cos)
        frequencies, position = angles[1], 1
        while 2 * position < len(cos):
            position *= 2  # halves the error, which is too small to mistake the number of turns
            turns = np.round((frequencies * position - angles[position]) / (2 * np.pi))
            frequencies = (angles[position] + 2 * np.pi * turns) / position
        exponents = np.arange(1, cos.shape[1]) / cos.shape[1]
        errors = 1 / (exponents * frequencies[1:])  # of the logarithm, relative to each other
        best = int(np.argmin(np.where(errors > 0, errors, np.inf)))
        return float(np.exp(-np.log(frequencies[1 + best]) / exponents[best]))


def _are_tables_of(theta: float, tables: list[NDArray[np.float64]], precision: float) -> bool:
    """Whether tables are those of a base, up to the last bits of frequencies, which libraries round."""
    rows, pairs = tables[0].shape
    frequencies = np.array(Rope(2 * pairs, theta, rows).inverse_frequencies(long=False))
    angles = np.arange(rows)[:, None] * frequencies
    allowed = angles * 2.0**-21 + 2.0**-20 + precision
    expected = np.cos(angles), np.sin(angles)
    return all(bool((abs(t - e) <= allowed).all()) for t, e in zip(tables, expected, strict=True))
