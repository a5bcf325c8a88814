"""Parameters of sub-blocks that are small integers, multiples of a block's own numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from phiconv.ir import F16, Blocks, CodebookEncoding, SuperBlockEncoding
from phiconv.quantizers.best.fits import Fit, Forms, by_block, by_column, by_group, flat
from phiconv.quantizers.best.search import Line, affine, error, linear, reciprocal, total
from phiconv.quantizers.best.single import empty, groups, stored
from phiconv.quantizers.numerics.floats import narrow, widen

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from phiconv.ir import FloatArray
    from phiconv.quantizers.best.levels import Integers, Levels

__all__ = ["NestedMinimum", "NestedScale"]

_UNITS = np.linspace(0.8, 1.12, 13).astype(np.float32)
"""What to try for a block's own number, as parts of the one under which its largest integer is used."""


def _best_unit(
    numbers: FloatArray, counts: FloatArray, largest: FloatArray, least: float, most: float
) -> tuple[FloatArray, FloatArray]:
    """The unit of a block, a float16, and the integers from ``least`` to ``most`` for the numbers in it.

    Args:
        numbers: Shape (numbers of a block, blocks).
        counts: What the error of each counts.
        largest: About the unit: parts of it are tried.
        least: The smallest integer that a file can hold.
        most: The largest one.
    """
    best = np.full(largest.shape, np.inf, np.float32)
    unit, integers = np.zeros_like(largest), np.zeros_like(numbers)
    for part in _UNITS:
        tried = stored(largest * part, F16)
        rounded = np.clip(np.rint(numbers * reciprocal(tried)), np.float32(least), np.float32(most))
        missing = rounded * tried - numbers
        wrong = total(missing * missing * counts)
        better = wrong < best
        np.copyto(best, wrong, where=better)
        np.copyto(unit, tried, where=better)
        np.copyto(integers, rounded, where=better)
    return unit, integers


