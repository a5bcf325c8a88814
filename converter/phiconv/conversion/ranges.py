"""The largest weight of whole tensors, where a scale follows from it: found before the rows are quantized."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from phiconv.ir import FloatEncoding
from phiconv.ir.codebooks import CodebookEncoding
from phiconv.quantizers import decode
from phiconv.quantizers.numerics.floats import narrow, widen
from phiconv.quantizers.server import compressed_tensors

if TYPE_CHECKING:
    from phiconv.ir import Tensor
    from phiconv_formats.shared.output import Stream

__all__ = ["Ranges"]

_PIECE = 1 << 20
"""Weights that are read at once."""


class Ranges:
    """Remembers what was found, since the scale of a tensor may follow from several."""

    def __init__(self) -> None:
        self._found: dict[Tensor, float] = {}

    def scaled(self, stream: Stream) -> Stream:
        """A stream whose encoding has the scale of the whole tensor; all its weights are read for that."""
        encoding = stream.encoding
        if not isinstance(encoding, CodebookEncoding) or not stream.scaled_with:
            return stream
        largest = max(self._largest(tensor) for tensor in stream.scaled_with)
        kind = stream.cast or stream.tensor.encoding
        dtype = kind.dtype if isinstance(kind, FloatEncoding) else np.dtype(np.float32)
        rounded = float(widen(narrow(np.array([largest], np.float32), FloatEncoding("", dtype)))[0])
        made = replace(encoding, global_scale=compressed_tensors.global_scale(rounded, dtype))
        return replace(stream, encoding=made, scaled_with=())

    def _largest(self, tensor: Tensor) -> float:
        """The size of the largest weight; NaN and infinity are left to whoever quantizes them."""
        if tensor not in self._found:
            step, found = max(_PIECE // max(tensor.columns, 1), 1), 0.0
            for start in range(0, tensor.rows, step):
                rows = tensor.read(start, min(start + step, tensor.rows))
                weights = decode(rows, tensor.columns)
                size = max(float(weights.max(initial=0)), -float(weights.min(initial=0)))
                found = max(found, size if np.isfinite(size) else 0.0)
            self._found[tensor] = found
        return self._found[tensor]
