"""Makes an output again without writing it, and compares every byte with what is there."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from phiconv.conversion import pipeline
from phiconv.conversion.digests import Digests, length_of, sha256_of
from phiconv.conversion.manifest import is_plain_name
from phiconv.verification.outcome import Finding
from phiconv_formats.shared.files import InputFile

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from phiconv.conversion.pipeline import Progress
    from phiconv.conversion.plans import Plan
    from phiconv.conversion.receipt import Receipt
    from phiconv.verification.stated import Stated
    from phiconv_formats.shared.output import OutputFile, Package, Stream

__all__ = ["compare_bytes", "compare_receipts", "compare_sources", "compare_unopened"]

_CHUNK = 1 << 20

_OF_THE_MAKER = ("builder", "metadata")
"""What a receipt says of whoever made it. That may be another version, and says nothing of the output."""


class _DiffersError(Exception):
    """Ends a comparison."""


class _Compared:
    """A file that is there, to which bytes are not written but compared (a `pipeline.Target`)."""

    def __init__(self, file: InputFile) -> None:
        self._file = file
        self._lock = threading.Lock()
        self.differs: list[int] = []

    def write(self, offset: int, data: Any) -> None:
        """Notes the first byte that is another one.

        Raises:
            _DiffersError: There is one.
        """
        wanted = np.frombuffer(memoryview(data).cast("B"), np.uint8)
        there = np.frombuffer(self._file.read_bytes(offset, wanted.size), np.uint8)
        if not np.array_equal(wanted, there):
            first = offset + int(np.argmax(wanted != there))
            with self._lock:
                self.differs.append(first)
            raise _DiffersError


def compare_sources(sums: Mapping[str, str], stated: Stated) -> list[Finding]:
    """What differs between the files that are read now, and those that the receipt names.

    Args:
        sums: The sums of what is read now, by name.
        stated: The receipt.
    """
    findings = []
    for name in sorted({*sums, *stated.sources}):
        if name not in stated.sources:
            findings.append(Finding("is read, and the receipt does not name it", name))
        elif name not in sums:
            findings.append(Finding("is named by the receipt, and is not read", name))
        elif sums[name] != stated.sources[name]:
            findings.append(Finding("is another file than the receipt's", name))
    return findings


def compare_unopened(source: Path, stated: Stated) -> list[Finding]:
    """What differs between files of a source that cannot be opened, and those that the receipt names.

    Files that are not where the source is are not looked for: why it cannot be opened has been said.

    Args:
        source: A folder, or a file in one.
        stated: The receipt.
    """
    place = source if source.is_dir() else source.parent
    sums = {}
    for name in stated.sources:
        role, _, inner = name.partition("/")
        if role == "source" and is_plain_name(inner) and (place / inner).is_file():
            sums[name] = sha256_of(InputFile(place / inner, within=place))
    return compare_sources({**stated.sources, **sums}, stated)


def compare_bytes(
    plan: Plan, folder: Path, stated: Stated, jobs: int | None, progress: Progress | None
) -> list[Finding]:
    """Compares the files of an output with what the plan gives.

    Returns:
        The first byte that differs in what is no weight, by file; and the first row of a tensor.
    """
    files = plan.package.files
    findings = [
        Finding("is named by the receipt, and not made of this source", name)
        for name in sorted({*stated.outputs} - {file.name for file in files})
    ]
    targets = {}
    for file in files:
        there = InputFile(folder / file.name, within=folder)
        if file.name not in stated.outputs:
            findings.append(Finding("is made of this source, and the receipt does not name it", file.name))
        elif there.size != file.size:
            what = f"has {there.size} bytes, where {file.size} are made of this source"
            findings.append(Finding(what, file.name))
        else:
            targets[file.name] = there
    if len(targets) < len(files):
        return findings
    for file in files:
        findings += _compare_rest(file, plan.package, targets[file.name])
    return [*findings, *_compare_weights(plan.package, targets, jobs, progress)]


def _compare_rest(file: OutputFile, package: Package, there: InputFile) -> list[Finding]:
    """Compares what is no weight."""
    for start, wanted in _rest(file, package):
        found = np.frombuffer(there.read_bytes(start, wanted.size), np.uint8)
        if not np.array_equal(wanted, found):
            first = start + int(np.argmax(wanted != found))
            return [Finding("is not what the source gives", file.name, f"byte {first}, which is no weight")]
    return []


def _rest(file: OutputFile, package: Package) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    """The bytes that no tensor covers, piece by piece; what no chunk covers either is zero."""
    weights = sorted(
        (segment.offset, segment.offset + length_of(stream, segment))
        for stream in package.streams
        for segment in stream.segments
        if segment.file == file.name
    )
    place = 0
    for start, stop in [*weights, (file.size, file.size)]:
        for begin in range(place, start, _CHUNK):
            end = min(begin + _CHUNK, start)
            wanted = np.zeros(end - begin, np.uint8)
            for offset, chunk in file.chunks:
                first, last = max(offset, begin), min(offset + len(chunk), end)
                if first < last:
                    wanted[first - begin : last - begin] = np.frombuffer(
                        chunk, np.uint8, last - first, first - offset
                    )
            yield begin, wanted
        place = max(place, stop)


def _compare_weights(
    package: Package, files: Mapping[str, InputFile], jobs: int | None, progress: Progress | None
) -> list[Finding]:
    """Compares the weights. Tasks begin in order and those that began are finished: so the first is known."""
    targets = {name: _Compared(file) for name, file in files.items()}
    try:
        pipeline.compare(package, targets, jobs=jobs, progress=progress)
    except _DiffersError:
        places = [_place(package, name, byte) for name, t in targets.items() for byte in t.differs]
        first = min(places, key=lambda place: (place.number, place.row))
        what = "is not what the source gives"
        return [Finding(what, first.file, f"tensor {first.name}, row {first.row}, byte {first.byte}")]
    return []


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a byte is: in which row of which tensor."""

    number: int
    name: str
    row: int
    file: str
    byte: int


