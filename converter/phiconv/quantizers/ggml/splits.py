"""The best split of a few weights into three parts, which ggml's IQ1 quantizers look for exhaustively.

In ascending order, the first weights of a group get one value, the next ones a second and the rest a third:
-1, 0 and 1, with 1/8 added to each or subtracted. The scale of least weighted squared error is then
``product / square``, and it takes ``product**2 / square`` off the error, where ``product`` and ``square`` are
the sums of ``weight value x`` and of ``weight value value``. Both follow from sums over the first weights in
order, so that no weight is looked at again for any split.

All is float32 in the order of operations of ggml-quants.c: many splits are equally good, or nearly, and
rounding decides between them. ggml compares each with the best one before it. Here all are measured first,
and only the few that come near the best one are compared in that way.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

from phiconv.quantizers.numerics.scratch import scratch

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from phiconv.ir import FloatArray

__all__ = ["MINUS", "PLUS", "Split", "best_split"]

PLUS = np.array([-0.875, 0.125, 1.125], np.float32)
MINUS = np.array([-1.125, -0.125, 0.875], np.float32)
"""The values of codes 0 to 2, shifted up and down."""

_PART = 768
"""Groups at a time."""

_NEAR = np.float32(1 - 1e-3)
"""What is worse than the best split by more than this is never chosen, however rounding errors add up: there
are about a thousand splits, and a comparison errs by less than 5e-7."""

_SMALLEST, _LARGEST = np.float32(1e-17), np.float32(1e17)
"""Between them, no number that matters to a comparison overflows, or loses digits below float32's range."""


class Split(NamedTuple):
    """The splits of groups.

    Attributes:
        codes: 0, 1 or 2 for every weight, uint8, shape (size, m).
        down: Whether the values of the first and the second half are shifted down, bool, shape (2, m).
        scale: Perhaps negative, float32, shape (m,); infinite where sums overflow.
    """

    codes: NDArray[np.uint8]
    down: NDArray[np.bool_]
    scale: FloatArray


def best_split(x: FloatArray, weights: FloatArray, *, halves: bool) -> Split:
    """The best split of every group; of equals, the first one that ggml comes to.

    Args:
        x: Shape (size, m).
        weights: What an error in each counts, same shape.
        halves: Whether the two halves of a group may be shifted differently.
    """
    size, count = x.shape
    split = Split(np.empty(x.shape, np.uint8), np.empty((2, count), np.bool_), np.empty(count, np.float32))
    position = np.arange(size)[:, None]
    for start in range(0, count, _PART):
        part = slice(start, start + _PART)
        order = np.argsort(x[:, part].T, axis=1, kind="stable").T  # stable as glibc's qsort, a merge sort
        sums = _sums(x[:, part], weights[:, part], order, halves=halves)
        pair, shifts, split.scale[part] = _choose(sums)
        first, second = _pairs(size)[:, pair]
        split.down[:, part] = shifts >> 1 if halves else shifts, shifts & 1
        codes = (position >= first).view(np.uint8) + (position >= second).view(np.uint8)
        np.put_along_axis(split.codes[:, part], order, codes, axis=0)
    return split


# ----------------------------------------------------------------------------------------------------- sums


class _Sums(Protocol):
    """Sums over the first weights, from which follow those of any split."""

    shape: tuple[int, int]
    """Weights of a group, and groups."""

    choices: int
    """Ways to shift."""

    weight: FloatArray
    """What all errors in a group count, shape (groups,)."""

    def of(self, first: Any, second: Any) -> Iterator[tuple[FloatArray, FloatArray]]:
        """Product and square for every choice of shifts.

        Args:
            first: Index of the ends of first parts, into arrays of shape (size + 1, m).
            second: Likewise of second parts.
        """


class _OneShift:
    """All weights are shifted alike: up, down."""

    choices = 2

    def __init__(self, x: FloatArray, w: FloatArray) -> None:
        self.shape = len(x) - 1, x.shape[1]
        self.x, self.w, self.weight = x, w, w[-1]
        rest_x, rest_w = x[-1] - x, w[-1] - w
        self.low = [(x * low, w * low * low) for low, _, _ in (PLUS, MINUS)]
        self.high = [(rest_x * high, rest_w * high * high) for _, _, high in (PLUS, MINUS)]

    def of(self, first: Any, second: Any) -> Iterator[tuple[FloatArray, FloatArray]]:
        middle, middle_square = self.x[second] - self.x[first], self.w[second] - self.w[first]
        middle *= PLUS[1]
        middle_square *= PLUS[1]
        middle_square *= PLUS[1]
        for k, add in enumerate((np.add, np.subtract)):
            product = add(self.low[k][0][first], middle)
            product += self.high[k][0][second]
            square = self.low[k][1][first] + middle_square
            square += self.high[k][1][second]
            yield product, square


