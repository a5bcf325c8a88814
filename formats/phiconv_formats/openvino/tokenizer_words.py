r"""Words that are tokens although no merges make them (``ignore_merges``), for OpenVINO's operations.

BPETokenizer knows no whole words: a string of its vocabulary that no merge makes is found inside a word too.
So such a token is given with a mark in front, and a word that is one of them gets that mark before
BPETokenizer sees it. With its mark it is inside of no word, whatever the split: no word goes on after a line
break with anything but white space or a slash, or after a letter with one of these.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from phiconv.tokenization import bpe

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

__all__ = ["mark", "marking_expressions", "never_merged"]

_BREAK, _LETTER = "\n", "a"
_MAX_EXPRESSION = 24_000  # bytes; see `tokenizer_patterns.MAX_EXPRESSION`


def never_merged(ids: Mapping[str, int], merges: Iterable[tuple[str, str]]) -> set[str]:
    """The tokens of a byte-level vocabulary that the merges do not make of their own bytes.

    No longer word has one of them either, nor is one of them there until another merge: what happens inside
    of a token's place in a word is what happens to the token alone.
    """
    table = bpe.merges_of_pairs(tuple(merges), ids)
    return {token for token, i in ids.items() if bpe.merge([ids.get(c, -1) for c in token], table) != [i]}


def mark(text: str) -> str:
    """What is put in front of a whole word."""
    return _LETTER if text[0].isspace() or text[0] == "/" else _BREAK


def marking_expressions(texts: Sequence[str]) -> Iterator[tuple[str, str]]:
    """What to search for and what to put there, one after the other, so that words get their marks."""
    for sign in (_BREAK, _LETTER):
        chosen = [re.escape(text) for text in texts if mark(text) == sign]
        for part in _parts(chosen):
            yield rf"\A({part})\z", f"{sign}$1"


def _parts(alternatives: Sequence[str]) -> Iterator[str]:
    """The alternatives as expressions of a size that PCRE2 compiles."""
    size, start = 0, 0
    for i, alternative in enumerate(alternatives):
        size += len(alternative.encode()) + 1
        if size > _MAX_EXPRESSION:
            yield "|".join(alternatives[start:i])
            size, start = len(alternative.encode()) + 1, i
    if alternatives:
        yield "|".join(alternatives[start:])
