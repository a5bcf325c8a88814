"""Input files: regular files only, read at given offsets, from any thread or process.

A model file comes from a stranger, and so does its name in a folder: opening it must not block (a FIFO), must
not run forever (``/dev/zero``), must not mix two versions of a file that somebody replaces meanwhile, and
must not lead out of the model's folder (`links`).
"""

from __future__ import annotations

import copy
import errno
import os
import platform
import stat
import threading
import weakref
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from phiconv.errors import InputError, MalformedFileError, MissingFileError
from phiconv_formats.shared.links import links_are_followed, real_path

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType
    from typing import Self

__all__ = ["InputFile", "noting_files", "read_small_file", "unnoted_files"]

# Not every system has each of these. O_NONBLOCK: opening a FIFO with no writer must not wait for one.
_OPEN_FLAGS = os.O_RDONLY
for _name in ("O_NONBLOCK", "O_CLOEXEC", "O_NOCTTY", "O_BINARY"):
    _OPEN_FLAGS |= getattr(os, _name, 0)
_NO_LINK = getattr(os, "O_NOFOLLOW", 0)

_HAS_PREADV = hasattr(os, "preadv")

_MOST_OPEN = 24
"""How many input files are open at once: a process may have few, and a model a thousand shards."""

# Those that are open, those opened first in front. Nobody owns a file, so they are weak references;
# and as files end anywhere, there is no lock: each operation on a dict is one step.
_opened: dict[int, weakref.ref[InputFile]] = {}


class _Stamp(NamedTuple):
    """What tells a file from another version of it."""

    device: int | None
    """None for that of another machine, which has numbers of its own for what both have mounted."""
    inode: int
    size: int
    modified: int
    """Can be set to any time, as by touch(1)."""
    status_changed: int
    """Cannot be set, but follows links to the file as well."""
    links: int

    def is_of_same_file(self, other: _Stamp) -> bool:
        """Whether both are of the same bytes; another hard link to the file is no change of it."""
        times = self.status_changed == other.status_changed or self.links != other.links
        devices = self.device == other.device or self.device is None or other.device is None
        return devices and self[1:4] == other[1:4] and times


