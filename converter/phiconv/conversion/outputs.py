"""Files that appear under their names only when they are complete.

Each is written under a temporary name in the same folder, checked, and renamed at the end. Whatever goes
wrong before, even a kill, leaves nothing under the final name; whatever can be caught leaves nothing at all.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
import threading
from typing import TYPE_CHECKING

from phiconv.errors import DiskFullError, OutputError, OutputExistsError
from phiconv.units import size_text

if TYPE_CHECKING:
    from collections.abc import Buffer, Iterator, Sequence  # type: ignore[attr-defined]
    from pathlib import Path

    from phiconv_formats.shared.output import OutputFile

__all__ = ["PartialFile", "check_space", "explain", "partial_files"]

_FLAGS = os.O_WRONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0) | getattr(os, "O_NOFOLLOW", 0)
_HAS_PWRITE = hasattr(os, "pwrite")


class PartialFile:
    """A file on its way: written at any offset, by any thread, and by copies of itself in other processes."""

    def __init__(self, path: Path, final: Path) -> None:
        self.path = path
        self.final = final
        self._descriptor = -1
        self._lock = threading.Lock()

    def __getstate__(self) -> tuple[Path, Path]:
        return self.path, self.final

    def __setstate__(self, state: tuple[Path, Path]) -> None:
        self.__init__(*state)  # type: ignore[misc]

    def __del__(self) -> None:
        # Copies in worker processes have no other end.
        if getattr(self, "_descriptor", -1) >= 0:
            self.close()

    def create(self, size: int) -> None:
        """Creates the file and reserves its space: a full disk shows before the work and not after it."""
        self._descriptor = os.open(self.path, _FLAGS | os.O_CREAT | os.O_EXCL, 0o666)
        try:
            os.posix_fallocate(self._descriptor, 0, size)
        except (AttributeError, OSError) as error:
            if isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EFBIG, errno.EDQUOT}:
                raise
            os.truncate(self._descriptor, size)  # a file system that cannot reserve

    def write(self, offset: int, data: Buffer) -> None:
        """Writes all of ``data`` at ``offset``."""
        with self._lock:
            if self._descriptor < 0:
                self._descriptor = os.open(self.path, _FLAGS)
        view = memoryview(data).cast("B")
        while view:
            count = self._write_some(offset, view)
            view, offset = view[count:], offset + count

    def _write_some(self, offset: int, view: memoryview) -> int:
        if _HAS_PWRITE:
            return os.pwrite(self._descriptor, view, offset)
        with self._lock:
            os.lseek(self._descriptor, offset, os.SEEK_SET)
            return os.write(self._descriptor, view)

    def sync(self) -> None:
        """Waits until the bytes are on the disk: a rename must not be there before them."""
        os.fsync(self._descriptor)

    def close(self) -> None:
        """Closes it."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)


@contextlib.contextmanager
def partial_files(
    folder: Path,
    files: Sequence[OutputFile],
    *,
    force: bool,
    own_folder: bool = False,
    stale: Sequence[str] = (),
) -> Iterator[dict[str, PartialFile]]:
    """Creates temporary files for an output; renames them when the block ends well, removes them otherwise.

    Args:
        folder: Where they go; it is made if it is not there.
        files: Names, sizes, and how a complete file is checked.
        force: Replace files that exist.
        own_folder: The folder is the output: it must not hold anything yet, and appears as a whole.
        stale: Patterns of names of older files that must not stay beside the new ones.

    Yields:
        The files by name.

    Raises:
        OutputExistsError: One exists (or the folder holds anything, where it is the output), and ``force`` is
            not set.
        DiskFullError: There is no room for them.
        OutputError: Any other reason why they cannot be written, or a check that fails.
    """
    final = [folder / f.name for f in files]
    _check_absent(final, force=force)
    if own_folder and not force and folder.is_dir() and any(folder.iterdir()):
        raise OutputExistsError("is not empty", path=folder, hint="choose another folder, or give --force")
    fresh = not folder.exists()
    place = _partial_name(folder) if fresh and own_folder else folder
    made = {f.name: PartialFile(_partial_name(place / f.name), place / f.name) for f in files}
    try:
        place.mkdir(parents=True, exist_ok=True)
        check_space(place, sum(f.size for f in files))
        for file in files:
            made[file.name].create(file.size)
            for offset, chunk in file.chunks:
                made[file.name].write(offset, chunk)
        yield made
        _check_absent(final, force=force)
        for file in files:
            _complete(file, made[file.name])
        _finish(list(made.values()), place, folder, stale)
    except OSError as error:
        if isinstance(error, OutputError) or error.errno is None:
            raise
        raise explain(error, folder) from error
    finally:
        for partial in made.values():
            partial.close()
            partial.path.unlink(missing_ok=True)
        if place != folder:
            shutil.rmtree(place, ignore_errors=True)  # it is still there only if something went wrong
        elif fresh:
            with contextlib.suppress(OSError):  # it is not empty: the files are there
                folder.rmdir()


def _complete(file: OutputFile, partial: PartialFile) -> None:
    """Closes a file in which all is written, and checks it."""
    partial.sync()
    partial.close()
    if file.check is not None:
        file.check(partial.path)


def _finish(made: Sequence[PartialFile], place: Path, folder: Path, stale: Sequence[str]) -> None:
    """Gives complete files their names, and a new folder its own."""
    new = {partial.final.name for partial in made}
    for path in {p for pattern in stale for p in folder.glob(pattern) if p.is_file()}:
        if path.name not in new:
            path.unlink()
    # The first file is the one that a runtime opens: it appears last.
    for partial in reversed(made):
        os.replace(partial.path, partial.final)  # noqa: PTH105 - says what it does
    _sync_folder(place)
    if place != folder:
        place.rename(folder)
        _sync_folder(folder.parent)


def _partial_name(path: Path) -> Path:
    return path.with_name(f".{path.name[:200]}.{secrets.token_hex(4)}.partial")


def _check_absent(paths: Sequence[Path], *, force: bool) -> None:
    for path in paths:
        if path.is_dir():
            raise OutputExistsError("is a folder", path=path, hint="choose another name")
        if not force and os.path.lexists(path):
            raise OutputExistsError("exists already", path=path, hint="give --force to replace it")


def check_space(folder: Path, size: int) -> None:
    """Refuses an output that there is no room for.

    Raises:
        DiskFullError: There is none.
    """
    free = shutil.disk_usage(folder).free
    if size > free:
        raise DiskFullError(
            f"the output needs {size_text(size)}, and {size_text(free)} are free",
            path=folder,
            hint="make room, or choose another folder",
        )


def explain(error: OSError, folder: Path) -> OutputError:
    """What an error of the system means for an output in a folder."""
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return DiskFullError("the disk is full", path=folder, hint="make room, or choose another folder")
    if error.errno == errno.EFBIG:
        return OutputError(
            "the file system holds no file of this size", path=folder, hint="give --split-max-size 2G"
        )
    return OutputError(
        error.strerror or str(error), path=error.filename or folder, hint="check the destination"
    )


def _sync_folder(folder: Path) -> None:
    """Makes the renames themselves last; where a folder cannot be opened there is nothing to do."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
