"""Which files are read: a receipt lists them all, so they are noted where they are opened."""

from __future__ import annotations

import copy
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from phiconv_formats.shared.files import InputFile

__all__ = ["note", "noting_files"]

_noted: ContextVar[list[InputFile] | None] = ContextVar("noted_files", default=None)


@contextmanager
def noting_files() -> Iterator[list[InputFile]]:
    """Within it every file that is opened for the first time is noted, for contexts around this one too.

    Yields:
        The files so far. They are copies, which hold none of them open.
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


def note(file: InputFile) -> None:
    """Notes a file that was opened just now."""
    found = _noted.get()
    if found is not None:
        found.append(copy.copy(file))
