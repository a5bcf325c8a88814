"""Paths as people give them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from os import PathLike

__all__ = ["expanded"]


def expanded(path: str | PathLike[str]) -> Path:
    """A path with ``~`` for the home folder, as a shell has it, which does not see what is in quotes."""
    plain = Path(path)
    try:
        return plain if plain.exists() else plain.expanduser()
    except (OSError, RuntimeError):  # a name that is too long, or nobody's home
        return plain
