"""How well a model predicts a text, and how far its predictions are from another model's.

The text is cut into windows of ``context`` tokens that do not overlap; the tail is dropped. Each window is
computed by itself, and its tokens are predicted from those before them. So the figures depend on the length
of the windows, and are comparable only at the same length, on the same text, with the same tokenizer.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from phiconv.errors import UsageError, WeightError
from phiconv.forward.interpreter import compute

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import ArrayLike, NDArray

    from phiconv.forward.interpreter import Logits, Precision, Watch
    from phiconv.forward.layers import Array
    from phiconv.ir.model import Model, Role

__all__ = ["BATCH_TOKENS", "Divergence", "Evaluation", "Progress", "evaluate", "passes", "windows"]

BATCH_TOKENS = 2048
"""Tokens that are computed in one pass over the weights, if a window is shorter than that."""


class Progress(Protocol):
    """Is told how far an evaluation is."""

    def __call__(self, done: int, total: int, name: str) -> None:
        """``done`` of ``total`` steps are made; ``name`` says what is worked on."""


@dataclass(frozen=True, slots=True)
class Divergence:
    """How far a model's predictions are from a reference model's, at the scored positions.

    Attributes:
        perplexity: The reference's.
        ratio: The model's perplexity divided by it.
        ratio_error: Standard error of the ratio.
        mean: Mean Kullback-Leibler divergence ``sum(p * log(p / q))`` over the vocabulary, in nats; ``p`` are
            the reference's probabilities.
        error: Standard error of the mean.
        median: Median of the positions' divergences.
        percentile_99: 99 % of the positions are at or below it.
        maximum: The largest.
        same_top: Part of the positions where both find the same token most likely.
        same_top_error: Its standard error.
    """

    perplexity: float
    ratio: float
    ratio_error: float
    mean: float
    error: float
    median: float
    percentile_99: float
    maximum: float
    same_top: float
    same_top_error: float


@dataclass(frozen=True, slots=True)
class Evaluation:
    """How well a model predicts a text.

    Attributes:
        windows: Windows of the text.
        context: Tokens of a window.
        tokens: Tokens that were scored.
        loss: Mean negative log-likelihood of a scored token, in nats.
        perplexity: ``exp(loss)``.
        perplexity_error: Its standard error, as if tokens were independent.
        accuracy: Part of the scored tokens that the model finds most likely.
        divergence: From the reference model, or None if there was none.
    """

    windows: int
    context: int
    tokens: int
    loss: float
    perplexity: float
    perplexity_error: float
    accuracy: float
    divergence: Divergence | None = None


def evaluate(
    model: Model,
    ids: ArrayLike,
    *,
    reference: Model | None = None,
    context: int = 512,
    llama: bool = False,
    bos: int | None = None,
    precision: Precision = "float32",
    progress: Progress | None = None,
) -> Evaluation:
    """Computes perplexity, and with a reference the divergence from it.

    Args:
        model: The model.
        ids: The tokens of the text.
        reference: What to compare the predictions with: as a rule the model before it was quantized.
        context: Tokens of a window.
        llama: Score as llama-perplexity does, only the second half of each window, where every token has at
            least ``context / 2`` before it. Otherwise all but a window's first token are scored.
        bos: What the first token of each window is replaced with; llama-perplexity does it where the
            tokenizer asks for a bos token.
        precision: What to compute in.
        progress: Is told how far it is.

    Raises:
        UsageError: The text is shorter than a window, or the two models have different vocabularies.
        WeightError: A prediction is NaN: the weights hold values that are not finite.
    """
    models = [model] if reference is None else [model, reference]
    if len({m.hyperparameters.vocab_size for m in models if m.hyperparameters}) > 1:
        raise UsageError(f"{models[1].path} has another vocabulary than {model.path}")
    cut = windows(ids, context, least=4 if llama else 2)
    scores: list[NDArray[np.float64]] = []
    for batch, steps in passes(cut, models, progress):
        inputs = batch.copy()
        if bos is not None:
            inputs[:, 0] = bos
        results = [
            compute(m, inputs, precision=precision, watch=watch)
            for m, watch in zip(models, steps, strict=True)
        ]
        scores += _score(results, batch, context // 2 if llama else 0)
    table = np.concatenate(scores, axis=1)
    for each, losses in zip(models, table[[0, 2][: len(models)]], strict=True):
        if not np.isfinite(losses).all():
            raise WeightError(
                "predicts NaN or infinity", path=each.path, hint="its weights hold values that are not finite"
            )
    return _evaluation(table, cut.shape)


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
) -> Iterator[tuple[NDArray[np.intp], list[Watch]]]:
    """Batches of windows, as many as share a pass over the weights, and what reports the steps of each model.

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
        yield cut[number * size : (number + 1) * size], steps
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


