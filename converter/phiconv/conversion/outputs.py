"""Files that appear under their names only when they are complete.

Each is written under a temporary name in the same folder, checked, and renamed at the end. Whatever goes
wrong before, even a kill, leaves nothing under the final name; whatever can be caught leaves nothing at all.
What a kill leaves is removed by the next run to that name. Where several names change, the manifest says so
from before the first until after the last, see `replacing`.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from phiconv.conversion.interrupts import uninterrupted
from phiconv.conversion.leftovers import LOCKS, clear_leftovers, folder_lock, hold
from phiconv.conversion.manifest import Entry, write_manifest
from phiconv.conversion.names import check_names, destination_of, inner_name, new_token, partial_name
from phiconv.conversion.renaming import rename
from phiconv.conversion.replacing import Destination
from phiconv.errors import DiskFullError, OutputError, OutputExistsError, PhiconvError
from phiconv.units import size_text
from phiconv_formats.shared.output import Label

if TYPE_CHECKING:
    from collections.abc import (  # type: ignore[attr-defined]
        Buffer,
        Callable,
        Iterator,
        Mapping,
        Sequence,
    )

    from phiconv_formats.shared.output import OutputFile

__all__ = ["PartialFile", "check_space", "explain", "partial_files"]

_FLAGS = os.O_WRONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0) | getattr(os, "O_NOFOLLOW", 0)
_MOST_OPEN = 16  # files of an output; a process may have 256 on some systems, and others have less left
_HAS_PWRITE = hasattr(os, "pwrite")


class PartialFile:
    """A file on its way: written at any offset, by any thread, and by copies of itself in other processes.

    Args:
        path: Where it is.
        final: What it will be called.
        keep_open: It is open, and locked, until it has its name; else only while something is written.
    """

    def __init__(self, path: Path, final: Path, *, keep_open: bool = True) -> None:
        self.path = path
        self.final = final
        self._keep_open = keep_open
        self._descriptor = -1
        self._lock = threading.Lock()

    def __getstate__(self) -> tuple[Path, Path, bool]:
        return self.path, self.final, self._keep_open

    def __setstate__(self, state: tuple[Path, Path, bool]) -> None:
        self.__init__(*state[:2], keep_open=state[2])  # type: ignore[misc]

    def __del__(self) -> None:
        # Copies in worker processes have no other end.
        if getattr(self, "_descriptor", -1) >= 0:
            self.close()

    def create(self, size: int) -> None:
        """Creates the file and reserves its space: a full disk shows before the work and not after it."""
        with self._open(os.O_CREAT | os.O_EXCL) as descriptor:
            if self._keep_open:
                hold(descriptor)  # until it is closed, which is after it has its name
            try:
                os.posix_fallocate(descriptor, 0, size)
            except (AttributeError, OSError) as error:
                if isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EFBIG, errno.EDQUOT}:
                    raise
                os.truncate(descriptor, size)  # a file system that cannot reserve

    def write(self, offset: int, data: Buffer) -> None:
        """Writes all of ``data`` at ``offset``."""
        view = memoryview(data).cast("B")
        with self._open() as descriptor:
            while view:
                count = self._write_some(descriptor, offset, view)
                view, offset = view[count:], offset + count

    def _write_some(self, descriptor: int, offset: int, view: memoryview) -> int:
        if _HAS_PWRITE:
            return os.pwrite(descriptor, view, offset)
        with self._lock:
            os.lseek(descriptor, offset, os.SEEK_SET)
            return os.write(descriptor, view)

    @contextlib.contextmanager
    def _open(self, flags: int = 0) -> Iterator[int]:
        """The open file; an error of the system that does not name it does so afterwards."""
        try:
            with self._lock:
                descriptor = self._descriptor
                if descriptor < 0:
                    descriptor = os.open(self.path, _FLAGS | flags, 0o666)
                    self._descriptor = descriptor if self._keep_open else -1
            try:
                yield descriptor
            except BaseException:
                if not self._keep_open:
                    _close(descriptor)
                raise
            if not self._keep_open:
                os.close(descriptor)
        except OSError as error:
            error.filename = os.fspath(self.final)
            raise

    def sync(self) -> None:
        """Waits until the bytes are on the disk: a rename must not be there before them."""
        with self._open() as descriptor:
            os.fsync(descriptor)

    def close(self) -> None:
        """Closes it."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def remove(self) -> None:
        """Closes it, and removes what has not got its name; whatever fails, somebody else says why."""
        with contextlib.suppress(OSError):
            self.close()
        with contextlib.suppress(OSError):
            self.path.unlink()


def _partials(place: Path, names: Sequence[str]) -> dict[str, PartialFile]:
    """Files on their way. Of many some are open only while they are written: systems allow few open files."""
    token, folders, made = new_token(), set(), {}
    for number, final in enumerate(place / name for name in names):
        # The first in each folder has the lock for all.
        keep_open = number < _MOST_OPEN or final.parent not in folders or not LOCKS
        folders.add(final.parent)
        made[names[number]] = PartialFile(partial_name(final, token), final, keep_open=keep_open)
    return made


