"""Figures of predictions: how good they are, and how far from another model's at the same positions."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from phiconv.brief import Brief

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from phiconv.forward.layers import Array

__all__ = ["Divergence", "Evaluation", "Interval", "columns", "figures"]

Interval: TypeAlias = "tuple[float, float]"
"""Where a figure lies with 95 % confidence."""

_RESAMPLES = 400
"""How often the windows are drawn again."""


@dataclass(frozen=True, slots=True, repr=False)
class Divergence(Brief):
    """How far a model's predictions are from a reference model's, at the scored positions.

    Attributes:
        perplexity: The reference's.
        ratio: The model's perplexity divided by it.
        ratio_error: Standard error of the ratio.
        mean: Mean Kullback-Leibler divergence ``sum(p * log(p / q))`` over the vocabulary, in nats; ``p`` are
            the reference's probabilities.
        error: Standard error of the mean.
        median: Median of the positions' divergences.
        percentile_99, percentile_999: 99 % and 99.9 % of the positions are at or below it.
        maximum: The largest.
        same_top: Part of the positions where both find the same token most likely.
        same_top_error: Its standard error.
        mean_interval, percentile_999_interval, same_top_interval: Where those figures lie with 95 %
            confidence, by drawing windows again (a bootstrap): tokens of one text are not independent, and
            windows nearly are. None where there is one window only.
    """

    perplexity: float
    ratio: float
    ratio_error: float
    mean: float
    error: float
    median: float
    percentile_99: float
    percentile_999: float
    maximum: float
    same_top: float
    same_top_error: float
    mean_interval: Interval | None = None
    percentile_999_interval: Interval | None = None
    same_top_interval: Interval | None = None


@dataclass(frozen=True, slots=True, repr=False)
class Evaluation(Brief):
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


def columns(own: Array, wanted: NDArray[np.intp], other: Array | None = None) -> NDArray[np.float64]:
    """Scores predictions; overwrites the logits.

    Logarithms of sums are kept apart from the logits, in float64: the divergence is a small difference.

    Args:
        own: The model's logits at some positions, shape (positions, vocabulary).
        wanted: The tokens that follow.
        other: The reference's logits.

    Returns:
        A column for each prediction: loss, and whether the likeliest token was the right one; with a
        reference also its loss, the divergence from it, and whether both find the same token likeliest.
    """
    rows, losses, tops = np.arange(len(wanted)), [], []
    sums, exponentials = [], []
    for values in (own,) if other is None else (own, other):
        tops.append(values.argmax(axis=1))
        np.subtract(values, values[rows, tops[-1]][:, None], out=values)
        exponentials.append(np.exp(values))
        sums.append(exponentials[-1].sum(axis=1).astype(np.float64))
        losses.append(np.log(sums[-1]) - values[rows, wanted])
    hits = tops[0] == wanted
    if other is None:
        return np.stack([losses[0], hits])
    weights = exponentials[1]
    weights *= np.subtract(other, own, out=own)
    divergence = weights.sum(axis=1) / sums[1] - np.log(sums[1]) + np.log(sums[0])
    return np.stack([losses[0], hits, losses[1], np.maximum(divergence, 0), tops[0] == tops[1]])


def figures(table: NDArray[np.float64], windows: int, context: int) -> Evaluation:
    """The figures of all scored positions.

    Args:
        table: The `columns`, window after window, as many of each.
        windows: How many windows.
        context: Tokens of a window.
    """
    loss, loss_error = _mean(table[0])
    perplexity = math.exp(loss)
    return Evaluation(
        windows=windows,
        context=context,
        tokens=table.shape[1],
        loss=loss,
        perplexity=perplexity,
        perplexity_error=perplexity * loss_error,
        accuracy=float(table[1].mean()),
        divergence=_divergence(table, windows) if len(table) > 2 else None,
    )


def _divergence(table: NDArray[np.float64], windows: int) -> Divergence:
    logarithm, logarithm_error = _mean(table[0] - table[2])
    mean, error = _mean(table[3])
    median, percentile_99, percentile_999, maximum = np.quantile(table[3], (0.5, 0.99, 0.999, 1)).tolist()
    same_top, same_top_error = _mean(table[4])
    each, same = (row.reshape(windows, -1) for row in table[3:5])
    return Divergence(
        perplexity=math.exp(_mean(table[2])[0]),
        ratio=math.exp(logarithm),
        ratio_error=math.exp(logarithm) * logarithm_error,
        mean=mean,
        error=error,
        median=median,
        percentile_99=percentile_99,
        percentile_999=percentile_999,
        maximum=maximum,
        same_top=same_top,
        same_top_error=same_top_error,
        mean_interval=_interval(each, np.mean),
        percentile_999_interval=_interval(each, lambda some: np.quantile(some, 0.999)),
        same_top_interval=_interval(same, np.mean),
    )


def _interval(
    by_window: NDArray[np.float64], figure: Callable[[NDArray[np.float64]], object]
) -> Interval | None:
    """The middle 95 % of a figure when windows are drawn at random, as many as there are."""
    count = len(by_window)
    if count < 2:
        return None
    drawn = np.random.default_rng(0).integers(0, count, (_RESAMPLES, count))
    low, high = np.quantile([figure(by_window[some]) for some in drawn], (0.025, 0.975)).tolist()
    return low, high


def _mean(values: NDArray[np.float64]) -> tuple[float, float]:
    """The mean and its standard error; 0 of a single value."""
    mean = float(values.mean())
    return mean, math.sqrt(float(((values - mean) ** 2).mean()) / max(values.size - 1, 1))
