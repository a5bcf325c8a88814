"""A text in windows, and batches of windows that share a pass over the weights.

Batches do not depend on each other, so that workers may compute them. They are always the same ones: how a
product of matrices is rounded may depend on what is multiplied beside it.
"""

from __future__ import annotations

from functools import partial
from itertools import accumulate
from typing import TYPE_CHECKING, Protocol, TypeVar

import numpy as np

from phiconv.conversion.tasks import in_order
from phiconv.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import ArrayLike, NDArray

    from phiconv.conversion.tasks import Workers
    from phiconv.forward.interpreter import Watch
    from phiconv.forward.layers import Array
    from phiconv.ir.model import Model, Role

__all__ = ["BATCH_TOKENS", "Progress", "Work", "batches", "begun", "each_batch", "windows"]

BATCH_TOKENS = 2048
"""Tokens that are computed in one pass over the weights, if a window is shorter than that."""

T_co = TypeVar("T_co", covariant=True)
T = TypeVar("T")


class Progress(Protocol):
    """Is told how far an evaluation is."""

    def __call__(self, done: int, total: int, name: str) -> None:
        """``done`` of ``total`` steps are made; ``name`` says what is worked on."""


class Work(Protocol[T_co]):
    """What is made of a batch; it can be pickled."""

    def __call__(self, batch: slice, tokens: NDArray[np.intp], steps: Sequence[Watch | None]) -> T_co:
        """``tokens`` are those of the windows ``batch``; ``steps`` is for each model told what it does."""


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


def begun(tokens: NDArray[np.intp], bos: int | None) -> NDArray[np.intp]:
    """Windows whose first token is replaced with ``bos``, if there is one, in memory of their own."""
    inputs = tokens.copy()
    if bos is not None:
        inputs[:, 0] = bos
    return inputs


def batches(count: int, context: int) -> Iterator[slice]:
    """Which of so many windows share a pass over the weights."""
    size = max(BATCH_TOKENS // context, 1)
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))


def each_batch(
    work: Work[T],
    cut: NDArray[np.intp],
    models: Sequence[Model],
    workers: Workers,
    progress: Progress | None,
) -> Iterator[T]:
    """What is made of each batch, in order.

    A step of the progress is one layer of one model; where workers compute, all steps of a batch are one.

    Args:
        work: Makes it.
        cut: The windows.
        models: Those that are computed.
        workers: Where.
        progress: Is told how far it is.
    """
    layers = [m.hyperparameters.num_hidden_layers if m.hyperparameters else 0 for m in models]
    all_batches = [*batches(*cut.shape)]
    starts = [batch.start + 1 for batch in all_batches]
    names = [f"window {start} of {len(cut)}" for start in (*starts, len(cut))]
    total = len(starts) * sum(layers)

    def tasks() -> Iterator[Callable[[], T]]:
        for number, batch in enumerate(all_batches):
            steps: list[Watch | None] = [None] * len(layers)
            if progress is not None and workers.executor is None:
                before = [*accumulate(layers, initial=number * sum(layers))]
                steps = [_layer_steps(progress, done, total, names[number]) for done in before[:-1]]
            yield partial(work, batch, cut[batch], steps)

    for number, found in enumerate(in_order(workers, tasks()), 1):
        yield found
        if progress is not None:
            progress(number * sum(layers), total, names[number])


def _layer_steps(progress: Progress, done: int, total: int, name: str) -> Watch:
    """Tells the progress whenever another layer is reached."""
    last = 0

    def step(role: Role, x: Array, expert: int | None) -> None:  # noqa: ARG001
        nonlocal last
        if role.layer and role.layer != last:
            last = role.layer
            progress(done + last, total, name)

    return step
