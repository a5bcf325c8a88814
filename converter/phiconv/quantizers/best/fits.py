"""What is being fitted: levels and the parameters that scale them, of a tile of rows.

A tile lies *columns first*: ``x[j, r]`` is column ``j`` of row ``r``. So every step on one column, or on one
group of columns, is a long vector operation over the rows, which do not depend on each other.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from phiconv.ir import Blocks, FloatArray
    from phiconv.quantizers.best.levels import Levels
    from phiconv.quantizers.best.metric import DoubleArray

__all__ = ["Fit", "Forms", "Kind", "by_block", "by_column", "by_group", "flat"]


@dataclass
class Fit:
    """Levels and parameters: ``weight = scale * level + low``.

    Attributes:
        levels: Shape (columns, rows).
        scale: Of every group, shape (groups, rows).
        low: Likewise; None where it is always 0.
        stored: What a file holds instead, where scale and low are made of it; the last axis counts the rows.
    """

    levels: FloatArray
    scale: FloatArray
    low: FloatArray | None = None
    stored: dict[str, NDArray[Any]] = field(default_factory=dict)

    def take(self, rows: Any) -> Fit:
        """Some of the rows."""
        low = None if self.low is None else self.low[:, rows]
        stored = {name: values[..., rows] for name, values in self.stored.items()}
        return Fit(self.levels[:, rows], self.scale[:, rows], low, stored)

    def copy_rows(self, other: Fit, where: NDArray[np.bool_]) -> None:
        """Takes over some of another fit's rows."""
        pairs = [(self.levels, other.levels), (self.scale, other.scale)]
        if self.low is not None and other.low is not None:
            pairs.append((self.low, other.low))
        pairs += [(values, other.stored[name]) for name, values in self.stored.items()]
        for mine, theirs in pairs:
            np.copyto(mine, theirs, where=where)

    def errors(self, x: FloatArray, start: int, stop: int, group: int, out: FloatArray) -> FloatArray:
        """What is missing to the weights ``x`` of columns ``start`` to ``stop``, which lie in whole groups.

        Or in a part of one group.
        """
        step = min(group, stop - start)
        for at in range(start, stop, step):
            part = slice(at - start, at - start + step)
            np.multiply(self.levels[at : at + step], self.scale[at // group], out=out[part])
            if self.low is not None:
                out[part] += self.low[at // group]
        return np.subtract(x[start:stop], out, out=out)


class Forms(NamedTuple):
    """What the error of a group is, as a function of its scale and low: each of shape (rows,).

    With ``u`` the levels, ``1`` a vector of ones, and ``p`` the product of H and the errors of all columns:

    Attributes:
        uu: ``u^T H u``.
        u1: ``u^T H 1``.
        ones: ``1^T H 1``.
        pu: ``p^T u``.
        p1: ``p^T 1``.
    """

    uu: DoubleArray
    u1: DoubleArray
    ones: DoubleArray
    pu: DoubleArray
    p1: DoubleArray

    def gain(self, scale: DoubleArray, low: DoubleArray | float) -> DoubleArray:
        """How much smaller the error becomes if scale and low grow by so much."""
        gained: DoubleArray = scale * (2 * self.pu - scale * self.uu)
        if np.any(low):
            gained += low * (2 * self.p1 - low * self.ones - 2 * scale * self.u1)
        return gained

    def best(self, *, low: bool) -> tuple[DoubleArray, DoubleArray]:
        """By how much scale and low would grow for the least error; not finite where nothing can be said."""
        if not low:
            return self.pu / self.uu, np.zeros_like(self.pu)
        determinant = self.uu * self.ones - self.u1 * self.u1
        return (
            (self.pu * self.ones - self.p1 * self.u1) / determinant,
            (self.p1 * self.uu - self.pu * self.u1) / determinant,
        )


class Kind(Protocol):
    """One kind of parameters: how they are found, changed and stored."""

    @property
    def group(self) -> int:
        """Weights that share scale and low."""

    @property
    def levels(self) -> Levels:
        """What codes stand for."""

    @property
    def has_low(self) -> bool:
        """Whether low is anything but 0."""

    def search(self, x: FloatArray, weights: FloatArray) -> Fit:
        """A first fit, of errors that count by column: ``weights`` has shape (columns, 1)."""

    def refit(self, fit: Fit, group: int, forms: Forms) -> bool:
        """Changes the parameters of a group where that makes the error smaller; whether it did anywhere."""

    def read(self, blocks: Blocks, rows: int) -> Fit:
        """The fit that blocks are."""

    def blocks(self, fit: Fit) -> Blocks:
        """The inverse of `read`."""


def by_column(codes: NDArray[Any], rows: int) -> NDArray[Any]:
    """Codes of blocks, (block_size / 4, rows * blocks, 4), columns first: (columns, rows)."""
    quads = codes.shape[0]
    parts = codes.reshape(quads, rows, -1, 4).transpose(2, 0, 3, 1)
    return np.ascontiguousarray(parts).reshape(-1, rows)


def by_block(codes: NDArray[Any], block_size: int) -> NDArray[Any]:
    """The inverse of `by_column`."""
    rows = codes.shape[1]
    parts = codes.reshape(-1, block_size // 4, 4, rows).transpose(1, 3, 0, 2)
    return np.ascontiguousarray(parts).reshape(block_size // 4, -1, 4)


def by_group(values: NDArray[Any], rows: int) -> NDArray[Any]:
    """Parameters of blocks, (rows * blocks,) or (parts, rows * blocks), groups first: (groups, rows)."""
    parts = values.reshape(-1, rows, values.shape[-1] // rows).transpose(2, 0, 1)
    return np.ascontiguousarray(parts).reshape(-1, rows)


def flat(values: NDArray[Any], parts: int = 0) -> NDArray[Any]:
    """The inverse of `by_group`; ``parts`` is 0 for a vector."""
    rows = values.shape[1]
    blocks = values.reshape(-1, max(parts, 1), rows).transpose(1, 2, 0)
    return np.ascontiguousarray(blocks).reshape((parts, -1) if parts else (-1,))


def joined(parts: list[Blocks], rows: int) -> Blocks:
    """Blocks of neighbouring columns of the same rows as blocks of whole rows."""
    first = parts[0]
    if len(parts) == 1:
        return first
    count = sum(len(part) for part in parts)

    def join(arrays: list[NDArray[Any]], axis: int) -> NDArray[Any]:
        split = [a.reshape(*a.shape[:axis], rows, -1, *a.shape[axis + 1 :]) for a in arrays]
        whole = np.concatenate(split, axis=axis + 1)
        shape = first.codes.shape if arrays[0] is first.codes else arrays[0].shape
        return whole.reshape(*shape[:axis], count, *shape[axis + 1 :])

    names = ("scales", "minima", "sub_scales", "sub_minima", "zero_points")
    others: dict[str, Any] = {
        name: join([getattr(part, name) for part in parts], getattr(first, name).ndim - 1)
        for name in names
        if getattr(first, name) is not None
    }
    return replace(first, codes=join([part.codes for part in parts], 1), **others)
