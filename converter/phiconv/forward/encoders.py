"""Computes the features of a picture with NumPy: the `EncoderOps` whose values are arrays."""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from phiconv.forward import layers, resampling, threads
from phiconv.forward.interpreter import Weights
from phiconv.ir.model import Role

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from phiconv.forward.encoder_ops import EncoderAttention, Merging, Positions
    from phiconv.forward.interpreter import Precision
    from phiconv.forward.layers import Array
    from phiconv.forward.ops import Activation
    from phiconv.ir import Tensor
    from phiconv.ir.senses import Encoder, Picture, Vision

__all__ = ["features", "place_ids"]


def features(encoder: Encoder, picture: Picture, *, precision: Precision = "float32") -> Array:
    """The features of a picture, as tokens of the language model.

    Args:
        encoder: Its weights are read from its files, each once.
        picture: See `phiconv.ir.senses.Picture`.
        precision: What to compute in.

    Returns:
        Shape (features, hidden size of the language model).
    """
    ops = NumpyEncoderOps(encoder.tensors, picture, np.dtype(precision))
    with threads.parallel(), np.errstate(all="ignore"):
        patches = encoder.tower(ops, encoder.parameters)
        result = encoder.project(ops, encoder.arrange(ops, patches, encoder.parameters), encoder.parameters)
    flat: Array = result.reshape(-1, result.shape[-1])
    return flat


class NumpyLayers:
    """The operations that all encoders have, on arrays whose last axis is the width."""

    def __init__(self, tensors: Mapping[Role, Tensor], dtype: np.dtype[Any]) -> None:
        self._weights = Weights(tensors, dtype)

    def _vector(self, role: Role, part: str = "weight") -> Array:
        vector = self._weights.vector(role, part)
        assert vector is not None  # noqa: S101 - check_calls has seen it
        return vector

    def linear(self, x: Array, role: Role, /) -> Array:
        flat = np.ascontiguousarray(x.reshape(-1, x.shape[-1]))
        bias = self._weights.vector(role, "bias")
        y = self._weights.product(flat, self._weights.tensors[role], bias)
        return y.reshape(*x.shape[:-1], -1)

    def layer_norm(self, x: Array, role: Role, epsilon: float, /) -> Array:
        return layers.layer_norm(x, self._vector(role), self._vector(role, "bias"), epsilon)

    def add(self, a: Array, b: Array, /) -> Array:
        return a + b

    def activate(self, x: Array, kind: Activation, /) -> Array:
        return layers.ACTIVATIONS[kind](x)


class NumpyEncoderOps(NumpyLayers):
    """The operations on arrays of shape (crops, patches, width), after `arrange` (features, width)."""

    def __init__(self, tensors: Mapping[Role, Tensor], picture: Picture, dtype: np.dtype[Any]) -> None:
        super().__init__(tensors, dtype)
        self._picture = picture
        self._side = (0, 0)

    def patches(self, role: Role, parameters: Vision, /) -> Array:
        pixels, size = self._picture.pixels, parameters.patch_size
        crops, colours, height, width = pixels.shape
        self._side = (height // size, width // size)
        cut = pixels.reshape(crops, colours, self._side[0], size, self._side[1], size)
        order = (0, 2, 4, 3, 5, 1) if parameters.channels_last else (0, 2, 4, 1, 3, 5)
        flat = cut.transpose(order).reshape(crops, math.prod(self._side), -1)
        return self.linear(flat.astype(self._weights.dtype), role)

    def with_class(self, x: Array, role: Role, /) -> Array:
        first = np.broadcast_to(self._vector(role), (len(x), 1, x.shape[-1]))
        return np.concatenate([first, x], axis=1)

    def without_class(self, x: Array, /) -> Array:
        return x[:, 1:]

    def positions(self, x: Array, role: Role, how: Positions, /) -> Array:
        tensor = self._weights.tensors[role]
        table = self._weights.rows_at(role, np.arange(tensor.rows))
        if how == "table":
            return x + table
        side = math.isqrt(len(table))
        if how == "resized":
            square = table.reshape(side, side, -1)
            for axis, size in enumerate(self._side):
                square = resampling.resized(square, resampling.antialiased(side, size), axis)
            return x + square.reshape(x.shape[1:])
        mask = self._picture.mask
        assert mask is not None  # noqa: S101 - these encoders' pictures have one
        return x + table[np.stack([place_ids(m, side) for m in mask])]

    def attention(self, x: Array, layer: int, spec: EncoderAttention, /) -> Array:
        crops, count, _ = x.shape
        q, k, v = (
            self.linear(x, Role(name, layer)).reshape(crops, count, spec.heads, spec.head_dim)
            for name in spec.roles
        )
        mask = self._picture.mask
        added = None if mask is None else np.where(mask, x.dtype.type(0), x.dtype.type(-np.inf))
        y = np.empty_like(q)

        def attend(crop: int, head: int) -> None:
            some = (q[crop, :, head], k[crop, :, head], v[crop, :, head])
            y[crop, :, head] = layers.attend_to_all(*some, None if added is None else added[crop].reshape(-1))

        threads.run(partial(attend, i, head) for i in range(crops) for head in range(spec.heads))
        return y.reshape(crops, count, -1)

    def merge(self, x: Array, how: Merging, /) -> Array:
        (rows, columns), (crops, _, width) = self._side, x.shape
        self._side = rows // 2, columns // 2
        fours = x.reshape(crops, rows // 2, 2, columns // 2, 2, width).transpose(0, 1, 3, 2, 4, 5)
        fours = fours.reshape(crops, rows * columns // 4, 4, width)
        return fours.mean(axis=2) if how == "mean" else fours.reshape(crops, -1, 4 * width)

    def arrange(self, x: Array, row_end: Role, separator: Role, /) -> Array:
        end, (down, across), (rows, columns) = self._vector(row_end), self._picture.grid, self._side
        width = x.shape[-1]

        def as_rows(square: Array) -> Array:
            ends = np.broadcast_to(end, (len(square), 1, width))
            return np.concatenate([square, ends], axis=1).reshape(-1, width)

        whole = x[1 : 1 + down * across].reshape(down, across, rows, columns, width)
        whole = whole.transpose(0, 2, 1, 3, 4).reshape(down * rows, across * columns, width)
        if self._picture.mask is not None:
            halves = self._picture.mask[1:, ::2, ::2].reshape(down, across, rows, columns)
            shown = halves.transpose(0, 2, 1, 3).reshape(down * rows, across * columns)
            whole = whole[: int(shown[:, 0].sum()), : int(shown[0].sum())]
        small = x[0].reshape(rows, columns, width)
        return np.concatenate([as_rows(whole), self._vector(separator)[None], as_rows(small)])


def place_ids(shown: NDArray[np.bool_], side: int) -> NDArray[np.intp]:
    """Which row of a square table of positions each patch of a crop has.

    Args:
        shown: Which patches show something, a rectangle at the upper left; shape (rows, columns).
        side: Rows of the square, and its columns.

    Returns:
        Row by row, 0 for patches that show nothing.
    """
    rows, columns = int(shown[:, 0].sum()), int(shown[0].sum())
    bounds = np.arange(1, side, dtype=np.float32) / np.float32(side)
    down, across = (
        np.searchsorted(bounds, (np.arange(n) * (1 / n)).astype(np.float32), side="right")
        for n in (rows, columns)
    )
    ids = np.zeros(shown.shape, np.intp)
    ids[:rows, :columns] = down[:, None] * side + across
    return ids.reshape(-1)
