"""The tokens that end a text or a turn, for runtimes that have to be told."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from phiconv.tokenization.tokenizer import Tokenizer

__all__ = ["END_TEXTS", "stop_ids"]

END_TEXTS = (
    "<|end|>",
    "<|endoftext|>",
    "<|im_end|>",
    "<|eot_id|>",
    "<|end_of_text|>",
    "<|eom_id|>",
    "</s>",
)
"""Tokens that end a text or a turn, whichever family has them."""


def stop_ids(tokenizer: Tokenizer) -> tuple[int, ...]:
    """The ids of all tokens that end a text or a turn, first those that the files name."""
    special = tokenizer.special_ids
    named = [*tokenizer.eos_ids, *(special[role] for role in ("eos", "eot") if role in special)]
    known = {token: i for i, token in enumerate(tokenizer.tokens) if token in END_TEXTS}
    return tuple(dict.fromkeys([*named, *(known[end] for end in END_TEXTS if end in known)]))
