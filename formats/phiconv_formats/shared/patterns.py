"""Regular expressions that come with a file: only those that cannot take long to match."""

from __future__ import annotations

import re

__all__ = ["takes_long"]

_SAFE = re.compile(r"[\w.\\^$|()\[\]*+?-]{1,200}")
_REPEATED = re.compile(r"(?<!\\)[*+?]")
_MOST_REPEATED = 3


def takes_long(pattern: str) -> bool:
    """Whether a pattern might take long, or has what no plain pattern of names has."""
    repeated = len(_REPEATED.findall(pattern))
    return (
        not _SAFE.fullmatch(pattern)
        or repeated > _MOST_REPEATED
        or re.search(r"\)[*+?]", pattern) is not None
    )
