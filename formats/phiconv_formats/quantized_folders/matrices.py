"""A quantized matrix of a folder as rows that are read when they are needed.

Every family gives the same three things for some rows: the code of each weight, and scales and zero points of
each group. From these come blocks, or, where a group's columns are no neighbours, float32 rows: in the order
``(code - zero_point) * scale``, or ``table[code] * scale``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np

from phiconv import ir
from phiconv_formats.shared.rows import RowsOf, SharedRows

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from phiconv_formats.shared.rows import Rows

    Stored: TypeAlias = ir.BlockEncoding | ir.CodebookEncoding

__all__ = ["Numbers", "QuantizedRows", "RowPairs", "Together", "as_matrix"]


class Numbers(NamedTuple):
    """What some rows of a matrix are made of.

    Attributes:
        codes: uint8 (int8 where the encoding's codes are signed), shape (rows, columns).
        scales: A float type, shape (rows, groups).
        zero_points: uint8, shape (rows, groups); None where there are none.
    """

    codes: NDArray[Any]
    scales: NDArray[Any]
    zero_points: NDArray[np.uint8] | None = None


@dataclass(frozen=True, slots=True)
class Together(RowsOf):
    """``count`` rows of an array belong to one row of the matrix."""

    count: int

    def read(self, start: int, stop: int) -> NDArray[Any]:
        """What belongs to rows ``start`` to ``stop``."""
        rows: Any = self.stored.read(start * self.count, stop * self.count)
        return rows.reshape(stop - start, self.count * rows.shape[-1])  # type: ignore[no-any-return]


@dataclass(frozen=True, slots=True)
class RowPairs(RowsOf):
    """Bytes of two rows of the matrix: the even one in the lower halves, the odd one in the upper."""

    def read(self, start: int, stop: int) -> NDArray[np.uint8]:
        """Numbers of 4 bits of rows ``start`` to ``stop``, a byte each."""
        both: NDArray[np.uint8] = SharedRows(self.stored, 2).read(start, stop)
        odd = np.arange(start, stop) % 2 == 1
        both[odd] >>= 4
        return both & np.uint8(15)


@dataclass(frozen=True, slots=True, eq=False)
class QuantizedRows:
    """Rows of a quantized matrix (an `ir.Source`).

    Attributes:
        stored: What codes, scales and zero points mean.
        encoding: The same, or `ir.MixedEncoding` where rows are read as float32.
        parts: The arrays.
        numbers: Makes what is stored of a row of each array.
        groups: The group of every column; None where groups are neighbours, and rows are read as blocks.
        factors: What each column is multiplied with at last; None for nothing.
    """

    stored: Stored
    encoding: ir.Encoding
    parts: tuple[Rows, ...]
    numbers: Callable[..., Numbers]
    groups: NDArray[np.int32] | None = None
    factors: ir.FloatArray | None = None

    @property
    def label(self) -> str:
        """File and tensor name of the codes, for messages."""
        return self.parts[0].label

    def read(self, start: int, stop: int) -> ir.Encoded:
        """Reads rows ``start`` to ``stop`` into memory of their own."""
        found = self.numbers(*(part.read(start, stop) for part in self.parts))
        if self.groups is None:
            return _blocks(self.stored, found)
        weights = _floats(self.stored, found, self.groups)
        if self.factors is not None:
            with np.errstate(all="ignore"):
                weights *= self.factors
        return weights

    def changed(self) -> bool:
        """Whether a file is no longer the one that was opened."""
        return any(part.changed() for part in self.parts)


def as_matrix(
    stored: Stored,
    shape: tuple[int, ...],
    parts: tuple[Rows, ...],
    numbers: Callable[..., Numbers],
    *,
    groups: NDArray[np.int32] | None = None,
    factors: ir.FloatArray | None = None,
    name: str = "",
) -> ir.Tensor:
    """A quantized matrix, or a stack of them.

    Its rows are read as blocks where these can be cut from them, and else as float32.

    Args:
        stored: What codes, scales and zero points mean.
        shape: Of the weights, outermost dimension first.
        parts: The arrays.
        numbers: Makes what is stored of a row of each array.
        groups: The group of every column where columns of a group are not neighbours.
        factors: What each column is multiplied with at last.
        name: What to call rows that are read as float32.
    """
    columns, encoding, size = shape[-1], stored, stored.block_size
    plain = groups is None and factors is None and columns % size == 0 and size % 4 == 0
    if plain:
        return ir.Tensor.of(QuantizedRows(stored, encoding, parts, numbers), shape)
    if groups is None:
        groups = np.arange(columns, dtype=np.int32) // np.int32(size)
    mixed = ir.MixedEncoding(name or f"{stored.name}_by_column", stored.bits_per_weight)
    return ir.Tensor.of(QuantizedRows(stored, mixed, parts, numbers, groups, factors), shape)


def _blocks(encoding: Stored, found: Numbers) -> ir.Blocks:
    words = np.ascontiguousarray(found.codes).view("<u4").reshape(-1, encoding.block_size // 4).T
    quads: Any = np.ascontiguousarray(words)[..., None].view(found.codes.dtype)
    zeros = None if found.zero_points is None else np.ascontiguousarray(found.zero_points).reshape(-1)
    return ir.Blocks(encoding, quads, np.ascontiguousarray(found.scales).reshape(-1), zero_points=zeros)


@np.errstate(all="ignore")
def _floats(encoding: Stored, found: Numbers, groups: NDArray[np.int32]) -> ir.FloatArray:
    if isinstance(encoding, ir.CodebookEncoding):
        weights: ir.FloatArray = np.array(encoding.table, np.float32)[found.codes]
    else:
        weights = found.codes.astype(np.float32)
        if found.zero_points is not None:
            weights -= found.zero_points.astype(np.float32)[:, groups]
        elif encoding.offset:
            weights -= np.float32(encoding.offset)
    weights *= found.scales.astype(np.float32)[:, groups]
    return weights
