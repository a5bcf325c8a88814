"""What models make of a text: curves along it, and the passage where they differ most."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from phiconv.reporting.numbers import Passage, TextNumbers, Token
from phiconv.tokenization.encoder import piece

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from phiconv.quality.along import Along, Predictions
    from phiconv.tokenization.tokenizer import Tokenizer

__all__ = ["text_numbers"]

_PIECES = 40
"""Into how many the text is cut for a curve."""

_TOKENS = 360
"""Tokens of all passages together: each candidate has its own, and the page should stay small."""

_LEAST_TOKENS = 40


def text_numbers(along: Along, tokenizer: Tokenizer | None) -> TextNumbers:
    """The part of a report that needs a text.

    Args:
        along: Predictions along it.
        tokenizer: What the tokens are; without one their numbers stand for them.
    """
    models, positions = along.divergences.shape
    pieces = min(_PIECES, positions)
    starts = [positions * k // pieces for k in range(pieces)]
    sums = np.add.reduceat(along.divergences, starts, axis=1)
    means = sums / np.diff([*starts, positions])
    length = min(max(_TOKENS // models, _LEAST_TOKENS), positions // along.windows)
    start = _worst_stretch(along.divergences.mean(axis=0).reshape(along.windows, -1), length)
    name = _names(tokenizer)
    return TextNumbers(
        along.evaluations,
        tuple(starts),
        tuple(tuple(row) for row in means.tolist()),
        tuple(_passage(along, model, start, length, name) for model in range(models)),
    )


def _worst_stretch(divergences: NDArray[np.float64], length: int) -> int:
    """Where the largest sum of so many neighbours begins that are in one row, counted through all rows."""
    sums = np.pad(np.cumsum(divergences, axis=1), ((0, 0), (1, 0)))
    stretches = sums[:, length:] - sums[:, :-length]
    window, first = divmod(int(stretches.argmax()), int(stretches.shape[1]))
    return window * int(divergences.shape[1]) + first


def _names(tokenizer: Tokenizer | None) -> Callable[[int], str]:
    if tokenizer is None:
        return lambda token: f"[{token}]"
    return lambda token: piece(tokenizer, token) or f"[{token}]"


def _passage(along: Along, model: int, start: int, length: int, name: Callable[[int], str]) -> Passage:
    some = slice(start, start + length)
    rows = zip(
        along.tokens[some].tolist(),
        along.divergences[model, some].tolist(),
        _likeliest(along.predictions[-1], some, name),
        _likeliest(along.predictions[model], some, name),
        strict=True,
    )
    tokens = (Token(name(token), value, theirs, own) for token, value, theirs, own in rows)
    return Passage(start, tuple(tokens))


def _likeliest(
    predictions: Predictions, some: slice, name: Callable[[int], str]
) -> list[tuple[tuple[str, float], ...]]:
    ids, probabilities = (part[some].tolist() for part in predictions)
    return [
        tuple((name(token), value) for token, value in zip(*row, strict=True))
        for row in zip(ids, probabilities, strict=True)
    ]
