"""``--effort best``: which error of each matrix counts, made ready before its rows are quantized.

The codes of a matrix are chosen under the second moments of its inputs (`quantizers.best`). How far these are
to be trusted is found out for every matrix on documents that were kept apart; where the runtime's own codes
turn out better, those are kept. What is found lies in a file, mapped by every worker, so that a matrix of
moments is in memory once.
"""

from __future__ import annotations

import math
from collections import deque
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from phiconv.conversion.embeddings import embedding_moments
from phiconv.conversion.ranges import Ranges
from phiconv.conversion.tasks import HERE, Done, in_order
from phiconv.conversion.unfinished import scratch
from phiconv.forward import threads
from phiconv.ir import AnyBlockEncoding, Blocks
from phiconv.ir.moments import Metric
from phiconv.quantizers import best, decode, encode
from phiconv.quantizers.repack import repackable
from phiconv_formats.shared.output import roles_of

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator, Sequence

    from phiconv.conversion.tasks import Workers
    from phiconv.ir import Encoding, FloatArray, Tensor
    from phiconv.ir.model import Model, Role
    from phiconv.ir.moments import Moments
    from phiconv_formats.calibration.reader import Calibration
    from phiconv_formats.shared.output import OutputTensor, Package, Stream

__all__ = [
    "LEAST_TOKENS",
    "Preparation",
    "amounts",
    "likely_amount",
    "moments_of",
    "parts_of",
    "preparation",
    "quantize",
    "with_moments",
]

_WIDEST = 4096
"""Columns whose moments are taken together: 67 MB. Wider matrices are cut into parts of equal width."""

LEAST_TOKENS = 32
"""Fewer tokens say nothing that holds on others."""


def with_moments(
    package: Package, outputs: Sequence[OutputTensor], model: Model, calibration: Calibration
) -> Package:
    """Tells every stream that is quantized what went into its matrices.

    Args:
        package: The output.
        outputs: Its tensors, in order. Where one is several joined matrices, they have the same inputs.
        model: The source.
        calibration: What was measured of it.
    """
    bare = model.bare()

    def change(stream: Stream, role: Role | None) -> Stream:
        stored, shape = stream.tensor.encoding, stream.tensor.shape
        if role is None or not best.supports(stream.encoding) or repackable(stored, stream.encoding):
            return stream
        if len(shape) < 2:
            return stream
        # A plan reads nothing: what was measured is looked up when the stream's turn comes.
        moments = partial(moments_of, role, len(shape) > 2, bare, calibration)
        # Whatever is left to the runtime's own quantizer gets what that would give.
        return replace(stream, moments=moments, importance=None)

    return replace(package, streams=tuple(map(change, package.streams, roles_of(outputs, model))))


def moments_of(
    role: Role, stacked: bool, model: Model, calibration: Calibration, number: int
) -> Moments | None:
    """What went into a matrix of a weight; None where nothing is known."""
    if role.name == "token_embedding":
        return embedding_moments(model, calibration)
    return calibration.of(role, number if stacked else None)


class Preparation:
    """Makes streams ready, in the process that hands out the work.

    Args:
        streams: The streams, by their numbers.
        folder: Where the arrays go; all workers see it.
        workers: Who finds out what counts in each matrix.
    """

    def __init__(self, streams: Sequence[Stream], folder: Path, workers: Workers = HERE) -> None:
        self._streams = [*streams]
        self._folder, self._workers = folder, workers
        self._ranges = Ranges()

    def streams(self, numbers: Iterable[int]) -> Generator[tuple[int, Stream]]:
        """Streams with what their workers need, by number, in order; some of their rows are read.

        What counts in a matrix is found out when its turn comes, and where workers do that a little ahead.
        """
        wanted: deque[int] = deque()

        def tasks() -> Iterator[Callable[[], Metric | None]]:
            for number in numbers:
                wanted.append(number)
                yield from self._tasks(number)

        metrics: list[Metric | None] = []
        with closing(in_order(self._workers, tasks())) as results:
            for metric in results:
                stream = self._streams[wanted[0]]
                if stream.moments is not None:
                    metrics.append(metric)
                    if len(metrics) < _matrices(stream):
                        continue
                    stream = replace(stream, moments=None, metrics=tuple(metrics))
                    metrics.clear()
                if stream.scaled_with:
                    stream = self._ranges.scaled(stream)
                number = wanted.popleft()
                self._streams[number] = stream
                yield number, stream

    def _tasks(self, number: int) -> Iterator[Callable[[], Metric | None]]:
        """One for each matrix of a stream; where nothing is to be found out one that is done."""
        stream = self._streams[number]
        if stream.moments is None:
            yield Done(None)
            return
        for matrix in range(_matrices(stream)):
            moments = partial(stream.moments, matrix)
            yield partial(
                _metric, stream.tensor, stream.encoding, moments, matrix, self._folder / f"{number}.{matrix}"
            )

    def release(self, number: int) -> None:
        """Removes the arrays of a stream that is done."""
        for metric in self._streams[number].metrics or ():
            for file in metric.files if metric is not None else ():
                with suppress(OSError):  # where a mapped file cannot be removed, the folder is, at the end
                    file.unlink()