def _score(results: Sequence[Logits], targets: NDArray[np.intp], first: int) -> Iterator[NDArray[np.float64]]:
    """Scores a batch of windows, chunk by chunk.

    Args:
        results: The model's logits, and perhaps the reference's.
        targets: The tokens, shape (windows, context).
        first: The first position whose prediction is scored.

    Yields:
        A column for each prediction: loss, and whether the likeliest token was the right one; with a
        reference also its loss, the divergence from it, and whether both find the same token likeliest.
    """
    batch, context = targets.shape
    positions = (np.arange(batch)[:, None] * context + np.arange(first, context - 1)).reshape(-1)
    following = targets[:, first + 1 :].reshape(-1)
    done = 0
    for chunks in zip(*(logits.chunks(positions) for logits in results), strict=True):
        wanted = following[done : done + len(chunks[0][0])]
        done += len(wanted)
        with np.errstate(all="ignore"):
            yield _columns([values for _, values in chunks], wanted)


def _columns(logits: Sequence[Array], wanted: NDArray[np.intp]) -> NDArray[np.float64]:
    """The columns of some positions; overwrites the logits.

    Logarithms of sums are kept apart from the logits, in float64: the divergence is a small difference.
    """
    rows, columns, tops = np.arange(len(wanted)), [], []
    sums, exponentials = [], []
    for values in logits:
        tops.append(values.argmax(axis=1))
        np.subtract(values, values[rows, tops[-1]][:, None], out=values)
        exponentials.append(np.exp(values))
        sums.append(exponentials[-1].sum(axis=1).astype(np.float64))
        columns.append(np.log(sums[-1]) - values[rows, wanted])
    hits = tops[0] == wanted
    if len(logits) == 1:
        return np.stack([columns[0], hits])
    (own, other), weights = logits, exponentials[1]
    weights *= np.subtract(other, own, out=own)
    divergence = weights.sum(axis=1) / sums[1] - np.log(sums[1]) + np.log(sums[0])
    return np.stack([columns[0], hits, columns[1], np.maximum(divergence, 0), tops[0] == tops[1]])


def _evaluation(table: NDArray[np.float64], shape: tuple[int, ...]) -> Evaluation:
    """The figures of all scored positions."""
    loss, loss_error = _mean(table[0])
    perplexity = math.exp(loss)
    divergence = None
    if len(table) > 2:
        logarithm, logarithm_error = _mean(table[0] - table[2])
        mean, error = _mean(table[3])
        median, percentile_99, maximum = np.quantile(table[3], (0.5, 0.99, 1)).tolist()
        same_top, same_top_error = _mean(table[4])
        divergence = Divergence(
            perplexity=math.exp(_mean(table[2])[0]),
            ratio=math.exp(logarithm),
            ratio_error=math.exp(logarithm) * logarithm_error,
            mean=mean,
            error=error,
            median=median,
            percentile_99=percentile_99,
            maximum=maximum,
            same_top=same_top,
            same_top_error=same_top_error,
        )
    return Evaluation(
        windows=shape[0],
        context=shape[1],
        tokens=table.shape[1],
        loss=loss,
        perplexity=perplexity,
        perplexity_error=perplexity * loss_error,
        accuracy=float(table[1].mean()),
        divergence=divergence,
    )


def _mean(values: NDArray[np.float64]) -> tuple[float, float]:
    """The mean and its standard error; 0 of a single value."""
    mean = float(values.mean())
    return mean, math.sqrt(float(((values - mean) ** 2).mean()) / max(values.size - 1, 1))
