"""A convolution over patches with its numbers in another order, as a view."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from phiconv.ir.encodings import FloatEncoding
from phiconv.ir.tensors import Tensor

if TYPE_CHECKING:
    from phiconv.ir.encodings import Encoding
    from phiconv.ir.tensors import Encoded

__all__ = ["colour_by_colour"]

_COLOURS = 3


@dataclass(frozen=True, slots=True)
class _ColourByColour:
    """The rows of pixels of patches, first all of one colour (an `ir.Source`)."""

    patches: Tensor
    side: int

    @property
    def label(self) -> str:
        return self.patches.label

    @property
    def encoding(self) -> Encoding:
        return self.patches.encoding

    def read(self, start: int, stop: int) -> Encoded:
        of_a_patch = _COLOURS * self.side
        first, last = start // of_a_patch, -(-stop // of_a_patch)
        pixels = np.asarray(self.patches.read(first, last)).reshape(-1, self.side, self.side, _COLOURS)
        rows = pixels.transpose(0, 3, 1, 2).reshape(-1, self.side)
        return np.ascontiguousarray(rows[start - first * of_a_patch : stop - first * of_a_patch])

    def changed(self) -> bool:
        return self.patches.changed()


def colour_by_colour(patches: Tensor, side: int) -> Tensor:
    """A matrix over patches as a convolution.

    Args:
        patches: Floats of shape (rows, side * side * 3): row, column, colour of a patch.
        side: Pixels of a side of a patch.

    Returns:
        Shape (rows, 3, side, side): colour, row, column. It is read when it is needed.

    Raises:
        ValueError: Another shape, or blocks.
    """
    if patches.shape[1:] != (side * side * _COLOURS,) or not isinstance(patches.encoding, FloatEncoding):
        raise ValueError(f"{patches.shape} of {patches.encoding.name} are no patches of side {side}")
    return Tensor.of(_ColourByColour(patches, side), (patches.shape[0], _COLOURS, side, side))