class InputFile:
    """A regular file, opened when it is first needed and read at given offsets.

    Reads may come from any thread at once. A copy in another process (pickle) opens the file again, and
    refuses it if it is no longer the same. ``close`` may be called when no read is running; a later read
    opens the file again. So does one after many other files were opened: those opened first are closed.

    Attributes:
        path: The file, as it was given.
    """

    def __init__(self, path: str | os.PathLike[str], *, within: Path | None = None) -> None:
        """Opens nothing yet.

        Args:
            path: The file.
            within: The folder that no link may lead out of (unless `links.following_links`); by default the
                one that the file is in.
        """
        self.path = Path(path)
        self._within = None if links_are_followed() else within or self.path.parent
        self._stamp: _Stamp | None = None
        self._start()

    def _start(self) -> None:
        self._descriptor = -1
        self._reads = 0  # that are running
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"InputFile({str(self.path)!r})"

    def __getstate__(self) -> tuple[Path, Path | None, _Stamp | None, str]:
        return self.path, self._within, self._stamp, platform.node()

    def __setstate__(self, state: tuple[Path, Path | None, _Stamp | None, str]) -> None:
        self.path, self._within, self._stamp, machine = state
        if self._stamp is not None and machine != platform.node():
            self._stamp = self._stamp._replace(device=None)
        self._start()

    def __enter__(self) -> Self:
        self._open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        # Tensors share the file and nobody owns it: it is closed with the last of them.
        if getattr(self, "_descriptor", -1) >= 0:
            self.close()

    @property
    def size(self) -> int:
        """Bytes of the file when it was first opened."""
        return self._first_stamp().size

    @property
    def identity(self) -> tuple[int | None, int]:
        """Device and inode: two paths with one identity are one file."""
        stamp = self._first_stamp()
        return stamp.device, stamp.inode

    def changed(self) -> bool:
        """Whether the path now holds other bytes than when the file was first opened (by size and times).

        Raises:
            InputError: That cannot be told, since it can no longer be opened.
        """
        first = self._first_stamp()
        try:
            descriptor, now = _open_regular(self.path, self._within)
        except InputError as error:
            reason = f"was read, and whether it has changed since cannot be told: {error.message}"
            raise type(error)(reason, path=self.path, hint=error.hint or "convert it again") from error
        os.close(descriptor)
        return not now.is_of_same_file(first)

    def read_into(self, offset: int, buffer: bytearray | memoryview) -> None:
        """Fills ``buffer`` with the bytes from ``offset`` on.

        Raises:
            MalformedFileError: The file ends before the buffer is full.
        """
        view = memoryview(buffer)
        if not 0 <= offset <= self.size - view.nbytes:
            raise self._too_short(offset, view.nbytes, self.size)
        if not view.nbytes:  # memoryview.cast refuses empty shapes
            return
        view = view.cast("B")
        with self._reading() as descriptor:
            done = 0
            while done < len(view):
                count = self._read_some(descriptor, offset + done, view[done:])
                if count == 0:
                    raise self._too_short(offset, len(view), offset + done)
                done += count

    def read_bytes(self, offset: int, count: int) -> bytes:
        """The ``count`` bytes from ``offset`` on; nothing is allocated if the file is shorter.

        Raises:
            MalformedFileError: The file ends before that.
        """
        if not 0 <= offset <= self.size - count:
            raise self._too_short(offset, count, self.size)
        buffer = bytearray(count)
        self.read_into(offset, buffer)
        return bytes(buffer)

    def close(self) -> None:
        """Closes the file, if it is open."""
        with self._lock:
            descriptor, self._descriptor = self._descriptor, -1
        _opened.pop(id(self), None)
        if descriptor >= 0:
            os.close(descriptor)

    @contextmanager
    def _reading(self) -> Iterator[int]:
        """The descriptor, which stays open meanwhile."""
        with self._lock:
            self._reads += 1
        try:
            yield self._open()
        finally:
            with self._lock:
                self._reads -= 1

    def close_unused(self) -> bool:
        """Closes the file unless it is read now; returns whether it is closed."""
        with self._lock:
            if self._reads:
                return False
            descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)
        return True

    def _first_stamp(self) -> _Stamp:
        if self._stamp is None:
            self._open()
        assert self._stamp is not None  # noqa: S101 - _open sets it
        return self._stamp

    def _open(self) -> int:
        with self._lock:
            if self._descriptor < 0:
                descriptor, now = _open_regular(self.path, self._within)
                if self._stamp is not None and not now.is_of_same_file(self._stamp):
                    os.close(descriptor)
                    raise MalformedFileError(
                        "the file changed while it was being read", path=self.path, hint="run again"
                    )
                if self._stamp is None and (stands_for := _placeholder(descriptor)):
                    os.close(descriptor)
                    raise MalformedFileError(stands_for[0], path=self.path, hint=stands_for[1])
                first = self._stamp is None
                self._stamp, self._descriptor = now, descriptor
                _opened[id(self)] = weakref.ref(self)
                if first:
                    _note(self)
            descriptor = self._descriptor
        if len(_opened) > _MOST_OPEN:
            _close_some(self)
        return descriptor

    def _read_some(self, descriptor: int, offset: int, view: memoryview) -> int:
        try:
            if _HAS_PREADV:
                return os.preadv(descriptor, [view], offset)
            with self._lock:
                os.lseek(descriptor, offset, os.SEEK_SET)
                # At most 1 MiB: os.read makes a copy.
                data = os.read(descriptor, min(len(view), 1 << 20))
        except OSError as error:
            reason = f"cannot be read: {error.strerror}"
            raise InputError(reason, path=self.path, at=f"byte {offset}") from error
        view[: len(data)] = data
        return len(data)

    def _too_short(self, offset: int, count: int, end: int) -> MalformedFileError:
        return MalformedFileError(
            f"the file ends at byte {end}, and bytes {offset} to {offset + count} are needed: "
            "it is truncated, or it changed while it was being read",
            path=self.path,
            hint="download it again",
        )