def _place(package: Package, file: str, byte: int) -> _Place:
    return next(
        _Place(number, stream.name, row, file, byte)
        for number, stream in enumerate(package.streams)
        if (row := _row(stream, file, byte)) is not None
    )


def _row(stream: Stream, file: str, byte: int) -> int | None:
    """The row of a tensor, seen as a matrix, that a byte of a file is of; of several rows the first."""
    for segment in stream.segments:
        inner = byte - segment.offset
        if segment.file == file and 0 <= inner < length_of(stream, segment):
            length = segment.line_bytes(stream.tensor.rows)
            return inner % length // segment.row_bytes * segment.rows
    return None


def compare_receipts(receipt: Receipt, digests: Digests, stated: Stated) -> list[Finding]:
    """What a receipt says otherwise than the one that this phiconv gives for the same output."""
    own, other = receipt.statement(digests), stated.statement
    found = _first_difference(_without_maker(own), _without_maker(other), "")
    if found is None:
        return []
    return [Finding("is not what the source and the options give", stated.path.name, found)]


def _without_maker(statement: Mapping[str, Any]) -> dict[str, Any]:
    predicate = statement["predicate"]
    details = {key: value for key, value in predicate["runDetails"].items() if key not in _OF_THE_MAKER}
    return {**statement, "predicate": {**predicate, "runDetails": details}}


def _first_difference(own: Any, other: Any, at: str) -> str | None:
    """The place of the first difference of two values of JSON."""
    if isinstance(own, dict) and isinstance(other, dict):
        pairs = [(f"{at}.{key}" if at else key, own.get(key), other.get(key)) for key in {**own, **other}]
    elif isinstance(own, list) and isinstance(other, list) and len(own) == len(other):
        pairs = [(f"{at}[{number}]", *pair) for number, pair in enumerate(zip(own, other, strict=True))]
    else:
        return None if own == other and type(own) is type(other) else at
    return next((found for key, a, b in pairs if (found := _first_difference(a, b, key)) is not None), None)
