"""Rows of two tensors by turns, as a view; and the two of such a tensor again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from phiconv.ir import Blocks, Tensor, concatenate

if TYPE_CHECKING:
    from phiconv.ir import Encoded, Encoding

__all__ = ["deinterleave", "halves_by_turns", "halves_in_order", "interleave"]


@dataclass(frozen=True, slots=True)
class _Turns:
    """A row of one tensor, a row of the other, and so on (an `ir.Source`)."""

    even: Tensor
    odd: Tensor

    @property
    def label(self) -> str:
        return self.even.label

    @property
    def encoding(self) -> Encoding:
        return self.even.encoding

    def read(self, start: int, stop: int) -> Encoded:
        first, last = start // 2, -(-stop // 2)
        a, b = self.even.read(first, last), self.odd.read(first, last)
        rows = np.arange(start, stop)
        order = rows // 2 - first + rows % 2 * (last - first)  # where they are in a with b behind it
        if not isinstance(a, Blocks) or not isinstance(b, Blocks):
            joined = np.concatenate([np.asarray(a), np.asarray(b)])
            return np.ascontiguousarray(joined[order])
        blocks = np.arange(len(a) // max(last - first, 1))  # of a row
        return Blocks.join([a, b]).take((order[:, None] * len(blocks) + blocks).reshape(-1))

    def changed(self) -> bool:
        return self.even.changed() or self.odd.changed()


def interleave(even: Tensor, odd: Tensor) -> Tensor:
    """The rows of two tensors by turns: row 0 of the first, row 0 of the second, row 1 of the first, ...

    Args:
        even: Shape (..., rows, columns).
        odd: Of the same shape and encoding.

    Returns:
        Shape (..., 2 * rows, columns); it is read when it is needed.
    """
    if even.shape != odd.shape or even.encoding != odd.encoding or len(even.shape) < 2:
        raise ValueError(f"cannot interleave {[(t.shape, t.encoding.name) for t in (even, odd)]}")
    return Tensor.of(_Turns(even, odd), (*even.shape[:-2], 2 * even.shape[-2], even.shape[-1]))


@dataclass(frozen=True, slots=True)
class _EveryOther:
    """Every other row of a tensor (an `ir.Source`)."""

    both: Tensor
    odd: bool

    @property
    def label(self) -> str:
        return self.both.label

    @property
    def encoding(self) -> Encoding:
        return self.both.encoding

    def read(self, start: int, stop: int) -> Encoded:
        rows = self.both.read(2 * start, 2 * stop)
        if not isinstance(rows, Blocks):
            return np.ascontiguousarray(rows[int(self.odd) :: 2])
        per_row = len(rows) // max(2 * (stop - start), 1)
        indices = np.arange(len(rows)).reshape(stop - start, 2, per_row)
        return rows.take(indices[:, int(self.odd)].reshape(-1))

    def changed(self) -> bool:
        return self.both.changed()


def deinterleave(tensor: Tensor) -> tuple[Tensor, Tensor]:
    """The two tensors of `interleave`: the even rows, and the odd ones.

    Args:
        tensor: Shape (..., 2 * rows, columns).

    Returns:
        Two of shape (..., rows, columns); they are read when they are needed.
    """
    if len(tensor.shape) < 2 or tensor.shape[-2] % 2:
        raise ValueError(f"the rows of {tensor.shape} are not those of two tensors by turns")
    shape = (*tensor.shape[:-2], tensor.shape[-2] // 2, tensor.shape[-1])
    return Tensor.of(_EveryOther(tensor, odd=False), shape), Tensor.of(_EveryOther(tensor, odd=True), shape)


def halves_by_turns(tensor: Tensor, heads: int) -> Tensor:
    """Rows of queries or keys for a runtime that rotates neighbouring dimensions of a head.

    The models rotate dimension ``i`` of a head with ``i + head_dim / 2``; there they are neighbours.

    Args:
        tensor: A matrix or a bias with ``heads * head_dim`` rows.
        heads: How many.

    Returns:
        The same rows: of each head, one of the first half, one of the second, and so on.
    """
    matrix = tensor.reshape((tensor.rows, tensor.columns))
    half = tensor.rows // heads // 2
    parts = [matrix.slice_rows(i * half, (i + 1) * half) for i in range(2 * heads)]
    return interleave(concatenate(parts[::2]), concatenate(parts[1::2])).reshape(tensor.shape)


def halves_in_order(tensor: Tensor, heads: int) -> Tensor:
    """The inverse of `halves_by_turns`."""
    even, odd = deinterleave(tensor.reshape((tensor.rows, tensor.columns)))
    half = tensor.rows // heads // 2
    bounds = [(i * half, (i + 1) * half) for i in range(heads)]
    parts = [part.slice_rows(*bound) for bound in bounds for part in (even, odd)]
    return concatenate(parts).reshape(tensor.shape)
