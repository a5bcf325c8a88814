"""Composing characters: Unicode's form NFC, as the `tokenizers` library knows it.

The library's tables are those of Unicode 9. A combining mark that is newer is a character like any other to
it: it is not put into order, and nothing is composed across it. Python's tables are newer and differ from
release to release. So the text is cut at these marks, and has the same token ids everywhere.
"""

from __future__ import annotations

import re
import unicodedata

__all__ = ["compose"]

# Marks and parts of composed characters that came after Unicode 9, up to Unicode 18.
_NEWER = re.compile(
    "["
    "\u05c8-\u05c9\u07fd\u0897-\u089f\u08ca-\u08d3\u09fe\u0c3c\u0d3b-\u0d3c\u0eba\u1715\u1abf-\u1aff"
    "\u1df6-\u1dfa\ua82c\U000105c0-\U000105ff\U00010d24-\U00010d27\U00010d69-\U00010d6d"
    "\U00010eab-\U00010eac\U00010ec2-\U00010eff\U00010f46-\U00010f50\U00010f82-\U00010f85\U00011070"
    "\U0001133b\U00011380-\U000113ff\U0001145e\U00011839-\U0001183a\U00011900-\U0001195f\U000119e0"
    "\U00011a34\U00011a47\U00011a99\U00011d42-\U00011d45\U00011d97\U00011f41-\U00011f42"
    "\U00016100-\U0001613f\U00016d40-\U00016d7f\U00016ff0-\U00016ff1\U0001d127-\U0001d128"
    "\U0001d250-\U0001d281\U0001e08f\U0001e130-\U0001e136\U0001e2ae\U0001e2ec-\U0001e2ef"
    "\U0001e4ec-\U0001e4ef\U0001e5ee-\U0001e5ef\U0001e6e3-\U0001e6f5"
    "]"
)


def compose(text: str) -> str:
    """The text with characters composed where one character stands for them."""
    if unicodedata.is_normalized("NFC", text):
        return text
    result, done = [], 0
    for match in _NEWER.finditer(text):
        result += [unicodedata.normalize("NFC", text[done : match.start()]), match[0]]
        done = match.end()
    return "".join(result) + unicodedata.normalize("NFC", text[done:])
