"""How far the weights of one model are from those of another, whatever formats they are stored in.

With a the weights of the first model and b those of the second, sums running over all weights of a tensor:

    relative RMSE = sqrt(sum (b - a)^2 / sum a^2)
    SQNR          = 10 log10(sum a^2 / sum (b - a)^2)     signal to quantization noise ratio, in dB
    cosine        = sum a b / sqrt(sum a^2 sum b^2)
    max error     = max |b - a|
"""

from __future__ import annotations

import math
import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np

from phiconv.brief import Brief
from phiconv.conversion.cancelling import heeding
from phiconv.conversion.rows import TILE
from phiconv.conversion.source import open_model
from phiconv.conversion.tasks import Workers, in_order
from phiconv.errors import InputError, MalformedFileError, UnsupportedModelError, printable
from phiconv.ir import RawEncoding
from phiconv.ir.model import Model, Role
from phiconv.quantizers import decode
from phiconv.quantizers.numerics.scratch import scratch

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from concurrent.futures import Executor
    from contextlib import AbstractContextManager
    from os import PathLike
    from pathlib import Path

    from numpy.typing import NDArray

    from phiconv.conversion.cancelling import Cancel
    from phiconv.conversion.pipeline import Progress
    from phiconv.ir import Tensor

__all__ = ["Comparison", "Difference", "Pair", "TensorDifference", "compare", "match"]

_SPAN = 4 * TILE  # weights of one task
_NAMED = 5  # differences between models that a message lists

Way: TypeAlias = Literal["role", "name"]
_Vector: TypeAlias = "NDArray[np.float64]"


@dataclass(frozen=True, slots=True, repr=False)
class Difference(Brief):
    """The difference between two rows of numbers, by the sums that everything else follows from.

    Weights that are NaN or infinite on either side are counted, and are in no sum.

    Attributes:
        weights: How many pairs of weights there are.
        square_a, square_b, product: Sums of a², b² and a b, in float64.
        square_error: Sum of (b - a)².
        max_error: The largest |b - a|.
        nonfinite_a, nonfinite_b: Weights of each side that are NaN or infinite.
    """

    weights: int = 0
    square_a: float = 0.0
    square_b: float = 0.0
    product: float = 0.0
    square_error: float = 0.0
    max_error: float = 0.0
    nonfinite_a: int = 0
    nonfinite_b: int = 0

    def __add__(self, other: Difference) -> Difference:
        return Difference(
            self.weights + other.weights,
            self.square_a + other.square_a,
            self.square_b + other.square_b,
            self.product + other.product,
            self.square_error + other.square_error,
            max(self.max_error, other.max_error),
            self.nonfinite_a + other.nonfinite_a,
            self.nonfinite_b + other.nonfinite_b,
        )

    @property
    def nonfinite(self) -> bool:
        """Whether there are weights that the numbers say nothing about."""
        return self.nonfinite_a + self.nonfinite_b > 0

    @property
    def relative_rmse(self) -> float:
        """Root mean square error over the root mean square of a; infinite where a is zero and b is not."""
        if self.square_error == 0:
            return 0.0
        return math.sqrt(self.square_error / self.square_a) if self.square_a else math.inf

    @property
    def sqnr(self) -> float:
        """Signal to noise ratio in dB; infinite where there is no error."""
        if self.square_error == 0:
            return math.inf
        return 10 * math.log10(self.square_a / self.square_error) if self.square_a else -math.inf

    @property
    def cosine(self) -> float:
        """Cosine of the angle between a and b; NaN where only one of them is zero, which has no angle."""
        if self.square_error == 0:
            return 1.0
        norms = math.sqrt(self.square_a) * math.sqrt(self.square_b)
        return self.product / norms if norms else math.nan


@dataclass(frozen=True, slots=True, repr=False)
class TensorDifference(Brief):
    """The difference between one weight tensor of two models.

    Attributes:
        name: The role, such as ``layers.3.attn_q.weight``, or the stored name.
        shape: Outermost dimension first.
        type_a, type_b: How each side stores it.
        bits_a, bits_b: Bits per weight of each side.
        difference: The numbers.
    """

    name: str
    shape: tuple[int, ...]
    type_a: str
    type_b: str
    bits_a: float
    bits_b: float
    difference: Difference


@dataclass(frozen=True, slots=True, repr=False)
class Comparison(Brief):
    """Two models, weight by weight.

    Attributes:
        a, b: What was opened.
        matched_by: Whether weights were matched by "role", or by stored "name".
        tensors: The worst first: those with NaN or infinity, then by relative RMSE.
        total: Over all weights.
        bits_a, bits_b: Bits per weight over all weights compared.
        without_encoders: What one of the two sees or hears with is not compared: the other has nothing such.
    """

    a: Path
    b: Path
    matched_by: Way
    tensors: tuple[TensorDifference, ...]
    total: Difference
    bits_a: float
    bits_b: float
    without_encoders: bool = False

    def _rows(self) -> tuple[Iterable[tuple[object, ...]], tuple[str, ...]]:
        heads = ("weight", "type", "relative RMSE")
        return [(t.name, t.type_b, f"{t.difference.relative_rmse:.3g}") for t in self.tensors], heads