@contextlib.contextmanager
def partial_files(
    folder: Path,
    files: Sequence[OutputFile],
    *,
    force: bool,
    own_folder: bool = False,
    stale: Sequence[str] = (),
    beside: Sequence[str] = (),
    label: Label | None = None,
    source: Path | None = None,
    note: Callable[[str], None] | None = None,
) -> Iterator[dict[str, PartialFile]]:
    """Creates temporary files for an output; renames them when the block ends well, removes them otherwise.

    Args:
        folder: Where they go; it is made if it is not there.
        files: Names, sizes, and how a complete file is checked.
        force: Replace what is there, as far as `replacing` lets it.
        own_folder: The folder is the output: it must hold nothing else, and a new one appears as a whole.
        stale: Patterns of names of older files that must not stay beside the new ones.
        beside: Patterns of names of files that may stay in a folder of the output's own.
        label: What the output is called in the folder's manifest; by default after the first file.
        source: What is converted; it is not replaced.
        note: Is told what else was done there, in one line.

    Yields:
        The files by name.

    Raises:
        OutputExistsError: Something is there that may not be replaced.
        DiskFullError: There is no room for them.
        OutputError: Any other reason why they cannot be written, or a check that fails.
    """
    label = label or Label(files[0].name)
    destination = Destination(folder, files, label, own_folder, stale, beside, source, force)
    check_names(folder / f.name for f in files)
    fresh = not folder.exists()
    place = partial_name(folder) if fresh and own_folder else folder
    made = _partials(place, [f.name for f in files])
    inner = {p.final.parent for p in made.values()} - {place}
    new_folders = [path for path in inner if not path.exists()]
    with contextlib.ExitStack() as held:
        try:
            _start(destination, place, made, held, note)
            yield made
            for file in files:
                made[file.name].sync()
                if file.check is not None:
                    file.check(made[file.name].path)
            with uninterrupted():
                _finish(destination, place, made)
        except OSError as error:
            if isinstance(error, PhiconvError) or error.errno is None:
                raise
            raise explain(error, folder) from error
        finally:
            with uninterrupted():
                for partial in made.values():
                    partial.remove()
                if place != folder:
                    _remove_tree(place)  # it is there only if something went wrong
                else:
                    _remove_empty([*new_folders, *([folder] if fresh else [])])


def _close(descriptor: int) -> None:
    with contextlib.suppress(OSError):  # as where a connection has ended, and nothing was written
        os.close(descriptor)


def _remove_tree(folder: Path) -> None:
    with contextlib.suppress(OSError):  # which "ignore_errors" does not keep all of
        shutil.rmtree(folder, ignore_errors=True)


def _remove_empty(folders: Sequence[Path]) -> None:
    """Removes folders that were made for nothing."""
    for folder in folders:
        with contextlib.suppress(OSError):  # it is not empty: the files are there
            folder.rmdir()


def _start(
    destination: Destination,
    place: Path,
    made: Mapping[str, PartialFile],
    held: contextlib.ExitStack,
    note: Callable[[str], None] | None,
) -> None:
    """Looks at what is there, creates the temporary files, and writes what needs no weight."""
    folder = destination.folder
    around = folder if place == folder else folder.parent
    destination.replacement()
    around.mkdir(parents=True, exist_ok=True)
    with folder_lock(around):
        destination.replacement()
        said = [
            line
            for inside in sorted(destination.folders)
            for line in clear_leftovers(inside, destination.is_leftover)
        ]
        if destination.own_folder and folder.name:
            own = inner_name(folder.name)
            said += clear_leftovers(folder.parent, lambda inner: inner == own, folders=True)
        for line in said:
            if note is not None:
                note(line)
        if place != folder:
            place.mkdir()
            if LOCKS:
                descriptor = os.open(place, os.O_RDONLY)
                held.callback(_close, descriptor)
                hold(descriptor)
        for path in {partial.path.parent for partial in made.values()}:
            path.mkdir(parents=True, exist_ok=True)
        check_space(around, sum(f.size for f in destination.files))
        for file in destination.files:
            made[file.name].create(file.size)
    for file in destination.files:
        for offset, chunk in file.chunks:
            made[file.name].write(offset, chunk)


def _finish(destination: Destination, place: Path, made: Mapping[str, PartialFile]) -> None:
    """Gives complete files their names, and a new folder its own."""
    folder = destination.folder
    if place != folder:
        destination.replacement()
        for partial in made.values():
            _rename(partial, replace=True)
        write_manifest(place, [Entry(destination.label, destination.sizes)])
        for path in {place, *(partial.final.parent for partial in made.values())}:
            _sync_folder(path)
        try:
            place.rename(folder)
        except OSError as error:
            if os.path.lexists(folder):
                raise _meanwhile(folder) from error
            raise
        _sync_folder(folder.parent)
        return
    with folder_lock(folder):
        change = destination.replacement()
        change.announce()
        _sync_folder(folder)
        # The first file is the one that a runtime opens: it appears last, and one that was that before it.
        first = destination.files[0].name
        late = [*(name for name in change.mains if name != first), first]
        if destination.is_alone and destination.receipt in made:
            late.append(destination.receipt)
        done: list[str] = []
        try:
            for name in [*(name for name in made if name not in late), *late]:
                _rename(made[name], replace=change.may_replace(name))
                done.append(name)
        except OSError:
            with contextlib.suppress(OSError):  # the reason is another
                change.undo(done)
            raise
        for path in destination.folders:
            _sync_folder(path)
        change.settle()
        _sync_folder(folder)


def _rename(partial: PartialFile, *, replace: bool) -> None:
    if not LOCKS:
        partial.close()  # where an open file cannot be renamed; elsewhere its lock holds it until then
    try:
        rename(partial.path, partial.final, replace=replace)
    except FileExistsError as error:
        raise _meanwhile(partial.final) from error


def _meanwhile(path: Path) -> OutputExistsError:
    return OutputExistsError(
        "somebody else made this while it was written", path=path, hint="give --force to replace it"
    )


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
    named = isinstance(error.filename, str | bytes | os.PathLike)
    path = destination_of(Path(os.fsdecode(error.filename))) if named and error.filename else folder
    return OutputError(error.strerror or str(error), path=path, hint="check the destination")


def _sync_folder(folder: Path) -> None:
    """Makes the renames themselves last; where a folder cannot be opened there is nothing to do."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