class _TwoShifts:
    """Either half has its own shift: both up, the second down, the first down, both down."""

    choices = 4

    def __init__(self, x: FloatArray, w: FloatArray) -> None:
        self.shape = x.shape[1] - 1, x.shape[2]
        self.x, self.halves, self.weight = x, [], w[0, -1] + w[1, -1]
        for half in range(2):
            for low, middle, high in (PLUS, MINUS):
                first = w[half, -1] * high * high + w[half] * (low * low - middle * middle)
                second = w[half] * (middle * middle - high * high)
                self.halves.append((x[half, -1] * high, first, second))

    def of(self, first: Any, second: Any) -> Iterator[tuple[FloatArray, FloatArray]]:
        moved = [x[first] + x[second] for x in self.x]  # since the values are 1 apart
        groups = first[1] if isinstance(first, tuple) else slice(None)
        products = [whole[groups] - moved[i >> 1] for i, (whole, _, _) in enumerate(self.halves)]
        squares = [from_first[first] + from_second[second] for _, from_first, from_second in self.halves]
        for a in range(2):
            for b in range(2, 4):
                yield products[a] + products[b], squares[a] + squares[b]


def _sums(x: FloatArray, weights: FloatArray, order: NDArray[np.intp], *, halves: bool) -> _Sums:
    """Sums of ``weight x`` and of ``weight`` over 0, 1, ... weights in order; perhaps one for each half."""
    size, m = x.shape
    w = np.take_along_axis(weights, order, axis=0)
    terms = np.zeros((2, 2 if halves else 1, size + 1, m), np.float32)
    terms[0, :, 1:], terms[1, :, 1:] = w * np.take_along_axis(x, order, axis=0), w
    if halves:
        terms[:, :, 1:] *= np.stack([order < size // 2, order >= size // 2])
    np.add.accumulate(terms, axis=2, out=terms)
    return _TwoShifts(*terms) if halves else _OneShift(*terms[:, 0])


# --------------------------------------------------------------------------------------------------- choice


@cache
def _pairs(size: int) -> NDArray[np.intp]:
    """The ends of first and second parts, in ggml's order: shape (2, splits)."""
    return np.stack(np.triu_indices(size + 1))


def _choose(sums: _Sums) -> tuple[NDArray[np.intp], NDArray[np.intp], FloatArray]:
    """The number of the pair of ends, that of the shifts, and the scale, of groups."""
    (size, m), (first, second) = sums.shape, _pairs(sums.shape[0])
    scores = scratch("scores", (len(first), sums.choices, m), np.float32)
    at = 0
    for end in range(size + 1):
        rows = slice(at, at + size + 1 - end)
        for k, (product, square) in enumerate(sums.of(end, slice(end, None))):
            np.multiply(product, product, out=product)
            np.divide(product, square, out=scores[rows, k])
        at = rows.stop
    candidate, group = _near_the_best(scores.reshape(-1, m), sums.weight)
    pair, shifts = np.divmod(candidate, sums.choices)
    products, squares = (
        np.choose(shifts, values)
        for values in zip(*sums.of((first[pair], group), (second[pair], group)), strict=True)
    )
    chosen, scale = _in_order(group, products, squares, m)
    found = chosen >= 0
    return np.where(found, pair[chosen], 0), np.where(found, shifts[chosen], 0), scale


def _near_the_best(scores: FloatArray, weight: FloatArray) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Candidates that may be chosen, and their groups: by group, then in their order.

    Args:
        scores: What candidates take off the error, shape (candidates, m).
        weight: The sums of the weights of the groups, shape (m,).
    """
    best = np.fmax.reduce(scores, axis=0)
    plain = (np.minimum(best, weight) > _SMALLEST) & (np.maximum(best, weight) < _LARGEST)
    limit = np.where(plain, best * _NEAR, np.float32(-np.inf))
    far = np.less(scores, limit, out=scratch("far", scores.shape, np.bool_))
    candidate, group = np.divmod(np.flatnonzero(np.logical_not(far, out=far)), scores.shape[1])
    order = np.argsort(group.astype(np.uint16), kind="stable")
    return candidate[order], group[order]


def _in_order(
    group: NDArray[np.intp], products: FloatArray, squares: FloatArray, count: int
) -> tuple[NDArray[np.intp], FloatArray]:
    """Looks at the candidates of every group one after the other, and takes one that is better than the best.

    Returns:
        Its place and scale, shape (count,); -1 and infinity where nothing is better than nothing.
    """
    candidates = np.bincount(group, minlength=count)
    first = np.cumsum(candidates) - candidates
    by_number = np.argsort(-candidates, kind="stable")  # so those with a k-th candidate are the first
    first, have = first[by_number], count - np.cumsum(np.bincount(candidates))
    best = np.full(count, np.finfo(np.float32).min)
    scale, chosen = np.full(count, np.inf, np.float32), np.full(count, -1, np.intp)
    for k, m in enumerate(have[:-1].tolist()):
        places = first[:m] + k
        product, square = products[places], squares[places]
        better = np.flatnonzero((square > 0) & (product * product > best[:m] * square))
        product = product[better]
        scale[better] = product / square[better]
        best[better] = scale[better] * product
        chosen[better] = places[better]
    result = np.empty_like(chosen), np.empty_like(scale)
    result[0][by_number], result[1][by_number] = chosen, scale
    return result
