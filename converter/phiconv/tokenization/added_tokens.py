"""Finding added tokens in a text, by the rules of the Hugging Face `tokenizers` library."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from phiconv.tokenization.characters import kinds

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from phiconv.tokenization.tokenizer import AddedToken

__all__ = ["AddedTokens"]

# By `kinds`: white space, and what a word can have in it.
_WHITE = " \t\n\r\v\f"
_IN_WORD = re.compile(r"[\w\xaa\x80]", re.ASCII)


class AddedTokens:
    """Finds added tokens in a text: the leftmost first, the longest of those that begin at one place."""

    def __init__(self, added: Sequence[AddedToken], normalize: Callable[[str], str]) -> None:
        texts = {normalize(token.content): token for token in added}
        self._tokens = texts
        longest_first = sorted(filter(None, texts), key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, longest_first))) if longest_first else None

    def split(self, text: str) -> Iterator[tuple[str, int | None]]:
        """Parts of the text in order, each with the id of the added token that it is, or None."""
        done = 0
        for match in self._pattern.finditer(text) if self._pattern is not None else ():
            start, stop = match.span()
            token = self._tokens[match[0]]
            if token.single_word and not _stands_alone(text, start, stop):
                continue
            if token.lstrip:
                start = max(_before_spaces(text, start, done), done)
            if token.rstrip:
                stop = _after_spaces(text, stop)
            if done < start:
                yield text[done:start], None
            yield text[start:stop], token.id
            done = stop
        if done < len(text):
            yield text[done:], None


def _stands_alone(text: str, start: int, stop: int) -> bool:
    return not any(
        _IN_WORD.match(kinds(beside)) for beside in (text[max(start - 1, 0) : start], text[stop : stop + 1])
    )


def _before_spaces(text: str, end: int, low: int) -> int:
    """Where the white space that reaches up to ``end`` begins, at ``low`` or after it."""
    while end > low and _is_space(text[end - 1]):
        end -= 1
    return end


def _after_spaces(text: str, start: int) -> int:
    """Where the white space that begins at ``start`` ends."""
    while start < len(text) and _is_space(text[start]):
        start += 1
    return start


def _is_space(character: str) -> bool:
    return kinds(character) in _WHITE
