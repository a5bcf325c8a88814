"""A new folder that others than the pipeline fill: it gets its name as a whole, when all is there."""

from __future__ import annotations

import contextlib
import os
import shutil
from typing import TYPE_CHECKING

from phiconv.conversion.interrupts import uninterrupted
from phiconv.conversion.leftovers import LOCKS, clear_leftovers, folder_lock, hold
from phiconv.conversion.names import check_names, inner_name, partial_name
from phiconv.conversion.outputs import explain
from phiconv.errors import OutputExistsError, PhiconvError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

__all__ = ["new_folder", "remove_leftovers"]


@contextlib.contextmanager
def new_folder(destination: Path, note: Callable[[str], None] | None = None) -> Iterator[Path]:
    """A temporary folder beside the destination, which gets its name when the block ends well.

    Args:
        destination: Its name then; nothing may have it.
        note: Is told of what a run that was killed had left.

    Yields:
        The folder to fill; what is done in it is not checked.

    Raises:
        OutputExistsError: Something has that name.
        OutputError: The folder cannot be made, or not filled.
    """
    _check_free(destination)
    check_names([destination])
    with contextlib.ExitStack() as held:
        try:
            with folder_lock(destination.parent):
                for line in remove_leftovers(destination):
                    if note is not None:
                        note(line)
                folder = partial_name(destination)
                folder.mkdir()
                held.callback(shutil.rmtree, folder, ignore_errors=True)
                if LOCKS:
                    descriptor = os.open(folder, os.O_RDONLY)
                    held.callback(os.close, descriptor)
                    hold(descriptor)
            yield folder
            with uninterrupted():
                _check_free(destination)
                folder.rename(destination)
        except OSError as error:
            if isinstance(error, PhiconvError) or error.errno is None:
                raise
            raise explain(error, destination) from error


def remove_leftovers(destination: Path) -> list[str]:
    """Removes temporary folders for a destination that nobody fills any more; returns notes about them.

    Raises:
        OutputError: Somebody is filling one now.
    """
    own = inner_name(destination.name)
    return clear_leftovers(destination.parent, lambda inner: inner == own, folders=True)


def _check_free(destination: Path) -> None:
    if os.path.lexists(destination):
        raise OutputExistsError("exists already", path=destination, hint="give another name, or remove it")
