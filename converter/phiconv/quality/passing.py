"""A batch of tokens passes through a stage of the decoder, here or on a worker: what is kept of it.

Whatever is large goes into files that all workers see, each batch to a place of its own: what comes out of
the stage, and what goes into its matrices. Sums of squares are small and come back.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np

from phiconv.forward import threads
from phiconv.forward.stages import run_stage
from phiconv.ir.moments import add_products, tile_product, tiles

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from phiconv.forward.layers import Array
    from phiconv.forward.stages import Stage
    from phiconv.ir import FloatArray
    from phiconv.ir.model import Model, Role
    from phiconv.quality.workspace import Rows

__all__ = ["HalfRows", "Passage", "ProductSums", "Seen", "SingleRows", "Sink", "TileSums"]

_ROWS = 256
"""Inputs that are rounded at a time."""


class Sink(Protocol):
    """Takes what goes into one matrix, or each matrix of a stack."""

    def add(self, x: Array, matrix: int, row: int) -> None:
        """``x`` are inputs of a ``matrix``; the first of them is the input ``row`` of all."""


class ProductSums:
    """Sums of products, in memory or a mapped file of this machine; of a stack with a matrix in front."""

    def __init__(self, total: NDArray[np.float32], *, stacked: bool) -> None:
        self._total, self._stacked = total, stacked

    def add(self, x: Array, matrix: int, row: int) -> None:  # noqa: ARG002
        """Adds to the sums."""
        total = self._total[matrix] if self._stacked else self._total
        threads.run(partial(add_products, total, x, tile) for tile in tiles(x.shape[1]))


@dataclass(frozen=True, slots=True)
class SingleRows:
    """The inputs as they are, until their products are summed by `TileSums`."""

    rows: Rows

    def add(self, x: Array, matrix: int, row: int) -> None:  # noqa: ARG002
        """Writes them down."""
        self.rows.write(row, x)


@dataclass(frozen=True, slots=True)
class HalfRows:
    """The inputs, rounded to float16, in the arrays "inputs" and "scales", and "experts" of a stack.

    Each row is first multiplied with the power of two that brings its largest number just below the largest
    one of float16. So none overflows, those up to 2^28 times smaller keep 11 bits, and no product of two of
    these is off by more than 5e-4 of itself.
    """

    arrays: Mapping[str, Rows]

    def add(self, x: Array, matrix: int, row: int) -> None:
        """Writes them down, rounded."""
        for start in range(0, len(x), _ROWS):
            rows = x[start : start + _ROWS]
            exponents = np.clip(np.frexp(np.abs(rows).max(axis=1))[1] - 15, -110, 110)
            self.arrays["inputs"].write(row + start, np.ldexp(rows, -exponents[:, None]))
            self.arrays["scales"].write(row + start, np.ldexp(np.float32(1), exponents))
            if "experts" in self.arrays:
                self.arrays["experts"].write(row + start, np.full(len(rows), matrix))


class Seen(NamedTuple):
    """Inputs of a matrix that a batch had.

    Attributes:
        input: The number of the input in its stage.
        matrix: Of a stack; else 0.
        row: Which input of all the first one is.
        tokens: How many.
        squares: Sums of their squares by column.
    """

    input: int
    matrix: int
    row: int
    tokens: int
    squares: Array


@dataclass(frozen=True, slots=True)
class Passage:
    """A batch of tokens, on its way through a stage.

    Attributes:
        model: The model.
        stage: One of its stages.
        ids: The tokens, shape (windows, context).
        at: The number of the first one among all.
        first: The same within the part that the batch belongs to.
        sinks: What takes each input of the stage.
        before: What comes out of the stage before, by token; None for the first one.
        after: Where to put the same of this one; None for the last one.
    """

    model: Model
    stage: Stage
    ids: NDArray[np.intp]
    at: int
    first: int
    sinks: Sequence[Sink]
    before: Rows | None
    after: Rows | None

    def __call__(self) -> list[Seen]:
        """Computes it; returns what went into the matrices, in order."""
        numbers = {each.roles[0]: number for number, each in enumerate(self.stage.inputs)}
        rows = [self.first * each.used for each in self.stage.inputs]
        found: list[Seen] = []

        def watch(role: Role, x: Array, expert: int | None) -> None:
            if (number := numbers.get(role)) is None:  # another one with the same input was seen
                return
            matrix, row = expert or 0, rows[number]
            self.sinks[number].add(x, matrix, row)
            found.append(Seen(number, matrix, row, len(x), np.einsum("ij,ij->j", x, x)))
            rows[number] += len(x)

        place = slice(self.at, self.at + self.ids.size)
        x = None if self.before is None else np.array(self.before.mapped()[place])
        with threads.parallel(), np.errstate(all="ignore"):
            result = run_stage(self.model, self.stage, self.ids, x, watch)
        if self.after is not None and result is not None:
            self.after.write(self.at, result)
        return found


@dataclass(frozen=True, slots=True)
class TileSums:
    """A tile of the sums of products of inputs, added up in the order in which `ProductSums` does.

    Attributes:
        rows: The inputs.
        runs: Which of them each batch had, first and last one.
        tile: See `phiconv.ir.moments.tiles`.
    """

    rows: Rows
    runs: Sequence[tuple[int, int]]
    tile: tuple[slice, slice]

    def __call__(self) -> FloatArray:
        """The sums, of the tile's shape."""
        inputs, (i, j) = self.rows.mapped(), self.tile
        total = np.zeros((i.stop - i.start, j.stop - j.start), np.float32)
        with threads.parallel(), np.errstate(all="ignore"):
            for start, stop in self.runs:
                total += tile_product(inputs[start:stop], self.tile)
        return total
