"""The streaming engine: carries a `Package` out in bounded memory, in any executor.

A tensor is cut into spans of rows, a span into tiles that fit a processor's cache. A worker reads a tile,
encodes it, packs it and writes it to its place. So memory is a few tiles per worker whatever the model's
size, and the bytes do not depend on the number of workers.
"""

from __future__ import annotations

import os
from collections import Counter
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, ThreadPoolExecutor, wait
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, cast

import numpy as np

from phiconv.conversion import checks, effort
from phiconv.conversion.digests import FollowingHashes
from phiconv.conversion.outputs import partial_files
from phiconv.conversion.receipt import receipt_text
from phiconv.errors import MalformedFileError, WeightError, WorkerError
from phiconv.forward import threads
from phiconv.ir import Blocks, FloatEncoding
from phiconv.quantizers import SEARCHING, decode, encode
from phiconv.quantizers.numerics.floats import narrow, widen
from phiconv.quantizers.repack import repack, repackable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from concurrent.futures import Executor, Future
    from contextlib import AbstractContextManager
    from pathlib import Path

    from phiconv.conversion.outputs import PartialFile
    from phiconv.conversion.receipt import Receipt
    from phiconv.conversion.unfinished import Unfinished
    from phiconv.ir import AnyBlockEncoding, BlockEncoding, Encoded
    from phiconv_formats.shared.output import Package, Stream

__all__ = ["Progress", "Target", "TensorReport", "compare", "run", "worth_processes"]

TILE = 1 << 18
"""Weights handled at once: enough that NumPy's overhead vanishes, few enough for the L2 cache."""

_SPAN = 16 * TILE  # weights of one task: large enough that the executor's overhead vanishes

_WORTH_PROCESSES = 1 << 26  # weights whose quantization is a search


class Target(Protocol):
    """Takes the bytes of a file, in any order and from any thread."""

    def write(self, offset: int, data: Any) -> None:
        """Takes ``data``, which has its place at ``offset``."""


class Progress(Protocol):
    """Is told how far a conversion is."""

    def __call__(self, done: int, total: int, name: str) -> None:
        """``done`` of ``total`` weights are written; the last one finished belongs to tensor ``name``."""


@dataclass(slots=True)
class TensorReport:
    """What happened to one tensor.

    Attributes:
        name: Its name in the output.
        nonfinite: Weights of the source that are NaN or infinite.
        overflows: Weights or scales that the target type could not hold, and that became infinite.
    """

    name: str
    nonfinite: int = 0
    overflows: int = 0


@dataclass(frozen=True, slots=True)
class _Span:
    """A task: some rows of one stream."""

    index: int
    start: int
    stop: int
    weights: int


def run(
    package: Package,
    folder: Path,
    *,
    executor: Executor | None = None,
    jobs: int | None = None,
    processes: bool = False,
    force: bool = False,
    allow_nonfinite: bool = False,
    progress: Progress | None = None,
    source: Path | None = None,
    note: Callable[[str], None] | None = None,
    unfinished: Unfinished | None = None,
    receipt: Receipt | None = None,
) -> list[TensorReport]:
    """Writes an output.

    Args:
        package: The output without its weights.
        folder: Where it goes; it must exist.
        executor: Any executor; by default a pool of ``jobs`` threads.
        jobs: Number of threads, and twice as many tasks are under way at once; by default one per processor.
        processes: The pool is one of processes where quantizing takes long, see `processes`.
        force: Replace files that exist.
        allow_nonfinite: Convert NaN, infinity and overflows instead of refusing them.
        progress: Called from this thread after each task.
        source: What is converted; it is not replaced.
        note: Is told what else was done at the destination, in one line.
        unfinished: Has what an interrupted run has done, and keeps what this one does.
        receipt: What the receipt among the files says, but for the sums.

    Returns:
        One report per tensor, in order.

    Raises:
        WeightError: A weight that is not finite, or too large for the target type.
        OutputError: The output cannot be written.
        WorkerError: A process was ended by somebody else.
    """
    jobs = jobs or os.cpu_count() or 1
    reports = [TensorReport(s.name) for s in package.streams]
    own = executor is None
    made = partial_files(
        folder,
        package.files,
        force=force,
        own_folder=package.own_folder,
        stale=package.stale,
        beside=package.beside,
        label=package.label,
        source=source,
        note=note,
    )
    with made as files:
        pool = _own_pool(package, jobs, processes=processes) if executor is None else executor
        # An own pool is joined before the files are renamed or removed; a foreign one lives on.
        context: AbstractContextManager[object] = pool if own else nullcontext()
        hashing = None if receipt is None else _hashes(package, receipt, files)
        with effort.preparation(package.streams) as ready, hashing or nullcontext(), context:
            work = _Work(package, files, pool, 2 * jobs, ready, unfinished, reports, progress, hashing)
            try:
                work.run(allow_nonfinite=allow_nonfinite)
            except BrokenExecutor as error:
                raise WorkerError(
                    "a worker process was ended, as systems do when memory runs out", hint="give --jobs 1"
                ) from error
            if receipt is not None and hashing is not None:
                files[receipt.name].write(0, receipt_text(receipt.statement(hashing.digests())))
        _check_unchanged(package)
    return reports


