"""What runtimes cannot do with a tokenizer: what to refuse, and what to say.

A runtime cuts added tokens out of the text by rules of its own, and no file can tell it all of the Hugging
Face library's. Ids then differ only for texts with such a token in them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

from phiconv.errors import UnsupportedModelError, printable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from phiconv.ir.model import Model
    from phiconv.tokenization.tokenizer import AddedToken, Tokenizer

__all__ = ["Odd", "added_token_notes", "check_bytes", "odd_added_tokens"]

Odd: TypeAlias = "tuple[str, AddedToken]"
"""What the library does with an added token that a runtime does not, and the token."""


def odd_added_tokens(
    tokenizer: Tokenizer | None,
    *,
    strips_before: bool,
    strips_after: Callable[[AddedToken], bool],
) -> Iterator[Odd]:
    """The added tokens that a runtime does not find as the library does.

    No runtime looks whether they are words of their own, or normalizes the text first.

    Args:
        tokenizer: What is written, if anything.
        strips_before: The runtime lets a token swallow the white space before it where its flag says so.
        strips_after: Whether the runtime lets this token swallow the white space after it.
    """
    if tokenizer is None:
        return
    normalizes = tokenizer.kind == "sentencepiece" or tokenizer.nfc
    for token in tokenizer.added:
        if token.single_word:
            yield "only as a word of its own", token
        if normalizes and token.normalized:
            yield "in normalized text", token
        if token.lstrip and not strips_before:
            yield "together with the white space before it", token
        if token.rstrip and not strips_after(token):
            yield "together with the white space after it", token
        if not token.rstrip and strips_after(token):
            yield "without the white space after it", token


def added_token_notes(runtime: str, odd: Iterable[Odd]) -> list[str]:
    """One line for each thing that a runtime does not do, with the first token that it matters for."""
    found: dict[str, dict[int, str]] = {}
    for what, token in odd:
        found.setdefault(what, {})[token.id] = token.content
    notes = []
    for what, tokens in found.items():
        first = f"{printable(next(iter(tokens.values())), 60)!r}"
        which = (
            f"an added token, {first}," if len(tokens) == 1 else f"{len(tokens)} added tokens, as {first},"
        )
        notes.append(
            f"{which} should be found {what}, which {runtime} does not do: ids of texts with it differ"
        )
    return notes


def check_bytes(model: Model, problem: str) -> None:
    """Refuses a SentencePiece vocabulary without a token for each byte, for a runtime that needs them.

    Such a runtime makes bytes of every character without a piece, whatever the tokenizer says. A byte is
    ``<0x0A>``, or a piece that is this character of ASCII.

    Args:
        model: Whose tokenizer.
        problem: What the runtime does at a byte without a token.

    Raises:
        UnsupportedModelError: A byte has no token.
    """
    tokenizer = model.tokenizer
    if tokenizer is None or tokenizer.kind != "sentencepiece":
        return
    known = {*tokenizer.tokens}
    missing = [
        piece
        for byte in range(256)
        if (piece := f"<0x{byte:02X}>") not in known and not (0 < byte < 0x80 and chr(byte) in known)
    ]
    if missing:
        which = (
            f"the byte {missing[0]} has no token"
            if len(missing) == 1
            else (f"{len(missing)} bytes have no token, the first is {missing[0]}")
        )
        raise UnsupportedModelError(
            f"the vocabulary: {which}, and {problem}",
            path=model.path,
            hint="choose another format, or take a tokenizer with all byte tokens",
        )
