"""SHA-256 of what a conversion reads and writes, taken while it runs.

Weights are written in any order, and a hash needs them in one. So a hash follows the writing: as soon as
all tensors up to some byte of a file are there, the file is hashed so far, while the system still has it in
memory. NumPy and hashlib both let other threads run, so with idle processors this takes little time.
"""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from threading import Event
from typing import TYPE_CHECKING

from phiconv_formats.shared.files import InputFile

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from concurrent.futures import Future
    from pathlib import Path
    from types import TracebackType
    from typing import Self

    from phiconv_formats.shared.output import Package, Segment, Stream

__all__ = ["Digests", "FollowingHashes", "length_of", "sha256_of", "sha256_of_parts"]

_CHUNK = 1 << 20
"""Bytes hashed at once: as many as stay in a core's cache."""


@dataclass(frozen=True, slots=True)
class Digests:
    """Hexadecimal SHA-256 sums.

    Attributes:
        files: Of the output's files, by name.
        tensors: Of the bytes of each tensor, in the order of the output.
        sources: Of the files that were read, in the order of the receipt.
    """

    files: Mapping[str, str]
    tensors: Sequence[str]
    sources: Sequence[str]


def length_of(stream: Stream, segment: Segment) -> int:
    """Bytes of a segment of a tensor."""
    return segment.line_bytes(stream.tensor.rows) * segment.lines


def _update(
    digest: hashlib._Hash, file: InputFile, start: int, stop: int, ended: Event | None = None
) -> None:
    """Adds bytes ``start`` to ``stop`` of a file, unless the conversion has ended for another reason."""
    buffer = memoryview(bytearray(min(_CHUNK, stop - start)))
    while start < stop and not (ended and ended.is_set()):
        part = buffer[: min(_CHUNK, stop - start)]
        file.read_into(start, part)
        digest.update(part)
        start += len(part)


def sha256_of(file: InputFile, ended: Event | None = None) -> str:
    """The sum of a whole file, or whatever once ``ended`` is set.

    Raises:
        MalformedFileError: It is no longer the file that was opened first.
    """
    digest = hashlib.sha256()
    with file:
        _update(digest, file, 0, file.size, ended)
    return digest.hexdigest()


def sha256_of_parts(parts: Sequence[tuple[InputFile, int, int]], ended: Event | None = None) -> str:
    """The sum of parts of files, one after the other: file, first byte, and length of each."""
    digest = hashlib.sha256()
    for file, offset, length in parts:
        _update(digest, file, offset, offset + length, ended)
    return digest.hexdigest()


class _Follower:
    """The sum of a file that is being written, taken as far as everything before is there."""

    def __init__(self, path: Path, size: int, parts: list[tuple[int, int]], ended: Event) -> None:
        self._path, self._size = path, size
        self._parts = sorted(parts)  # where a tensor begins, and its number
        self._next, self._hashed = 0, 0
        self._digest, self._ended = hashlib.sha256(), ended

    def step(self, done: Sequence[bool]) -> Callable[[], None] | None:
        """What to hash now, if anything; steps are carried out one after the other."""
        while self._next < len(self._parts) and done[self._parts[self._next][1]]:
            self._next += 1
        stop = self._parts[self._next][0] if self._next < len(self._parts) else self._size
        start, self._hashed = self._hashed, max(stop, self._hashed)
        file = InputFile(self._path)
        return (lambda: _update(self._digest, file, start, stop, self._ended)) if start < stop else None

    def hexdigest(self) -> str:
        return self._digest.hexdigest()


class FollowingHashes:
    """All sums of a conversion on its way.

    Used as a context, it ends its threads however the conversion ends.

    Args:
        package: The output.
        paths: Where its files are being written, by name; those to hash.
        sources: The files that are read.
    """

    def __init__(self, package: Package, paths: Mapping[str, Path], sources: Sequence[InputFile]) -> None:
        self._streams, self._paths = package.streams, paths
        self._done = [False] * len(package.streams)
        sizes = {file.name: file.size for file in package.files}
        starts: dict[str, list[tuple[int, int]]] = {name: [] for name in paths}
        for number, stream in enumerate(package.streams):
            for segment in stream.segments:
                starts[segment.file].append((segment.offset, number))
        self._ended = Event()
        self._followers = {
            name: _Follower(paths[name], sizes[name], starts[name], self._ended) for name in paths
        }
        # One thread each, so that the steps of a file are in order.
        self._for_files, self._for_tensors, self._for_sources = (
            ThreadPoolExecutor(1, thread_name_prefix="phiconv-hash") for _ in range(3)
        )
        self._steps: list[Future[None]] = []
        self._tensors: dict[int, Future[str]] = {}
        self._sources = [self._for_sources.submit(sha256_of, file, self._ended) for file in sources]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        for pool in (self._for_files, self._for_tensors, self._for_sources):
            pool.shutdown(cancel_futures=True)

    def finished(self, number: int) -> None:
        """A tensor is written."""
        if self._done[number]:
            return
        self._done[number] = True
        stream = self._streams[number]
        self._tensors[number] = self._for_tensors.submit(self._tensor, stream)
        for name in {segment.file for segment in stream.segments}:
            self._step(self._followers[name])

    def digests(self) -> Digests:
        """The sums, once everything is written.

        Raises:
            MalformedFileError: A file of the source is no longer what was opened.
        """
        for number in range(len(self._streams)):
            self.finished(number)
        for follower in self._followers.values():
            self._step(follower)
        for step in self._steps:
            step.result()
        return Digests(
            {name: follower.hexdigest() for name, follower in self._followers.items()},
            [self._tensors[number].result() for number in range(len(self._streams))],
            [source.result() for source in self._sources],
        )

    def _step(self, follower: _Follower) -> None:
        if (step := follower.step(self._done)) is not None:
            self._steps.append(self._for_files.submit(step))

    def _tensor(self, stream: Stream) -> str:
        files = {s.file: InputFile(self._paths[s.file]) for s in stream.segments}
        parts = [(files[s.file], s.offset, length_of(stream, s)) for s in stream.segments]
        return sha256_of_parts(parts, self._ended)
