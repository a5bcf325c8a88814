"""Measures what goes into a model's matrices while it reads a text: the making of an importance matrix.

The sums are those of llama.cpp's llama-imatrix: over windows of the text as in `evaluation`, the squares
of every input of a matrix by column, and for a stack of experts by expert, over its own tokens only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from phiconv.conversion.tasks import HERE
from phiconv.errors import WeightError
from phiconv.forward.interpreter import compute
from phiconv.ir.importance import ColumnSums
from phiconv.quality.batches import begun, each_batch, windows

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from numpy.typing import ArrayLike, NDArray

    from phiconv.conversion.tasks import Workers
    from phiconv.forward.interpreter import Watch
    from phiconv.forward.layers import Array
    from phiconv.ir.model import Model, Role
    from phiconv.quality.batches import Progress

__all__ = ["column_sums"]


def column_sums(
    model: Model,
    ids: ArrayLike,
    roles: Collection[Role],
    *,
    context: int = 512,
    bos: int | None = None,
    workers: Workers = HERE,
    progress: Progress | None = None,
) -> tuple[dict[Role, ColumnSums], int]:
    """Computes a text and sums up what goes into matrices.

    Args:
        model: The model.
        ids: The tokens of the text.
        roles: The matrices; those that have the same input need to be there once only.
        context: Tokens of a window.
        bos: What the first token of each window is replaced with.
        workers: Where.
        progress: Is told how far it is.

    Returns:
        The sums of each matrix, and the number of windows.

    Raises:
        UsageError: The text is shorter than a window.
        WeightError: An input is NaN or infinite: the weights hold values that are not finite.
    """
    found = {role: _empty(model, role) for role in roles}
    cut = windows(ids, context)
    for some in each_batch(_Sums(model.bare(), frozenset(found), bos), cut, [model], workers, progress):
        for role, matrix, sums, count in some:
            found[role].sums[matrix] += sums
            found[role].counts[matrix] += count
    for role, each in found.items():
        if not np.isfinite(each.sums).all():
            raise WeightError(
                "an input of this matrix is NaN or infinite",
                path=model.path,
                at=f"weight {role}",
                hint="the weights hold values that are not finite",
            )
    return found, len(cut)


def _empty(model: Model, role: Role) -> ColumnSums:
    shape = model.tensors[role].shape
    matrices = shape[0] if len(shape) > 2 else 1
    return ColumnSums(np.zeros((matrices, shape[-1])), np.zeros(matrices, np.int64))


@dataclass(frozen=True, slots=True)
class _Sums:
    """Computes a batch: the squares of what goes into each matrix, and how many tokens, as they come."""

    model: Model
    roles: Collection[Role]
    bos: int | None

    def __call__(
        self,
        batch: slice,  # noqa: ARG002
        tokens: NDArray[np.intp],
        steps: Sequence[Watch | None],
    ) -> list[tuple[Role, int, Array, int]]:
        found: list[tuple[Role, int, Array, int]] = []
        (step,) = steps

        def watch(role: Role, x: Array, expert: int | None) -> None:
            if step is not None:
                step(role, x, expert)
            if role in self.roles:
                found.append((role, expert or 0, np.einsum("ij,ij->j", x, x), len(x)))

        compute(self.model, begun(tokens, self.bos), watch=watch)
        return found
