"""Ending what takes long, from another thread."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from phiconv.errors import CancelledError

if TYPE_CHECKING:
    from phiconv.conversion.pipeline import Progress

__all__ = ["Cancel", "heeding"]


class Cancel(Protocol):
    """What says whether to go on: a `threading.Event`, or anything that has this method."""

    def is_set(self) -> bool:
        """Whether to end."""


def heeding(progress: Progress | None, cancel: Cancel | None) -> Progress | None:
    """Progress that ends the work when it is told to: everything that takes long reports its progress.

    Raises:
        CancelledError: At the first report after ``cancel`` is set.
    """
    if cancel is None:
        return progress

    def report(done: int, total: int, name: str) -> None:
        if cancel.is_set():
            raise CancelledError("cancelled")
        if progress is not None:
            progress(done, total, name)

    return report
