"""How much the predictions suffer where one matrix is rounded coarsely: a probe that needs no gradients.

A few short texts go through the decoder as it is, and once more for every matrix that is probed. Such a
branch leaves the others where its matrix is used, so that all branches share every reading of the later
layers. What comes out is the divergence from the model as it is.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from phiconv.conversion.tasks import HERE, in_order
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
    from pathlib import Path

    from numpy.typing import NDArray

    from phiconv.conversion.tasks import Workers
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
    model: Model,
    ids: NDArray[np.intp],
    folder: Path,
    step: Callable[[int, int], None] | None = None,
    workers: Workers = HERE,
) -> list[Sensitivity]:
    """Probes the matrices of some layers, the embedding and the output matrix.

    Args:
        model: The model.
        ids: The texts, shape (windows, context): a few hundred tokens.
        folder: What goes from one layer to the next is in files here, one for each branch, and gone at the
            end; all workers see it.
        step: Is told how many stages of all are done.
        workers: Where.

    Returns:
        One for each probed matrix, in the order of the decoder.
    """
    stages, model = stages_of(model), model.bare()
    layers = {*probed_layers(model.hyperparameters.num_hidden_layers if model.hyperparameters else 0), None}
    branches: list[_Branch] = []
    if (embedding := Role("token_embedding")) in model.tensors:
        branches.append(_Branch(embedding, _rounded(model, embedding)))
    values: list[Path] = []  # of the model as it is, and of each branch
    for number, stage in enumerate(stages):
        new = [
            _Branch(role, _rounded(model, role))
            for each in stage.inputs
            for role in each.roles
            if role.layer in layers and role in model.tensors and role != embedding
        ]
        found = [folder / f"branch.{number}.{i}.npy" for i in range(1 + len(branches) + len(new))]
        runs = [*_through(model, stage, ids, values, branches, found)]
        runs += [
            _Run(branch.model, stage, ids, tuple(values[:1]), (path,))
            for branch, path in zip(new, found[1 + len(branches) :], strict=True)
        ]
        for _ in in_order(workers, runs):
            pass
        _remove(values)
        branches, values = branches + new, found
        if step is not None:
            step(number + 1, len(stages))
    own, *others = values
    judges = (
        _Judge(model, branch.model, ids.shape, own, path)
        for branch, path in zip(branches, others, strict=True)
    )
    divergences = [*in_order(workers, judges)]
    _remove(values)
    return [Sensitivity(branch.role, each) for branch, each in zip(branches, divergences, strict=True)]


def _remove(paths: Sequence[Path]) -> None:
    for path in paths:
        with suppress(OSError):
            path.unlink()


def _through(
    model: Model,
    stage: Stage,
    ids: NDArray[np.intp],
    values: Sequence[Path],
    branches: Sequence[_Branch],
    found: Sequence[Path],
) -> Iterator[_Run]:
    """Takes all that is there through a stage, several branches in one reading of its weights.

    A branch whose matrix is the embedding goes alone where the tokens are looked up; the output matrix comes
    after the last stage.
    """
    if not values:
        for some, path in zip((model, *(branch.model for branch in branches)), found, strict=False):
            yield _Run(some, stage, ids, (), (path,))
        return
    together = max(BATCH_TOKENS // ids.size, 1)
    for start in range(0, len(values), together):
        part = tuple(values[start : start + together])
        yield _Run(model, stage, ids, part, tuple(found[start : start + len(part)]))


@dataclass(frozen=True, slots=True)
class _Run:
    """Takes the texts through a stage: as often as there are files that they come from, and go to.

    After the last stage they are what goes into the output matrix.
    """

    model: Model
    stage: Stage
    ids: NDArray[np.intp]
    inputs: tuple[Path, ...]
    outputs: tuple[Path, ...]

    def __call__(self) -> None:
        seen: list[Array] = []

        def watch(role: Role, x: Array, expert: int | None) -> None:  # noqa: ARG001
            if role.layer is None:
                seen.append(x)

        x = np.concatenate([np.load(path) for path in self.inputs]) if self.inputs else None
        ids = np.tile(self.ids, (len(self.outputs), 1))
        result = run_stage(self.model, self.stage, ids, x, watch)
        y = seen[-1] if result is None else result
        for path, each in zip(self.outputs, y.reshape(len(self.outputs), self.ids.size, -1), strict=True):
            np.save(path, each)


@dataclass(frozen=True, slots=True)
class _Judge:
    """The divergence of one model's predictions from another's, by what goes into their output matrices."""

    model: Model
    rounded: Model
    shape: tuple[int, ...]
    own: Path
    other: Path

    def __call__(self) -> float:
        own, other = np.load(self.own), np.load(self.other)
        reference = logits_of(self.model, own, self.shape)
        rounded = logits_of(self.rounded, other, self.shape)
        step = max(_CHUNK // reference.shape[-1], 1)
        total = 0.0
        for start in range(0, len(own), step):
            some = np.arange(start, min(start + step, len(own)))
            table = columns(rounded.at(some), np.zeros(len(some), np.intp), reference.at(some))
            total += float(table[3].sum())
        return total / len(own)
