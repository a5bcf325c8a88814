"""A size to aim at: which type each matrix gets so that predictions suffer least within it.

What a type does to a matrix is measured on some of its rows, as the error of the outputs where a calibration
is at hand and as that of the weights otherwise. What such an error does to the predictions is known from a
probe that rounded the matrix coarsely (`phiconv.quality.sensitivity`): divergences grow with the squares of
errors, and those of different matrices add up.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol, TypeVar

import numpy as np

from phiconv.conversion.effort import LEAST_TOKENS, likely_amount, moments_of, parts_of
from phiconv.conversion.knapsack import least_loss
from phiconv.errors import UsageError
from phiconv.forward import threads
from phiconv.ir import AnyBlockEncoding
from phiconv.ir.model import Role
from phiconv.quantizers import best, decode, encode
from phiconv.quantizers.coarse import coarse
from phiconv.recipes import assign, find_recipe
from phiconv.recipes.mixtures import NAMED_AFTER, alike, ladder, tensor_type_lines, usual_worth
from phiconv.units import size_text
from phiconv_formats.shared.output import joined_roles, roles_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from phiconv.ir import Encoding, FloatArray, Tensor
    from phiconv.ir.model import Model
    from phiconv.ir.moments import Moments
    from phiconv.recipes import Choices
    from phiconv_formats.shared.output import OutputTensor

__all__ = ["plan_for_size"]

_ROWS = 32
"""Rows of a matrix that every type is tried on."""

_EXPERTS = 3
"""Matrices of a stack that are tried."""

_TRIES = 7
"""Plans until one fits: what is written beside the weights depends a little on the types."""


class PlannedTensor(Protocol):
    """A tensor of a plan."""

    @property
    def encoding(self) -> Encoding: ...
    @property
    def nbytes(self) -> int: ...


class Planned(Protocol):
    """A plan, as far as it matters here."""

    @property
    def size(self) -> int: ...
    @property
    def tensors(self) -> Sequence[PlannedTensor]: ...


P = TypeVar("P", bound=Planned)
N = TypeVar("N", int, float)


def plan_for_size(
    target: str,
    model: Model,
    tensors: Sequence[OutputTensor],
    quant: str | None,
    choices: Choices,
    planned: Callable[[str | None, Choices], P],
) -> tuple[P, tuple[tuple[str, str], ...]]:
    """Plans a conversion whose output is as accurate as may be within a size.

    Args:
        target: Name of the format.
        model: The source; some rows of every matrix are read.
        tensors: What will be stored.
        quant: The recipe that is changed; None for the one of the nearest size.
        choices: What the user wants otherwise: the size, and what stands in spite of it.
        planned: Makes a plan with a recipe and choices that have no size to aim at.

    Returns:
        The plan; and the types that were chosen, as ``--tensor-type`` takes them.

    Raises:
        UsageError: The target has no types to choose from, or none are that small.
    """
    bare = replace(choices, target_size=None, bits_per_weight=None)
    weights = sum(t.tensor.size for t in tensors)
    limit = choices.target_size or math.floor((choices.bits_per_weight or 0) * weights / 8)
    recipe = find_recipe(target, quant or _nearest(target, model, tensors, bare, limit))
    forms = ladder(target, tensors, bare, lambda some: assign(target, recipe, model, tensors, some))
    costs = [[_bytes(t, e) for e in some] for t, some in zip(tensors, forms, strict=True)]
    plan = planned(recipe, bare)
    budget = limit - _measure(plan, choices) + _cost(tensors, [t.encoding for t in plan.tensors])
    if budget < sum(map(min, costs)):
        least = limit - budget + sum(map(min, costs))
        raise UsageError(
            f"the smallest that {target} can be is about {_amount(least, choices, weights)}",
            hint="give a larger size, or another model",
        )
    roles = roles_of(tensors, model)
    losses = _all_losses(model, tensors, roles, forms, bare)
    groups = alike(target, roles, forms)
    total_costs, total_losses = _sums(costs, groups), _sums(losses, groups)
    for attempt in range(_TRIES):
        chosen = least_loss(total_costs, total_losses, budget)
        if chosen is None:
            break
        number_of = {n: number for group, number in zip(groups, chosen, strict=True) for n in group}
        names = [[*some.values()][number_of[n]] for n, some in enumerate(forms)]
        lines = tensor_type_lines(tensors, names)
        plan = planned(recipe, replace(bare, tensor_types=(*bare.overrides, *lines)))
        over = _measure(plan, choices) - limit
        if over <= 0:
            return plan, tuple((pattern.pattern, name) for pattern, name in lines)
        budget -= over + (limit >> 14 << attempt)  # the next choice may take some more words again
    raise UsageError("nothing fits this size", hint="give a larger one")


def _sums(values: Sequence[Sequence[N]], groups: Sequence[Sequence[int]]) -> list[list[N]]:
    """What all tensors of a group come to in each form."""
    return [[sum(each) for each in zip(*(values[n] for n in group), strict=True)] for group in groups]


def _bytes(tensor: OutputTensor, encoding: Encoding) -> int:
    return math.ceil(tensor.tensor.size * encoding.bits_per_weight / 8)


def _cost(tensors: Sequence[OutputTensor], encodings: Sequence[Encoding]) -> int:
    return sum(_bytes(t, encoding) for t, encoding in zip(tensors, encodings, strict=True))


def _measure(plan: Planned, choices: Choices) -> int:
    """What the limit is for: bytes of all files, or of the tensors alone."""
    return plan.size if choices.target_size else sum(t.nbytes for t in plan.tensors)


def _amount(size: int, choices: Choices, weights: int) -> str:
    if choices.target_size:
        return size_text(size)
    return f"{8 * size / max(weights, 1):.2f} bits per weight"


def _nearest(target: str, model: Model, tensors: Sequence[OutputTensor], choices: Choices, limit: int) -> str:
    """The recipe whose tensors are about as large."""

    def distance(recipe: str) -> float:
        cost = _cost(tensors, assign(target, recipe, model, tensors, choices))
        return abs(math.log(max(cost, 1) / max(limit, 1)))

    return min(NAMED_AFTER[target], key=distance)


# --------------------------------------------------------------------------------------------------- losses


def _all_losses(
    model: Model,
    tensors: Sequence[OutputTensor],
    roles: Sequence[Role | None],
    forms: Sequence[dict[Encoding, str]],
    choices: Choices,
) -> list[list[float]]:
    """The divergence that each form of each tensor is expected to make."""
    losses, parts = [], Counter(roles)  # experts may be tensors of their own
    for tensor, role, some in zip(tensors, roles, forms, strict=True):
        if len(some) < 2:
            losses.append([0.0] * len(some))
            continue
        errors = np.zeros(1 + len(some))
        for number in _matrices(tensor.tensor):
            errors += _errors(model, tensor.tensor, role, number, [*some], choices)
        relative = errors[1:] / errors[0] if errors[0] > 0 else np.zeros(len(some))
        worth = _worth(model, role, tensor.tensor, choices) / (parts[role] if role is not None else 1)
        losses.append((worth * relative).tolist())
    return losses


def _worth(model: Model, role: Role | None, tensor: Tensor, choices: Choices) -> float:
    """The divergence that the coarse rounding of a tensor makes, whatever is joined in it."""
    if role is None:
        return 1.0
    roles = joined_roles(role, tensor, model)
    if choices.calibration is not None and choices.calibration.manifest.sensitivities:
        return sum(choices.calibration.divergence(each) or 0.0 for each in roles)
    layers = model.hyperparameters.num_hidden_layers if model.hyperparameters else 0
    head = Role("output")
    if role == Role("token_embedding") and head not in model.tensors:
        roles.append(head)
    return sum(usual_worth(each, layers) for each in roles)


def _matrices(tensor: Tensor) -> list[int]:
    """Which matrices of a stack are tried."""
    return best.sample(math.prod(tensor.shape[:-2]), _EXPERTS)


def _errors(
    model: Model, tensor: Tensor, role: Role | None, number: int, forms: Sequence[Encoding], choices: Choices
) -> NDArray[np.float64]:
    """The errors of some rows of a matrix: rounded coarsely, and then in each form."""
    rows = tensor.shape[-2]
    values = np.concatenate(
        [
            decode(tensor.read(first, first + 1), tensor.columns)
            for first in (number * rows + row for row in best.sample(rows, _ROWS))
        ]
    )
    calibration, moments = choices.calibration, None
    if role is not None and calibration is not None:
        moments = moments_of(role, len(tensor.shape) > 2, model, calibration, number)
    if moments is None or min(moments.fitting.tokens, moments.checking.tokens) < LEAST_TOKENS:
        return _weight_errors(values, forms)
    total = np.zeros(1 + len(forms))
    with threads.parallel():
        for part in parts_of(tensor.columns, math.lcm(*(form.block_size for form in forms))):
            total += _output_errors(np.ascontiguousarray(values[:, part]), forms, moments, part)
    return total


def _weight_errors(values: FloatArray, forms: Sequence[Encoding]) -> NDArray[np.float64]:
    found = [coarse(values), *(decode(encode(values, form), values.shape[1]) for form in forms)]
    with np.errstate(all="ignore"):
        return np.nan_to_num([float(np.sum((each - values) ** 2, dtype=np.float64)) for each in found])


def _output_errors(
    values: FloatArray, forms: Sequence[Encoding], moments: Moments, part: slice
) -> NDArray[np.float64]:
    """The same for the errors of the outputs, on the text that was kept apart."""
    amount = moments.shrinkage or likely_amount(values.shape[1], moments.fitting.tokens)
    metric = best.shrunk(moments.fit(part), amount)
    check = moments.checking
    judge = (
        {"moments": check.moments(part)}
        if check.matrix is not None
        else {"inputs": np.concatenate([*check.chunks(block=part)])}
    )

    def error(weights: FloatArray) -> float:
        return float(np.nan_to_num(best.output_error(values, weights, **judge)).sum())

    def quantized(form: Encoding) -> FloatArray:
        if isinstance(form, AnyBlockEncoding) and best.supports(form):
            return decode(best.best(values, form, [metric]), values.shape[1])
        return decode(encode(values, form), values.shape[1])

    return np.array([error(coarse(values)), *(error(quantized(form)) for form in forms)])
