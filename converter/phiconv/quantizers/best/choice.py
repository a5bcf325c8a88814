"""How much correlations are to be trusted, found out on rows of a matrix and text of other documents."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from phiconv.quantizers import decode
from phiconv.quantizers.best.matrices import SWEEPS, best, merged
from phiconv.quantizers.best.metric import output_error, shrunk

if TYPE_CHECKING:
    from collections.abc import Sequence

    from phiconv import ir
    from phiconv.ir import Blocks, FloatArray
    from phiconv.quantizers.best.metric import DoubleArray

__all__ = ["AMOUNTS", "Choice", "choose", "keep_better", "sample"]

AMOUNTS = (0.1, 0.3, 1.0, 3.0, math.inf)
"""Shrinkages to try, see `shrunk`."""


@dataclass(frozen=True)
class Choice:
    """What turned out best.

    Attributes:
        amount: The shrinkage; None to keep what the runtime's own quantizer gives.
        error: The error of the outputs, on the text that was not fitted.
        default_error: That of the runtime's own quantizer.
    """

    amount: float | None
    error: float
    default_error: float


def sample(rows: int, count: int = 64) -> list[int]:
    """Rows of a matrix, evenly spread."""
    count = min(rows, count)
    return [(2 * i + 1) * rows // (2 * count) for i in range(count)]


def choose(
    values: FloatArray,
    encoding: ir.AnyBlockEncoding,
    fit: FloatArray,
    default: Blocks,
    *,
    moments: FloatArray | None = None,
    inputs: FloatArray | None = None,
    amounts: Sequence[float] = AMOUNTS,
    sweeps: int = SWEEPS,
) -> Choice:
    """Tries shrinkages.

    Args:
        values: Some rows of the matrix, see `sample`.
        encoding: One that `supports` knows.
        fit: The second moment of the inputs on some documents, not shrunk.
        default: What the runtime's own quantizer makes of the rows.
        moments: The second moment on other documents; or else
        inputs: The inputs there.
        amounts: What to try.
        sweeps: As for `best`.
    """

    def judged(blocks: Blocks) -> float:
        weights = decode(blocks, values.shape[1])
        return _finite_sum(output_error(values, weights, moments=moments, inputs=inputs))

    own = judged(default)
    chosen = Choice(None, own, own)
    for amount in amounts:
        found = best(values, encoding, shrunk(fit, amount), sweeps=sweeps, default=default)
        error = judged(found)
        if error < chosen.error:
            chosen = Choice(amount, error, own)
    return chosen


def keep_better(
    values: FloatArray,
    found: Blocks,
    default: Blocks,
    *,
    moments: FloatArray | None = None,
    inputs: FloatArray | None = None,
) -> Blocks:
    """What was found, but for rows of which the runtime's own quantizer has the smaller error.

    Args:
        values: Rows of the matrix.
        found: Their blocks.
        default: Those of the runtime's own quantizer.
        moments: The second moment of the inputs that judges; or else
        inputs: The inputs themselves.
    """
    errors = [
        output_error(values, decode(blocks, values.shape[1]), moments=moments, inputs=inputs)
        for blocks in (found, default)
    ]
    return merged(found, default, ~(errors[0] <= errors[1]))


def _finite_sum(errors: DoubleArray) -> float:
    """The sum of what is finite: rows that are not are never changed."""
    return float(errors[np.isfinite(errors)].sum())
