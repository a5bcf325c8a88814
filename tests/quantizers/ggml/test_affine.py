"""The classic quantizers against their formulas, one block and one weight at a time."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from phiconv import ir
from phiconv.errors import UsageError
from phiconv.quantizers import decode, encode

f32 = np.float32

SYMMETRIC = {ir.Q4_0: 8, ir.Q5_0: 16}
ASYMMETRIC = {ir.Q4_1: 15, ir.Q5_1: 31}

every_encoding = pytest.mark.parametrize("encoding", [*SYMMETRIC, *ASYMMETRIC, ir.Q8_0], ids=lambda e: e.name)


def weights(max_blocks=4):
    """Blocks of usual and of extreme weights, with many equal magnitudes and zeros of both signs."""
    usual = st.floats(-2, 2, width=16)
    few = st.sampled_from([0.0, -0.0, 1.0, -1.0, 0.5, -0.5, 3.0, -3.0])
    any_size = st.floats(-1e4, 1e4, width=32)
    rows = st.integers(1, max_blocks)
    return st.one_of(
        *(hnp.arrays(f32, st.tuples(rows, st.just(32)), elements=e) for e in (usual, few, any_size))
    )


# ------------------------------------------------------------------------------------- the formulas of ggml


def reciprocal(scale):
    with np.errstate(over="ignore"):
        return f32(1) / scale if scale else f32(0)


def truncate(value):
    """C's cast to an integer, as x86 does it for what is out of range."""
    return int(value) if math.isfinite(value) else 0


def round_away(value):
    return int(math.copysign(math.floor(abs(float(value)) + 0.5), value)) if math.isfinite(value) else 0


def reference_block(x, encoding):
    """Codes, scale and minimum of 32 weights, in float32 scalars."""
    with np.errstate(invalid="ignore", under="ignore", over="ignore"):
        if encoding == ir.Q8_0:
            scale = max(abs(v) for v in x) / f32(127)
            inverse = reciprocal(scale)
            return [round_away(v * inverse) for v in x], scale, None
        if encoding in SYMMETRIC:
            offset = SYMMETRIC[encoding]
            extreme = f32(0)
            for v in x:
                if abs(v) > abs(extreme):
                    extreme = v
            scale = extreme / f32(-offset)
            inverse = reciprocal(scale)
            codes = [min(2 * offset - 1, truncate(v * inverse + f32(offset + 0.5))) for v in x]
            return codes, scale, None
        low, high = min(x), max(x)  # the first of equals
        scale = (high - low) / f32(ASYMMETRIC[encoding])
        inverse = reciprocal(scale)
        return [truncate((v - low) * inverse + f32(0.5)) for v in x], scale, low


def codes_of(blocks):
    """Codes as (n, 32), in the order of the weights."""
    return blocks.codes.transpose(1, 0, 2).reshape(len(blocks), -1)


def check_against_reference(x, encoding):
    blocks = encode(x, encoding)
    assert isinstance(blocks, ir.Blocks)
    assert blocks.codes.dtype == (np.int8 if encoding == ir.Q8_0 else np.uint8)
    codes = codes_of(blocks)
    for b, block in enumerate(x.reshape(-1, 32).astype(f32)):
        expected, scale, minimum = reference_block(block, encoding)
        assert codes[b].tolist() == expected
        with np.errstate(over="ignore"):
            assert blocks.scales[b].tobytes() == np.float16(scale).tobytes()
            if minimum is not None:
                assert blocks.minima[b].tobytes() == np.float16(minimum).tobytes()
    assert (blocks.minima is None) == (not encoding.has_minimum)


@every_encoding
@given(x=weights())
def test_equals_the_formula(encoding, x):
    check_against_reference(x, encoding)


@every_encoding
@given(x=hnp.arrays(f32, (2, 32), elements=st.floats(-(2.0**100), 2.0**100, width=32)))
def test_equals_the_formula_beyond_float16(encoding, x):
    check_against_reference(x, encoding)


@every_encoding
@given(x=hnp.arrays(f32, (2, 32), elements=st.floats(-(2.0**-120), 2.0**-120, width=32)))
def test_equals_the_formula_where_the_scale_has_no_reciprocal(encoding, x):
    check_against_reference(x, encoding)


@every_encoding
@pytest.mark.parametrize("dtype", [ir.F16.dtype, ir.BF16.dtype, ir.F64.dtype], ids=str)
def test_any_stored_type(encoding, dtype):
    x = np.random.default_rng(0).standard_normal((3, 96)).astype(dtype)
    check_against_reference(x, encoding)
    check_against_reference(np.ascontiguousarray(x.T)[:64].T, encoding)


@every_encoding
def test_equals_the_formula_next_to_halves(encoding):
    halves = np.arange(-127, 127, dtype=f32) + f32(0.5)
    near = np.concatenate([np.nextafter(halves, f32(-200)), halves, np.nextafter(halves, f32(200))])
    check_against_reference(np.insert(np.resize(near, (31, 31)), 0, 127, axis=1), encoding)