def _hashes(package: Package, receipt: Receipt, files: Mapping[str, PartialFile]) -> FollowingHashes:
    """What takes the sums for a receipt."""
    return FollowingHashes(
        package, {name: files[name].path for name in receipt.outputs}, [file for _, file in receipt.sources]
    )


def compare(
    package: Package,
    targets: Mapping[str, Target],
    *,
    jobs: int | None = None,
    progress: Progress | None = None,
) -> None:
    """Converts once more: gives every packed row to targets that compare it with what is there.

    Args:
        package: The output.
        targets: Its files by name. What one of them raises ends the comparison.
        jobs: Number of threads; by default one per processor.
        progress: Called from this thread after each task.

    Raises:
        WeightError: A source that could not have been converted.
    """
    jobs = jobs or os.cpu_count() or 1
    reports = [TensorReport(s.name) for s in package.streams]
    pool = ThreadPoolExecutor(jobs, thread_name_prefix="phiconv")
    with effort.preparation(package.streams) as ready, pool:
        _Work(package, targets, pool, 2 * jobs, ready, None, reports, progress).run(allow_nonfinite=True)
    _check_unchanged(package)


def _own_pool(package: Package, jobs: int, *, processes: bool) -> Executor:
    """Threads, which are there at once; or processes, each of which has Python's lock to itself."""
    if processes and jobs > 1 and worth_processes(package):
        from phiconv.conversion.processes import pool  # takes as long to import as a small model to convert

        return pool(jobs)
    return ThreadPoolExecutor(jobs, thread_name_prefix="phiconv")


def worth_processes(package: Package) -> bool:
    """Whether there is so much to search that processes save more time than they take to start."""
    return sum(s.tensor.size for s in package.streams if _searches(s)) >= _WORTH_PROCESSES


def _searches(stream: Stream) -> bool:
    if isinstance(stream.encoding, FloatEncoding) or repackable(stream.tensor.encoding, stream.encoding):
        return False
    return stream.encoding in SEARCHING or stream.importance is not None or stream.moments is not None


