"""Standard streams that are closed, or take nothing more: no conversion ends for that."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import select
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import TextIO

    from _typeshed import ReadableBuffer

__all__ = ["guarded_streams"]

_GONE = (errno.EPIPE, errno.EINVAL)
"""Whoever read has gone, on purpose, as head(1) does; the second is Windows's word for it."""


class _Guarded(io.FileIO):
    """A file descriptor that takes whatever is written, also when it cannot be passed on.

    Attributes:
        error: The first error.
    """

    error: OSError | None = None

    def write(self, data: ReadableBuffer, /) -> int:
        """Writes, or drops what is written."""
        try:
            while self.error is None:
                if (count := super().write(data)) is not None:
                    return count
                select.select([], [self], [])  # somebody has made it non-blocking, and reads slowly
        except OSError as error:
            self.error = error
        return memoryview(data).nbytes


@contextlib.contextmanager
def guarded_streams() -> Iterator[Callable[[], OSError | None]]:
    """Lets nothing fail that is written to stdout or stderr while the block runs.

    Yields:
        A function that says why results did not get to stdout, if there is somebody who wants them.
    """
    _fill_gaps()
    kept = sys.stdout, sys.stderr
    out, sys.stdout = _guarded(sys.stdout)
    _, sys.stderr = _guarded(sys.stderr)

    def lost() -> OSError | None:
        sys.stdout.flush()
        error = None if out is None else out.error
        return None if error is None or error.errno in _GONE else error

    try:
        yield lost
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        sys.stdout, sys.stderr = kept


def _fill_gaps() -> None:
    """Opens nothing in place of standard streams that are closed.

    Else a file of the output gets such a number, and whatever is written to the stream gets into the file.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)


def _guarded(stream: TextIO | None) -> tuple[_Guarded | None, TextIO]:
    """A stream over the same file that does not fail; one that is no file, as in tests, stays."""
    if stream is None:
        return None, io.TextIOWrapper(io.BufferedWriter(_Guarded(os.devnull, "w")), encoding="utf-8")
    buffer = getattr(stream, "buffer", None)
    raw = getattr(buffer, "raw", buffer)  # with PYTHONUNBUFFERED there is no buffer
    if type(raw) is not io.FileIO:
        return None, stream
    guard = _Guarded(raw.fileno(), "w", closefd=False)
    errors = "backslashreplace" if stream.errors == "strict" else stream.errors
    return guard, io.TextIOWrapper(
        io.BufferedWriter(guard),
        encoding=stream.encoding,
        errors=errors,
        line_buffering=buffer is raw or bool(stream.line_buffering),
    )