def _close_some(newest: InputFile) -> None:
    """Closes those that were opened first, but for this one and those that are read now."""
    for number, reference in list(_opened.items())[: len(_opened) - _MOST_OPEN]:
        file = reference()
        if file is None or (file is not newest and file.close_unused()):
            _opened.pop(number, None)


_PLACEHOLDERS = (
    (b"version https://git-lfs", "a pointer of git-lfs, and not the file itself", "run 'git lfs pull'"),
    (b"<!doctype html", "a web page, and not the file", "download it again; it may ask for a login"),
    (b"<html", "a web page, and not the file", "download it again; it may ask for a login"),
)
"""What a download leaves in place of a file: how it begins, what it is, and what to do."""


def _placeholder(descriptor: int) -> tuple[str, str] | None:
    """What stands in place of a file and why, if something does."""
    try:
        head = os.read(descriptor, 64).lstrip().lower()
    except OSError:  # whoever reads on says so
        return None
    return next(((what, hint) for start, what, hint in _PLACEHOLDERS if head.startswith(start)), None)


def read_small_file(path: str | os.PathLike[str], limit: int, *, within: Path | None = None) -> bytes:
    """The whole of a file of at most ``limit`` bytes; ``within`` as in `InputFile`.

    Raises:
        InputError: It cannot be opened, or is a link out of its folder.
        MalformedFileError: The file is larger.
    """
    with InputFile(path, within=within) as file:
        if file.size > limit:
            raise MalformedFileError(
                f"the file has {file.size} bytes, and such a file has at most {limit}", path=path
            )
        return file.read_bytes(0, file.size)


def _open_regular(path: Path, within: Path | None) -> tuple[int, _Stamp]:
    """Opens a regular file; returns its descriptor and what tells it from another version of itself."""
    # Opened at the place that was looked at, should a link have come there meanwhile.
    place, flags = (
        (path, _OPEN_FLAGS) if within is None else (real_path(path, within), _OPEN_FLAGS | _NO_LINK)
    )
    try:
        descriptor = os.open(place, flags)
    except (FileNotFoundError, NotADirectoryError) as error:
        if path.is_symlink():
            raise MissingFileError(
                "a symbolic link whose target is not there", path=path, hint="download the file again"
            ) from error
        raise MissingFileError("there is no such file", path=path) from error
    except OSError as error:
        reason = "symbolic links that form a loop" if error.errno == errno.ELOOP else error.strerror
        hint = "check who may read it" if error.errno in {errno.EACCES, errno.EPERM} else ""
        raise InputError(f"cannot be opened: {reason}", path=path, hint=hint) from error
    except ValueError as error:  # a NUL character, or one that the file system cannot encode
        raise InputError(f"not a file name: {error}", path=path) from error
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        os.close(descriptor)
        kind = "a folder" if stat.S_ISDIR(status.st_mode) else "a device or a pipe"
        hint = "give a file" if stat.S_ISDIR(status.st_mode) else "save it to a file first"
        raise InputError(f"{kind}, not a regular file", path=path, hint=hint)
    return descriptor, _Stamp(
        status.st_dev,
        status.st_ino,
        status.st_size,
        status.st_mtime_ns,
        status.st_ctime_ns,
        status.st_nlink,
    )


_noted: ContextVar[list[InputFile] | None] = ContextVar("noted_files", default=None)


@contextmanager
def noting_files() -> Iterator[list[InputFile]]:
    """Within it every file that is opened for the first time is noted, for contexts around this one too.

    Yields:
        The files so far: copies, which hold none of them open.
    """
    outer = _noted.get()
    found: list[InputFile] = []
    token = _noted.set(found)
    try:
        yield found
    finally:
        _noted.reset(token)
        if outer is not None:
            outer += found


@contextmanager
def unnoted_files() -> Iterator[None]:
    """Within it no file is noted: because they are parts of another one, or of nothing that counts."""
    token = _noted.set(None)
    try:
        yield
    finally:
        _noted.reset(token)


def _note(file: InputFile) -> None:
    found = _noted.get()
    if found is not None:
        found.append(copy.copy(file))
