"""What models predict at every place of a text: how far from a reference, and the likeliest tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from phiconv.quality import evaluation
from phiconv.quality.batches import windows
from phiconv.quality.scores import Evaluation, figures
from phiconv.quality.tokens import bos_of, ids_of

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import ArrayLike, NDArray

    from phiconv.forward.layers import Array
    from phiconv.ir.model import Model
    from phiconv.quality.batches import Progress

__all__ = ["LIKELIEST", "Along", "Predictions", "likeliest", "predictions_along"]

LIKELIEST = 3
"""Tokens that are kept of each prediction."""

Predictions: TypeAlias = "tuple[NDArray[np.intp], NDArray[np.float64]]"
"""The likeliest tokens of each position and their probabilities, both of shape (positions, LIKELIEST)."""


@dataclass(frozen=True, slots=True)
class Along:
    """Predictions along a text, position by position, window after window.

    Attributes:
        evaluations: The figures of each model.
        windows: How many there are, each with as many scored positions.
        tokens: What came, int of shape (positions,).
        divergences: From the reference, in nats, shape (models, positions).
        predictions: Of each model, and last of the reference.
    """

    evaluations: tuple[Evaluation, ...]
    windows: int
    tokens: NDArray[np.intp]
    divergences: NDArray[np.float64]
    predictions: tuple[Predictions, ...]


def predictions_along(
    models: Sequence[Model],
    text: str | ArrayLike,
    reference: Model,
    *,
    reference_file: Path | None = None,
    context: int = 512,
    llama: bool = False,
    progress: Progress | None = None,
) -> Along:
    """Computes models and a reference on a text, and keeps what each predicts; see `text.evaluate_all`."""
    bos = bos_of(models[0]) if llama else None
    ids = np.asarray(ids_of(models[0], text, bos)).reshape(-1)
    kept = _Likeliest(len(models) + 1)
    tables = evaluation.score(
        models,
        ids,
        reference=reference,
        reference_file=reference_file,
        context=context,
        llama=llama,
        bos=bos,
        progress=progress,
        onlooker=kept.add,
    )
    cut = windows(ids, context)
    first = context // 2 if llama else 0
    return Along(
        tuple(figures(table, len(cut), context) for table in tables),
        len(cut),
        cut[:, first + 1 :].reshape(-1),
        np.stack([table[3] for table in tables]),
        kept.predictions(),
    )


class _Likeliest:
    """Keeps the likeliest tokens of some models."""

    def __init__(self, models: int) -> None:
        self._parts: list[list[Predictions]] = [[] for _ in range(models)]

    def add(self, model: int, logits: Array) -> None:
        """Takes further positions of one model."""
        with np.errstate(all="ignore"):  # what is not finite is refused when it is scored
            self._parts[model].append(likeliest(logits))

    def predictions(self) -> tuple[Predictions, ...]:
        """All of each model."""
        return tuple(
            (np.concatenate([ids for ids, _ in parts]), np.concatenate([some for _, some in parts]))
            for parts in self._parts
        )


def likeliest(logits: Array) -> Predictions:
    """The likeliest tokens of some positions, the likeliest first; of equal ones those of smaller ids."""
    count = min(LIKELIEST, logits.shape[1])
    left, rows = logits.copy(), np.arange(len(logits))
    sums = np.exp(logits - logits.max(axis=1, keepdims=True)).sum(axis=1, dtype=np.float64)
    ids = np.empty((len(logits), count), np.intp)
    for place in range(count):
        ids[:, place] = left.argmax(axis=1)
        left[rows, ids[:, place]] = -np.inf
    top = logits[rows[:, None], ids].astype(np.float64)
    return ids, np.exp(top - top[:, :1]) / sums[:, None]
