"""Whether a head is the embedding once more: the weights say so, not config.json alone.

A fine-tune may train the head apart and leave ``tie_word_embeddings`` as it was; many checkpoints, on the
other hand, store a tied head as well. transformers compares the two and keeps both where they differ.
"""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING

import numpy as np

from phiconv.ir import Blocks
from phiconv.quantizers.decoding import decode

if TYPE_CHECKING:
    from collections.abc import Iterator

    from phiconv.ir import Encoded, Tensor

__all__ = ["same_weights"]

_TILE = 1 << 20
"""Weights that are in memory at once, of either matrix."""


def same_weights(a: Tensor, b: Tensor) -> bool:
    """Whether two matrices of one shape are the same: bit by bit, or by value where their types differ.

    They are read tile by tile up to the first difference; not at all where both are the same bytes of a file.
    """
    if a.runs == b.runs:
        return True
    return all(_same(x, y, a.columns) for x, y in _tiles(a, b))


def _tiles(a: Tensor, b: Tensor) -> Iterator[tuple[Encoded, Encoded]]:
    step = max(_TILE // max(a.columns, 1), 1)
    for start in range(0, a.rows if a.size else 0, step):
        stop = min(start + step, a.rows)
        yield a.read(start, stop), b.read(start, stop)


def _same(x: Encoded, y: Encoded, columns: int) -> bool:
    if isinstance(x, Blocks) and isinstance(y, Blocks) and x.encoding == y.encoding:
        return all(_equal(getattr(x, part.name), getattr(y, part.name)) for part in fields(Blocks)[1:])
    if not isinstance(x, Blocks) and not isinstance(y, Blocks) and x.dtype == y.dtype:
        return x.tobytes() == y.tobytes()
    return bool(np.array_equal(decode(x, columns), decode(y, columns)))


def _equal(x: object, y: object) -> bool:
    """Whether parts of blocks are the same; None where the encoding has no such part."""
    if isinstance(x, np.ndarray) and isinstance(y, np.ndarray):
        return x.tobytes() == y.tobytes()
    return x is y
