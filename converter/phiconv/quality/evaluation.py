"""How well a model predicts a text, and how far its predictions are from another model's.

The text is cut into windows of ``context`` tokens that do not overlap; the tail is dropped. Each window is
computed by itself, and its tokens are predicted from those before them. So the figures depend on the length
of the windows, and are comparable only at the same length, on the same text, with the same tokenizer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from phiconv.conversion.tasks import HERE
from phiconv.errors import UsageError, WeightError
from phiconv.forward.interpreter import compute
from phiconv.quality.batches import begun, each_batch, windows
from phiconv.quality.reference import remembered
from phiconv.quality.scores import columns, figures

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import ArrayLike, NDArray

    from phiconv.conversion.tasks import Workers
    from phiconv.forward.interpreter import Logits, Precision, Watch
    from phiconv.forward.layers import Array
    from phiconv.ir.model import Model
    from phiconv.quality.batches import Progress
    from phiconv.quality.reference import Memory
    from phiconv.quality.scores import Evaluation

__all__ = ["Onlooker", "evaluate", "score"]

_CHUNK = 1 << 25
"""Logits of one model in memory at a time."""


class Onlooker(Protocol):
    """Is shown predictions, those of one model in the order of the text."""

    def __call__(self, model: int, logits: Array) -> None:
        """``logits`` are of shape (positions, vocabulary), and are overwritten afterwards.

        ``model`` counts the models, and last comes the reference.
        """


def evaluate(
    models: Sequence[Model],
    ids: ArrayLike,
    *,
    reference: Model | None = None,
    reference_file: Path | None = None,
    context: int = 512,
    llama: bool = False,
    bos: int | None = None,
    precision: Precision = "float32",
    workers: Workers = HERE,
    progress: Progress | None = None,
) -> list[Evaluation]:
    """Computes perplexities, and with a reference the divergences from it; see `score`.

    Returns:
        One for each model.
    """
    tables = score(
        models,
        ids,
        reference=reference,
        reference_file=reference_file,
        context=context,
        llama=llama,
        bos=bos,
        precision=precision,
        workers=workers,
        progress=progress,
    )
    return [figures(table, np.size(ids) // context, context) for table in tables]


def score(
    models: Sequence[Model],
    ids: ArrayLike,
    *,
    reference: Model | None = None,
    reference_file: Path | None = None,
    context: int = 512,
    llama: bool = False,
    bos: int | None = None,
    precision: Precision = "float32",
    workers: Workers = HERE,
    progress: Progress | None = None,
    onlooker: Onlooker | None = None,
) -> list[NDArray[np.float64]]:
    """Scores every prediction of some models, and how far it is from a reference's.

    Args:
        models: The models, which all read the same tokens.
        ids: The tokens of the text.
        reference: What to compare the predictions with: as a rule the model before it was quantized. It is
            computed once for all models.
        reference_file: Keeps what was computed of it for the next time, see `Remembered`.
        context: Tokens of a window.
        llama: Score as llama-perplexity does, only the second half of each window, where every token has at
            least ``context / 2`` before it. Otherwise all but a window's first token are scored.
        bos: What the first token of each window is replaced with; llama-perplexity does it where the
            tokenizer asks for a bos token.
        precision: What to compute in.
        workers: Where.
        progress: Is told how far it is.
        onlooker: Is shown the predictions that are scored, where no other process computes them.

    Returns:
        The `columns` of each model, window after window.

    Raises:
        UsageError: The text is shorter than a window, or the models have different vocabularies.
        WeightError: A prediction is NaN: the weights hold values that are not finite.
        OutputError: The file cannot be written, or is something else.
    """
    everybody = [*models] if reference is None else [*models, reference]
    for other in everybody[1:]:
        if _vocabulary(other) != _vocabulary(everybody[0]):
            raise UsageError(f"{other.path} has another vocabulary than {everybody[0].path}")
    cut = windows(ids, context, least=4 if llama else 2)
    tables: list[list[NDArray[np.float64]]] = [[] for _ in models]
    with remembered(reference, begun(cut, bos), precision, reference_file) as memory:
        computed = [*models] if memory is not None and memory.complete else everybody
        bare = tuple(model.bare() for model in models)
        work = _Scores(bare, memory, context // 2 if llama else 0, bos, precision, onlooker)
        for found in each_batch(work, cut, computed, workers, progress):
            for table, some in zip(tables, found, strict=True):
                table.append(some)
    return [
        _checked(np.concatenate(each, axis=1), model, reference)
        for model, each in zip(models, tables, strict=True)
    ]


def _vocabulary(model: Model) -> int | None:
    return None if model.hyperparameters is None else model.hyperparameters.vocab_size


def _checked(table: NDArray[np.float64], model: Model, reference: Model | None) -> NDArray[np.float64]:
    """The scores of one model.

    Raises:
        WeightError: A loss is NaN or infinite.
    """
    for losses, each in zip(table[:3:2], (model, reference), strict=False):
        if each is not None and not np.isfinite(losses).all():
            raise WeightError(
                "predicts NaN or infinity", path=each.path, hint="its weights hold values that are not finite"
            )
    return table


@dataclass(frozen=True, slots=True)
class _Scores:
    """Computes a batch of windows and scores it: the columns of each model.

    Attributes:
        models: The models.
        memory: Gives the logits of the reference, if there is one.
        first: The first position whose prediction is scored.
        bos: See `evaluate`.
        precision: Likewise.
        onlooker: See `score`.
    """

    models: tuple[Model, ...]
    memory: Memory | None
    first: int
    bos: int | None
    precision: Precision
    onlooker: Onlooker | None = None

    def __call__(
        self, batch: slice, tokens: NDArray[np.intp], steps: Sequence[Watch | None]
    ) -> list[NDArray[np.float64]]:
        some = begun(tokens, self.bos)
        own = [
            compute(model, some, precision=self.precision, watch=step)
            for model, step in zip(self.models, steps, strict=False)
        ]
        expected = None if self.memory is None else self.memory.logits(batch, some, steps[-1])
        return _scored(own, expected, tokens, self.first, self.onlooker)


def _scored(
    models: Sequence[Logits],
    reference: Logits | None,
    targets: NDArray[np.intp],
    first: int,
    onlooker: Onlooker | None,
) -> list[NDArray[np.float64]]:
    """Scores a batch of windows, some positions at a time, so that few logits are in memory at once.

    Args:
        models: The logits of each model.
        reference: Those of the reference.
        targets: The tokens, shape (windows, context).
        first: The first position whose prediction is scored.
        onlooker: Is shown the logits.

    Returns:
        The columns of each model.
    """
    batch, context = targets.shape
    positions = (np.arange(batch)[:, None] * context + np.arange(first, context - 1)).reshape(-1)
    following = targets[:, first + 1 :].reshape(-1)
    step = max(_CHUNK // models[0].shape[-1], 1)
    tables: list[list[NDArray[np.float64]]] = [[] for _ in models]
    for start in range(0, len(positions), step):
        some, wanted = positions[start : start + step], following[start : start + step]
        other = None if reference is None else reference.at(some)
        if onlooker is not None and other is not None:
            onlooker(len(models), other)
        for number, (logits, table) in enumerate(zip(models, tables, strict=True)):
            own = logits.at(some)
            if onlooker is not None:
                onlooker(number, own)
            with np.errstate(all="ignore"):
                table.append(columns(own, wanted, None if other is None else other.copy()))
    return [np.concatenate(table, axis=1) for table in tables]