# ------------------------------------------------------------------------------------------ what must hold


@every_encoding
@given(x=weights(max_blocks=6))
def test_error_is_bounded(encoding, x):
    blocks = encode(x, encoding)
    error = np.abs(x.astype(np.float64) - decode(blocks, 32))
    scale = np.abs(blocks.scales.astype(np.float64))
    rounding = 2.0**-10 * scale + 2.0**-24  # of a scale to float16, subnormals included
    # Half a step; a whole one at the end of a symmetric range that has one code less than the other.
    bound = (1.0 if encoding.offset else 0.5) * (scale + rounding) + rounding * (1 << encoding.bits)
    if blocks.minima is not None:
        bound += 2.0**-10 * np.abs(blocks.minima.astype(np.float64)) + 2.0**-24
    assert (error <= bound[:, None] * (1 + 1e-4)).all()


@every_encoding
@given(x=weights(max_blocks=6), random=st.randoms(use_true_random=False))
def test_blocks_do_not_see_each_other(encoding, x, random):
    order = list(range(len(x)))
    random.shuffle(order)
    whole, shuffled = encode(x, encoding), encode(x[order], encoding)
    np.testing.assert_array_equal(shuffled.codes, whole.codes[:, order])
    np.testing.assert_array_equal(shuffled.scales, whole.scales[order])


@every_encoding
@given(x=weights(max_blocks=6), cut=st.integers(0, 6))
def test_tile_size_does_not_matter(encoding, x, cut):
    whole = encode(x, encoding)
    joined = ir.Blocks.join([encode(x[:cut], encoding), encode(x[cut:], encoding)])
    np.testing.assert_array_equal(joined.codes, whole.codes)
    np.testing.assert_array_equal(joined.scales, whole.scales)


@every_encoding
def test_dequantizes_by_the_formula(encoding):
    blocks = encode(np.random.default_rng(0).standard_normal((4, 64)).astype(f32), encoding)
    codes = codes_of(blocks).astype(f32) - f32(encoding.offset)
    expected = codes * blocks.scales.astype(f32)[:, None]
    if blocks.minima is not None:
        expected += blocks.minima.astype(f32)[:, None]
    np.testing.assert_array_equal(decode(blocks, 64), expected.reshape(4, 64))


@every_encoding
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 3e38])
def test_what_does_not_fit_is_seen_in_the_scale(encoding, bad):
    x = np.random.default_rng(0).standard_normal((3, 32)).astype(f32)
    x[1, 7] = bad
    blocks = encode(x, encoding)
    parts = [blocks.scales] if blocks.minima is None else [blocks.scales, blocks.minima]
    finite = np.all([np.isfinite(part) for part in parts], axis=0)
    assert finite.tolist() == [True, False, True]
    assert np.isfinite(decode(blocks, 32)[[0, 2]]).all()


@every_encoding
def test_threads_do_not_share_memory(encoding):
    rng = np.random.default_rng(0)
    tiles = [rng.standard_normal((4, 4096)).astype(f32) for _ in range(8)]
    expected = [encode(tile, encoding).codes for tile in tiles]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(5):
            for blocks, codes in zip(pool.map(lambda t: encode(t, encoding), tiles), expected, strict=True):
                np.testing.assert_array_equal(blocks.codes, codes)


@every_encoding
def test_input_stays_as_it_was(encoding):
    x = np.random.default_rng(0).standard_normal((4, 64)).astype(f32)
    before = x.copy()
    encode(x, encoding)
    np.testing.assert_array_equal(x, before)


@every_encoding
def test_no_rows(encoding):
    blocks = encode(np.empty((0, 64), f32), encoding)
    assert len(blocks) == 0
    assert decode(blocks, 64).shape == (0, 64)


def test_float_rows():
    x = np.random.default_rng(0).standard_normal((2, 5))
    assert encode(x, ir.F64) is x
    half = encode(x, ir.F16)
    np.testing.assert_array_equal(half, x.astype(f32).astype(np.float16))
    np.testing.assert_array_equal(decode(half, 5), half.astype(f32))
    assert decode(x, 5).dtype == f32


def test_refuses_what_it_cannot_encode():
    with pytest.raises(UsageError, match="no quantizer for iq1_s"):
        encode(np.zeros((1, 256), f32), ir.RawEncoding("iq1_s", 256, 50))
    with pytest.raises(UsageError, match="48 weights"):
        encode(np.zeros((1, 48), f32), ir.Q8_0)
    with pytest.raises(UsageError, match="128 weights"):
        encode(np.zeros((1, 128), f32), ir.Q4_K)
    with pytest.raises(UsageError, match="for 256 columns"):
        encode(np.zeros((1, 256), f32), ir.Q4_K, np.ones(128, f32))
