"""Quantizes matrices, tile by tile."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from phiconv.errors import UsageError
from phiconv.ir import Blocks
from phiconv.quantizers import encode
from phiconv.quantizers.best.descent import Descent
from phiconv.quantizers.best.fits import joined
from phiconv.quantizers.best.kinds import kind_of
from phiconv.quantizers.best.metric import Metric
from phiconv.quantizers.numerics.buffering import unbuffered

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from phiconv import ir
    from phiconv.ir import FloatArray
    from phiconv.quantizers.best.fits import Kind

__all__ = ["SWEEPS", "best", "merged", "supports"]

SWEEPS = 3
"""How often every code is looked at: later sweeps take less than 1 % off the error."""

_TILE = 1 << 22
"""Weights in memory at a time, of up to `_ROWS` rows; each takes some 40 bytes."""

_ROWS = 1024


def supports(encoding: ir.Encoding) -> bool:
    """Whether `best` knows the encoding; all others are left to the runtime's own quantizer."""
    return kind_of(encoding) is not None


def best(
    values: FloatArray,
    encoding: ir.AnyBlockEncoding,
    moments: FloatArray | Sequence[FloatArray],
    *,
    sweeps: int = SWEEPS,
    default: Blocks | None = None,
) -> Blocks:
    """The blocks of least error of a matrix's outputs that descent finds.

    Rows do not depend on each other: those of any part of a matrix are quantized as in the whole. Where the
    weights of a row, or what the runtime's own quantizer makes of them, are not finite, it is left at that.

    Args:
        values: float32, shape (rows, columns).
        encoding: One that `supports` knows.
        moments: The second moment of the inputs, float32 of shape (columns, columns), see `shrunk`. Or a list
            of smaller ones of neighbouring columns, whole blocks each: then inputs of different ones count as
            if they had nothing to do with each other.
        sweeps: How often every code is looked at.
        default: What the runtime's own quantizer makes of these rows, if it is there already.

    Returns:
        Blocks whose error, as ``moments`` measures it, is at most that of ``default``.

    Raises:
        UsageError: The encoding is not known here, or the moments are not of these columns.
    """
    kind = kind_of(encoding)
    if kind is None:
        raise UsageError(f"there is no better quantizer for {encoding.name} than the runtime's own")
    parts: list[Any] = [moments] if isinstance(moments, np.ndarray) else list(moments)
    rows, columns = values.shape
    if sum(len(part) for part in parts) != columns or any(len(p) % encoding.block_size for p in parts):
        raise UsageError(f"moments of {[len(p) for p in parts]} columns for {columns} of {encoding.name}")
    own = _encoded(values, encoding) if default is None else default
    found, start = [], 0
    for part in parts:
        stop = start + len(part)
        theirs = own if len(parts) == 1 else _columns(own, rows, columns, start, stop)
        found.append(_part(values[:, start:stop], kind, Metric(part), theirs, sweeps))
        start = stop
    return joined(found, rows) if rows else own


def merged(first: Blocks, second: Blocks, take_second: NDArray[np.bool_]) -> Blocks:
    """Rows of two quantizations of the same matrix.

    Args:
        first: Its blocks.
        second: Others.
        take_second: Whose row is wanted, shape (rows,).
    """
    if not take_second.any():
        return first
    where = np.repeat(take_second, len(first) // len(take_second))
    others: dict[str, Any] = {
        field.name: np.where(where, getattr(second, field.name), getattr(first, field.name))
        for field in fields(first)[2:]
        if getattr(first, field.name) is not None
    }
    return replace(first, codes=np.where(where[:, None], second.codes, first.codes), **others)


def _encoded(values: FloatArray, encoding: ir.AnyBlockEncoding) -> Blocks:
    blocks = encode(values, encoding)
    assert isinstance(blocks, Blocks)  # noqa: S101 - since it is a block encoding
    return blocks


def _columns(blocks: Blocks, rows: int, columns: int, start: int, stop: int) -> Blocks:
    """The blocks of some columns."""
    size = blocks.encoding.block_size
    numbers = np.arange(rows)[:, None] * (columns // size) + np.arange(start // size, stop // size)
    return blocks.take(numbers.reshape(-1))


def _part(values: FloatArray, kind: Kind, metric: Metric, own: Blocks, sweeps: int) -> Blocks:
    rows, columns = values.shape
    step = max(min(_TILE // columns, _ROWS), 1)
    per_row = columns // own.encoding.block_size
    found = []
    for start in range(0, rows, step):
        stop = min(start + step, rows)
        theirs = own.take(np.arange(start * per_row, stop * per_row))
        found.append(_tile(values[start:stop], kind, metric, theirs, sweeps))
    return Blocks.join(found) if found else own


@unbuffered
@np.errstate(all="ignore")
def _tile(values: FloatArray, kind: Kind, metric: Metric, own: Blocks, sweeps: int) -> Blocks:
    """Quantizes a tile: the better of two starts, then the descent."""
    rows = len(values)
    theirs = kind.read(own, rows)
    usable: NDArray[np.bool_] = np.logical_and.reduce(np.isfinite(values), axis=1)
    usable &= np.isfinite(theirs.scale).all(axis=0)
    if theirs.low is not None:
        usable &= np.isfinite(theirs.low).all(axis=0)
    x = np.where(usable[:, None], values, np.float32(0)).T.copy()
    first = Descent(metric, kind, x, kind.search(x, _search_weights(metric)))
    second = Descent(metric, kind, x, theirs)
    reached, to_beat = (metric.total(d.errors, d.scale) for d in (first, second))
    usable &= np.isfinite(to_beat)
    first.copy_rows(second, usable & ~(reached < to_beat))
    for _ in range(sweeps):
        if not first.sweep():
            break
    return merged(kind.blocks(first.fit), own, ~usable | first.exceeded)


def _search_weights(metric: Metric) -> FloatArray:
    """What the error of a weight counts by its column: a little even where the input is 0."""
    weights = metric.weights / max(metric.weights.max(initial=0), np.finfo(np.float32).tiny)
    floor = np.float32(1e-6) * weights.mean() if weights.any() else np.float32(1)
    result: FloatArray = np.maximum(weights, floor).astype(np.float32)
    return result
