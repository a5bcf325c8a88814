"""What kind of character each one is, as the regular expressions of tokenizers ask.

The kinds are those of Unicode 16, which the `tokenizers` library has, and not those of the Python that
happens to run: a text has the same token ids everywhere.
"""

from __future__ import annotations

import re
import zlib
from functools import lru_cache
from pathlib import Path

__all__ = ["OTHER", "PROPERTIES", "SIZE", "WORD", "kinds", "kinds_expression"]

SIZE = 0x110000
"""Number of code points."""

PROPERTIES = {
    r"\p{Lu}": "A",
    r"\p{Lt}": "A",
    r"\p{Ll}": "a",
    r"\p{Lm}": "\xaa",
    r"\p{Lo}": "\xaa",
    r"\p{M}": "\x80",
    r"\p{Nd}": "0",
    r"\p{Nl}": "1",
    r"\p{No}": "\xb2",
    r"\s": "\t",
}
"""A sign for each kind of character outside ASCII, by the expression that finds them."""

WORD = "_"
"""The sign of other characters that a word can have in it: connecting signs, joiners, letters in circles."""

OTHER = "."
"""The sign of all other characters."""

# What a class of signs is for each property; ASCII characters are their own signs.
_CLASSES = {
    "Lu": "A-Z",
    "Lt": "",  # no sign of its own, and always beside Lu
    "Ll": "a-z",
    "Lm": "",  # always beside Lo
    "Lo": "\xaa",
    "M": "\x80",
    "L": "A-Za-z\xaa",
    "N": "0-9\xb2",
}
_LONG_S = "\u017f"


@lru_cache(maxsize=1)
def _table() -> bytes:
    return zlib.decompress(Path(__file__).with_name("characters.bin").read_bytes())


def kinds(text: str, *, fold: bool = False) -> str:
    """The signs of a text's characters, one for each, so that `re` can find what Unicode expressions would.

    Args:
        text: Any text.
        fold: The long s counts as an s, as it does where case is ignored.
    """
    if fold:
        text = text.replace(_LONG_S, "s")
    return text.translate(_table())


def kinds_expression(expression: str) -> re.Pattern[str]:
    r"""A regular expression for `kinds`, from one with Unicode properties.

    Args:
        expression: With \p{L}, \p{N}, \p{M} and the kinds of letters, in classes or alone. Lu and Lt, and Lm
            and Lo, have one sign each and must stand together.
    """

    def signs(match: re.Match[str]) -> str:
        inside = re.sub(r"\\p\{(\w+)\}", lambda property_: _CLASSES[property_[1]], match[0])
        return inside if match[0].startswith("[") else f"[{inside}]"

    return re.compile(re.sub(r"\[[^]]*\]|\\p\{\w+\}", signs, expression), re.ASCII)
