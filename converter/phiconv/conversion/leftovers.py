"""Temporary files: who is writing one, and what a run that was killed has left.

Whoever writes some holds a lock on one in each folder, or on the folder if that is temporary; it ends with
the process however that ends. A token in their names says which belong together. So files none of which is
locked are nobody's. On Windows it is the open file itself: it cannot be renamed. Where a file system has no
locks nothing can be told, and what is there stays.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import time
from typing import TYPE_CHECKING, Any

from phiconv.conversion.names import name_within, partial_name, token_of
from phiconv.errors import OutputError, printable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

fcntl: Any
try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

__all__ = ["LOCKS", "clear_leftovers", "folder_lock", "hold"]

LOCKS = fcntl is not None
"""Whether a file can be locked while it is renamed; else an open one cannot be renamed at all."""

_PATIENCE = 10.0  # seconds for a lock that is held for moments, unless somebody else has it
_OPEN = os.O_RDWR | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)
_MOST_NAMED = 3


def hold(descriptor: int) -> bool | None:
    """Locks an open file or folder until it is closed.

    Returns:
        False where somebody else holds it, None where there are no locks.
    """
    if fcntl is None:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return False if error.errno in {errno.EWOULDBLOCK, errno.EACCES} else None
    return True


@contextlib.contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """Lets one phiconv at a time look into a folder and change what is in it; that takes moments.

    A lock that is not to be had for long belongs to something else, such as flock(1), and is not waited for.
    """
    try:
        descriptor = os.open(folder, os.O_RDONLY) if LOCKS else -1
    except OSError:
        descriptor = -1
    try:
        end = time.monotonic() + _PATIENCE
        while descriptor >= 0 and hold(descriptor) is False and time.monotonic() < end:
            time.sleep(0.02)
        yield
    finally:
        if descriptor >= 0:
            os.close(descriptor)


def clear_leftovers(folder: Path, is_ours: Callable[[str], bool], *, folders: bool = False) -> list[str]:
    """Removes the temporary files of a destination that nobody writes any more.

    Args:
        folder: Where they may be.
        is_ours: Is given a name as `inner_name` makes it, and says whether it is of this destination.
        folders: Look for temporary folders, not for files.

    Returns:
        A note about what was there, or nothing.

    Raises:
        OutputError: Somebody is writing there now.
    """
    kind = stat.S_ISDIR if folders else stat.S_ISREG
    together: dict[str, list[Path]] = {}
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if (token := token_of(entry.name)) and kind(entry.stat(follow_symlinks=False).st_mode):
                together.setdefault(token, []).append(folder / entry.name)
    ours = {token: [p for p in paths if is_ours(name_within(p.name))] for token, paths in together.items()}
    ended = [path for token, found in ours.items() if found for path in _end(sorted(found), together[token])]
    removed = sorted(path.name for path in ended)
    if not removed:
        return []
    more = f" and {len(removed) - _MOST_NAMED} more" if len(removed) > _MOST_NAMED else ""
    names = ", ".join(printable(name, 80) for name in removed[:_MOST_NAMED]) + more
    return [f"removed {names}, left by a run that was killed"]


def _end(found: list[Path], together: list[Path]) -> list[Path]:
    """Removes leftovers of one run; returns those that are gone.

    Args:
        found: The leftovers.
        together: All temporary files in the folder of whoever made them.

    Raises:
        OutputError: They are none: somebody is writing them.
    """
    if not LOCKS:
        return [path for path in found if _remove(_taken(path))]
    free = {path: _is_free(path) for path in together}
    if False in free.values():
        raise _busy(found[0])
    return [path for path in found if free[path] and _remove(path)]


def _is_free(path: Path) -> bool | None:
    """Whether nobody holds a lock on a file or folder; None if that cannot be told."""
    try:
        descriptor = os.open(path, os.O_RDONLY if path.is_dir() else _OPEN)
    except OSError:
        return None
    try:
        return hold(descriptor)
    finally:
        os.close(descriptor)


def _taken(path: Path) -> Path:
    """A leftover under a name of this run's: an open file cannot get one.

    Raises:
        OutputError: It is open.
    """
    try:
        return path.rename(partial_name(path.with_name("leftover")))
    except OSError:
        raise _busy(path) from None


def _busy(path: Path) -> OutputError:
    return OutputError(
        "another phiconv is writing this now",
        path=path.with_name(name_within(path.name) or path.name),
        hint="wait until it is done, or choose another name",
    )


def _remove(path: Path) -> bool:
    """Removes a file, or a folder of files; what is in a folder below stays, since phiconv makes none."""
    with contextlib.suppress(OSError):
        if path.is_dir():
            for inner in list(path.iterdir()):
                if not inner.is_dir() or inner.is_symlink():
                    inner.unlink()
            path.rmdir()
        else:
            path.unlink()
        return True
    return False
