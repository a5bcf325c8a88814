"""The streaming engine: carries a `Package` out in bounded memory, in any executor.

A tensor is cut into spans of rows, a span into tiles that fit a processor's cache. A worker reads a tile,
encodes it, packs it and writes it to its place. So memory is a few tiles per worker whatever the model's
size, and the bytes do not depend on the number of workers.
"""

from __future__ import annotations

import os
from collections import Counter
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, ThreadPoolExecutor, wait
from contextlib import closing, nullcontext
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Protocol, cast

from phiconv.brief import Brief
from phiconv.conversion import effort
from phiconv.conversion.digests import FollowingHashes
from phiconv.conversion.outputs import partial_files
from phiconv.conversion.receipt import receipt_text
from phiconv.conversion.rows import convert_span, spans, spans_of
from phiconv.conversion.tasks import Workers
from phiconv.errors import MalformedFileError, WeightError, WorkerError
from phiconv.ir import FloatEncoding
from phiconv.quantizers import COMPILED, FAST, SEARCHING, compiled
from phiconv.quantizers.repack import repackable

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Mapping
    from concurrent.futures import Executor, Future
    from contextlib import AbstractContextManager
    from pathlib import Path

    from phiconv.conversion.outputs import PartialFile
    from phiconv.conversion.receipt import Receipt
    from phiconv.conversion.rows import Span, Target
    from phiconv.conversion.unfinished import Unfinished
    from phiconv_formats.shared.output import Package, Stream

__all__ = ["Progress", "TensorReport", "compare", "run", "worth_processes"]

_WORTH_PROCESSES = 1 << 26  # weights whose quantization is a search


class Progress(Protocol):
    """Is told how far a conversion is."""

    def __call__(self, done: int, total: int, name: str) -> None:
        """``done`` of ``total`` weights are written; the last one finished belongs to tensor ``name``."""


@dataclass(slots=True, repr=False)
class TensorReport(Brief):
    """What happened to one tensor.

    Attributes:
        name: Its name in the output.
        nonfinite: Weights of the source that are NaN or infinite.
        overflows: Weights or scales that the target type could not hold, and that became infinite.
    """

    name: str
    nonfinite: int = 0
    overflows: int = 0


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
        (*package.files, *([] if receipt is None else [receipt.file()])),
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
        beside = None if own or unfinished is None else unfinished.folder
        preparing = effort.preparation(package.streams, Workers(executor, jobs), beside)
        with preparing as ready, hashing or nullcontext(), context:
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
    in_compiled = compiled.expect(sum(s.tensor.size for s in package.streams if _compiles(s)))
    if processes and jobs > 1 and worth_processes(package, in_compiled=in_compiled):
        from phiconv.conversion.processes import pool  # takes as long to import as a small model to convert

        return pool(jobs)
    return ThreadPoolExecutor(jobs, thread_name_prefix="phiconv")


def worth_processes(package: Package, *, in_compiled: bool) -> bool:
    """Whether there is so much to search that processes save more time than they take to start.

    Args:
        package: An output.
        in_compiled: Whether searches are compiled that can be. These leave Python's lock to other threads.
    """
    searching = (s for s in package.streams if _searches(s) and not (in_compiled and _compiles(s)))
    return sum(stream.tensor.size for stream in searching) >= _WORTH_PROCESSES


def _searches(stream: Stream) -> bool:
    if isinstance(stream.encoding, FloatEncoding) or repackable(stream.tensor.encoding, stream.encoding):
        return False
    return stream.encoding in SEARCHING or stream.importance is not None or stream.moments is not None


def _compiles(stream: Stream) -> bool:
    """Whether a stream's searches can be compiled."""
    slow = stream.moments is None and (stream.effort != "fast" or stream.encoding not in FAST)
    return slow and stream.encoding in COMPILED and _searches(stream)


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
        left = Counter(span.index for span in spans(self.package))
        waiting = self._spans()
        running: dict[Future[tuple[int, int]], Span] = {}
        try:
            while True:
                while len(running) < self.limit and (found := next(waiting, None)) is not None:
                    stream, span = found
                    targets = [self.files[s.file] for s in stream.segments]
                    task = self.pool.submit(convert_span, stream, span, targets, allow_nonfinite)
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
            waiting.close()
            for task in running:
                task.cancel()
            wait(running)

    def _spans(self) -> Generator[tuple[Stream, Span]]:
        """All tasks, each with its stream made ready."""
        with closing(self.ready.streams(self._to_do())) as streams:
            for number, stream in streams:
                yield from ((stream, span) for span in spans_of(number, self.package.streams[number]))

    def _to_do(self) -> Iterator[int]:
        """The streams, but for those that an interrupted run has done."""
        for number, own in groupby(spans(self.package), lambda span: span.index):
            stream, unfinished = self.package.streams[number], self.unfinished
            if unfinished is not None and unfinished.restore(number, stream, self._partials()):
                for span in own:
                    self._step(span)
            else:
                yield number

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

    def _step(self, span: Span) -> None:
        self.done += span.weights
        if self.progress is not None:
            total = sum(s.tensor.size for s in self.package.streams)
            self.progress(self.done, total, self.reports[span.index].name)


def _check_unchanged(package: Package) -> None:
    """Half of one version of a file and half of another would be a model that nobody has trained."""
    for source in {run.source for stream in package.streams for run in stream.tensor.runs}:
        if source.changed():
            raise MalformedFileError("changed while it was read", path=source.label, hint="convert it again")


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