@dataclass(frozen=True)
class NestedScale:
    """A scale ``unit * integer`` for every sub-block, of either sign.

    Attributes:
        encoding: What has it.
        levels: What codes stand for.
        bits: Of a code.
        group: Weights of a sub-block.
        limit: Integers lie from ``-limit`` to ``limit - 1``.
    """

    encoding: SuperBlockEncoding | CodebookEncoding
    levels: Levels
    bits: int
    group: int
    limit: int

    has_low = False

    @property
    def _parts(self) -> int:
        return self.encoding.block_size // self.group

    def search(self, x: FloatArray, weights: FloatArray) -> Fit:
        """See `Kind`."""
        fit = empty(x, self.group, low=False)
        counts = np.empty_like(fit.scale)
        for group, part in groups(x, self.group):
            fit.scale[group] = linear(x[part], weights[part], self.levels, self.bits, signed=True)
            np.multiply(x[part], reciprocal(fit.scale[group]), out=fit.levels[part])
            levels = self.levels.nearest(fit.levels[part], fit.levels[part])
            counts[group] = total(levels * levels * weights[part])
        fit.stored["unit"] = np.empty((len(fit.scale) // self._parts, x.shape[1]), np.float32)
        fit.stored["integers"] = np.empty_like(fit.scale)
        for block, part in groups(fit.scale, self._parts):
            unit, integers = self._rounded(fit.scale[part], counts[part])
            fit.stored["unit"][block] = unit
            fit.stored["integers"][part] = integers
        for group, part in groups(x, self.group):
            self._round_again(fit, group, x[part], weights[part], fit.levels[part])
        return fit

    def _rounded(self, scales: FloatArray, counts: FloatArray) -> tuple[FloatArray, FloatArray]:
        """The unit and the integers for scales of a block, whose errors count differently."""
        high, low = scales.max(axis=0), scales.min(axis=0)
        largest = np.where(high > -low, high, low) / np.float32(-self.limit)
        return _best_unit(scales, counts, largest, -self.limit, self.limit - 1)

    def _round_again(self, fit: Fit, group: int, x: FloatArray, weights: FloatArray, out: FloatArray) -> None:
        """Tries the neighbours of a sub-block's integer, each with the levels nearest under it."""
        unit, integers = fit.stored["unit"][group // self._parts], fit.stored["integers"][group]
        best, first, u = np.full(unit.shape, np.inf, np.float32), integers.copy(), np.empty_like(out)
        for step in (0, -1, 1):
            tried = np.clip(first + np.float32(step), -self.limit, self.limit - 1).astype(np.float32)
            scale = unit * tried
            np.multiply(x, reciprocal(scale), out=u)
            self.levels.nearest(u, u)
            wrong = error(x, weights, u, Line(scale, np.zeros_like(scale)))
            better = wrong < best
            np.copyto(best, wrong, where=better)
            np.copyto(integers, tried, where=better)
            np.copyto(fit.scale[group], scale, where=better)
            np.copyto(out, u, where=better)

    def refit(self, fit: Fit, group: int, forms: Forms) -> bool:
        """See `Kind`."""
        unit, integers = fit.stored["unit"][group // self._parts], fit.stored["integers"][group]
        old = fit.scale[group]
        ideal = (old + forms.best(low=False)[0]) / unit
        new = np.clip(np.rint(ideal), -self.limit, self.limit - 1).astype(np.float32)
        scale = unit * new
        better = forms.gain(scale.astype(np.float64) - old, 0) > 0
        np.copyto(old, scale, where=better)
        np.copyto(integers, new, where=better)
        return bool(better.any())

    def read(self, blocks: Blocks, rows: int) -> Fit:
        """See `Kind`."""
        unit = by_group(widen(blocks.scales), rows)
        integers = by_group(np.asarray(blocks.sub_scales), rows).astype(np.float32)
        scale = np.repeat(unit, self._parts, axis=0) * integers
        levels = self.levels.of(by_column(blocks.codes, rows))
        return Fit(levels, scale, None, {"unit": unit, "integers": integers})

    def blocks(self, fit: Fit) -> Blocks:
        """See `Kind`."""
        codes = by_block(self.levels.codes(fit.levels), self.encoding.block_size)
        integers = flat(fit.stored["integers"], self._parts).astype(np.int8)
        return Blocks(self.encoding, codes, narrow(flat(fit.stored["unit"]), F16), sub_scales=integers)


@dataclass(frozen=True)
class NestedMinimum:
    """A scale ``unit * integer`` for every sub-block, and a low ``-(low_unit * low_integer)``, none negative.

    Attributes:
        encoding: What has them.
        levels: What codes stand for, from 0 on.
    """

    encoding: SuperBlockEncoding
    levels: Integers

    has_low = True

    @property
    def group(self) -> int:
        """Weights that share them."""
        return self.encoding.sub_block_size

    @property
    def _limit(self) -> np.float32:
        return np.float32((1 << self.encoding.scale_bits) - 1)

    def search(self, x: FloatArray, weights: FloatArray) -> Fit:
        """See `Kind`."""
        fit, parts = empty(x, self.group, low=True), self.encoding.sub_blocks
        lows: Any = fit.low
        counts = np.empty_like(fit.scale)
        sums = np.empty_like(fit.scale)
        for group, part in groups(x, self.group):
            line = affine(x[part], weights[part], self.levels.last, self.encoding.bits, below_zero=True)
            fit.scale[group], lows[group] = line
            levels = np.clip(np.rint((x[part] - line.low) * reciprocal(line.scale)), 0, self.levels.last)
            counts[group], sums[group] = total(levels * levels * weights[part]), weights[part].sum()
        shape = len(fit.scale) // parts, x.shape[1]
        for name in ("unit", "low_unit"):
            fit.stored[name] = np.empty(shape, np.float32)
            fit.stored[_integers(name)] = np.empty_like(fit.scale)
        for block, part in groups(fit.scale, parts):
            for name, values, count in (("unit", fit.scale, counts), ("low_unit", -lows, sums)):
                unit, integers = self._rounded(values[part], count[part])
                fit.stored[name][block], fit.stored[_integers(name)][part] = unit, integers
        for group, part in groups(x, self.group):
            self._round_again(fit, group, x[part], weights[part], fit.levels[part])
        return fit

    def _rounded(self, numbers: FloatArray, counts: FloatArray) -> tuple[FloatArray, FloatArray]:
        """The unit and the integers for numbers of a block, whose errors count differently."""
        largest = numbers.max(axis=0) / self._limit
        return _best_unit(numbers, counts, largest, 0, float(self._limit))

    def _round_again(self, fit: Fit, group: int, x: FloatArray, weights: FloatArray, out: FloatArray) -> None:
        """Tries the neighbours of a sub-block's two integers, each with the levels nearest under them."""
        block = group // self.encoding.sub_blocks
        low: Any = None if fit.low is None else fit.low[group]
        unit, low_unit = fit.stored["unit"][block], fit.stored["low_unit"][block]
        integers, low_integers = fit.stored["integers"][group], fit.stored["low_integers"][group]
        first, low_first, u = integers.copy(), low_integers.copy(), np.empty_like(out)
        best = np.full(unit.shape, np.inf, np.float32)
        targets = best, integers, low_integers, fit.scale[group], low, out
        for step, low_step in _NEIGHBOURS:
            tried = np.clip(first + step, np.float32(0), self._limit)
            low_tried = np.clip(low_first + low_step, np.float32(0), self._limit)
            line = Line(unit * tried, -(low_unit * low_tried))
            np.subtract(x, line.low, out=u)
            u *= reciprocal(line.scale)
            self.levels.nearest(u, u)
            wrong = error(x, weights, u, line)
            better = wrong < best
            for target, value in zip(targets, (wrong, tried, low_tried, *line, u), strict=True):
                np.copyto(target, value, where=better)

    def refit(self, fit: Fit, group: int, forms: Forms) -> bool:
        """See `Kind`."""
        block = group // self.encoding.sub_blocks
        unit, low_unit = (fit.stored[n][block].astype(np.float64) for n in ("unit", "low_unit"))
        low: Any = None if fit.low is None else fit.low[group]
        old, old_low = fit.scale[group].astype(np.float64), low.astype(np.float64)
        targets = fit.stored["integers"][group], fit.stored["low_integers"][group], fit.scale[group], low
        best, present = np.zeros(old.shape), targets[0].copy()
        ideal = np.rint((old + forms.best(low=True)[0]) / unit)
        for tried in (present, *(ideal + step for step in (-1, 0, 1))):
            integers = np.clip(tried, 0, self._limit)
            scale = unit * integers
            ideal_low = old_low + (forms.p1 - (scale - old) * forms.u1) / forms.ones
            low_integers = np.clip(np.rint(-ideal_low / low_unit), 0, self._limit)
            new_low = -(low_unit * low_integers)
            gain = forms.gain(scale - old, new_low - old_low)
            better = gain > best
            np.copyto(best, gain, where=better)
            for target, value in zip(targets, (integers, low_integers, scale, new_low), strict=True):
                np.copyto(target, value, where=better, casting="same_kind")
        return bool((best > 0).any())

    def read(self, blocks: Blocks, rows: int) -> Fit:
        """See `Kind`."""
        parts = self.encoding.sub_blocks
        unit, low_unit = (by_group(widen(np.asarray(v)), rows) for v in (blocks.scales, blocks.minima))
        integers, low_integers = (
            by_group(np.asarray(v), rows).astype(np.float32) for v in (blocks.sub_scales, blocks.sub_minima)
        )
        scale = np.repeat(unit, parts, axis=0) * integers
        low = -(np.repeat(low_unit, parts, axis=0) * low_integers)
        names = ("unit", "low_unit", "integers", "low_integers")
        stored_ = dict(zip(names, (unit, low_unit, integers, low_integers), strict=True))
        return Fit(self.levels.of(by_column(blocks.codes, rows)), scale, low, stored_)

    def blocks(self, fit: Fit) -> Blocks:
        """See `Kind`."""
        codes = by_block(self.levels.codes(fit.levels), self.encoding.block_size)
        units = [narrow(flat(fit.stored[name]), F16) for name in ("unit", "low_unit")]
        integers: list[NDArray[np.uint8]] = [
            flat(fit.stored[name], self.encoding.sub_blocks).astype(np.uint8)
            for name in ("integers", "low_integers")
        ]
        return Blocks(self.encoding, codes, *units, *integers)


_NEIGHBOURS = [(np.float32(a), np.float32(b)) for a in (0, -1, 1) for b in (0, -1, 1)]


def _integers(name: str) -> str:
    return name.replace("unit", "integers")
