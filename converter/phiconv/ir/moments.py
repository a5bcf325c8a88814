"""What goes into a matrix while a text is computed: inputs, or their second moments ``X.T @ X / tokens``.

An importance matrix is the diagonal of the second moments. The whole of them says what an error ``D`` of
the weights makes of the outputs: its mean squares are the diagonal of ``D @ H @ D.T``. Where there are
fewer tokens than columns the inputs themselves are the smaller form of the same numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from phiconv.brief import Brief

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from phiconv.ir import FloatArray

__all__ = [
    "Metric",
    "ModelIdentity",
    "Moments",
    "Sample",
    "add_products",
    "complete_products",
    "tile_product",
    "tiles",
]

_TILE = 1024
"""Columns of a tile of the moments: 4 MB, and a product of such tiles runs at full speed."""

_CHUNK = 512
"""Stored inputs that are widened at a time."""

_ALL = slice(None)


@dataclass(frozen=True, slots=True, repr=False)
class ModelIdentity(Brief):
    """What tells a model from others, however its matrices are stored.

    Attributes:
        name: What it is called, for messages only.
        architecture: Key of ``phiconv.architectures.ARCHITECTURES``.
        shapes: SHA-256 of the shapes of its weights.
        norms: SHA-256 of its norms' weights, rounded to bfloat16: no format quantizes them, and any training
            changes them.
        adapters: SHA-256 of what was merged into it while it was read, which leaves most norms as they are;
            "" for nothing.
    """

    name: str
    architecture: str
    shapes: str
    norms: str
    adapters: str = ""


@dataclass(frozen=True, slots=True, repr=False)
class Sample(Brief):
    """What went into one matrix, in one of two forms. The arrays may be mapped files; none may be written to.

    Attributes:
        tokens: How many tokens.
        columns: Columns of the matrix.
        matrix: Their second moments, float32 of shape (columns, columns); None where the inputs are there.
        inputs: float16, shape (any, columns).
        scales: What multiplies each row of the inputs, float32.
        rows: Which rows of the inputs are this matrix's; None for all of them.
    """

    tokens: int
    columns: int
    matrix: FloatArray | None = None
    inputs: NDArray[np.float16] | None = None
    scales: FloatArray | None = None
    rows: NDArray[np.intp] | None = None

    def chunks(self, size: int = _CHUNK, block: slice = _ALL) -> Iterator[FloatArray]:
        """The inputs in float32, some tokens at a time, shape (at most ``size``, columns of the block).

        There are none where only the moments are there.
        """
        if self.inputs is None or self.scales is None:
            return
        for start in range(0, self.tokens, size):
            some = slice(start, min(start + size, self.tokens))
            rows = some if self.rows is None else self.rows[some]
            x = self.inputs[rows, block].astype(np.float32)
            x *= self.scales[rows, None]
            yield x

    def moments(self, block: slice = _ALL) -> FloatArray:
        """The second moments, float32 of shape (columns, columns), of ``block`` of the columns only.

        Where they are stored it is a view of them, not to be written to.
        """
        if self.matrix is not None:
            return np.asarray(self.matrix[block, block])
        width = len(range(*block.indices(self.columns)))
        total = np.zeros((width, width), np.float32)
        for x in self.chunks(block=block):
            for tile in tiles(width):
                add_products(total, x, tile)
        for tile in tiles(width):
            complete_products(total, self.tokens, tile)
        return total

    def errors(self, difference: FloatArray) -> FloatArray:
        """The mean square of each output's error, where ``difference`` is that of the weights' rows.

        Args:
            difference: Shape (rows, columns).

        Returns:
            Shape (rows,): the diagonal of ``difference @ moments @ difference.T``, but not counted in this
            way where inputs are the smaller form.
        """
        if self.matrix is not None:
            products: FloatArray = np.einsum("ij,ij->i", difference @ self.matrix, difference)
            return products
        total = np.zeros(len(difference), np.float32)
        for x in self.chunks():
            y = x @ difference.T
            total += np.einsum("ij,ij->j", y, y)
        return total / np.float32(max(self.tokens, 1))


@dataclass(frozen=True, slots=True)
class Metric:
    """The error that counts in one matrix, for whoever quantizes its rows.

    Attributes:
        files: Second moments of neighbouring columns, shrunk: float32 of shape (columns, columns), in NumPy's
            own file format.
    """

    files: tuple[Path, ...]


@dataclass(frozen=True, slots=True, repr=False)
class Moments(Brief):
    """What went into one matrix, measured on texts of which a part was kept apart.

    Attributes:
        squares: Sums of the squares of all inputs by column, float64, as an importance matrix has them.
        fitting: The part to choose weights by, about three quarters of the tokens. It may have no token, as
            may the other one, where the matrix is one of a stack.
        checking: The other part: other documents where there were several, else other windows of the text.
        shrinkage: How far correlations are not to be trusted, where that is not to be found out with the
            other part.
    """

    squares: NDArray[np.float64]
    fitting: Sample
    checking: Sample
    shrinkage: float | None = None

    @property
    def tokens(self) -> int:
        """Tokens of both parts."""
        return self.fitting.tokens + self.checking.tokens

    def fit(self, block: slice = _ALL) -> FloatArray:
        """The second moments of the part to choose by, see `Sample.moments`."""
        return self.fitting.moments(block)

    def check(self) -> Sample:
        """The part to judge by."""
        return self.checking

    def all(self, block: slice = _ALL) -> FloatArray:
        """The second moments of all tokens, in memory of their own."""
        parts = [part for part in (self.fitting, self.checking) if part.tokens]
        total = np.zeros(0, np.float32)
        for number, part in enumerate(parts):
            share = part.moments(block) * np.float32(part.tokens / self.tokens)
            total = np.add(total, share, out=total) if number else share
        return total

    def diagonal(self) -> FloatArray:
        """The mean squares of all inputs by column, float32: the diagonal of `all` without its rounding."""
        return (self.squares / max(self.tokens, 1)).astype(np.float32)


def tiles(columns: int) -> Iterator[tuple[slice, slice]]:
    """The tiles of a symmetric matrix on and above its diagonal: always the same ones for so many columns."""
    for i in range(0, columns, _TILE):
        for j in range(i, columns, _TILE):
            yield slice(i, min(i + _TILE, columns)), slice(j, min(j + _TILE, columns))


def add_products(total: FloatArray, x: FloatArray, tile: tuple[slice, slice]) -> None:
    """Adds ``x.T @ x`` to a tile of sums; other tiles may be done at the same time."""
    total[tile] += tile_product(x, tile)


def tile_product(x: FloatArray, tile: tuple[slice, slice]) -> FloatArray:
    """A tile of ``x.T @ x``."""
    i, j = tile
    product: FloatArray = x[:, i].T @ x[:, j]
    return product


def complete_products(total: FloatArray, tokens: int, tile: tuple[slice, slice]) -> None:
    """Makes moments of sums: divides a tile, and copies it to the other side of the diagonal."""
    i, j = tile
    total[i, j] /= np.float32(max(tokens, 1))
    if i != j:
        total[j, i] = total[i, j].T
