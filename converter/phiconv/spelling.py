"""Words that people type: their spellings, and what somebody may have meant."""

from __future__ import annotations

from difflib import get_close_matches
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = ["did_you_mean", "folded", "known_as", "nearest"]


def folded(text: str) -> str:
    """A word for comparing: case does not matter, and "_" is "-"."""
    return text.strip().lower().replace("_", "-")


def known_as(word: str, known: Iterable[str], aliases: Mapping[str, str]) -> str | None:
    """The known word that is spelled so, or that has such an alias; None for neither."""
    spellings = {folded(name): name for name in known} | {folded(a): name for a, name in aliases.items()}
    return spellings.get(folded(word))


def nearest(word: str, known: Iterable[str], likeness: float = 0.6) -> str:
    """The known word that is most like one that there is not; "" if none is like it to this degree, of 1."""
    spellings = {folded(name): name for name in known}
    return next((spellings[n] for n in get_close_matches(folded(word), spellings, 1, likeness)), "")


def did_you_mean(word: str, known: Iterable[str], otherwise: str = "") -> str:
    """A hint: the nearest known word, or else this."""
    near = nearest(word, known)
    return f"did you mean {near}?" if near else otherwise
