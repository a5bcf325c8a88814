"""Collects what goes into the matrices of a stage, in arrays on the disk.

Sums of products are kept where there are more tokens than columns, and the inputs themselves where there
are fewer. The arrays are mapped files, so that memory holds one batch of tokens and a few tiles, whatever
the model. Tokens come in the same batches and sums grow in the same tiles in every run: the bytes depend on
nothing else.
"""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from phiconv.conversion.tasks import in_order
from phiconv.errors import WeightError
from phiconv.forward import threads
from phiconv.ir.moments import complete_products, tiles
from phiconv.quality.passing import HalfRows, ProductSums, SingleRows, TileSums
from phiconv_formats.calibration.arrays import ArrayFile
from phiconv_formats.calibration.manifest import (
    PARTS,
    InputEntry,
    PartEntry,
    arrays_of_part,
    squares_of,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from phiconv.conversion.tasks import Workers
    from phiconv.forward.stages import MatrixInput
    from phiconv.ir.model import Model
    from phiconv.quality.passing import Seen, Sink
    from phiconv.quality.workspace import Workspace
    from phiconv_formats.calibration.manifest import PartName

__all__ = ["Collector", "Measured"]


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

    def scratch(self, part: PartName) -> ArrayFile:
        """The inputs of a part, while workers compute them and until they have added up their products."""
        return ArrayFile(f"rows.{self.stem}.{part}.npy", "float32", (self.tokens[part], self.columns))

    @property
    def scratch_size(self) -> int:
        """Bytes of those arrays."""
        return sum(self.scratch(part).size for part in PARTS if "moments" in self.files(part))

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


class _Store:
    """All that is collected of one input."""

    def __init__(self, measured: Measured, space: Workspace, workers: Workers) -> None:
        self.measured, self._space, self._workers = measured, space, workers
        self.squares = np.zeros((measured.matrices, measured.columns))
        self._counts = {part: np.zeros(measured.matrices, np.int64) for part in PARTS}
        self._runs: dict[PartName, list[tuple[int, int, int]]] = {part: [] for part in PARTS}
        self._totals: dict[PartName, NDArray[np.float32]] = {}
        self.sinks = {part: self._sink(part) for part in PARTS}

    def _sink(self, part: PartName) -> Sink:
        """What takes the inputs of a part; workers cannot add to sums, which are in order."""
        files = self.measured.files(part)
        if "moments" not in files:
            return HalfRows({kind: self._space.rows(file) for kind, file in files.items()})
        self._totals[part] = self._space.create(files["moments"])
        if self._workers.executor is not None:
            return SingleRows(self._space.rows(self.measured.scratch(part)))
        return ProductSums(self._totals[part], stacked=self._totals[part].ndim == 3)

    def take(self, part: PartName, seen: Seen) -> None:
        self.squares[seen.matrix] += seen.squares
        self._counts[part][seen.matrix] += seen.tokens
        self._runs[part].append((seen.matrix, seen.row, seen.row + seen.tokens))

    def entry(self) -> InputEntry:
        """Completes all arrays."""
        measured = self.measured
        self._space.create(measured.squares)[...] = self.squares
        parts = {}
        for part in PARTS:
            counts = tuple(self._counts[part].tolist())
            if part in self._totals:
                self._complete(part, counts)
            assert sum(counts) == measured.tokens[part]  # noqa: S101 - every token was here
            sha256 = {kind: self._space.seal(file) for kind, file in measured.files(part).items()}
            parts[part] = PartEntry(counts, sha256)
        roles = tuple(role.name for role in measured.input.roles)
        layer, stacked = measured.input.roles[0].layer, measured.input.experts is not None
        return InputEntry(layer, roles, measured.columns, stacked, self._space.seal(measured.squares), parts)

    def _complete(self, part: PartName, counts: Sequence[int]) -> None:
        """Makes moments of sums, which workers have yet to add up."""
        totals = self._totals.pop(part)
        totals = totals if totals.ndim == 3 else totals[None]
        each = [(matrix, tile) for matrix in range(len(totals)) for tile in tiles(totals.shape[-1])]
        sink = self.sinks[part]
        if isinstance(sink, SingleRows):
            tasks = (TileSums(sink.rows, self._rows_of(part, matrix), tile) for matrix, tile in each)
            for (matrix, tile), sums in zip(each, in_order(self._workers, tasks), strict=True):
                totals[matrix][tile] = sums
            self._space.remove(sink.rows)
        threads.run(partial(complete_products, totals[m], counts[m], tile) for m, tile in each)

    def _rows_of(self, part: PartName, matrix: int) -> list[tuple[int, int]]:
        return [(start, stop) for number, start, stop in self._runs[part] if number == matrix]


class Collector:
    """Collects a stage.

    Args:
        model: For messages.
        measured: What goes into the stage's matrices.
        space: Where the arrays are made.
        workers: Who adds up products.
    """

    def __init__(
        self, model: Model, measured: Sequence[Measured], space: Workspace, workers: Workers
    ) -> None:
        self._model = model
        self._stores = [_Store(each, space, workers) for each in measured]

    def sinks(self, part: PartName) -> tuple[Sink, ...]:
        """What takes each input of the stage, for tokens of a part."""
        return tuple(store.sinks[part] for store in self._stores)

    def take(self, part: PartName, seen: Sequence[Seen]) -> None:
        """Adds up what came of a batch; batches must come in order.

        Raises:
            WeightError: An input is NaN or infinite.
        """
        for each in seen:
            store = self._stores[each.input]
            store.take(part, each)
            if not math.isfinite(store.squares[each.matrix].sum()):
                raise WeightError(
                    "an input of this matrix is NaN or infinite",
                    path=self._model.path,
                    at=f"weight {store.measured.input.roles[0]}",
                    hint="the weights hold values that are not finite",
                )

    def finish(self) -> tuple[InputEntry, ...]:
        """Completes all arrays."""
        return tuple(store.entry() for store in self._stores)
