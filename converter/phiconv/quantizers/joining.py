"""Rows of several tensors as one, also where they are stored in different encodings.

A runtime may want in one matrix what a checkpoint has in several, and a quantized checkpoint may have given
them different types (the values of attention often get more bits than queries and keys). There is no
encoding of both, so the parts are decoded while they are read, and the whole is quantized again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from phiconv.ir import (
    F32,
    F64,
    Blocks,
    FloatEncoding,
    MixedEncoding,
    Tensor,
    concatenate,
    plain_name,
    with_adapter,
)
from phiconv.quantizers import decode

if TYPE_CHECKING:
    from collections.abc import Sequence

    from phiconv.ir import Encoded

__all__ = ["alike", "join"]


@dataclass(frozen=True, slots=True)
class _Decoded:
    """A tensor whose rows are decoded when they are read (an `ir.Source`)."""

    tensor: Tensor
    encoding: FloatEncoding | MixedEncoding

    @property
    def label(self) -> str:
        return self.tensor.label

    def read(self, start: int, stop: int) -> Encoded:
        rows = self.tensor.read(start, stop)
        if self.encoding != F64 or isinstance(rows, Blocks):
            return decode(rows, self.tensor.columns)
        with np.errstate(invalid="ignore"):  # a signalling NaN
            return rows.astype(F64.dtype)

    def changed(self) -> bool:
        return self.tensor.changed()


def alike(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The same tensors in one encoding: unchanged if they have one, and else as views that decode.

    Floats of several types become the smallest type that holds all of them, float32 or float64. As soon as
    one tensor is quantized, all are read as float32, and the encoding is a `MixedEncoding`.
    """
    encodings = list(dict.fromkeys(t.encoding for t in tensors))
    if len(encodings) == 1:
        return list(tensors)
    common: FloatEncoding | MixedEncoding
    if len({plain_name(e) for e in encodings}) == 1:  # an adapter changes some of them
        common = with_adapter(encodings[0])
    elif all(isinstance(e, FloatEncoding) for e in encodings):
        common = F64 if F64 in encodings else F32
    else:
        common = MixedEncoding(" + ".join(e.name for e in encodings))
    return [Tensor.of(_Decoded(t, common), t.shape) for t in tensors]


def join(tensors: Sequence[Tensor]) -> Tensor:
    """Joins vectors or matrices along their rows, as a view.

    Raises:
        ValueError: Their rows differ in length.
    """
    return concatenate(alike(tensors))
