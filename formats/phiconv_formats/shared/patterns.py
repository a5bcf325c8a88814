"""Regular expressions that come with a file: only those that cannot take long to match."""

from __future__ import annotations

import math
import re
from collections import Counter
from typing import TYPE_CHECKING

from phiconv.errors import MalformedFileError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

__all__ = ["check_steps", "takes_long"]

_SAFE = re.compile(r"[\w.\\^$|()\[\]*+?-]{1,200}")
_REPEATED = re.compile(r"(?<!\\)[*+?]")
_MOST_REPEATED = 3
_RESERVED = ("[[", "--", "||")  # in a set of characters Python warns that they may mean something one day
_MOST_STEPS = 2_000_000_000  # about a nanosecond each
_BEGINNING = 200  # steps that any match takes at least


def takes_long(pattern: str) -> bool:
    """Whether a pattern might take long, or has what no plain pattern of names has."""
    repeated = len(_REPEATED.findall(pattern))
    return (
        not _SAFE.fullmatch(pattern)
        or repeated > _MOST_REPEATED
        or any(each in pattern for each in _RESERVED)
        or re.search(r"\)[*+?]", pattern) is not None
    )


def check_steps(patterns: Iterable[str], names: Iterable[str], path: Path) -> None:
    """Refuses patterns which it would take long to match with the ends of so many names, or so long ones.

    A repetition tries every place behind the one before: with ``k`` of them, and one more in front that finds
    the end of a name, a text of ``n`` characters has C(n + k + 1, k + 1) choices.

    Raises:
        MalformedFileError: It would take more than about two seconds.
    """
    kinds = Counter((len(_REPEATED.findall(each)), each.count("|")) for each in patterns)
    lengths = Counter(map(len, names))
    steps = sum(
        many * count * (1 + alternatives) * (_BEGINNING + math.comb(length + repeated + 1, repeated + 1))
        for (repeated, alternatives), many in kinds.items()
        for length, count in lengths.items()
    )
    if steps > _MOST_STEPS:
        raise MalformedFileError(
            "it would take long to match its patterns with the names of its modules", path=path
        )
