"""The arithmetic of a decoder's layers: pure functions on NumPy arrays, for `phiconv.forward.interpreter`.

Every result has the dtype of its input, float32 or float64.
"""

from __future__ import annotations

import math
from functools import cache
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from phiconv.forward.ops import Activation, MixtureOfExperts
    from phiconv.ir.rope import Rope

__all__ = [
    "ACTIVATIONS",
    "Array",
    "attend",
    "attend_last",
    "attend_to_all",
    "erf",
    "layer_norm",
    "rms_norm",
    "rotary_table",
    "rotate",
    "sparse_mixer",
]

Array: TypeAlias = "NDArray[np.floating[Any]]"

_SCORES = 1 << 19
"""Attention scores at a time: some queries against all their keys. 2 MB, so that they stay in the caches."""


def silu(x: Array) -> Array:
    """``x / (1 + exp(-x))``."""
    y = np.exp(-x)
    y += 1
    return np.divide(x, y, out=y)


def gelu_tanh(x: Array) -> Array:
    """``x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 * x**3)))``."""
    y = x * x
    y *= 0.044715
    y += 1
    y *= x
    y *= math.sqrt(2 / math.pi)
    np.tanh(y, out=y)
    y += 1
    y *= x
    y *= 0.5
    return y


def relu(x: Array) -> Array:
    """``max(x, 0)``."""
    y: Array = np.maximum(x, 0)
    return y


def quick_gelu(x: Array) -> Array:
    """``x / (1 + exp(-1.702 * x))``."""
    y = x * x.dtype.type(-1.702)
    np.exp(y, out=y)
    y += 1
    return np.divide(x, y, out=y)


def gelu(x: Array) -> Array:
    """``x / 2 * (1 + erf(x / sqrt(2)))``."""
    y = erf(x * x.dtype.type(math.sqrt(0.5)))
    y += 1
    y *= x
    y *= 0.5
    return y


def erf(x: Array) -> Array:
    """The error function, within 2e-9: NumPy has none.

    Cubic Hermite interpolation between points 1/64 apart, whose slopes are ``2 / sqrt(pi) * exp(-t**2)``.
    """
    values, slopes = _erf_table()
    place = np.minimum(np.abs(x.astype(np.float64)), _ERF_END) * _ERF_POINTS
    left = np.minimum(place.astype(np.intp), len(values) - 2)
    t = place - left
    a, b = values[left], values[left + 1]
    da, db = slopes[left], slopes[left + 1]
    y = a + t * (da + t * (3 * (b - a) - 2 * da - db + t * (2 * (a - b) + da + db)))
    signed: Array = np.copysign(y, x).astype(x.dtype)
    return signed


_ERF_POINTS = 64
_ERF_END = 6.0  # from here on it is 1 in float64