def compare(
    a: str | PathLike[str] | Model,
    b: str | PathLike[str] | Model,
    *,
    jobs: int | None = None,
    executor: Executor | None = None,
    progress: Progress | None = None,
    cancel: Cancel | None = None,
) -> Comparison:
    """Compares the weights of two models.

    They are matched by role where both models have roles, and else by stored name. Encoders of pictures are
    compared where both have one. Weights are read in tiles of rows, dequantized to float32, and summed in
    float64; the numbers do not depend on the number of threads.

    Args:
        a: The original: a path, as `open_model` takes it, or an open model.
        b: What became of it.
        jobs: Number of threads; by default one per processor.
        executor: Any `concurrent.futures.Executor` to work in, instead of threads of its own.
        progress: Is told how far it is.
        cancel: An event; once it is set, the work ends with a CancelledError.

    Raises:
        CancelledError: It was to end.
        InputError: The models do not have the same weights, or a file is wrong.
        UnsupportedModelError: A tensor of a type that phiconv cannot decode.
    """
    progress = heeding(progress, cancel)
    first, second = (m if isinstance(m, Model) else open_model(m) for m in (a, b))
    way, pairs = match(first, second)
    jobs = jobs or os.cpu_count() or 1
    pool = ThreadPoolExecutor(jobs, thread_name_prefix="phiconv") if executor is None else executor
    context: AbstractContextManager[object] = pool if executor is None else nullcontext()
    sums = [Difference() for _ in pairs]
    total = sum(x.size for _, x, _ in pairs)
    done = 0
    with context:
        tasks = (partial(_difference, *span) for span in _spans(pairs))
        for index, found in in_order(Workers(pool, jobs), tasks):
            sums[index] += found
            done += found.weights
            if progress is not None:
                progress(done, total, pairs[index][0])
    _check_unchanged(pairs)
    return _result(first, second, way, pairs, sums)


# ------------------------------------------------------------------------------------------------- matching

Pair: TypeAlias = "tuple[str, Tensor, Tensor]"


def match(a: Model, b: Model) -> tuple[Way, list[Pair]]:
    """The weights of both models, side by side: by which names, and these with the two tensors.

    Raises:
        InputError: Some are missing on one side, or have another shape.
    """
    way: Way = "role" if a.tensors and b.tensors else "name"
    mine, theirs = (_weights(model, way) for model in (a, b))
    if way == "role":
        ours, others = _of_encoders(a), _of_encoders(b)
        for name in (each for each in ours if each in others):
            mine, theirs = mine | ours[name], theirs | others[name]
        _untie(a, mine, theirs)
        _untie(b, theirs, mine)
    differences = [f"{name} is only in the first" for name in mine if name not in theirs]
    differences += [f"{name} is only in the second" for name in theirs if name not in mine]
    differences += [
        f"{name} is {_shape(x)} in the first and {_shape(theirs[name])} in the second"
        for name, x in mine.items()
        if name in theirs and theirs[name].shape != x.shape
    ]
    if differences or not mine:
        raise _unlike(a, b, way, differences)
    return way, [(name, x, theirs[name]) for name, x in mine.items()]


def _weights(model: Model, way: Way) -> dict[str, Tensor]:
    if way == "role":
        return {str(role): tensor for role, tensor in model.tensors.items()}
    return dict(model.stored)


def _of_encoders(model: Model) -> dict[str, dict[str, Tensor]]:
    """The weights of what a model sees and hears with, by role."""
    if model.senses is None:
        return {}
    encoders = {"vision": model.senses.vision, "audio": model.senses.hearing}
    return {name: {str(role): t for role, t in e.tensors.items()} for name, e in encoders.items() if e}


def _untie(model: Model, mine: dict[str, Tensor], theirs: Mapping[str, Tensor]) -> None:
    """Where only the other model stores its output matrix, this one's is its embedding."""
    output, embedding = str(Role("output")), str(Role("token_embedding"))
    tied = model.hyperparameters is not None and model.hyperparameters.tie_word_embeddings
    if tied and output in theirs and output not in mine:
        mine[output] = mine[embedding]


