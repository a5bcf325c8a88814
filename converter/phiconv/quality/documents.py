"""Which windows of some texts are computed for a calibration, and which of them are kept apart.

A window lies in one text. Each text gives about as many windows as the others, from all over it. About a
quarter of the windows are kept apart to judge by: those of every fourth text, so that they are of texts that
nothing was fitted to; where the texts do not allow that, every fourth window.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from phiconv.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    Ids = NDArray[np.intp]

__all__ = ["Document", "chosen", "chosen_apart"]


@dataclass(frozen=True, slots=True)
class Document:
    """A text.

    Attributes:
        name: What it is called.
        sha256: Of what was given.
        ids: Its tokens.
    """

    name: str
    sha256: str
    ids: Ids


def chosen(documents: Sequence[Document], context: int, tokens: int | None) -> Ids:
    """Windows of all texts, in their order, shape (windows, context).

    Args:
        documents: The texts.
        context: Tokens of a window.
        tokens: About how many; None for all.

    Raises:
        UsageError: There is no window, or not one for so few tokens.
    """
    cut = _cut(documents, context)
    wanted = sum(map(len, cut)) if tokens is None else tokens // context
    if wanted < 1:
        raise UsageError(
            f"{tokens} tokens are fewer than one window of {context}",
            hint="give more tokens, or a smaller context",
        )
    return _take(cut, wanted)


def chosen_apart(documents: Sequence[Document], context: int, tokens: int) -> tuple[Ids, Ids]:
    """The windows to fit to and those kept apart, about a quarter.

    Raises:
        UsageError: The texts or the tokens are not enough for two windows.
    """
    cut = _cut(documents, context)
    lengths = [len(windows) for windows in cut]
    total = min(tokens // context, sum(lengths))
    if total < 2:
        raise UsageError(
            f"a calibration needs two windows of {context} tokens, and here are {total}",
            hint="give a longer text, more tokens, or a smaller context",
        )
    apart = set(range(3, len(cut), 4)) or {len(cut) - 1}
    fit_cut = [windows for i, windows in enumerate(cut) if i not in apart]
    check_cut = [windows for i, windows in enumerate(cut) if i in apart]
    check = min(max(total // 4, 1), sum(map(len, check_cut)))
    fit = min(total - check, sum(map(len, fit_cut)))
    # Texts of very different lengths would leave too little on one side, or use far less than was asked for.
    if 2 * check <= fit <= 8 * check and fit + check > total // 2:
        return _take(fit_cut, fit), _take(check_cut, check)
    windows = _take(cut, total)
    numbers = np.arange(total)
    kept = numbers % 4 == 3 if total > 3 else numbers == total - 1
    return windows[~kept], windows[kept]


def _cut(documents: Sequence[Document], context: int) -> list[Ids]:
    """The windows of each text; one that is shorter than a window counts as the beginning of the next one.

    The tails are dropped.
    """
    if context < 2:
        raise UsageError(f"a context of {context} tokens is too short", hint="it must be at least 2")
    cut: list[Ids] = []
    waiting: list[Ids] = []
    for document in documents:
        waiting.append(document.ids)
        length = sum(map(len, waiting))
        if length >= context:
            cut.append(np.concatenate(waiting)[: length // context * context].reshape(-1, context))
            waiting = []
    if not cut:
        count = sum(map(len, waiting))
        raise UsageError(
            f"the text has {count} tokens, fewer than one window of {context}",
            hint="give a longer text, or a smaller context",
        )
    return cut


def _take(cut: Sequence[Ids], wanted: int) -> Ids:
    """So many windows, as evenly from the texts, and from all over each, as their lengths allow."""
    shares = _shares([len(windows) for windows in cut], wanted)
    return np.concatenate(
        [
            windows[(2 * np.arange(share) + 1) * len(windows) // (2 * share)]
            for windows, share in zip(cut, shares, strict=True)
            if share
        ]
    )


def _shares(lengths: Sequence[int], wanted: int) -> list[int]:
    """Divides a number among texts, none of which can give more than its length."""
    shares, left = [0] * len(lengths), wanted
    order: Iterable[int] = sorted(range(len(lengths)), key=lambda i: lengths[i])
    for rank, i in enumerate(order):
        shares[i] = min(lengths[i], left // (len(lengths) - rank))
        left -= shares[i]
    return shares
