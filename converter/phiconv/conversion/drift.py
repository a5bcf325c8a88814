"""What a matrix is to become, so that it makes up for what its input has changed. See `sequential`."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from phiconv.quantizers import best

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from phiconv.ir import AnyBlockEncoding, Blocks, FloatArray, Tensor
    from phiconv.ir.moments import Moments

__all__ = ["BATCH", "Target", "Value"]

BATCH = 2048
"""Tokens that are computed at a time."""


@dataclass(frozen=True, slots=True)
class Value:
    """What a call gives, for all tokens: of the model as it is, and of what is quantized so far."""

    exact: NDArray[np.float32]
    actual: NDArray[np.float32]
    files: tuple[Path, ...]

    def release(self) -> None:
        """Removes the files, which may be many times as large as memory."""
        for file in self.files:
            with suppress(OSError):  # where a mapped file cannot be removed, the folder is, at the end
                file.unlink()


@dataclass(frozen=True, slots=True)
class Target:
    """What the rows of a matrix are to become before they are quantized, and under which error.

    Attributes:
        parts: Neighbouring columns that are looked at together.
        metrics: The shrunk second moments of each part.
        drift: Of each part: what is to be multiplied with the rows, shape (columns, columns of the part), to
            make up for what the input has changed; empty for no drift.
        residual: Of each part, what is to be added for the residual stream, shape (rows, columns); or empty.
    """

    parts: tuple[slice, ...]
    metrics: tuple[FloatArray, ...]
    drift: tuple[FloatArray, ...] = ()
    residual: tuple[FloatArray, ...] = ()

    @staticmethod
    def plain(moments: Moments, amounts: Sequence[tuple[slice, float]]) -> Target:
        """The rows as they are."""
        metrics = tuple(best.shrunk(moments.all(part), amount) for part, amount in amounts)
        return Target(tuple(part for part, _ in amounts), metrics)

    @staticmethod
    def of(
        tensor: Tensor,
        value: Value,
        residual: Value | None,
        amounts: Sequence[tuple[slice, float]],
    ) -> Target:
        """The rows that make up for the drift of the input, and of the residual stream."""
        metrics, drift, added = [], [], []
        tokens, columns = value.exact.shape
        for part, amount in amounts:
            width = part.stop - part.start
            own = np.zeros((width, width), np.float32)
            crossed = np.zeros((columns, width), np.float32)
            beside = np.zeros((tensor.rows if residual is not None else 0, width), np.float32)
            for start in range(0, tokens, BATCH):
                some = slice(start, start + BATCH)
                x, y = np.asarray(value.exact[some]), np.asarray(value.actual[some])
                own += y[:, part].T @ y[:, part]
                crossed += (x - y).T @ y[:, part]
                if residual is not None:
                    beside += (residual.exact[some] - residual.actual[some]).T @ y[:, part]
            own /= np.float32(tokens)
            metric = best.shrunk(own, amount if np.isfinite(amount) else 1.0)
            inverse = np.linalg.inv(metric.astype(np.float64)) / tokens
            metrics.append(best.shrunk(own, amount))
            drift.append((crossed @ inverse).astype(np.float32))
            if residual is not None:
                added.append((beside @ inverse).astype(np.float32))
        return Target(tuple(part for part, _ in amounts), tuple(metrics), tuple(drift), tuple(added))

    def rows(self, values: FloatArray, numbers: slice | Sequence[int]) -> FloatArray:
        """What rows with these numbers are to become."""
        if not self.drift:
            return values
        result = values.copy()
        for number, part in enumerate(self.parts):
            result[:, part] += values @ self.drift[number]
            if self.residual:
                result[:, part] += self.residual[number][numbers]
        return result

    def quantize(self, values: FloatArray, start: int, encoding: AnyBlockEncoding) -> Blocks:
        """The best blocks of some rows, the first of which is ``start``."""
        wanted = self.rows(values, slice(start, start + len(values)))
        return best.best(wanted, encoding, [*self.metrics])
