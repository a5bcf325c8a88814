"""How much the predictions suffer where one matrix is rounded coarsely: a probe that needs no gradients.

A few short texts go through the decoder as it is, and once more for every matrix that is probed. Such a
branch leaves the others where its matrix is used, so that all branches share every reading of the later
layers. What comes out is the divergence from the model as it is.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from phiconv.forward.interpreter import logits_of
from phiconv.forward.stages import run_stage, stages_of
from phiconv.ir import F32, Tensor
from phiconv.ir.model import Role
from phiconv.quality.batches import BATCH_TOKENS
from phiconv.quality.scores import columns
from phiconv.quantizers import decode
from phiconv.quantizers.coarse import coarse

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from phiconv.forward.layers import Array
    from phiconv.forward.stages import Stage
    from phiconv.ir import Encoding, FloatArray
    from phiconv.ir.model import Model

__all__ = ["Sensitivity", "measure_sensitivities", "probed_layers"]

_LAYERS = 8
"""Layers that are probed; what lies between two of them is between them in this, too."""

_CHUNK = 1 << 25
"""Logits of one branch in memory at a time."""


@dataclass(frozen=True, slots=True)
class Sensitivity:
    """What came of rounding one matrix.

    Attributes:
        role: The matrix; of a stack, all of them.
        divergence: Mean Kullback-Leibler divergence from the model as it is, in nats.
    """

    role: Role
    divergence: float


@dataclass(frozen=True, slots=True)
class _Coarse:
    """A stored matrix, rounded as it is read."""

    tensor: Tensor

    @property
    def label(self) -> str:
        return self.tensor.label

    @property
    def encoding(self) -> Encoding:
        return F32

    def read(self, start: int, stop: int) -> FloatArray:
        return coarse(decode(self.tensor.read(start, stop), self.tensor.columns))

    def changed(self) -> bool:
        return self.tensor.changed()


def _rounded(model: Model, role: Role) -> Model:
    tensor = model.tensors[role]
    return replace(model, tensors={**model.tensors, role: Tensor.of(_Coarse(tensor), tensor.shape)})


def probed_layers(count: int) -> list[int]:
    """The layers of so many that are probed: the first, the last, and some between."""
    probed = min(count, _LAYERS)
    return sorted({round(i * (count - 1) / max(probed - 1, 1)) for i in range(probed)})


@dataclass(frozen=True, slots=True)
class _Branch:
    """The texts in a model one of whose matrices is rounded."""

    role: Role
    model: Model


def measure_sensitivities(
    model: Model, ids: NDArray[np.intp], step: Callable[[int, int], None] | None = None
) -> list[Sensitivity]:
    """Probes the matrices of some layers, the embedding and the output matrix.

    Args:
        model: The model.
        ids: The texts, shape (windows, context). What goes from one layer to the next is in memory, for each
            branch: choose a few hundred tokens.
        step: Is told how many stages of all are done.

    Returns:
        One for each probed matrix, in the order of the decoder.
    """
    stages = stages_of(model)
    layers = {*probed_layers(model.hyperparameters.num_hidden_layers if model.hyperparameters else 0), None}
    branches: list[_Branch] = []
    if (embedding := Role("token_embedding")) in model.tensors:
        branches.append(_Branch(embedding, _rounded(model, embedding)))
    values: list[Array | None] = [None] * (1 + len(branches))  # of the model as it is, and of each branch
    hidden: list[Array] = []
    for number, stage in enumerate(stages):
        found = [*_through(model, stage, ids, values, branches)]
        for each in stage.inputs:
            for role in each.roles:
                if role.layer in layers and role in model.tensors and role != embedding:
                    branch = _Branch(role, _rounded(model, role))
                    branches.append(branch)
                    found.append(_run(branch.model, stage, ids, values[0]))
        values, hidden = [*found], found
        if step is not None:
            step(number + 1, len(stages))
    return [
        Sensitivity(branch.role, _divergence(model, branch, ids.shape, hidden[0], hidden[1 + number]))
        for number, branch in enumerate(branches)
    ]


def _through(
    model: Model,
    stage: Stage,
    ids: NDArray[np.intp],
    values: Sequence[Array | None],
    branches: Sequence[_Branch],
) -> Iterator[Array]:
    """Takes all that is there through a stage, several branches in one reading of its weights.

    A branch whose matrix is the embedding goes alone where the tokens are looked up; the output matrix comes
    after the last stage.
    """
    if values[0] is None:
        for some in (model, *(branch.model for branch in branches)):
            yield _run(some, stage, ids, None)
        return
    together = max(BATCH_TOKENS // ids.size, 1)
    for start in range(0, len(values), together):
        part = [x for x in values[start : start + together] if x is not None]
        y = _run(model, stage, np.tile(ids, (len(part), 1)), np.concatenate(part))
        yield from y.reshape(len(part), ids.size, -1)


def _run(model: Model, stage: Stage, ids: NDArray[np.intp], x: Array | None) -> Array:
    """What a stage gives; the last one, what goes into the output matrix."""
    seen: list[Array] = []

    def watch(role: Role, x: Array, expert: int | None) -> None:  # noqa: ARG001
        if role.layer is None:
            seen.append(x)

    result = run_stage(model, stage, ids, x, watch)
    return seen[-1] if result is None else result


def _divergence(model: Model, branch: _Branch, shape: tuple[int, ...], own: Array, other: Array) -> float:
    reference, rounded = logits_of(model, own, shape), logits_of(branch.model, other, shape)
    step = max(_CHUNK // reference.shape[-1], 1)
    total = 0.0
    for start in range(0, len(own), step):
        some = np.arange(start, min(start + step, len(own)))
        table = columns(rounded.at(some), np.zeros(len(some), np.intp), reference.at(some))
        total += float(table[3].sum())
    return total / len(own)
