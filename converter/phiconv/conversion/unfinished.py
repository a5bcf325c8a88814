"""What an interrupted conversion has quantized already, where that takes long; the next one goes on there.

Each tensor whose best codes are found is kept, packed, in a file of a folder beside the output. The folder is
removed when the output is complete, and when something is wrong; it stays where a run is interrupted or
killed. A file counts only for the very same conversion, and if all of it is there.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from phiconv._version import __version__
from phiconv.conversion.outputs import explain
from phiconv.errors import WorkerError
from phiconv_formats.calibration.manifest import manifest_text

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from phiconv.conversion.outputs import PartialFile
    from phiconv.conversion.plans import Plan
    from phiconv_formats.shared.output import Segment, Stream

__all__ = ["Unfinished", "scratch", "unfinished_folder", "unfinished_work"]

_CHUNK = 1 << 22
_SCRATCH = "scratch-"
_DIGEST = 64


class Unfinished:
    """The folder.

    Args:
        folder: Where it is, or will be when there is something to keep.
        conversion: What tells the conversion from all others.

    Attributes:
        folder: The same.
    """

    def __init__(self, folder: Path, conversion: str) -> None:
        self.folder, self._conversion = folder, conversion
        self._full = False

    def restore(self, number: int, stream: Stream, files: Mapping[str, PartialFile]) -> bool:
        """Writes the packed rows of a stream to their places; returns whether they were there."""
        path = self._path(number)
        size = sum(_length(stream, segment) for segment in stream.segments)
        if not _takes_long(stream) or not path.is_file() or path.stat().st_size != _DIGEST + size:
            return False
        with path.open("rb") as file:
            said = file.read(_DIGEST)
            digest = self._digest(stream)
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
            if digest.hexdigest().encode() != said:
                return False
            file.seek(_DIGEST)
            for segment in stream.segments:
                place, end = segment.offset, segment.offset + _length(stream, segment)
                while place < end:
                    chunk = file.read(min(_CHUNK, end - place))
                    files[segment.file].write(place, chunk)
                    place += len(chunk)
        return True

    def keep(self, number: int, stream: Stream, files: Mapping[str, PartialFile]) -> None:
        """Keeps the packed rows of a stream that is done; where there is no room for them, nothing more."""
        if not _takes_long(stream) or self._full:
            return
        path = self._path(number)
        try:
            self.folder.mkdir(exist_ok=True)
            with path.open("wb") as file:
                file.write(bytes(_DIGEST))
                digest = self._digest(stream)
                for segment in stream.segments:
                    for chunk in _chunks(files[segment.file].path, segment, _length(stream, segment)):
                        digest.update(chunk)
                        file.write(chunk)
                file.seek(0)
                file.write(digest.hexdigest().encode())
        except OSError:
            self._full = True
            with suppress(OSError):
                path.unlink(missing_ok=True)

    def remove(self) -> None:
        """Removes all of it."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _path(self, number: int) -> Path:
        return self.folder / f"{number:05d}.rows"

    def _digest(self, stream: Stream) -> hashlib._Hash:
        segments = [(s.file, s.offset, s.row_bytes, s.rows) for s in stream.segments]
        what = [self._conversion, stream.name, stream.tensor.shape, str(stream.encoding), segments]
        return hashlib.sha256(json.dumps(what).encode())


def _takes_long(stream: Stream) -> bool:
    """Whether it is worth while to keep a stream; those that are spread over lines are not."""
    return stream.moments is not None and all(s.lines == 1 and s.rows > 0 for s in stream.segments)


def _length(stream: Stream, segment: Segment) -> int:
    return segment.line_bytes(stream.tensor.rows)


def _chunks(path: Path, segment: Segment, length: int) -> Iterator[bytes]:
    with path.open("rb") as file:
        file.seek(segment.offset)
        for start in range(0, length, _CHUNK):
            yield file.read(min(_CHUNK, length - start))


@contextmanager
def unfinished_work(plan: Plan) -> Iterator[Unfinished | None]:
    """What is kept of a conversion in case it is interrupted; None where nothing takes long."""
    if plan.calibration is None or not any(_takes_long(s) for s in plan.package.streams):
        yield None
        return
    work = Unfinished(unfinished_folder(plan), _conversion(plan))
    try:
        yield work
    except WorkerError:  # as it may be ended where memory runs out
        raise
    except Exception:
        work.remove()
        raise
    work.remove()


def unfinished_folder(plan: Plan) -> Path:
    """What is beside the output while it is made."""
    main = plan.folder if plan.package.own_folder else plan.files[0]
    return main.with_name(f"{main.name}.unfinished")


@contextmanager
def scratch(beside: Path | None = None) -> Iterator[Path]:
    """A folder for as long as the block lasts.

    Args:
        beside: Whoever sees this folder is to see it, too: it is in it. None for a place of this machine.
    """
    if beside is None:
        with tempfile.TemporaryDirectory(prefix="phiconv-", ignore_cleanup_errors=True) as name:
            yield Path(name)
        return
    try:
        beside.mkdir(parents=True, exist_ok=True)
        for left in beside.glob(f"{_SCRATCH}*"):  # by a run that was killed
            shutil.rmtree(left, ignore_errors=True)
        made = tempfile.TemporaryDirectory(prefix=_SCRATCH, dir=beside, ignore_cleanup_errors=True)
    except OSError as error:
        raise explain(error, beside) from error
    try:
        with made as name:
            yield Path(name)
    finally:
        with suppress(OSError):  # something is kept in it
            beside.rmdir()


def _conversion(plan: Plan) -> str:
    """What tells a conversion from others: source, calibration, recipe, version."""
    assert plan.calibration is not None  # noqa: S101 - see `unfinished_work`
    path = plan.model.path.resolve()
    stats = []
    for file in sorted(path.iterdir()) if path.is_dir() else [path]:
        with suppress(OSError):
            found = file.stat()
            stats.append((file.name, found.st_size, found.st_mtime_ns))
    manifest = hashlib.sha256(manifest_text(plan.calibration.manifest).encode()).hexdigest()
    return json.dumps([__version__, str(path), stats, manifest, plan.target, plan.recipe, plan.model.merged])
