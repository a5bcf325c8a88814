"""MLX's affine quantizer against its formula, one group and one weight at a time."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from phiconv import ir
from phiconv.conversion import checks
from phiconv.quantizers import decode, encode

f32 = np.float32

BITS, GROUPS, TYPES = (2, 3, 4, 5, 6, 8), (32, 64, 128), (ir.F16, ir.BF16, ir.F32)

every_bits = pytest.mark.parametrize("bits", BITS)
every_type = pytest.mark.parametrize("stored", TYPES, ids=lambda t: t.name)
few = settings(max_examples=20, deadline=None)


def groups(size):
    """Groups of usual and of extreme weights, with ties, zeros of both signs and all of one sign."""
    usual = st.floats(-2, 2, width=16)
    some = st.sampled_from([0.0, -0.0, 1.0, -1.0, 0.5, -0.5, 3.0, -7.5, 15.0])
    any_size = st.floats(-1e4, 1e4, width=32)
    positive = st.floats(1, 2, width=32)
    shape = st.tuples(st.integers(1, 3), st.just(size))
    return st.one_of(*(hnp.arrays(f32, shape, elements=e, fill=e) for e in (usual, some, any_size, positive)))


def reference(group, bits):
    """Codes, scale and minimum of a group, in float32."""
    n = f32(2**bits - 1)
    low, high = min(group), max(group)
    from_below = abs(low) > abs(high)
    scale = max((high - low) / n, f32(1e-7))
    scale, end = (scale, low) if from_below else (-scale, high)
    steps, minimum = np.rint(end / scale), f32(0)
    if steps != 0:
        scale, minimum = end / steps, end
    return [int(min(max(np.rint((v - minimum) / scale), f32(0)), n)) for v in group], scale, minimum


def check(x, encoding):
    blocks = encode(x, encoding)
    codes = blocks.codes.transpose(1, 0, 2).reshape(len(blocks), -1).tolist()
    for b, group in enumerate(x.reshape(-1, encoding.block_size).astype(f32)):
        expected, scale, minimum = reference(group, encoding.bits)
        assert codes[b] == expected
        dtype = encoding.scale_type.dtype
        with np.errstate(over="ignore"):
            assert blocks.scales[b].tobytes() == scale.astype(dtype).tobytes()
            assert blocks.minima[b].tobytes() == minimum.astype(dtype).tobytes()


@every_bits
@few
@given(data=st.data())
def test_equals_the_formula(bits, data):
    group_size, stored = data.draw(st.sampled_from(GROUPS)), data.draw(st.sampled_from(TYPES))
    x = data.draw(groups(group_size)).astype(stored.dtype)
    check(x, ir.mlx_affine(bits, group_size, stored))


@every_bits
@few
@given(data=st.data())
def test_error_is_at_most_half_a_step(bits, data):
    x = data.draw(groups(32))
    blocks = encode(x, ir.mlx_affine(bits, 32, ir.F32))
    error = np.abs(decode(blocks, 32) - x)
    # Half a step more at the far end: moving 0 to a whole step may make the steps too short.
    step = np.abs(blocks.scales[:, None])
    assert (error <= step * 1.0001 + np.abs(x) * 1e-5).all()
    inside = np.abs(x - blocks.minima[:, None]) <= step * (2**bits - 1)
    assert (error <= step * 0.5001 + np.abs(x) * 1e-5)[inside].all()


@every_bits
def test_zero_and_the_larger_end_lose_nothing(bits):
    x = np.random.default_rng(0).standard_normal((50, 64)).astype(f32)
    x[:, 11] = 0
    weights = decode(encode(x, ir.mlx_affine(bits, 64, ir.F32)), 64)
    largest = np.abs(x).argmax(axis=1)
    rows = np.arange(50)
    np.testing.assert_array_equal(weights[rows, largest], x[rows, largest])
    assert np.abs(weights[:, 11]).max() < 1e-6


@every_type
@pytest.mark.parametrize("group_size", GROUPS)
def test_dequantizes_by_the_formula(group_size, stored):
    x = np.random.default_rng(0).standard_normal((4, 256)).astype(stored.dtype)
    blocks = encode(x, ir.mlx_affine(5, group_size, stored))
    codes = blocks.codes.transpose(1, 0, 2).reshape(len(blocks), -1).astype(f32)
    scales, minima = (part.astype(f32)[:, None] for part in (blocks.scales, blocks.minima))
    np.testing.assert_array_equal(decode(blocks, 256), (codes * scales + minima).reshape(4, 256))


@every_type
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@every_bits
def test_what_is_not_finite_is_seen(bits, stored, bad):
    x = np.random.default_rng(0).standard_normal((3, 64)).astype(stored.dtype)
    x[1, 7] = bad
    blocks = encode(x, ir.mlx_affine(bits, 64, stored))
    seen = ~np.isfinite(blocks.scales.astype(f32)) | ~np.isfinite(blocks.minima.astype(f32))
    assert seen.tolist() == [False, True, False]
    assert checks.count_nonfinite(blocks) > 0
    assert np.isfinite(decode(blocks, 64)[[0, 2]]).all()


@pytest.mark.parametrize("cut", [0, 1, 3])
def test_tile_size_does_not_matter(cut):
    x = np.random.default_rng(0).standard_normal((9, 256)).astype(f32)
    encoding = ir.mlx_affine(3, 128, ir.F32)
    whole = encode(x, encoding)
    joined = ir.Blocks.join([encode(x[:cut], encoding), encode(x[cut:], encoding)])
    np.testing.assert_array_equal(joined.codes, whole.codes)
    np.testing.assert_array_equal(joined.scales, whole.scales)
    np.testing.assert_array_equal(joined.minima, whole.minima)


def test_importance_is_ignored_and_input_stays_as_it_was():
    x = np.random.default_rng(0).standard_normal((4, 64)).astype(f32)
    before, encoding = x.copy(), ir.mlx_affine(4, 32, ir.F16)
    blocks = encode(x, encoding, np.arange(64, dtype=f32))
    np.testing.assert_array_equal(blocks.codes, encode(x, encoding).codes)
    np.testing.assert_array_equal(x, before)


def test_no_rows():
    blocks = encode(np.empty((0, 64), f32), ir.mlx_affine(4, 64, ir.BF16))
    assert len(blocks) == 0
    assert decode(blocks, 64).shape == (0, 64)
