"""A task of the streaming engine: some rows of a tensor, read, checked, encoded, packed and written.

They are handled in tiles that fit a processor's cache.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, cast

import numpy as np

from phiconv.conversion import checks, effort
from phiconv.errors import WeightError
from phiconv.forward import threads
from phiconv.ir import Blocks
from phiconv.quantizers import decode, encode
from phiconv.quantizers.numerics.floats import narrow, widen
from phiconv.quantizers.repack import repack, repackable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from phiconv.ir import AnyBlockEncoding, BlockEncoding, Encoded
    from phiconv_formats.shared.output import Package, Stream

__all__ = ["SPAN", "TILE", "Span", "Target", "convert_span", "spans", "spans_of"]

TILE = 1 << 18
"""Weights handled at once: enough that NumPy's overhead vanishes, few enough for the L2 cache."""

SPAN = 16 * TILE  # weights of one task: large enough that the executor's overhead vanishes


class Target(Protocol):
    """Takes the bytes of a file, in any order and from any thread."""

    def write(self, offset: int, data: Any) -> None:
        """Takes ``data``, which has its place at ``offset``."""


@dataclass(frozen=True, slots=True)
class Span:
    """A task: some rows of one stream."""

    index: int
    start: int
    stop: int
    weights: int


def spans(package: Package) -> Iterator[Span]:
    """The tasks of an output, in order."""
    for index, stream in enumerate(package.streams):
        yield from spans_of(index, stream)


def spans_of(index: int, stream: Stream) -> Iterator[Span]:
    """Those of one stream."""
    rows, columns = stream.tensor.rows, stream.tensor.columns
    step = _rows_of(SPAN, stream)
    for start in range(0, rows if columns else 0, step):  # rows of nothing may be any number
        stop = min(start + step, rows)
        yield Span(index, start, stop, (stop - start) * columns)


def _nonfinite(stream: Stream, values: Encoded, start: int) -> WeightError:
    where = ""
    if isinstance(values, np.ndarray):
        row, column = checks.first_nonfinite(values)
        where = f" at row {start + row}, column {column}"
    return WeightError(
        f"a weight is NaN or infinite{where}",
        path=stream.tensor.label,
        hint="the checkpoint is damaged; give --allow-nonfinite to convert it all the same",
    )


def _rows_of(weights: int, stream: Stream) -> int:
    """How many rows have about so many weights."""
    together = stream.rows_together
    return max(weights // max(stream.tensor.columns, 1) // together, 1) * together


def _tiles(stream: Stream, span: Span) -> Iterator[tuple[int, int]]:
    """The rows of each tile; where errors count differently in each matrix of a stack, a tile lies in one.

    Where columns are looked at one after the other, it takes many rows to make long vectors.
    """
    step = _rows_of(TILE if stream.metrics is None else SPAN, stream)
    alike = stream.importance is None and stream.metrics is None
    matrix = stream.tensor.rows if alike else stream.tensor.shape[-2]
    start = span.start
    while start < span.stop:
        stop = min(start + step, span.stop, (start // matrix + 1) * matrix)
        yield start, stop
        start = stop


def _encode(values: Encoded, stream: Stream, start: int, bad: int) -> tuple[Encoded, int]:
    """Encodes rows, ``bad`` of whose numbers are not finite; returns also how many more are not afterwards.

    What is stored in the wanted encoding already is copied, also where formats call it differently.
    """
    stored = stream.tensor.encoding
    if isinstance(values, Blocks):
        if repackable(stored, stream.encoding):
            return _repacked(values, stream), 0
        values = decode(values, stream.tensor.columns)
    elif stored == stream.encoding:
        return values, 0
    metric = None if stream.metrics is None else stream.metrics[start // stream.tensor.shape[-2]]
    if metric is None and stream.cast is not None:
        values = narrow(values, stream.cast)
        if checks.may_overflow(stored, stream.cast) and (lost := checks.count_nonfinite(values) - bad) > 0:
            return encode(values, stream.encoding), lost
    weights = None if stream.importance is None else stream.importance[start // stream.tensor.shape[-2]]
    if metric is None:
        encoded = encode(values, stream.encoding, weights, effort=stream.effort)
    else:
        encoded = effort.quantize(widen(values), cast("AnyBlockEncoding", stream.encoding), metric)
    lost = checks.count_nonfinite(encoded) - bad if checks.may_overflow(stored, stream.encoding) else 0
    return encoded, max(lost, 0)


def _repacked(blocks: Blocks, stream: Stream) -> Blocks:
    """The same blocks in the wanted encoding; an error says whose they are."""
    try:
        return repack(blocks, cast("BlockEncoding", stream.encoding))
    except WeightError as error:
        where = f"tensor {stream.name}"
        raise WeightError(error.message, path=stream.tensor.label, at=where, hint=error.hint) from None


def convert_span(stream: Stream, span: Span, targets: list[Target], allow_nonfinite: bool) -> tuple[int, int]:
    """Converts the rows of one task; returns how many weights were not finite, and how many overflowed."""
    with threads.parallel():  # what an adapter adds is a small product of matrices
        return _convert_rows(stream, span, targets, allow_nonfinite)


def _convert_rows(
    stream: Stream, span: Span, targets: list[Target], allow_nonfinite: bool
) -> tuple[int, int]:
    nonfinite = overflows = 0
    across, kept = any(segment.lines > 1 for segment in stream.segments), []
    for start, stop in _tiles(stream, span):
        values = stream.tensor.read(start, stop)
        bad = checks.count_nonfinite(values)
        if bad and not allow_nonfinite:
            raise _nonfinite(stream, values, start)
        nonfinite += bad
        encoded, lost = _encode(values, stream, start, bad)
        overflows += lost
        if across and isinstance(encoded, Blocks):  # few rows would be few bytes of very many lines
            kept.append(encoded)
        else:
            _write(stream, targets, encoded, start)
    if kept:
        _write(stream, targets, Blocks.join(kept), span.start)
    return nonfinite, overflows


def _write(stream: Stream, targets: list[Target], encoded: Encoded, start: int) -> None:
    """Writes encoded rows to their places."""
    for segment, target, data in zip(stream.segments, targets, stream.pack(encoded), strict=True):
        position = segment.position(start)
        if segment.lines == 1:
            target.write(position, data)
            continue
        length = segment.line_bytes(stream.tensor.rows)
        for number, line in enumerate(data):
            target.write(position + number * length, line)
