"""Computes the features of a sound with NumPy: the `SoundOps` whose values are arrays."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from phiconv.forward import layers, threads
from phiconv.forward.encoders import NumpyLayers
from phiconv.ir.roles import Role

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from phiconv.forward.encoder_ops import EncoderAttention
    from phiconv.forward.interpreter import Precision
    from phiconv.forward.layers import Array
    from phiconv.forward.ops import Activation
    from phiconv.ir import Tensor
    from phiconv.ir.senses import Beside, SoundEncoder

__all__ = ["sound_features"]


def sound_features(
    encoder: SoundEncoder,
    spectrogram: NDArray[np.float32],
    *,
    beside: Beside = "speech",
    precision: Precision = "float32",
) -> Array:
    """The features of a sound, as tokens of the language model.

    Args:
        encoder: Its weights are read from its files.
        spectrogram: From `phiconv.perception.sounds.log_mel`, shape (frames, bands).
        beside: Whether the sound is alone in its prompt, or with a picture.
        precision: What to compute in.

    Returns:
        Shape (features, hidden size of the language model).
    """
    ops = _NumpySoundOps(encoder.tensors, spectrogram, np.dtype(precision))
    with threads.parallel(), np.errstate(all="ignore"):
        frames = encoder.tower(ops, encoder.parameters)
        result: Array = encoder.project(ops, frames, encoder.parameters, beside)
    return result


class _NumpySoundOps(NumpyLayers):
    """The operations on arrays of shape (pieces, frames, width), or (channels, frames, bands)."""

    def __init__(
        self, tensors: Mapping[Role, Tensor], spectrogram: NDArray[np.float32], dtype: np.dtype[Any]
    ) -> None:
        super().__init__(tensors, dtype)
        self._spectrogram = spectrogram.astype(dtype)
        self._length = 0

    def frames(self, mean: Role, inverse_std: Role, /) -> Array:
        return ((self._spectrogram - self._vector(mean)) * self._vector(inverse_std))[None]

    def convolve(self, x: Array, role: Role, /) -> Array:
        weights = self._vector(role).reshape(-1, len(x), 9)
        result: Array = np.einsum("ock,cktf->otf", weights, _neighbours(x), optimize=True)
        result += self._vector(role, "bias")[:, None, None]
        return result

    def convolve_each(self, x: Array, role: Role, /) -> Array:
        weights = self._vector(role).reshape(len(x), 9)
        result: Array = np.einsum("ck,cktf->ctf", weights, _neighbours(x))
        result += self._vector(role, "bias")[:, None, None]
        return result

    def mix(self, x: Array, role: Role, /) -> Array:
        channels, frames, bands = x.shape
        pixels = np.ascontiguousarray(x.reshape(channels, -1).T)
        mixed = self._weights.product(pixels, self._weights.tensors[role], self._vector(role, "bias"))
        return mixed.T.reshape(-1, frames, bands)

    def flatten(self, x: Array, /) -> Array:
        return x.transpose(1, 0, 2).reshape(1, x.shape[1], -1)

    def cut(self, x: Array, longest: int, /) -> Array:
        _, self._length, width = x.shape
        if self._length <= longest:
            return x
        pieces = -(-self._length // longest)
        filled = np.zeros((pieces * longest, width), x.dtype)
        filled[: self._length] = x[0]
        return filled.reshape(pieces, longest, width)

    def uncut(self, x: Array, /) -> Array:
        return x.reshape(-1, x.shape[-1])[: self._length]

    def half(self, x: Array, /) -> Array:
        return x / 2

    def gate(self, x: Array, kind: Activation, /) -> Array:
        first, second = np.split(x, 2, axis=-1)
        return first * layers.ACTIVATIONS[kind](second)

    def gate_shifted(self, x: Array, kind: Activation, first: Role, second: Role, /) -> Array:
        a, b = np.split(x, 2, axis=-1)
        return (a + self._vector(first)) * layers.ACTIVATIONS[kind](b + self._vector(second))

    def attention(self, x: Array, layer: int, spec: EncoderAttention, bias: Role, distance: int, /) -> Array:
        pieces, count, _ = x.shape
        q, k, v = (
            self.linear(x, Role(name, layer)).reshape(pieces, count, spec.heads, spec.head_dim)
            for name in spec.roles
        )
        away = np.arange(count) - np.arange(count)[:, None]
        by_distance = self._vector(bias).reshape(-1, spec.heads)
        added = by_distance[np.clip(away, -distance, distance - 1) + distance]
        y = np.empty_like(q)

        def attend(piece: int, head: int) -> None:
            some = (q[piece, :, head], k[piece, :, head], v[piece, :, head])
            y[piece, :, head] = layers.attend_to_all(*some, added[:, :, head])

        threads.run(partial(attend, i, head) for i in range(pieces) for head in range(spec.heads))
        return y.reshape(pieces, count, -1)

    def causal(self, x: Array, role: Role, /) -> Array:
        weights = self._vector(role).reshape(x.shape[-1], -1)
        y = x * weights[:, -1]
        for back in range(1, weights.shape[1]):
            y[:, back:] += x[:, :-back] * weights[:, -1 - back]
        return y + self._vector(role, "bias")


def _neighbours(x: Array) -> Array:
    """The 3 x 3 pixels around every second one of every second row, zeros beyond the border.

    Returns:
        Shape (channels, 9, rows, columns), of half as many rows and columns, rounded up.
    """
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1)))
    rows, columns = -(-x.shape[1] // 2), -(-x.shape[2] // 2)
    shifted = [
        padded[:, i : i + 2 * rows - 1 : 2, j : j + 2 * columns - 1 : 2] for i in range(3) for j in range(3)
    ]
    return np.stack(shifted, axis=1)
