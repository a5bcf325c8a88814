r"""The regular expressions that OpenVINO's tokenizer operations are given, in PCRE2's syntax.

They find what the Hugging Face library finds. The two differ in one character, U+180E, which is white space
for PCRE2's \s; so white space is written out.
"""

from __future__ import annotations

import re
from itertools import groupby
from typing import TYPE_CHECKING

from phiconv.errors import UnsupportedModelError, printable
from phiconv.tokenization.tokenizer import SPLITS
from phiconv_formats.tokenizers.limits import odd_added_tokens

if TYPE_CHECKING:
    from collections.abc import Iterator

    from phiconv.tokenization.tokenizer import Split, Tokenizer
    from phiconv_formats.tokenizers.limits import Odd

__all__ = [
    "MAX_ADDED",
    "MAX_EXPRESSION",
    "WHITE_SPACE",
    "added_tokens_expression",
    "odd_added",
    "split_expression",
]

WHITE_SPACE = (
    r"\x{9}-\x{d}\x{20}\x{85}\x{a0}\x{1680}\x{2000}-\x{200a}\x{2028}\x{2029}\x{202f}\x{205f}\x{3000}"
)
"""What is inside a class of white space (Unicode's White_Space)."""

MAX_ADDED = 1000
MAX_EXPRESSION = 24_000
"""How many added tokens there may be, and bytes of the expression that finds them.

PCRE2 compiles an expression of that size to less than 64 KB. It refuses a larger one, and then the runtime
finds nothing, without a word.
"""

_SPACE = "\u2581"
_WHITE = "[\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]"
_NEVER = "((?!))"
_AFTER = f"[{WHITE_SPACE}]*"
_BEFORE = (
    f"(?:(?<![{WHITE_SPACE}])[{WHITE_SPACE}]++)?"  # from a run's first character on, or it takes n * n steps
)


def split_expression(split: Split | None) -> str:
    """The expression of a byte-level tokenizer's words.

    Raises:
        UnsupportedModelError: It is not known how the tokenizer splits the text.
    """
    known = {text for text, name in SPLITS.items() if split and (text == split.text or name == split.name)}
    if split is None or not known:
        message = f"no known way to split the text into words: {split.text if split else 'none is given'}"
        raise UnsupportedModelError(message, hint="use the tokenizer files of the original model")
    return _spell_white_space(split.text if split.text in known else next(t for t in SPLITS if t in known))


def _spell_white_space(expression: str) -> str:
    def replace(match: re.Match[str]) -> str:
        if match[0].startswith("["):
            return match[0].replace(r"\s", WHITE_SPACE)
        return f"[{'^' if match[0] == chr(92) + 'S' else ''}{WHITE_SPACE}]"

    return re.sub(r"\[[^]]*\]|\\[sS]", replace, expression)


def added_tokens_expression(tokenizer: Tokenizer) -> str:
    """An expression that has the added tokens in groups, the longest first; without any it never matches.

    What a match has beside its group is dropped: the white space that the token swallows.

    Tokens that are found by rules that one expression cannot express are found all the same; see `odd_added`.

    Raises:
        UnsupportedModelError: Too many tokens, or one with SentencePiece's mark of a space.
    """
    added = [token for token in tokenizer.added if token.content]
    if len(added) > MAX_ADDED:
        message = f"{len(added)} added tokens, and OpenVINO's files can have {MAX_ADDED}"
        raise UnsupportedModelError(message)
    if tokenizer.kind == "sentencepiece" and (
        marked := next((t for t in added if _SPACE in t.content), None)
    ):
        text = printable(marked.content, 60)
        raise UnsupportedModelError(
            f"an added token with SentencePiece's mark of a space, which OpenVINO cannot express: {text!r}"
        )
    unique = {token.content: token for token in added}
    longest_first = sorted(unique.values(), key=lambda t: (-len(t.content), t.lstrip, t.rstrip))
    groups = []
    for (before, after), tokens in groupby(longest_first, key=lambda t: (t.lstrip, t.rstrip)):
        texts = "|".join(re.escape(token.content) for token in tokens)
        groups.append(_BEFORE * before + f"({texts})" + _AFTER * after)
    expression = "|".join(groups) or _NEVER
    if len(expression.encode()) > MAX_EXPRESSION:
        raise UnsupportedModelError(f"{len(added)} added tokens, which are too long together for OpenVINO")
    return expression


def odd_added(tokenizer: Tokenizer) -> Iterator[Odd]:
    """The added tokens that the expression finds otherwise than the library does."""
    yield from odd_added_tokens(tokenizer, strips_before=True, strips_after=lambda token: token.rstrip)
    added = [token for token in tokenizer.added if token.content]
    first = [token.content for token in added if not token.normalized]
    strips = any(token.lstrip for token in added)
    for token in added:
        text = token.content
        if strips and re.search(rf"\A{_WHITE}|{_WHITE}\Z", text):
            yield "with the white space at its edge, also where another one could swallow that", token
        if any(o.lstrip != token.lstrip and o.content.startswith(text) for o in added):
            yield (
                "by another rule for the white space before it than the longer one that begins with it",
                token,
            )
        if token.normalized and any(_begins_inside(other, text) for other in first):
            yield "after all that are found in the text as it is", token


def _begins_inside(other: str, content: str) -> bool:
    """Whether ``other`` may begin inside ``content`` somewhere in a text."""
    starts = range(1, len(content))
    return any(other.startswith(content[i:]) or content.startswith(other, i) for i in starts)