def _unlike(a: Model, b: Model, way: Way, differences: Sequence[str]) -> InputError:
    named = "; ".join(printable(text, 100) for text in differences[:_NAMED])
    more = f"; and {len(differences) - _NAMED} more" if len(differences) > _NAMED else ""
    what = f"{named}{more}" if differences else "there is no tensor"
    hint = "compare a model with what became of it"
    if way == "name" and (a.tensors or b.tensors):
        hint = "one of them is a file of plain tensors, so that names are compared: give its folder"
    return InputError(f"not the same weights as {a.path}: {what}", path=b.path, hint=hint)


def _shape(tensor: Tensor) -> str:
    return " x ".join(map(str, tensor.shape)) or "a scalar"


# ------------------------------------------------------------------------------------------------- summing


def _spans(pairs: Sequence[Pair]) -> Iterator[tuple[int, Tensor, Tensor, int, int]]:
    for index, (_, x, y) in enumerate(pairs):
        step = max(_SPAN // max(x.columns, 1), 1)
        for start in range(0, x.rows if x.size else 0, step):  # rows of nothing may be any number
            yield index, x, y, start, min(start + step, x.rows)


def _difference(index: int, x: Tensor, y: Tensor, start: int, stop: int) -> tuple[int, Difference]:
    """The difference between rows ``start`` to ``stop`` of two tensors, which are pair ``index``."""
    result = Difference()
    step = max(TILE // max(x.columns, 1), 1)
    for at in range(start, stop, step):
        last = min(at + step, stop)
        result += _tile_difference(_read(x, at, last, "first"), _read(y, at, last, "second"))
    return index, result


def _read(tensor: Tensor, start: int, stop: int, name: str) -> _Vector:
    """Weights in memory of this thread under a name, which the next tile overwrites."""
    if isinstance(tensor.encoding, RawEncoding):
        raise UnsupportedModelError(
            f"stored as {tensor.encoding.name}, which phiconv cannot decode", path=tensor.label
        )
    shape = (stop - start, tensor.columns)
    weights = decode(tensor.read(start, stop), tensor.columns, scratch("compared", shape, np.float32))
    values: _Vector = scratch(name, (weights.size,), np.float64)
    np.copyto(values, weights.reshape(-1))
    return values


def _tile_difference(a: _Vector, b: _Vector) -> Difference:
    """The formulas' sums."""
    square_a, square_b = _dot(a, a), _dot(b, b)
    if math.isfinite(square_a) and math.isfinite(square_b):  # no square of a float32 is too large
        return _sums(a, b, square_a, square_b)
    finite_a, finite_b = np.isfinite(a), np.isfinite(b)
    both = finite_a & finite_b
    x, y = a[both], b[both]
    return replace(
        _sums(x, y, _dot(x, x), _dot(y, y)),
        weights=a.size,
        nonfinite_a=a.size - int(np.count_nonzero(finite_a)),
        nonfinite_b=b.size - int(np.count_nonzero(finite_b)),
    )


def _sums(a: _Vector, b: _Vector, square_a: float, square_b: float) -> Difference:
    """Of finite weights."""
    error: _Vector = np.subtract(b, a, out=scratch("error", a.shape, np.float64))
    return Difference(
        weights=a.size,
        square_a=square_a,
        square_b=square_b,
        product=_dot(a, b),
        square_error=_dot(error, error),
        max_error=max(float(np.max(error, initial=0.0)), -float(np.min(error, initial=0.0))),
    )


def _dot(x: _Vector, y: _Vector) -> float:
    return float(np.einsum("i,i->", x, y))  # in one thread and one order, where BLAS would choose for itself


def _check_unchanged(pairs: Sequence[Pair]) -> None:
    for source in {run.source for _, *both in pairs for tensor in both for run in tensor.runs}:
        if source.changed():
            raise MalformedFileError("changed while it was read", path=source.label, hint="compare it again")


def _result(a: Model, b: Model, way: Way, pairs: Sequence[Pair], sums: Sequence[Difference]) -> Comparison:
    tensors = [
        TensorDifference(
            name, x.shape, x.encoding.name, y.encoding.name,
            x.encoding.bits_per_weight, y.encoding.bits_per_weight, found,
        )
        for (name, x, y), found in zip(pairs, sums, strict=True)
    ]  # fmt: skip
    worst_first = sorted(tensors, key=lambda t: (not t.difference.nonfinite, -t.difference.relative_rmse))
    total = sum(sums, Difference())
    bits_a, bits_b = (sum(bits) / max(total.weights, 1) for bits in zip(*_bits(tensors), strict=True))
    encoders = _of_encoders(a).keys() != _of_encoders(b).keys()
    return Comparison(a.path, b.path, way, tuple(worst_first), total, bits_a, bits_b, encoders)


def _bits(tensors: Sequence[TensorDifference]) -> Iterator[tuple[float, float]]:
    for t in tensors:
        yield t.bits_a * t.difference.weights, t.bits_b * t.difference.weights
