"""Parameters that every group has for itself: a scale, and maybe a minimum or a zero point."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from phiconv.ir import F16, BlockEncoding, Blocks, CodebookEncoding, FloatEncoding
from phiconv.quantizers.best.fits import Fit, Forms, by_block, by_column, by_group, flat
from phiconv.quantizers.best.search import affine, linear, reciprocal, zero_points
from phiconv.quantizers.numerics.floats import narrow, widen

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from phiconv.ir import FloatArray
    from phiconv.quantizers.best.levels import Integers, Levels
    from phiconv.quantizers.best.metric import DoubleArray

__all__ = ["Minimum", "Scale", "ZeroPoint", "empty", "groups", "stored"]


def stored(values: DoubleArray | FloatArray, kind: FloatEncoding) -> FloatArray:
    """Numbers rounded to the type that is stored, in float32; infinite where they are too large for it."""
    return widen(narrow(values.astype(np.float32, copy=False), kind))


def empty(x: FloatArray, group: int, *, low: bool) -> Fit:
    """A fit to be filled, of a tile."""
    shape = len(x) // group, x.shape[1]
    return Fit(np.empty_like(x), np.empty(shape, np.float32), np.empty(shape, np.float32) if low else None)


def groups(x: FloatArray, size: int) -> Iterator[tuple[int, slice]]:
    """The number of every group of a tile, and its columns."""
    for group, start in enumerate(range(0, len(x), size)):
        yield group, slice(start, start + size)


@dataclass(frozen=True)
class Scale:
    """A scale alone.

    Attributes:
        encoding: What has it.
        levels: What codes stand for.
        bits: Of a code.
        signed: Whether scales may be negative.
    """

    encoding: BlockEncoding | CodebookEncoding
    levels: Levels
    bits: int
    signed: bool

    has_low = False

    @property
    def group(self) -> int:
        """Weights that share them."""
        return self.encoding.block_size

    @property
    def _kind(self) -> FloatEncoding:
        return self.encoding.scale_type if isinstance(self.encoding, BlockEncoding) else F16

    def search(self, x: FloatArray, weights: FloatArray) -> Fit:
        """See `Kind`."""
        fit = empty(x, self.group, low=False)
        for group, part in groups(x, self.group):
            scale = linear(x[part], weights[part], self.levels, self.bits, signed=self.signed)
            fit.scale[group] = stored(scale, self._kind)
            levels = fit.levels[part]
            np.multiply(x[part], reciprocal(fit.scale[group]), out=levels)
            self.levels.nearest(levels, levels)
        return fit

    def refit(self, fit: Fit, group: int, forms: Forms) -> bool:
        """See `Kind`."""
        old = fit.scale[group]
        new = stored(old + forms.best(low=False)[0], self._kind)
        better = forms.gain(new.astype(np.float64) - old, 0) > 0
        if not self.signed:
            better &= new > 0
        np.copyto(old, new, where=better)
        return bool(better.any())

    def read(self, blocks: Blocks, rows: int) -> Fit:
        """See `Kind`."""
        return Fit(self.levels.of(by_column(blocks.codes, rows)), by_group(widen(blocks.scales), rows))

    def blocks(self, fit: Fit) -> Blocks:
        """See `Kind`."""
        codes = by_block(self.levels.codes(fit.levels), self.group)
        return Blocks(self.encoding, codes, narrow(flat(fit.scale), self._kind))


@dataclass(frozen=True)
class Minimum:
    """A scale and a minimum, of any sign.

    Attributes:
        encoding: What has them.
        levels: What codes stand for, from 0 on.
    """

    encoding: BlockEncoding
    levels: Integers

    has_low = True

    @property
    def group(self) -> int:
        """Weights that share them."""
        return self.encoding.block_size

    def search(self, x: FloatArray, weights: FloatArray) -> Fit:
        """See `Kind`."""
        fit, kind, bits = empty(x, self.group, low=True), self.encoding.scale_type, self.encoding.bits
        lows: Any = fit.low
        for group, part in groups(x, self.group):
            line = affine(x[part], weights[part], self.levels.last, bits, below_zero=False)
            fit.scale[group], lows[group] = stored(line.scale, kind), stored(line.low, kind)
            levels = fit.levels[part]
            np.subtract(x[part], lows[group], out=levels)
            levels *= reciprocal(fit.scale[group])
            self.levels.nearest(levels, levels)
        return fit

    def refit(self, fit: Fit, group: int, forms: Forms) -> bool:
        """See `Kind`."""
        old, kind = fit.scale[group], self.encoding.scale_type
        low: Any = None if fit.low is None else fit.low[group]
        best = np.zeros(old.shape)
        chosen = old.copy(), low.copy()
        for scale in (stored(old + forms.best(low=True)[0], kind), old):
            grown = scale.astype(np.float64) - old
            new = stored(low + (forms.p1 - grown * forms.u1) / forms.ones, kind)
            gain = forms.gain(grown, new.astype(np.float64) - low)
            better = gain > best
            np.copyto(best, gain, where=better)
            np.copyto(chosen[0], scale, where=better)
            np.copyto(chosen[1], new, where=better)
        old[:], low[:] = chosen
        return bool((best > 0).any())

    def read(self, blocks: Blocks, rows: int) -> Fit:
        """See `Kind`."""
        low = by_group(widen(blocks.minima), rows) if blocks.minima is not None else None
        return Fit(self.levels.of(by_column(blocks.codes, rows)), by_group(widen(blocks.scales), rows), low)

    def blocks(self, fit: Fit) -> Blocks:
        """See `Kind`."""
        codes, kind = by_block(self.levels.codes(fit.levels), self.group), self.encoding.scale_type
        low: Any = fit.low
        return Blocks(self.encoding, codes, narrow(flat(fit.scale), kind), narrow(flat(low), kind))


@dataclass(frozen=True)
class ZeroPoint:
    """A scale and the code of 0, a whole number: ``low`` is minus their product.

    Attributes:
        encoding: What has them.
        levels: What codes stand for, from 0 on.
    """

    encoding: BlockEncoding
    levels: Integers

    has_low = True

    @property
    def group(self) -> int:
        """Weights that share them."""
        return self.encoding.block_size

    def search(self, x: FloatArray, weights: FloatArray) -> Fit:
        """See `Kind`."""
        fit, last = empty(x, self.group, low=True), self.levels.last
        zeros = fit.stored["zero_points"] = np.empty_like(fit.scale)
        for group, part in groups(x, self.group):
            line = zero_points(x[part], weights[part], last, self.encoding.bits)
            fit.scale[group], zeros[group] = stored(line.scale, self.encoding.scale_type), line.low
            levels = fit.levels[part]
            np.multiply(x[part], reciprocal(fit.scale[group]), out=levels)
            levels += zeros[group]
            self.levels.nearest(levels, levels)
        np.multiply(fit.scale, -zeros, out=fit.low)
        return fit

    def refit(self, fit: Fit, group: int, forms: Forms) -> bool:
        """See `Kind`."""
        old, zero = fit.scale[group].astype(np.float64), fit.stored["zero_points"][group].astype(np.float64)
        best, chosen = np.zeros(old.shape), (fit.scale[group].copy(), fit.stored["zero_points"][group].copy())
        for step in (0, -1, 1):
            new = np.clip(zero + step, 0, self.levels.last)
            # With v = u - new, the best scale is v^T H (what is missing at a scale of 0) / v^T H v.
            square = forms.uu - 2 * new * forms.u1 + new * new * forms.ones
            present = old * (forms.uu - (zero + new) * forms.u1 + zero * new * forms.ones)
            scale = stored((forms.pu - new * forms.p1 + present) / square, self.encoding.scale_type)
            gain = forms.gain(scale - old, old * zero - scale.astype(np.float64) * new)
            better = (gain > best) & (scale > 0)
            np.copyto(best, gain, where=better)
            np.copyto(chosen[0], scale, where=better)
            np.copyto(chosen[1], new, where=better, casting="same_kind")
        fit.scale[group], fit.stored["zero_points"][group] = chosen
        self._follow(fit, group)
        return bool((best > 0).any())

    def _follow(self, fit: Fit, which: Any) -> None:
        if fit.low is not None:
            np.multiply(fit.scale[which], -fit.stored["zero_points"][which], out=fit.low[which])

    def read(self, blocks: Blocks, rows: int) -> Fit:
        """See `Kind`."""
        scale: Any = by_group(widen(blocks.scales), rows)
        zeros: NDArray[Any] = by_group(np.asarray(blocks.zero_points), rows).astype(np.float32)
        levels = self.levels.of(by_column(blocks.codes, rows))
        return Fit(levels, scale, scale * -zeros, {"zero_points": zeros})

    def blocks(self, fit: Fit) -> Blocks:
        """See `Kind`."""
        codes = by_block(self.levels.codes(fit.levels), self.group)
        zeros = flat(fit.stored["zero_points"]).astype(np.uint8)
        scales = narrow(flat(fit.scale), self.encoding.scale_type)
        return Blocks(self.encoding, codes, scales, zero_points=zeros)
