"""What was found of a model before something was wrong with it: an error carries it to whoever shows it.

Whoever opens a model stops at the first error, and needs none of this. Whoever looks for the reason wants to
see what there is.
"""

from __future__ import annotations

from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, TypeVar

from phiconv.errors import PhiconvError
from phiconv.ir.model import Checkpoint

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["found_by", "keeping", "tolerated"]

T = TypeVar("T")


@contextmanager
def keeping(find: Callable[[Checkpoint | None], Checkpoint | None]) -> Iterator[None]:
    """An error from inside carries what is known here.

    Args:
        find: Says what that is, and is asked only then. It gets what the error carries from further inside,
            and may fail itself: then the error carries that still.
    """
    try:
        yield
    except PhiconvError as error:
        with suppress(PhiconvError):
            error.found = find(found_by(error))
        raise


def found_by(error: PhiconvError) -> Checkpoint | None:
    """What an error carries."""
    return error.found if isinstance(error.found, Checkpoint) else None


def tolerated(attempt: Callable[[], T]) -> T | None:
    """What comes of an attempt; None where that is an error."""
    try:
        return attempt()
    except PhiconvError:
        return None
