"""How well a model predicts a text, and how far its predictions are from another model's.

The text is cut into windows of ``context`` tokens that do not overlap; the tail is dropped. Each window is
computed by itself, and its tokens are predicted from those before them. So the figures depend on the length
of the windows, and are comparable only at the same length, on the same text, with the same tokenizer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import numpy as np

from phiconv.errors import UsageError, WeightError
from phiconv.forward.interpreter import compute
from phiconv.quality.reference import remembered
from phiconv.quality.scores import columns, figures

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from numpy.typing import ArrayLike, NDArray

    from phiconv.forward.interpreter import Logits, Precision, Watch
    from phiconv.forward.layers import Array
    from phiconv.ir.model import Model, Role
    from phiconv.quality.scores import Evaluation

__all__ = ["BATCH_TOKENS", "Onlooker", "Progress", "evaluate", "passes", "score", "windows"]

BATCH_TOKENS = 2048
"""Tokens that are computed in one pass over the weights, if a window is shorter than that."""

_CHUNK = 1 << 25
"""Logits of one model in memory at a time."""


class Progress(Protocol):
    """Is told how far an evaluation is."""

    def __call__(self, done: int, total: int, name: str) -> None:
        """``done`` of ``total`` steps are made; ``name`` says what is worked on."""


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
        progress: Is told how far it is.
        onlooker: Is shown the predictions that are scored.

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
    inputs = cut.copy()
    if bos is not None:
        inputs[:, 0] = bos
    tables: list[list[NDArray[np.float64]]] = [[] for _ in models]
    with remembered(reference, inputs, precision, reference_file) as memory:
        computed = [*models] if memory is not None and memory.complete else everybody
        for batch, steps in passes(cut, computed, progress):
            some = inputs[batch]
            own = [
                compute(m, some, precision=precision, watch=w) for m, w in zip(models, steps, strict=False)
            ]
            expected = None if memory is None else memory.logits(batch, some, steps[-1])
            _score(own, expected, cut[batch], context // 2 if llama else 0, tables, onlooker)
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


def windows(ids: ArrayLike, context: int, *, least: int = 2) -> NDArray[np.intp]:
    """Cuts tokens into windows, shape (windows, context).

    Raises:
        UsageError: A window is shorter than ``least`` tokens, or the text shorter than a window.
    """
    if context < least:
        raise UsageError(f"a context of {context} tokens is too short", hint=f"it must be at least {least}")
    flat = np.asarray(ids).reshape(-1)
    if flat.size < context:
        raise UsageError(
            f"the text has {flat.size} tokens, fewer than one window of {context}",
            hint="give a longer text, or a smaller context",
        )
    return flat[: flat.size // context * context].reshape(-1, context)


def passes(
    cut: NDArray[np.intp], models: Sequence[Model], progress: Progress | None
) -> Iterator[tuple[slice, list[Watch]]]:
    """Which windows share a pass over the weights, and what reports the steps of each model.

    A step is one layer of one model.
    """
    size = max(BATCH_TOKENS // cut.shape[1], 1)
    layers = [m.hyperparameters.num_hidden_layers if m.hyperparameters else 0 for m in models]
    batches = -(-len(cut) // size)
    total, done = batches * sum(layers), 0
    for number in range(batches):
        name = f"window {number * size + 1} of {len(cut)}"
        steps: list[Watch] = []
        for count in layers:
            steps.append(_layer_steps(progress, done, total, name))
            done += count
        yield slice(number * size, min((number + 1) * size, len(cut))), steps
    if progress is not None:
        progress(total, total, f"window {len(cut)} of {len(cut)}")


def _layer_steps(progress: Progress | None, done: int, total: int, name: str) -> Watch:
    """Tells the progress whenever another layer is reached."""
    last = 0

    def step(role: Role, x: Array, expert: int | None) -> None:  # noqa: ARG001
        nonlocal last
        if progress is not None and role.layer and role.layer != last:
            last = role.layer
            progress(done + last, total, name)

    return step


def _score(
    models: Sequence[Logits],
    reference: Logits | None,
    targets: NDArray[np.intp],
    first: int,
    tables: list[list[NDArray[np.float64]]],
    onlooker: Onlooker | None,
) -> None:
    """Scores a batch of windows, some positions at a time, so that few logits are in memory at once.

    Args:
        models: The logits of each model.
        reference: Those of the reference.
        targets: The tokens, shape (windows, context).
        first: The first position whose prediction is scored.
        tables: Get the columns of each model.
        onlooker: Is shown the logits.
    """
    batch, context = targets.shape
    positions = (np.arange(batch)[:, None] * context + np.arange(first, context - 1)).reshape(-1)
    following = targets[:, first + 1 :].reshape(-1)
    step = max(_CHUNK // models[0].shape[-1], 1)
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
