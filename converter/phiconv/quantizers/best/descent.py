"""Coordinate descent: one code after the other becomes the one of least error, given all others.

Of a row with errors ``d``, the best level of column j is the nearest to ``level + p_j / (h_jj scale)``, where
``p = H d``. All are looked at in the order of the columns, again and again, and before those of a group
its parameters are. Nothing is ever changed for the worse.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from phiconv.quantizers.best.fits import Forms
from phiconv.quantizers.best.search import reciprocal
from phiconv.quantizers.numerics.scratch import scratch

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from phiconv.ir import FloatArray
    from phiconv.quantizers.best.fits import Fit, Kind
    from phiconv.quantizers.best.metric import DoubleArray, Metric

__all__ = ["Descent"]

_PANEL = 256
"""Columns for which ``H d`` is computed in one product."""

_CHUNK = 16
"""Columns that are told of each other's changes one by one."""


class Descent:
    """The descent of one tile.

    Attributes:
        fit: What has been reached.
        errors: What is missing to the weights, in whole numbers, shape (columns, rows).
        scale: What they are scaled by, shape (rows,).
        exceeded: Rows with an error that became too large for that, and was not counted fully: it takes
            inputs that nearly cancel each other.
    """

    def __init__(self, metric: Metric, kind: Kind, x: FloatArray, fit: Fit) -> None:
        self.metric, self.kind, self.x, self.fit = metric, kind, x, fit
        missing = fit.errors(x, 0, len(x), kind.group, np.empty_like(x))
        self.scale = metric.scale(missing)
        self.exceeded = np.zeros(x.shape[1], np.bool_)
        self.errors = metric.whole(missing, self.scale, 0, np.empty(x.shape, np.float64))

    def copy_rows(self, other: Descent, where: NDArray[np.bool_]) -> None:
        """Takes over some of another descent's rows."""
        self.fit.copy_rows(other.fit, where)
        np.copyto(self.errors, other.errors, where=where)
        np.copyto(self.scale, other.scale, where=where)

    def sweep(self) -> bool:
        """Looks at every group and every code once; whether anything changed."""
        group = self.kind.group
        changed = group > _PANEL and self._refit_wide()
        size = _PANEL // group * group or _PANEL
        for start in range(0, len(self.x), size):
            changed |= self._panel(start, min(start + size, len(self.x)))
        return changed

    def _panel(self, start: int, stop: int) -> bool:
        moments = self.metric.rows(start, stop)
        products = np.matmul(moments, self.errors, out=_doubles("products", stop - start, self.x))
        moved = _doubles("moved", stop - start, self.x)
        changed = False
        step = min(self.kind.group, stop - start)
        for first in range(start, stop, step):
            at = slice(first - start, first - start + step)
            if at.start:
                products[at] -= moments[at, start:first] @ moved[: at.start]
            changed |= self._group(first, moments[at, first : first + step], products[at], moved[at])
        return changed

    def _group(self, start: int, moments: DoubleArray, products: DoubleArray, moved: DoubleArray) -> bool:
        """A group, or a part of a wide one.

        Args:
            start: Its first column.
            moments: Rows and columns of H.
            products: Its part of ``H d``; overwritten.
            moved: By how much its errors become smaller, to be filled.
        """
        stop = start + len(moments)
        before = _doubles("before", len(moments), self.x)
        np.copyto(before, self.errors[start:stop])
        changed = self.kind.group == len(moments) and self._refit(start, moments, products)
        if changed:
            self._renew(start, stop)
            np.subtract(before, self.errors[start:stop], out=moved)
            products -= moments @ moved
        for first in range(start, stop, _CHUNK):
            last = min(first + _CHUNK, stop)
            at = slice(first - start, last - start)
            if at.start:
                products[at] -= moments[at, : at.start] @ moved[: at.start]
            np.copyto(moved[at], self.errors[first:last])
            if self._chunk(first, last, moments[at, at], products[at]):
                changed = True
                self._renew(first, last)
            moved[at] -= self.errors[first:last]
        np.subtract(before, self.errors[start:stop], out=moved)
        return changed

    def _renew(self, start: int, stop: int) -> None:
        """Computes errors again after a change of the fit."""
        missing = scratch("best_missing", (stop - start, self.x.shape[1]), np.float32)
        self.fit.errors(self.x, start, stop, self.kind.group, missing)
        self.metric.whole(missing, self.scale, start, self.errors[start:stop])
        if max(missing.max(), -missing.min()) >= self.metric.largest:
            self.exceeded |= (np.abs(missing) >= self.metric.largest).any(axis=0)

    def _chunk(self, start: int, stop: int, moments: DoubleArray, products: DoubleArray) -> bool:
        """Changes codes, the columns one after the other; whether any did."""
        units, diagonal = self.metric.units[start:stop], self.metric.diagonal[start:stop]
        scale = self.fit.scale[start // self.kind.group]
        levels = self.fit.levels[start:stop]
        inverse = _inverse(units) / diagonal
        # How much a step of the code of column j moves the best level of column i.
        coupling = (moments * inverse * units.T).astype(np.float32)
        wanted, buffer = scratch("best_wanted", (2, *products.shape), np.float32)
        products *= inverse
        np.multiply(products, reciprocal(scale) / self.scale, out=wanted, casting="same_kind")
        wanted += levels
        new, change = scratch("best_columns", (2, products.shape[1]), np.float32)
        changed = False
        for j in range(len(levels)):
            self.kind.levels.nearest(wanted[j], new)
            np.subtract(new, levels[j], out=change)
            if not change.any():
                continue
            changed = True
            levels[j] = new
            rest = buffer[j + 1 :]
            np.multiply(coupling[j + 1 :, j, None], change, out=rest)
            wanted[j + 1 :] -= rest
        return changed

    # ------------------------------------------------------------------------------------------- parameters

    def _refit(self, start: int, moments: DoubleArray, products: DoubleArray) -> bool:
        """Changes the parameters of a group for the better, if there are any."""
        stop = start + len(moments)
        forms = self._forms(self._whole_levels(start, stop), start, [(moments, products)])
        return self.kind.refit(self.fit, start // self.kind.group, forms)

    def _refit_wide(self) -> bool:
        """The same of groups that are wider than a panel: H times their levels takes many rows of H."""
        changed, group = False, self.kind.group
        for start in range(0, len(self.x), group):
            whole = self._whole_levels(start, start + group)
            forms = self._forms(whole, start, self._wide_products(start, start + group))
            if self.kind.refit(self.fit, start // group, forms):
                changed = True
                for first in range(start, start + group, _PANEL):
                    self._renew(first, min(first + _PANEL, start + group))
        return changed

    def _wide_products(self, start: int, stop: int) -> Iterator[tuple[DoubleArray, DoubleArray]]:
        for first in range(start, stop, _PANEL):
            moments = self.metric.rows(first, min(first + _PANEL, stop))
            yield moments[:, start:stop], moments @ self.errors

    def _whole_levels(self, start: int, stop: int) -> tuple[DoubleArray, float]:
        """Levels in units of the columns, as whole numbers, and what they are scaled by."""
        units, levels = self.metric.units[start:stop], self.kind.levels
        largest = max(abs(levels.least), abs(levels.greatest)) * float(units.max())
        scale = float(np.ldexp(self.metric.largest, -int(np.frexp(largest)[1]))) if largest else 1.0
        scaled = scratch("best_missing", (stop - start, self.x.shape[1]), np.float32)
        np.multiply(self.fit.levels[start:stop], (units * scale).astype(np.float32), out=scaled)
        np.rint(scaled, out=scaled)
        whole = _doubles("whole", stop - start, self.x)
        np.copyto(whole, scaled)
        return whole, scale

    def _forms(
        self,
        levels: tuple[DoubleArray, float],
        start: int,
        parts: Iterator[tuple[DoubleArray, DoubleArray]] | list[tuple[DoubleArray, DoubleArray]],
    ) -> Forms:
        """What `Kind.refit` needs to know of a group.

        Args:
            levels: Of `_whole_levels`.
            start: The group's first column.
            parts: Some rows of H, with the group's columns, and those rows of ``H d``; all rows one by one.
        """
        (whole, scale), rows = levels, self.x.shape[1]
        uu, u1, pu, p1 = np.zeros((4, rows))
        ones, at = 0.0, 0
        columns = self.metric.units[start : start + len(whole), 0]
        for moments, products in parts:
            part = slice(at, at + len(moments))
            at += len(moments)
            units = self.metric.units[start + part.start : start + part.stop]
            by_levels = moments @ whole
            if self.kind.has_low:
                u1 += np.add.reduce(by_levels * units, axis=0)
                p1 += np.add.reduce(products * units, axis=0)
                ones += float(np.add.reduce((moments * columns * units).reshape(-1)))
            by_levels *= whole[part]
            uu += np.add.reduce(by_levels, axis=0)
            pu += np.add.reduce(products * whole[part], axis=0)
        return Forms(uu / scale**2, u1 / scale, np.full(rows, ones), pu / scale / self.scale, p1 / self.scale)


def _doubles(name: str, count: int, x: FloatArray) -> DoubleArray:
    result: DoubleArray = scratch(f"best_{name}", (count, x.shape[1]), np.float64)
    return result


def _inverse(units: DoubleArray) -> DoubleArray:
    with np.errstate(divide="ignore"):
        return np.where(units > 0, 1 / units, 0)
