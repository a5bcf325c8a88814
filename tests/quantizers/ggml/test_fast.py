"""The fast searches against the exact ones: other blocks, of about the same error."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from phiconv import ir
from phiconv.errors import UsageError
from phiconv.quantizers import FAST, QUANTIZERS, decode, encode
from phiconv.quantizers.ggml import kquant
from phiconv_formats.gguf.packing import pack, unpack

f32 = np.float32

every_encoding = pytest.mark.parametrize("encoding", [ir.Q4_K, ir.Q5_K], ids=lambda e: e.name)

SHAPE = (128, 1024)
WEIGHTS = {
    "normal": lambda rng: rng.standard_normal(SHAPE),
    "laplace": lambda rng: rng.laplace(size=SHAPE),
    "student": lambda rng: rng.standard_t(4, SHAPE),
}


def weights(kind="normal", seed=0):
    return (WEIGHTS[kind](np.random.default_rng(seed)) * 0.02).astype(ir.BF16.dtype)


def importances(kind):
    rng = np.random.default_rng(1)
    kinds = {"ones": np.ones(SHAPE[1], f32), "uneven": np.exp(rng.standard_normal(SHAPE[1])).astype(f32)}
    return kinds.get(kind)


def what_errors_count(x, importance):
    """The weights of the errors that ggml gives them."""
    if importance is None:
        parts = x.reshape(-1, 32)
        counts = np.abs(parts) + np.sqrt((parts**2).mean(axis=1, keepdims=True))
    else:
        parts = x.reshape(-1, 256)
        counts = np.sqrt(2 * (parts**2).mean(axis=1, keepdims=True) + parts**2).reshape(x.shape) * importance
    return counts.reshape(x.shape)


def rms(blocks, x, counts=None):
    squares = (decode(blocks, x.shape[1]).astype(np.float64) - x) ** 2
    return np.sqrt(np.average(squares, weights=counts))


@every_encoding
@pytest.mark.parametrize("kind", WEIGHTS)
@pytest.mark.parametrize("of", [None, "ones", "uneven"])
def test_error_is_that_of_the_exact_search(encoding, kind, of):
    stored, importance = weights(kind), importances(of)
    x = stored.astype(f32)
    exact = encode(stored, encoding, importance)
    fast = encode(stored, encoding, importance, effort="fast")
    counts = what_errors_count(x, importance)
    assert rms(fast, x) <= 1.01 * rms(exact, x)
    assert rms(fast, x, counts) <= 1.01 * rms(exact, x, counts)


def constant(value):
    return lambda _: np.full((4, 256), value)


def of_few_weights(_):
    x = np.zeros((4, 256))
    x[np.arange(4), [0, 31, 32, 255]] = 1, -1, 0.5, -3
    return x


def with_one_outlier(rng):
    x = 0.01 * rng.standard_normal((4, 256))
    x[:, 40] = 10
    return x


EDGES = {
    "zeros": constant(0.0),
    "negative zeros": constant(-0.0),
    "positive constant": constant(0.3),
    "negative constant": constant(-0.3),
    "tiny constant": constant(1e-6),
    "nearly constant": lambda rng: 1 + 0.01 * rng.random((4, 256)),
    "nearly constant, negative": lambda rng: -1 - 0.01 * rng.random((4, 256)),
    "two values": lambda rng: rng.integers(0, 2, (4, 256)) * 0.1 + 1.0,
    "few weights": of_few_weights,
    "sparse": lambda rng: rng.standard_normal((4, 256)) * (rng.random((4, 256)) < 0.05),
    "outlier": with_one_outlier,
    "positive": lambda rng: rng.random((4, 256)) + 0.25,
    "negative": lambda rng: -rng.random((4, 256)) - 0.25,
    "sizes": lambda rng: (
        rng.standard_normal((4, 256)) * 10.0 ** rng.uniform(-6, 3, (4, 8)).repeat(32, axis=1)
    ),
    "small": lambda rng: 1e-3 * rng.standard_normal((4, 256)),
    "tiny": lambda rng: 1e-15 * rng.standard_normal((4, 256)),
    "subnormal": lambda rng: 1e-41 * rng.standard_normal((4, 256)),
    "huge": lambda rng: 1e6 * rng.standard_normal((4, 256)),
}


@every_encoding
@pytest.mark.parametrize("edge", EDGES)
@pytest.mark.parametrize("of", ["plain", "ones", "mostly zero"])
def test_edges(encoding, edge, of):
    rng = np.random.default_rng(3)
    x = EDGES[edge](rng).astype(f32)
    importance = {"ones": np.ones(256, f32), "mostly zero": (rng.random(256) < 0.05).astype(f32)}.get(of)
    exact, fast = encode(x, encoding, importance), encode(x, encoding, importance, effort="fast")
    assert np.isfinite(decode(fast, 256)).all()
    assert fast.codes.max() < 1 << encoding.bits
    assert max(fast.sub_scales.max(), fast.sub_minima.max()) < 1 << encoding.scale_bits
    counts = what_errors_count(x, importance)
    if counts.any():
        assert rms(fast, x, counts) <= 2 * rms(exact, x, counts) + 1e-7 * np.abs(x).max()


@every_encoding
@pytest.mark.parametrize("of", [None, "ones", "uneven"])
def test_codes_are_in_range(encoding, of):
    blocks = encode(weights("student"), encoding, importances(of), effort="fast")
    assert blocks.encoding == encoding
    assert blocks.codes.dtype == np.uint8
    assert blocks.codes.max() == (1 << encoding.bits) - 1
    assert blocks.sub_scales.max() < 1 << encoding.scale_bits
    assert blocks.sub_minima.max() < 1 << encoding.scale_bits


def assert_equal(blocks, others):
    for part in ("codes", "scales", "minima", "sub_scales", "sub_minima"):
        np.testing.assert_array_equal(getattr(blocks, part), getattr(others, part))


@every_encoding
@pytest.mark.parametrize("of", [None, "uneven"])
def test_deterministic(encoding, of):
    """Neither the thread, nor the tile, nor the input's type matters."""
    x, importance = weights(), importances(of)
    before = x.copy()
    whole = encode(x, encoding, importance, effort="fast")
    np.testing.assert_array_equal(x, before)
    assert_equal(encode(x.astype(f32), encoding, importance, effort="fast"), whole)
    tiles = [x[:1], x[1:50], x[50:]]
    with ThreadPoolExecutor(3) as pool:
        parts = list(pool.map(lambda tile: encode(tile, encoding, importance, effort="fast"), tiles))
    assert_equal(ir.Blocks.join(parts), whole)


