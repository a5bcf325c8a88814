"""Text to token ids and back, as a model's tokenizer does it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from phiconv.conversion.source import open_model
from phiconv.errors import MissingFileError
from phiconv.forward.interpreter import no_model
from phiconv.ir.model import Model

if TYPE_CHECKING:
    from collections.abc import Iterable
    from os import PathLike

    from numpy.typing import ArrayLike

    from phiconv.tokenization.tokenizer import Tokenizer

__all__ = ["bos_of", "decode", "encode", "ids_of", "opened", "tokenizer_of"]


def encode(source: str | PathLike[str] | Model, text: str, *, special: bool = False) -> list[int]:
    """A text's token ids; special tokens that are written out in it (``<|user|>``) are found.

    Args:
        source: A path, as `open_model` takes it, or an open model.
        text: The text.
        special: Put the tokens before and after it that the tokenizer's files ask for.

    Raises:
        MissingFileError: The model has no tokenizer.
        UnsupportedModelError: Its tokenizer is of a kind that phiconv cannot compute.
    """
    from phiconv.tokenization.encoder import encode

    return encode(tokenizer_of(opened(source)), text, special=special)


def decode(source: str | PathLike[str] | Model, ids: Iterable[int], *, skip_special: bool = False) -> str:
    """The text of token ids, as `generate` yields them.

    Args:
        source: A path, as `open_model` takes it, or an open model.
        ids: The ids; those of no token are left out.
        skip_special: Leave out special tokens.

    Raises:
        MissingFileError: The model has no tokenizer.
    """
    from phiconv.tokenization.encoder import decode

    return decode(tokenizer_of(opened(source)), ids, skip_special=skip_special)


def opened(source: str | PathLike[str] | Model) -> Model:
    """The model, opened if it is not."""
    return source if isinstance(source, Model) else open_model(source)


def bos_of(model: Model) -> int | None:
    """The token that the tokenizer wants in front of a text."""
    tokenizer = model.tokenizer
    return tokenizer.special_ids.get("bos") if tokenizer and tokenizer.add_bos else None


def ids_of(model: Model, text: str | ArrayLike, bos: int | None, *, special: bool = False) -> ArrayLike:
    """A text's tokens, after ``bos``; ids are taken as they are."""
    if not isinstance(text, str):
        return text
    return [*([] if bos is None else [bos]), *encode(model, text, special=special)]


def tokenizer_of(model: Model) -> Tokenizer:
    """The model's tokenizer.

    Raises:
        MissingFileError: It has none.
        InputError: It is no model.
    """
    if model.architecture is None:
        raise no_model(model)
    if model.tokenizer is None:
        raise MissingFileError(
            "the model has no tokenizer", path=model.path, hint="put its tokenizer files beside the weights"
        )
    return model.tokenizer
