"""Collects what goes into the matrices of a stage, in arrays on the disk.

Sums of products are kept where there are more tokens than columns, and the inputs themselves where there
are fewer. The arrays are mapped files, so that memory holds one batch of tokens and a few tiles, whatever
the model. Tokens come in the same batches and sums grow in the same tiles in every run: the bytes depend on
nothing else.
"""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from phiconv.errors import WeightError
from phiconv.forward import threads
from phiconv.ir.moments import add_products, complete_products, tiles
from phiconv_formats.calibration.manifest import (
    PARTS,
    InputEntry,
    PartEntry,
    arrays_of_part,
    squares_of,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from phiconv.forward.layers import Array
    from phiconv.forward.stages import MatrixInput
    from phiconv.ir.model import Model, Role
    from phiconv_formats.calibration.arrays import ArrayFile
    from phiconv_formats.calibration.manifest import PartName

__all__ = ["Collector", "Measured"]

_ROWS = 256
"""Inputs that are rounded at a time."""


class Measured:
    """One input and the arrays that become of it.

    Attributes:
        input: Which one.
        stem: What the names of the files begin with.
        columns: Of the matrices.
        matrices: How many in a stack, or 1.
        tokens: How many there will be, by part.
    """

    def __init__(self, model: Model, each: MatrixInput, tokens: Mapping[PartName, int]) -> None:
        role = next(role for role in each.roles if role in model.tensors)
        self.input = each
        self.stem = each.roles[0].name if role.layer is None else f"{role.layer:03d}.{each.roles[0].name}"
        self.columns = model.tensors[role].shape[-1]
        self.matrices = each.experts or 1
        self.tokens = {part: count * each.used for part, count in tokens.items()}

    def files(self, part: PartName) -> dict[str, ArrayFile]:
        """The arrays of a part, by kind."""
        total = self.tokens[part]
        # How many each matrix of a stack will get is not known yet, and only their sum is in the shapes.
        counts = (total, *(0 for _ in range(1, self.matrices)))
        products = total > self.matrices * self.columns
        stacked = self.input.experts is not None
        return arrays_of_part(self.stem, part, self.columns, counts, moments=products, stacked=stacked)

    @property
    def squares(self) -> ArrayFile:
        """The array of sums of squares."""
        return squares_of(self.stem, self.columns, self.matrices)

    @property
    def size(self) -> int:
        """Bytes of all arrays."""
        return self.squares.size + sum(f.size for part in PARTS for f in self.files(part).values())

    @property
    def products(self) -> int:
        """Multiplications that the sums of products take."""
        each = self.columns * (self.columns + 1) // 2
        return sum(each * self.tokens[part] for part in PARTS if "moments" in self.files(part))


class _Products:
    """Sums of products, and at the end second moments."""

    def __init__(self, total: NDArray[np.float32]) -> None:
        self.total = total  # mapped; of a stack with a matrix in front

    def add(self, x: Array, matrix: int) -> None:
        total = self.total if self.total.ndim == 2 else self.total[matrix]
        threads.run(partial(add_products, total, x, tile) for tile in tiles(x.shape[1]))

    def finish(self, counts: Sequence[int]) -> None:
        for number, count in enumerate(counts):
            total = self.total if self.total.ndim == 2 else self.total[number]
            threads.run(partial(complete_products, total, count, tile) for tile in tiles(total.shape[1]))


class _Inputs:
    """The inputs, rounded to float16.

    Each row is first multiplied with the power of two that brings its largest number just below the largest
    one of float16. So none overflows, those up to 2^28 times smaller keep 11 bits, and no product of two of
    these is off by more than 5e-4 of itself.
    """

    def __init__(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        self.arrays = arrays
        self.done = 0

    def add(self, x: Array, matrix: int) -> None:
        for start in range(0, len(x), _ROWS):
            rows = x[start : start + _ROWS]
            place = slice(self.done, self.done + len(rows))
            largest = np.abs(rows).max(axis=1)
            exponents = np.clip(np.frexp(largest)[1] - 15, -110, 110)
            self.arrays["inputs"][place] = np.ldexp(rows, -exponents[:, None])
            self.arrays["scales"][place] = np.ldexp(np.float32(1), exponents)
            if "experts" in self.arrays:
                self.arrays["experts"][place] = matrix
            self.done += len(rows)

    def finish(self, counts: Sequence[int]) -> None:
        assert self.done == sum(counts) == len(self.arrays["scales"])  # noqa: S101 - every token was here


class _Store:
    """All that is collected of one input."""

    def __init__(self, measured: Measured, create: Callable[[ArrayFile], NDArray[Any]]) -> None:
        self.measured = measured
        self.squares = np.zeros((measured.matrices, measured.columns))
        self.counts = {part: np.zeros(measured.matrices, np.int64) for part in PARTS}
        self.parts: dict[PartName, _Products | _Inputs] = {}
        for part in PARTS:
            arrays = {kind: create(file) for kind, file in measured.files(part).items()}
            self.parts[part] = _Products(arrays["moments"]) if "moments" in arrays else _Inputs(arrays)

    def add(self, part: PartName, x: Array, matrix: int) -> None:
        self.squares[matrix] += np.einsum("ij,ij->j", x, x)
        self.counts[part][matrix] += len(x)
        self.parts[part].add(x, matrix)

    def entry(
        self, create: Callable[[ArrayFile], NDArray[Any]], seal: Callable[[ArrayFile], str]
    ) -> InputEntry:
        measured = self.measured
        create(measured.squares)[...] = self.squares
        parts = {}
        for part in PARTS:
            counts = tuple(self.counts[part].tolist())
            self.parts[part].finish(counts)
            parts[part] = PartEntry(counts, {k: seal(f) for k, f in measured.files(part).items()})
        roles = tuple(role.name for role in measured.input.roles)
        layer, stacked = measured.input.roles[0].layer, measured.input.experts is not None
        return InputEntry(layer, roles, measured.columns, stacked, seal(measured.squares), parts)


class Collector:
    """Collects a stage.

    Args:
        model: For messages.
        measured: What goes into the stage's matrices.
        create: Makes the file of an array and maps it, filled with zeros.
        seal: Says that a file is complete; returns its SHA-256.

    Attributes:
        part: Which part the tokens belong to that are computed.
    """

    def __init__(
        self,
        model: Model,
        measured: Sequence[Measured],
        create: Callable[[ArrayFile], NDArray[Any]],
        seal: Callable[[ArrayFile], str],
    ) -> None:
        self.part: PartName = "fit"
        self._model = model
        self._create, self._seal = create, seal
        self._stores = {each.input.roles[0]: _Store(each, create) for each in measured}

    def watch(self, role: Role, x: Array, expert: int | None) -> None:
        """See `phiconv.forward.interpreter.Watch`."""
        store = self._stores.get(role)
        if store is None:  # another one with the same input was seen
            return
        store.add(self.part, x, expert or 0)
        if not math.isfinite(store.squares[expert or 0].sum()):
            raise WeightError(
                "an input of this matrix is NaN or infinite",
                path=self._model.path,
                at=f"weight {role}",
                hint="the weights hold values that are not finite",
            )

    def finish(self) -> tuple[InputEntry, ...]:
        """Completes all arrays."""
        return tuple(store.entry(self._create, self._seal) for store in self._stores.values())
