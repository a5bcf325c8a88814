"""Which points of a grid are next to what is no point of it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from phiconv.ir.codebooks import grid
from phiconv.quantizers.numerics.scratch import scratch

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from phiconv.ir import FloatArray
    from phiconv.ir.codebooks import CodebookEncoding

__all__ = ["Grid", "grid_of"]


@dataclass(frozen=True, slots=True)
class Grid:
    """A grid, ready to be searched. Codes side by side are a key: a number with the base ``levels``.

    Attributes:
        levels: Different codes.
        length: Codes of a point.
        codes: Of every point, uint8, shape (points, length).
        values: The odd numbers ``2 code + 1`` that the codes stand for, float32, shape (points, length).
        numbers: The number of the point by the key; -1 where there is none.
        counts: How many neighbours a key has; 0 for a point.
        first: Where they begin in ``neighbours``.
        neighbours: Numbers of points, for every key from the nearest on and then in their order.
    """

    levels: int
    length: int
    codes: NDArray[np.uint8]
    values: FloatArray
    numbers: NDArray[np.intp]
    counts: NDArray[np.intp]
    first: NDArray[np.intp]
    neighbours: NDArray[np.intp]

    def nearest(
        self, keys: NDArray[np.intp], x: FloatArray, weights: FloatArray, scale: FloatArray
    ) -> NDArray[np.intp]:
        """The neighbour with the least error ``sum(w (scale q - x)**2)``, the first one of equals.

        Args:
            keys: Of what is no point, shape (m,).
            x: Their weights, shape (m, length).
            weights: What an error in each counts.
            scale: Shape (m,).
        """
        counts = self.counts[keys]
        order = np.argsort(-counts.astype(np.int16), kind="stable")  # so those with a k-th one are the first
        first, have = self.first[keys[order]], np.bincount(counts)
        have = len(keys) - np.cumsum(have)  # more than k neighbours
        x, weights = x.take(order, axis=0), weights.take(order, axis=0)
        scales = np.repeat(scale[order], self.length).reshape(x.shape)
        best, result = np.full(len(keys), np.inf, np.float32), self.neighbours[first]
        memory = scratch("nearest", (2, *x.shape), np.float32)
        for k, m in enumerate(have[:-1].tolist()):
            points = self.neighbours[first[:m] + k]
            difference, errors = memory[:, :m]
            self.values.take(points, axis=0, out=difference, mode="clip")
            difference *= scales[:m]
            difference -= x[:m]
            np.multiply(weights[:m], difference, out=errors)
            errors *= difference
            error = errors[:, 0].copy()
            for i in range(1, self.length):
                error += errors[:, i]
            better = error < best[:m]
            np.copyto(best[:m], error, where=better)
            np.copyto(result[:m], points, where=better)
        unordered = np.empty_like(result)
        unordered[order] = result
        return unordered


@cache
def grid_of(encoding: CodebookEncoding, distances: int) -> Grid:
    """The grid of an encoding.

    Args:
        encoding: One that has a grid.
        distances: The neighbours of a key are the points at so many different distances, the least ones.
    """
    codes = grid(encoding)
    length = codes.shape[1]
    levels = 8 if length == 4 else 3
    powers = levels ** np.arange(length)
    numbers = np.full(levels**length, -1, np.intp)
    numbers[codes @ powers] = np.arange(len(codes))
    counts = np.zeros(len(numbers), np.intp)
    neighbours = np.zeros(0, np.intp)
    if distances:
        keys = np.flatnonzero(numbers < 0)
        counts[keys], neighbours = _neighbours(keys[:, None] // powers % levels, codes, distances)
    first = np.cumsum(counts) - counts
    values = 2 * codes.astype(np.float32) + 1
    return Grid(levels, length, codes, values, numbers, counts, first, neighbours)


def _neighbours(
    places: NDArray[np.intp], codes: NDArray[np.uint8], distances: int
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """How many neighbours every place has, and all of them."""
    a, b = places.astype(np.float32), codes.astype(np.float32)
    squares = np.square(a).sum(axis=1)[:, None] + np.square(b).sum(axis=1) - 2 * (a @ b.T)  # small integers
    limit = squares.min(axis=1)
    for _ in range(distances - 1):
        limit = np.where(squares > limit[:, None], squares, np.inf).min(axis=1)
    place, point = np.nonzero(squares <= limit[:, None])
    order = np.lexsort((point, squares[place, point], place))
    return np.bincount(place, minlength=len(places)), point[order]
