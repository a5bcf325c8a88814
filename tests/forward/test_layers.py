"""The arithmetic of layers against plain formulas, in float64."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from phiconv.forward import layers
from phiconv.forward.ops import MixtureOfExperts
from phiconv.ir.rope import Rope

F32, F64 = np.dtype(np.float32), np.dtype(np.float64)


def random(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape)


def softmax(x):
    e = np.exp(x - x.max())
    return e / e.sum()


def plain_attention(q, k, v, window):
    """One query and one head at a time."""
    result = np.empty_like(q)
    group = q.shape[1] // k.shape[1]
    for i in range(q.shape[0]):
        first = 0 if window is None else max(0, i - window + 1)
        for h in range(q.shape[1]):
            keys, values = k[first : i + 1, h // group], v[first : i + 1, h // group]
            result[i, h] = softmax(keys @ q[i, h] / np.sqrt(q.shape[2])) @ values
    return result


@given(
    length=st.integers(1, 40),
    kv_heads=st.integers(1, 3),
    group=st.integers(1, 3),
    window=st.none() | st.integers(1, 50),
    most_scores=st.integers(1, 3000),
    seed=st.integers(0, 9),
)
def test_attention(length, kv_heads, group, window, most_scores, seed):
    q = random(seed, length, kv_heads * group, 6)
    k, v = random(seed + 10, 2, length, kv_heads, 6)
    found = layers.attend(q, k, v, window, most_scores=most_scores)
    np.testing.assert_allclose(found, plain_attention(q, k, v, window), atol=1e-12)


def test_attention_in_float32_has_no_overflow():
    q, k, v = (1e4 * random(i, 5, 1, 4).astype(F32) for i in range(3))
    found = layers.attend(q, k, v, None)
    assert found.dtype == F32
    assert np.isfinite(found).all()


def turned(pair, angle):
    return np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) @ pair


@given(length=st.integers(1, 12), half=st.integers(1, 4), rest=st.integers(0, 3), seed=st.integers(0, 9))
def test_rotation(length, half, rest, seed):
    factors = tuple(float(f) for f in range(1, half + 1))
    long = tuple(3 * f for f in factors)
    rope = Rope(2 * half, 100.0, 6, factors, long, short_mscale=1.5, long_mscale=2.0)
    x = random(seed, 2, length, 3, 2 * half + rest)
    found = x.copy()
    layers.rotate(found, *layers.rotary_table(rope, length, F64))
    scale, divisors = (2.0, long) if length > 6 else (1.5, factors)
    for position in range(length):
        for i in range(half):
            angle = position / (divisors[i] * 100 ** (i / half))
            for b, h in np.ndindex(2, 3):
                pair = x[b, position, h, [i, i + half]]
                expected = scale * turned(pair, angle)
                np.testing.assert_allclose(found[b, position, h, [i, i + half]], expected, atol=1e-5)
    np.testing.assert_array_equal(found[..., 2 * half :], x[..., 2 * half :])


@given(shift=st.integers(0, 30))
def test_scores_depend_on_distance_only(shift):
    rope = Rope(8, 10000.0, 4096)
    cos, sin = layers.rotary_table(rope, 50, F64)
    q, k = random(1, 8), random(2, 8)
    x = np.zeros((1, 50, 2, 8))
    x[0, shift + 7, 0], x[0, shift, 1] = q, k
    layers.rotate(x, cos, sin)
    here = x[0, shift + 7, 0] @ x[0, shift, 1]
    x = np.zeros((1, 50, 2, 8))
    x[0, 7, 0], x[0, 0, 1] = q, k
    layers.rotate(x, cos, sin)
    assert here == pytest.approx(x[0, 7, 0] @ x[0, 0, 1], abs=1e-9)


def test_norms():
    x, weight, bias = random(0, 5, 9) + 3, random(1, 9), random(2, 9)
    expected = np.array([(r - r.mean()) / np.sqrt(r.var() + 0.1) * weight + bias for r in x])
    np.testing.assert_allclose(layers.layer_norm(x, weight, bias, 0.1), expected)
    expected = np.array([r / np.sqrt((r**2).mean() + 0.1) * weight for r in x])
    np.testing.assert_allclose(layers.rms_norm(x, weight, 0.1), expected)


def test_activations():
    x = np.linspace(-9, 9, 101)
    np.testing.assert_allclose(layers.ACTIVATIONS["silu"](x), x / (1 + np.exp(-x)))
    inner = np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)
    np.testing.assert_allclose(layers.ACTIVATIONS["gelu_tanh"](x), 0.5 * x * (1 + np.tanh(inner)), atol=1e-15)
    for activation in layers.ACTIVATIONS.values():
        assert activation(x.astype(F32)).dtype == F32
        assert activation(np.array([0.0, 3.0])).tolist()[0] == 0


def plain_mixer(scores, spec):
    """One token: what the sparse mixer does, as its paper tells it."""
    left = dict(enumerate(scores))
    result = []
    for _ in range(spec.used):
        chosen = max(left, key=left.get)
        best = left[chosen]
        near = [s for s in left.values() if (best - s) / max(abs(s), best) <= 2 * spec.jitter]
        result.append((chosen, 1 / sum(np.exp(s - best) for s in near)))
        del left[chosen]
    return result


@given(
    seed=st.integers(0, 99),
    experts=st.integers(2, 8),
    scale=st.sampled_from([0.02, 1.0, 30.0]),
    jitter=st.sampled_from([0.0, 0.01, 0.3]),
)
def test_sparse_mixer(seed, experts, scale, jitter):
    spec = MixtureOfExperts(experts, 2, jitter, "silu")
    scores = scale * random(seed, 7, experts) + 1
    chosen, weights = layers.sparse_mixer(scores, spec)
    for t in range(7):
        expected = plain_mixer(scores[t], spec)
        assert chosen[t].tolist() == [e for e, _ in expected]
        np.testing.assert_allclose(weights[t], [w for _, w in expected])
