"""Blocks that wait in files until they are written."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Any

import numpy as np

from phiconv.ir import Blocks

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from phiconv.ir import AnyBlockEncoding, Tensor

__all__ = ["StoredBlocks"]

_CODES = "codes"


class StoredBlocks:
    """Blocks of a matrix in files, as a source of rows.

    Args:
        folder: Where the files go.
        tensor: What is quantized.
        encoding: To what.

    Attributes:
        label: What it is, for messages.
        encoding: Of the blocks.
    """

    def __init__(self, folder: Path, tensor: Tensor, encoding: AnyBlockEncoding) -> None:
        self.label, self.encoding = tensor.label, encoding
        self._folder, self._tensor = folder, tensor
        self._per_row = tensor.columns // encoding.block_size
        self._kinds: dict[str, tuple[np.dtype[Any], tuple[int, ...]]] = {}
        folder.mkdir()

    def create(self, blocks: Blocks) -> None:
        """Makes the files, by the blocks of some rows."""
        parts = {f.name: getattr(blocks, f.name) for f in fields(blocks)[1:]}
        parts = {name: part for name, part in parts.items() if part is not None}
        total = self._tensor.rows * self._per_row
        for name, part in parts.items():
            axis = 1 if name == _CODES else part.ndim - 1
            shape = (*part.shape[:axis], total, *part.shape[axis + 1 :])
            np.memmap(self._folder / name, part.dtype, "w+", shape=shape)
            self._kinds[name] = part.dtype, shape

    def write(self, start: int, blocks: Blocks) -> None:
        """Keeps the blocks of some rows, the first of which is ``start``."""
        first = start * self._per_row
        for name, (dtype, shape) in self._kinds.items():
            array = np.memmap(self._folder / name, dtype, "r+", shape=shape)
            self._part(name, array, first, first + len(blocks))[...] = getattr(blocks, name)

    def read(self, start: int, stop: int) -> Blocks:
        """See `phiconv.ir.tensors.Source`."""
        parts: dict[str, Any] = {}
        for name, (dtype, shape) in self._kinds.items():
            array = np.memmap(self._folder / name, dtype, "r", shape=shape)
            part = self._part(name, array, start * self._per_row, stop * self._per_row)
            parts[name] = np.array(part, order="C", subok=False)
        return Blocks(self.encoding, **parts)

    def changed(self) -> bool:
        """Whether the file that was quantized is no longer what it was."""
        return self._tensor.changed()

    @staticmethod
    def _part(name: str, array: NDArray[Any], start: int, stop: int) -> NDArray[Any]:
        return array[:, start:stop] if name == _CODES else array[..., start:stop]
