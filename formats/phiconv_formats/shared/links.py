"""Links in a model's folder: followed where its folder, or the hub's cache, has the file.

A folder from a stranger may hold links to private files of whoever converts it, and what stands beside the
weights is copied. So a link may lead anywhere inside its folder. The cache of the Hugging Face hub has links
in place of all files, and those may lead to the blobs of the same model::

    models--NAME/snapshots/REVISION/config.json -> ../../blobs/SHA
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING

from phiconv.errors import InputError, printable

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["following_links", "links_are_followed", "real_path", "refuse_outside"]

_follow: ContextVar[bool] = ContextVar("follow_links", default=False)


@contextmanager
def following_links() -> Iterator[None]:
    """Within it links of a model's folder are followed wherever they lead."""
    token = _follow.set(True)
    try:
        yield
    finally:
        _follow.reset(token)


def links_are_followed() -> bool:
    """Whether `following_links` holds here."""
    return _follow.get()


def real_path(path: Path, folder: Path) -> Path:
    """Where a file or folder really is; links that form a loop, or lead nowhere, are left for opening it.

    Args:
        path: The file, or a link to it.
        folder: What it must be in, or in the hub's cache the snapshot.

    Raises:
        InputError: It is elsewhere.
    """
    try:
        real, root = Path(os.path.realpath(path)), Path(os.path.realpath(folder))
    except (OSError, ValueError):  # a NUL character, a name that is too long: opening it says so
        return path
    if not any(real.is_relative_to(place) for place in (root, *_blobs(root))):
        raise InputError(
            f"a link out of its folder, to {printable(real, 120)}, which is not followed",
            path=path,
            hint="put the file itself there, or give --follow-links if you trust who made the link",
        )
    return real


def refuse_outside(path: Path, folder: Path) -> None:
    """Refuses a folder inside of another that is a link to elsewhere, unless links are followed.

    Raises:
        InputError: It is.
    """
    if not links_are_followed():
        real_path(path, folder)


def _blobs(root: Path) -> list[Path]:
    """Where the hub's cache has the files of a snapshot, or of a folder in it."""
    repositories = (p.parent for p in (root, *root.parents) if p.parent.name == "snapshots")
    return [p.parent / "blobs" for p in repositories]