@cache
def _erf_table() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The function at points from 0 to the end, and its slopes per point."""
    points = [i / _ERF_POINTS for i in range(int(_ERF_END * _ERF_POINTS) + 1)]
    slopes = [2 / math.sqrt(math.pi) * math.exp(-t * t) / _ERF_POINTS for t in points]
    return np.array([math.erf(t) for t in points]), np.array(slopes)


ACTIVATIONS: dict[Activation, Callable[[Array], Array]] = {
    "silu": silu,
    "gelu_tanh": gelu_tanh,
    "gelu": gelu,
    "quick_gelu": quick_gelu,
    "relu": relu,
}
"""By the names of `phiconv.forward.ops.Activation`; the result is a new array."""


def rms_norm(x: Array, weight: Array, epsilon: float) -> Array:
    """``x / sqrt(mean(x**2) + epsilon) * weight`` over the last axis."""
    mean = np.mean(x * x, axis=-1, keepdims=True)
    y: Array = x / np.sqrt(mean + x.dtype.type(epsilon))
    y *= weight
    return y


def layer_norm(x: Array, weight: Array, bias: Array, epsilon: float) -> Array:
    """``(x - mean) / sqrt(variance + epsilon) * weight + bias`` over the last axis."""
    y: Array = x - np.mean(x, axis=-1, keepdims=True)
    variance = np.mean(y * y, axis=-1, keepdims=True)
    y /= np.sqrt(variance + x.dtype.type(epsilon))
    y *= weight
    y += bias
    return y


def rotary_table(rope: Rope, length: int, dtype: np.dtype[Any], *, first: int = 0) -> tuple[Array, Array]:
    """Cos and sin of every position and pair, times the attention factor.

    A sequence longer than the original context takes the long factors for all of its positions.

    Args:
        rope: What is rotated by.
        length: Positions of the sequence.
        dtype: Of the result.
        first: The position to begin with.

    Returns:
        Both of shape (length - first, dimensions / 2).
    """
    long = rope.is_long(length)
    frequencies = np.array(rope.inverse_frequencies(long=long), dtype)
    angles = np.arange(first, length, dtype=dtype)[:, None] * frequencies
    mscale = dtype.type(rope.mscale(long=long))
    return np.cos(angles) * mscale, np.sin(angles) * mscale


def rotate(x: Array, cos: Array, sin: Array) -> None:
    """Rotates heads in place: dimension ``i`` with ``i + dimensions / 2`` (https://arxiv.org/abs/2104.09864).

    Args:
        x: Shape (batch, length, heads, head_dim); dimensions that the table does not cover stay as they are.
        cos: From `rotary_table`.
        sin: The same.
    """
    half = cos.shape[1]
    cos, sin = cos[:, None, :], sin[:, None, :]
    first, second = x[..., :half], x[..., half : 2 * half]
    turned = first * cos - second * sin
    second *= cos
    second += first * sin
    first[...] = turned


def attend(q: Array, k: Array, v: Array, window: int | None, *, most_scores: int = _SCORES) -> Array:
    """Causal attention of one sequence: ``softmax(q @ k.T / sqrt(head_dim)) @ v`` for each head.

    It goes through the queries in blocks, each against only those keys that one of them can see.

    Args:
        q: Shape (length, heads, head_dim).
        k: Shape (length, kv_heads, head_dim); each head serves ``heads / kv_heads`` neighbouring ones of q.
        v: The same.
        window: Positions that a query attends to, itself included; None for all before it.
        most_scores: Bounds the memory; at least one query is done at a time.

    Returns:
        Shape (length, heads, head_dim).
    """
    (length, heads, head_dim), kv_heads = q.shape, k.shape[1]
    group = heads // kv_heads
    queries = (q * q.dtype.type(head_dim**-0.5)).reshape(length, kv_heads, group, head_dim)
    queries = queries.transpose(1, 2, 0, 3)
    keys, values = k.transpose(1, 2, 0), np.ascontiguousarray(v.transpose(1, 0, 2))
    result = np.empty((length, kv_heads, group, head_dim), q.dtype)
    step = min(max(most_scores // (heads * min(length, window or length)), 1), 128)
    for start in range(0, length, step):
        stop = min(start + step, length)
        low = 0 if window is None else max(start + 1 - window, 0)
        block = queries[:, :, start:stop].reshape(kv_heads, -1, head_dim)
        scores = (block @ keys[:, :, low:stop]).reshape(kv_heads, group, stop - start, stop - low)
        scores += _mask(start, stop, low, window, q.dtype)
        scores -= scores.max(axis=-1, keepdims=True)
        np.exp(scores, out=scores)
        total = scores.sum(axis=-1, keepdims=True)
        mixed = scores.reshape(kv_heads, -1, stop - low) @ values[:, low:stop]
        mixed = mixed.reshape(kv_heads, group, stop - start, head_dim) / total
        result[start:stop] = mixed.transpose(2, 0, 1, 3)
    return result.reshape(length, heads, head_dim)


def attend_to_all(q: Array, k: Array, v: Array, added: Array | None) -> Array:
    """Attention of one head in both directions: ``softmax(q @ k.T / sqrt(head_dim)) @ v``.

    Args:
        q: Shape (length, head_dim).
        k: The same.
        v: The same.
        added: To the scores, shape (length, length), or (length,) for all queries alike; minus infinity for
            keys that are not attended to. None for nothing.
    """
    scores: Array = (q * q.dtype.type(q.shape[-1] ** -0.5)) @ k.T
    if added is not None:
        scores += added
    scores -= scores.max(axis=-1, keepdims=True)
    np.exp(scores, out=scores)
    total = scores.sum(axis=-1, keepdims=True)
    result: Array = scores @ v / total
    return result


def attend_last(q: Array, k: Array, v: Array) -> Array:
    """Attention of the last token of a sequence: `attend` with one query, which sees all keys.

    Args:
        q: Shape (heads, head_dim).
        k: Shape (kv_heads, length, head_dim), so that a head's keys lie together.
        v: The same.

    Returns:
        Shape (heads, head_dim).
    """
    kv_heads, _, head_dim = k.shape
    queries = (q * q.dtype.type(head_dim**-0.5)).reshape(kv_heads, -1, head_dim)
    scores = queries @ k.transpose(0, 2, 1)
    scores -= scores.max(axis=-1, keepdims=True)
    np.exp(scores, out=scores)
    mixed: Array = scores @ v / scores.sum(axis=-1, keepdims=True)
    return mixed.reshape(q.shape)


def _mask(start: int, stop: int, low: int, window: int | None, dtype: np.dtype[Any]) -> Array:
    """0 where query ``start + i`` sees key ``low + j``, minus infinity elsewhere."""
    distance = np.arange(start, stop)[:, None] - np.arange(low, stop)
    hidden = distance < 0
    if window is not None:
        hidden |= distance >= window
    mask: Array = np.where(hidden, dtype.type(-np.inf), dtype.type(0))
    return mask


def sparse_mixer(scores: Array, spec: MixtureOfExperts) -> tuple[NDArray[np.intp], Array]:
    """Which experts each token uses, and their weights; see `MixtureOfExperts`.

    Args:
        scores: The router's, shape (tokens, experts).
        spec: How many to choose, and which are near.

    Returns:
        Indices and weights, shape (tokens, used), in the order in which they are chosen.
    """
    rows = np.arange(len(scores))
    left = scores.copy()
    chosen = np.empty((len(scores), spec.used), np.intp)
    weights = np.empty((len(scores), spec.used), scores.dtype)
    for i in range(spec.used):
        chosen[:, i] = left.argmax(axis=1)
        best = left[rows, chosen[:, i]][:, None]
        far = (best - scores) / np.maximum(np.abs(scores), best) > 2 * spec.jitter
        near = np.where(far, -np.inf, left)
        weights[:, i] = 1 / np.exp(near - best).sum(axis=1)
        left[rows, chosen[:, i]] = -np.inf
    return chosen, weights
