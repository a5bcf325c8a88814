"""Measures between which numbers activations lie: what goes into each matrix of a layer, and comes out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import numpy as np

from phiconv.conversion.tasks import HERE
from phiconv.errors import UnsupportedModelError, WeightError
from phiconv.forward import layers, threads
from phiconv.forward.interpreter import NumpyOps, no_model, token_ids
from phiconv.forward.ops import check_weights
from phiconv.ir.ranges import MatrixRanges, Range, Ranges
from phiconv.quality.batches import each_batch, windows

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike, NDArray

    from phiconv.conversion.tasks import Workers
    from phiconv.forward.interpreter import Watch
    from phiconv.forward.layers import Array
    from phiconv.forward.ops import Activation, Forward, MixtureOfExperts
    from phiconv.ir.model import Model, Role
    from phiconv.quality.batches import Progress

__all__ = ["measure_ranges"]


def measure_ranges(
    model: Model,
    ids: ArrayLike,
    *,
    context: int = 512,
    workers: Workers = HERE,
    progress: Progress | None = None,
) -> Ranges:
    """Computes a text and notes ranges.

    Args:
        model: The model.
        ids: The tokens of the text.
        context: Tokens of a window.
        workers: Where.
        progress: Is told how far it is.

    Raises:
        UnsupportedModelError: Plain tensors, or a mixture of experts, whose activations nobody quantizes.
        UsageError: The text is shorter than a window.
        WeightError: Something is NaN or infinite.
    """
    if model.forward is None or model.hyperparameters is None:
        raise no_model(model)
    forward, hp = cast("Forward", model.forward), model.hyperparameters
    if hp.experts is not None:
        raise UnsupportedModelError("ranges of a mixture of experts are not supported", path=model.path)
    check_weights(forward, hp, model.tensors, model.path)
    found: dict[Role, MatrixRanges] = {}
    for some in each_batch(_BatchRanges(model.bare()), windows(ids, context), [model], workers, progress):
        for role, now in some.items():
            found[role] = _union(found.get(role, now), now)
    for role, pair in found.items():
        if not np.isfinite([*pair.inputs, *pair.outputs]).all():
            raise WeightError("an activation is NaN or infinite", path=model.path, at=f"weight {role}")
    return Ranges(dict(sorted(found.items())))


@dataclass(frozen=True, slots=True)
class _BatchRanges:
    """Computes a batch and notes its ranges."""

    model: Model

    def __call__(
        self,
        batch: slice,  # noqa: ARG002
        tokens: NDArray[np.intp],
        steps: Sequence[Watch | None],
    ) -> dict[Role, MatrixRanges]:
        hp, forward = self.model.hyperparameters, cast("Forward", self.model.forward)
        assert hp is not None  # noqa: S101 - see `measure_ranges`
        ids = token_ids(tokens, hp.vocab_size)
        ops = _RangeOps(self.model.tensors, ids, np.dtype(np.float32), steps[0])
        ops.found = {}
        with threads.parallel(), np.errstate(all="ignore"):
            forward(ops, hp)
        return ops.found


def _union(a: MatrixRanges, b: MatrixRanges) -> MatrixRanges:
    return MatrixRanges(*map(Range.union, zip(a, b, strict=True)))


class _RangeOps(NumpyOps):
    """Computes, and notes what goes into each product and comes out of it, before a bias."""

    found: dict[Role, MatrixRanges]

    def linear(self, x: Array, role: Role, /) -> Array:
        y = super().linear(x, role)
        bias = self._weights.vector(role, "bias")
        self._note(role, x, y if bias is None else y - bias)
        return y

    def gated(self, x: Array, gate: Role, up: Role, kind: Activation, /) -> Array:
        activated = layers.ACTIVATIONS[kind](self.linear(x, gate))
        activated *= self.linear(x, up)
        return activated

    def moe(self, x: Array, layer: int, spec: MixtureOfExperts, /) -> Array:
        raise NotImplementedError  # refused before

    def _note(self, role: Role, x: Array, y: Array) -> None:
        now = MatrixRanges(*(Range(float(each.min()), float(each.max())) for each in (x, y)))
        self.found[role] = _union(self.found.get(role, now), now)