def _matrices(stream: Stream) -> int:
    return math.prod(stream.tensor.shape[:-2])


def _metric(
    tensor: Tensor, encoding: Encoding, measured: Callable[[], Moments | None], number: int, path: Path
) -> Metric | None:
    """What counts in one matrix, written to files; None where the runtime's own quantizer does better."""
    with threads.parallel():
        moments = measured()
        if moments is None or not isinstance(encoding, AnyBlockEncoding):
            return None
        found = amounts(tensor, encoding, moments, number)
        if found is None:
            return None
        files = tuple(path.with_name(f"{path.name}.{part.start}.npy") for part, _ in found)
        for file, (part, amount) in zip(files, found, strict=True):
            np.save(file, best.shrunk(moments.all(part), amount))
        return Metric(files)


@contextmanager
def preparation(
    streams: Sequence[Stream], workers: Workers = HERE, beside: Path | None = None
) -> Iterator[Preparation]:
    """A `Preparation`, where it needs one with a folder that is removed at the end.

    Args:
        streams: The streams.
        workers: See `Preparation`.
        beside: A folder that all workers see or will see; None where they are of this machine.
    """
    if all(stream.moments is None for stream in streams):
        yield Preparation(streams, Path(), workers)
        return
    with scratch(beside) as folder:
        yield Preparation(streams, folder, workers)


def parts_of(columns: int, block_size: int) -> list[slice]:
    """Neighbouring columns, whole blocks, as few parts as may be of nearly equal width."""
    blocks, count = columns // block_size, -(-columns // _WIDEST)
    step = max(-(-blocks // count), 1) * block_size
    return [slice(start, min(start + step, columns)) for start in range(0, columns, step)]


def amounts(
    tensor: Tensor, encoding: AnyBlockEncoding, moments: Moments, number: int = 0
) -> list[tuple[slice, float]] | None:
    """How far correlations are to be shrunk, for neighbouring columns that are looked at together.

    Args:
        tensor: A matrix or a stack; some of its rows are read.
        encoding: What becomes of it.
        moments: What went into the matrix.
        number: Which one of a stack.

    Returns:
        None to leave the matrix to the runtime's own quantizer.
    """
    if moments.shrinkage is None and min(moments.fitting.tokens, moments.checking.tokens) < LEAST_TOKENS:
        return None
    rows = tensor.shape[-2]
    numbers = [number * rows + row for row in best.sample(rows)]
    values = np.concatenate([decode(tensor.read(n, n + 1), tensor.columns) for n in numbers])
    found = []
    for part in parts_of(tensor.columns, encoding.block_size):
        amount = moments.shrinkage or _amount(values[:, part].copy(), encoding, moments, part)
        if amount is None:
            return None
        found.append((part, amount))
    return found


def _amount(values: FloatArray, encoding: AnyBlockEncoding, moments: Moments, part: slice) -> float | None:
    """How much to shrink; None to leave the matrix to the runtime's own quantizer."""
    default = encode(values, encoding)
    assert isinstance(default, Blocks)  # noqa: S101 - it is a block encoding
    check = moments.checking
    columns = part.stop - part.start
    likely = likely_amount(columns, moments.fitting.tokens)
    inputs = None if check.matrix is not None else np.concatenate(list(check.chunks(block=part)))
    choice = best.choose(
        values,
        encoding,
        moments.fit(part),
        default,
        moments=None if check.matrix is None else check.moments(part),
        inputs=inputs,
        amounts=(likely / 3, likely, 3 * likely, math.inf),
    )
    return choice.amount


def likely_amount(columns: int, tokens: int) -> float:
    """How much correlations of so many columns, measured on so many tokens, are to be shrunk as a rule."""
    return min(max(8 * columns / max(tokens, 1), 0.1), 1.0)


@lru_cache(maxsize=4)
def _mapped(path: Path) -> FloatArray:
    return np.asarray(np.load(path, mmap_mode="r"))


def quantize(values: FloatArray, encoding: AnyBlockEncoding, metric: Metric) -> Blocks:
    """Rows of a matrix in the best codes that are found for them."""
    with threads.parallel():
        return best.best(values, encoding, [_mapped(file) for file in metric.files])
