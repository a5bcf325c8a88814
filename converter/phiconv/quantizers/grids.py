"""The grids of llama.cpp's IQ1, IQ2 and IQ3 encodings, as the `gguf` package has them."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from phiconv.ir import CodebookEncoding

__all__ = ["grid"]


@cache
def grid(encoding: CodebookEncoding) -> NDArray[np.uint8]:
    """The points of an encoding's grid, in the order of their numbers.

    Returns:
        Codes without their highest bit (sign or shift): shape (points, 8), for IQ3_* (points, 4).
    """
    import gguf.quants

    data = getattr(gguf.quants, encoding.name.upper())
    data.init_grid()
    codes = np.searchsorted(data.grid_map, data.grid.reshape(data.grid_shape))
    return np.asarray(codes, np.uint8)
