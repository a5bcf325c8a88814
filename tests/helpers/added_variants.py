"""A tokenizer of the fixtures with one more added token, <mine>, and texts that it stands in."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from phiconv.tokenization.tokenizer import AddedToken, TokenType

if TYPE_CHECKING:
    from phiconv.tokenization.tokenizer import Tokenizer

__all__ = ["FLAGS", "TEXTS_WITH_ADDED", "with_added"]

FLAGS = {
    "plain": {},
    "normalized": {"normalized": True},
    "single_word": {"single_word": True},
    "lstrip": {"lstrip": True},
    "rstrip": {"rstrip": True},
    "strips": {"lstrip": True, "rstrip": True},
    "normalized strips": {"normalized": True, "lstrip": True},
}

# No white space behind the tokens of the chat, which llama.cpp strips for Phi-3 alone.
TEXTS_WITH_ADDED = [
    "<mine>", "a <mine> b", "a<mine>b", "a  <mine>  b", " <mine>", "<mine> b", "<mine>\n\nb", "a\n<mine>",
    "<|end|><mine>b", "\u00e9<mine>\u00e9", "a_<mine>", ".<mine>.", "<mine><mine>", "a <mine><|end|>",
]  # fmt: skip


def with_added(tokenizer: Tokenizer, flags: str, *, special: bool = False) -> tuple[Tokenizer, int]:
    """The tokenizer, and the size of its vocabulary."""
    number = len(tokenizer)
    kind = TokenType.CONTROL if special else TokenType.USER_DEFINED
    new = replace(
        tokenizer,
        tokens=(*tokenizer.tokens, "<mine>"),
        types=(*tokenizer.types, kind),
        scores=(*tokenizer.scores, 0.0) if tokenizer.scores else (),
        added=(*tokenizer.added, AddedToken(number, "<mine>", special=special, **FLAGS[flags])),
    )
    return new, number + 1