@dataclass(slots=True)
class _Work:
    """All tensors of an output, on their way.

    Attributes:
        package: The output.
        files: Its files by name.
        pool: Where tasks are carried out.
        limit: How many are under way at once.
        ready: Makes streams ready.
        unfinished: See `run`.
        reports: One per stream.
        progress: See `run`.
        hashing: Is told which tensors are done.
    """

    package: Package
    files: Mapping[str, Target]
    pool: Executor
    limit: int
    ready: effort.Preparation
    unfinished: Unfinished | None
    reports: list[TensorReport]
    progress: Progress | None
    hashing: FollowingHashes | None = None
    done: int = 0

    def run(self, *, allow_nonfinite: bool) -> None:
        """Keeps as many tasks under way until all are done or one fails."""
        left = Counter(span.index for span in _spans(self.package))
        spans = self._to_do()
        running: dict[Future[tuple[int, int]], _Span] = {}
        try:
            while True:
                while len(running) < self.limit and (span := next(spans, None)) is not None:
                    stream = self.ready.stream(span.index)
                    targets = [self.files[s.file] for s in stream.segments]
                    task = self.pool.submit(_convert_span, stream, span, targets, allow_nonfinite)
                    running[task] = span
                if not running:
                    return
                for task in wait(running, return_when=FIRST_COMPLETED).done:
                    span = running.pop(task)
                    report = self.reports[span.index]
                    nonfinite, overflows = task.result()
                    report.nonfinite += nonfinite
                    report.overflows += overflows
                    left[span.index] -= 1
                    if left[span.index] == 0:
                        self._finish(span.index, allow_nonfinite=allow_nonfinite)
                    self._step(span)
        finally:
            for task in running:
                task.cancel()
            wait(running)

    def _to_do(self) -> Iterator[_Span]:
        """The tasks, but for those of tensors that an interrupted run has done."""
        restored = -1
        for span in _spans(self.package):
            stream = self.package.streams[span.index]
            first = span.start == 0 and self.unfinished is not None
            if first and self.unfinished and self.unfinished.restore(span.index, stream, self._partials()):
                restored = span.index
            if span.index == restored:
                self._step(span)
            else:
                yield span

    def _finish(self, index: int, *, allow_nonfinite: bool) -> None:
        """A tensor is done."""
        stream, report = self.package.streams[index], self.reports[index]
        self.ready.release(index)
        _check_overflow(stream, report, allowed=allow_nonfinite)
        if self.unfinished is not None and not (report.nonfinite or report.overflows):
            self.unfinished.keep(index, stream, self._partials())
        if self.hashing is not None:
            self.hashing.finished(index)

    def _partials(self) -> Mapping[str, PartialFile]:
        """The files, where they are written to."""
        return cast("Mapping[str, PartialFile]", self.files)

    def _step(self, span: _Span) -> None:
        self.done += span.weights
        if self.progress is not None:
            total = sum(s.tensor.size for s in self.package.streams)
            self.progress(self.done, total, self.reports[span.index].name)


def _check_unchanged(package: Package) -> None:
    """Half of one version of a file and half of another would be a model that nobody has trained."""
    for source in {run.source for stream in package.streams for run in stream.tensor.runs}:
        if source.changed():
            raise MalformedFileError("changed while it was read", path=source.label, hint="convert it again")


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


def _check_overflow(stream: Stream, report: TensorReport, *, allowed: bool) -> None:
    """Refuses a tensor that its type cannot hold.

    Raises:
        WeightError: There is such a weight.
    """
    if not report.overflows or allowed:
        return
    what = "weights" if isinstance(stream.encoding, FloatEncoding) else "block scales"
    raise WeightError(
        f"{report.overflows} {what} are too large for {stream.encoding.name}",
        path=stream.tensor.label,
        hint="give --bf16 or --f32, or --allow-nonfinite to let them become infinite",
    )


def _spans(package: Package) -> Iterator[_Span]:
    for index, stream in enumerate(package.streams):
        rows, columns = stream.tensor.rows, stream.tensor.columns
        step = _step(_SPAN, stream)
        for start in range(0, rows if columns else 0, step):  # rows of nothing may be any number
            stop = min(start + step, rows)
            yield _Span(index, start, stop, (stop - start) * columns)


def _step(weights: int, stream: Stream) -> int:
    """How many rows have about so many weights."""
    together = stream.rows_together
    return max(weights // max(stream.tensor.columns, 1) // together, 1) * together


def _tiles(stream: Stream, span: _Span) -> Iterator[tuple[int, int]]:
    """The rows of each tile; where errors count differently in each matrix of a stack, a tile lies in one.

    Where columns are looked at one after the other, it takes many rows to make long vectors.
    """
    step = _step(TILE if stream.metrics is None else _SPAN, stream)
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


def _convert_span(
    stream: Stream, span: _Span, targets: list[Target], allow_nonfinite: bool
) -> tuple[int, int]:
    """Converts the rows of one task; returns how many weights were not finite, and how many overflowed."""
    with threads.parallel():  # what an adapter adds is a small product of matrices
        return _convert_rows(stream, span, targets, allow_nonfinite)


def _convert_rows(
    stream: Stream, span: _Span, targets: list[Target], allow_nonfinite: bool
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
