"""Sizes of pictures and tables changed as PIL and PyTorch do it: each pixel a weighted sum of a few others.

An axis is resized at a time. ``Taps`` says which pixels go into each new one, and with what weights.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

__all__ = ["Taps", "antialiased", "bicubic", "resized"]

_CUBIC = -0.75
"""PyTorch's parameter of the cubic kernel (https://doi.org/10.1109/TASSP.1981.1163711); PIL has -0.5."""


class Taps(NamedTuple):
    """Where the pixels of an axis come from.

    Attributes:
        indices: Of old pixels, shape (new size, taps).
        weights: float64 of the same shape; they add up to 1.
    """

    indices: NDArray[np.intp]
    weights: NDArray[np.float64]


def _triangle(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """``max(1 - |x|, 0)``: linear interpolation."""
    y: NDArray[np.float64] = np.maximum(1 - np.abs(x), 0)
    return y


def antialiased(
    old: int,
    new: int,
    kernel: Callable[[NDArray[np.float64]], NDArray[np.float64]] = _triangle,
    reach: float = 1,
) -> Taps:
    """Resizing with a kernel that is as wide as a new pixel, but not less than an old one.

    This is PIL's method (``precompute_coeffs`` in its Resample.c), and PyTorch's with ``antialias=True``.

    Args:
        old: Pixels before.
        new: Pixels after.
        kernel: The weight of a distance; by default bilinear.
        reach: Beyond which distance it is 0.
    """
    scale = old / new
    width = max(scale, 1.0)
    centers = (np.arange(new) + 0.5) * scale
    first = np.maximum((centers - reach * width + 0.5).astype(np.intp), 0)
    last = np.minimum((centers + reach * width + 0.5).astype(np.intp), old)
    offsets = np.arange(int((last - first).max()))
    indices = first[:, None] + offsets
    weights = kernel((indices - centers[:, None] + 0.5) / width)
    weights[indices >= last[:, None]] = 0
    weights /= weights.sum(axis=1, keepdims=True)
    return Taps(np.minimum(indices, old - 1), weights)


def bicubic(old: int, new: int) -> Taps:
    """Cubic interpolation between the four nearest pixels, the border repeated, whatever the sizes.

    PyTorch's ``interpolate(mode="bicubic", align_corners=False)``, which does not antialias.
    """
    places = (np.arange(new) + 0.5) * (old / new) - 0.5
    first = np.floor(places)
    x = (places - first)[:, None] + np.array([1.0, 0.0, -1.0, -2.0])
    near, far = np.abs(x), np.abs(x)
    inner = ((_CUBIC + 2) * near - (_CUBIC + 3)) * near * near + 1
    outer = ((_CUBIC * far - 5 * _CUBIC) * far + 8 * _CUBIC) * far - 4 * _CUBIC
    indices = first.astype(np.intp)[:, None] + np.arange(-1, 3)
    return Taps(np.clip(indices, 0, old - 1), np.where(near <= 1, inner, outer))


def resized(x: NDArray[np.floating[Any]], taps: Taps, axis: int) -> NDArray[np.floating[Any]]:
    """An array with one axis resized, in its own type."""
    moved = np.moveaxis(x, axis, 0)
    shape = (len(taps.weights), *[1] * (moved.ndim - 1))
    result = np.zeros((len(taps.weights), *moved.shape[1:]), x.dtype)
    for tap in range(taps.weights.shape[1]):
        result += moved[taps.indices[:, tap]] * taps.weights[:, tap].astype(x.dtype).reshape(shape)
    return np.moveaxis(result, 0, axis)