@every_encoding
@pytest.mark.parametrize("of", [None, "uneven"])
def test_packs_and_unpacks(encoding, of):
    blocks = encode(weights(), encoding, importances(of), effort="fast")
    assert_equal(unpack(pack(blocks), encoding), blocks)


@every_encoding
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 3e38])
def test_what_does_not_fit_is_seen_in_the_scale(encoding, bad):
    x = np.random.default_rng(0).standard_normal((3, 256)).astype(f32)
    x[1, 7] = bad
    blocks = encode(x, encoding, effort="fast")
    finite = np.isfinite(blocks.scales) & np.isfinite(blocks.minima)
    assert finite.tolist() == [True, False, True]


@every_encoding
def test_no_rows(encoding):
    assert len(encode(np.empty((0, 512), f32), encoding, effort="fast")) == 0


@every_encoding
def test_takes_the_short_search(encoding):
    assert (encode(weights(), encoding, effort="fast").codes != encode(weights(), encoding).codes).any()


@pytest.mark.parametrize("encoding", [e for e in QUANTIZERS if e not in FAST][:8], ids=lambda e: e.name)
def test_without_a_fast_search_it_is_exact(encoding):
    x = weights()[:2]
    exact, fast = encode(x, encoding), encode(x, encoding, effort="fast")
    np.testing.assert_array_equal(fast.codes, exact.codes)
    np.testing.assert_array_equal(fast.scales, exact.scales)


def test_exact_is_the_default():
    assert_equal(encode(weights(), ir.Q4_K), kquant.q4_k(weights()))
    assert_equal(encode(weights(), ir.Q4_K, effort="exact"), kquant.q4_k(weights()))


@pytest.mark.parametrize("encoding", [ir.Q4_K, ir.F16], ids=lambda e: e.name)
def test_unknown_effort(encoding):
    with pytest.raises(UsageError, match="'quick': choose from exact, fast"):
        encode(weights(), encoding, effort="quick")
