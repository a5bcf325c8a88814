"""MLX's 4- and 8-bit floats against their formulas, one block and one weight at a time."""

from __future__ import annotations

import math

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from phiconv import ir
from phiconv.conversion import checks
from phiconv.quantizers import decode, encode

f32 = np.float32

ENCODINGS = (ir.MLX_MXFP4, ir.MLX_MXFP8, ir.MLX_NVFP4)
TYPES = (ir.F16, ir.BF16, ir.F32)
E2M1 = (0, 0.5, 1, 1.5, 2, 3, 4, 6)

every_encoding = pytest.mark.parametrize("encoding", ENCODINGS, ids=lambda e: e.name)
every_type = pytest.mark.parametrize("stored", TYPES, ids=lambda t: t.name)


def weights(size):
    """Blocks of usual and of extreme weights, with ties and zeros of both signs."""
    usual = st.floats(-2, 2, width=16)
    some = st.sampled_from(
        [0.0, -0.0, 6.0, -0.25, 0.75, 1.25, -1.75, 2.5, 3.5, -5.0, 448.0, 17.0, -(2.0**-10)]
    )
    any_size = st.floats(-6e4, 6e4, width=32)
    shape = st.tuples(st.integers(1, 3), st.just(size))
    return st.one_of(*(hnp.arrays(f32, shape, elements=e, fill=e) for e in (usual, some, any_size)))


def e4m3(value):
    """The code of the nearest E4M3 number, by a conversion that is not ours."""
    return int(np.clip(f32(value), f32(-448), f32(448)).astype(ml_dtypes.float8_e4m3fn).view(np.uint8))


def e2m1(value):
    """The code of the nearest E2M1 number, of two the smaller one; no negative zero."""
    code = min(range(8), key=lambda c: (abs(E2M1[c] - abs(value)), c))
    return code + 8 if value < 0 and code else code


def reference(block, encoding, dtype):
    """Codes, and the scale that belongs to the numbers that they stand for."""
    largest = max(abs(v) for v in block)
    quotient = float((largest / f32(448 if encoding == ir.MLX_MXFP8 else 6)).astype(dtype))
    if encoding == ir.MLX_NVFP4:
        scale = float(np.array(ir.MLX_MXFP8.table)[e4m3(quotient)])
        return [e2m1(float(v) / scale) if scale else 0 for v in block], scale
    mantissa, exponent = math.frexp(quotient)
    exponent = max(exponent - (mantissa == 0.5), -127) if quotient else 0
    code = e4m3 if encoding == ir.MLX_MXFP8 else e2m1
    return [code(float(v) / 2.0**exponent) for v in block], 2.0**exponent


def check(x, encoding):
    blocks = encode(x, encoding)
    codes = blocks.codes.transpose(1, 0, 2).reshape(len(blocks), -1).tolist()
    doubled = 2 if len(encoding.table) == 16 else 1
    for b, block in enumerate(x.reshape(-1, encoding.block_size).astype(f32)):
        expected, scale = reference(block, encoding, x.dtype)
        assert codes[b] == expected
        assert float(blocks.scales[b]) * doubled == scale


@every_encoding
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_equals_the_formula(encoding, data):
    stored = data.draw(st.sampled_from(TYPES))
    check(data.draw(weights(encoding.block_size)).astype(stored.dtype), encoding)


@every_encoding
@every_type
def test_equals_the_formula_for_every_size(encoding, stored):
    rng = np.random.default_rng(1)
    sizes = 2.0 ** np.arange(-24, 15)[:, None] * rng.choice([1, 1.4375, 1.5, 1.625, 1.75], (39, 1))
    x = sizes * rng.uniform(-1, 1, (39, encoding.block_size))
    x[:, 5] = sizes[:, 0]
    check(x.astype(stored.dtype), encoding)


@every_encoding
def test_equals_the_formula_next_to_a_power_of_two(encoding):
    largest = f32(448 if encoding == ir.MLX_MXFP8 else 6) * f32(2.0) ** np.arange(-30, 30, 7, dtype=f32)
    near = np.concatenate([np.nextafter(largest, f32(0)), largest, np.nextafter(largest, f32(1e9))])
    check(np.outer(near, np.linspace(-1, 1, encoding.block_size)).astype(f32), encoding)


def test_every_e4m3_number_and_what_is_between():
    numbers = np.array(ir.MLX_MXFP8.table[:127], f32)
    middles = (numbers[1:] + numbers[:-1]) / 2
    near = [np.nextafter(middles, f32(0)), middles, np.nextafter(middles, f32(1e9))]
    values = np.resize(np.concatenate([numbers, *near]), (17, 31)).astype(f32)
    check(np.insert(values * np.where(np.arange(31) % 2, 1, -1).astype(f32), 3, 448, axis=1), ir.MLX_MXFP8)


@every_encoding
def test_the_tiniest_weights_keep_their_size(encoding):
    x = np.full((2, 32), 1e-40, f32)
    x[:, ::2] *= -1
    assert np.abs(decode(encode(x, encoding), 32)).max() < 1e-38


@every_encoding
def test_huge_weights_saturate(encoding):
    x = np.full((1, 32), 2e12, f32)
    assert decode(encode(x, encoding), 32).min() >= 448 * 6
    assert checks.count_nonfinite(encode(x, encoding)) == 0


@every_encoding
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@every_type
def test_what_is_not_finite_is_seen_in_the_scale(encoding, bad, stored):
    size = encoding.block_size
    x = np.random.default_rng(0).standard_normal((3, size)).astype(stored.dtype)
    x[1, 7] = bad
    blocks = encode(x, encoding)
    assert np.isfinite(blocks.scales).tolist() == [True, False, True]
    assert checks.count_nonfinite(blocks) == 1
    assert np.isfinite(decode(blocks, size)[[0, 2]]).all()


@every_encoding
def test_dequantizes_by_the_formula(encoding):
    blocks = encode(np.random.default_rng(0).standard_normal((4, 64)).astype(f32), encoding)
    codes = blocks.codes.transpose(1, 0, 2).reshape(len(blocks), -1)
    expected = np.array(encoding.table, f32)[codes] * blocks.scales[:, None]
    np.testing.assert_array_equal(decode(blocks, 64), expected.reshape(4, 64))


def test_table_of_e4m3_is_that_of_ml_dtypes():
    codes = np.arange(256, dtype=np.uint8)
    expected = codes.view(ml_dtypes.float8_e4m3fn).astype(f32)
    expected[127], expected[255] = 480, -480
    np.testing.assert_array_equal(np.array(ir.MLX_MXFP8.table, f32).view(np.uint32), expected.view(np.uint32))


@every_encoding
def test_importance_is_ignored_and_input_stays_as_it_was(encoding):
    x = np.random.default_rng(0).standard_normal((4, 64)).astype(f32)
    before = x.copy()
    blocks = encode(x, encoding, np.arange(64, dtype=f32))
    np.testing.assert_array_equal(blocks.codes, encode(x, encoding).codes)
    np.testing.assert_array_equal(x, before)


@every_encoding
def test_no_rows(encoding):
    blocks = encode(np.empty((0, 64), f32), encoding)
    assert len(blocks) == 0
    assert decode(blocks, 64).shape == (0, 64)
