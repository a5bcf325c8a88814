"""ONNX Runtime's quantizers against their formulas, one block and one weight at a time."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from phiconv import ir
from phiconv.conversion import checks
from phiconv.errors import UsageError
from phiconv.quantizers import decode, encode

f32, f64 = np.float32, np.float64

METHODS = tuple(ir.ONNX_AFFINE)
ALL = [e for encodings in ir.ONNX_AFFINE.values() for e in encodings]

every_method = pytest.mark.parametrize("method", METHODS)
few = settings(max_examples=25, deadline=None)


def tiles(size):
    """Blocks of usual and of extreme weights, with ties, zeros of both signs and all of one sign."""
    usual = st.floats(-2, 2, width=16)
    some = st.sampled_from([0.0, -0.0, 1.0, -1.0, 0.5, -0.5, 3.0, -7.5, 15.0])
    any_size = st.floats(-1e4, 1e4, width=32)
    subnormal = st.floats(-(2.0**-122), 2.0**-122, width=32)
    positive = st.floats(1, 2, width=32)
    shape = st.tuples(st.integers(1, 3), st.just(size))
    elements = (usual, some, any_size, subnormal, positive)
    return st.one_of(*(hnp.arrays(f32, shape, elements=e, fill=e) for e in elements))


# --------------------------------------------------------------------------------------- formulas, in scalars
# Each takes one block in the type of the scales, and gives its codes, its scale and its zero point.


def roundf(x):
    """C's roundf, with what is beyond all codes left as it is."""
    if not math.isfinite(x):
        return x
    return f32(math.copysign(math.floor(abs(float(x)) + 0.5), x))  # exact in float64


def signed_extreme(block):
    """The weight of largest size, the smallest one of equals, of zeros the first."""
    low, high = min(block), max(block)
    return high if abs(high) > abs(low) else low


def scale_and_zero(block, encoding):
    n = f32(2**encoding.bits - 1)
    x = [f32(v) for v in block]
    if not encoding.has_zero_point:
        return signed_extreme(x) / f32(-encoding.offset), f32(encoding.offset)
    low, high = min(*x, f32(0)), max(*x, f32(0))
    scale = abs((high - low) / n)
    zero = f32(0) if scale == 0 else f32(0) - low / scale
    return scale, roundf(min(max(zero, f32(0)), n))


def used_scale(scale, encoding):
    """Bfloat16's are only rounded at the end."""
    return scale if encoding.scale_type == ir.BF16 else f32(encoding.scale_type.dtype.type(scale))


def clip(x, largest):
    """NaN becomes 0, as in C."""
    return int(min(largest, max(0, x)))


def default(block, encoding):
    scale, zero = scale_and_zero(block, encoding)
    used = used_scale(scale, encoding)
    inverse = f32(1) / used if used != 0 else f32(0)
    return [clip(roundf(f32(v) * inverse + zero), 2**encoding.bits - 1) for v in block], scale, zero


def qdq(block, encoding):
    if encoding.bits == 8:
        return default(block, encoding)
    scale, zero = scale_and_zero(block, encoding)
    used = used_scale(scale, encoding)
    inverse = f32(1) / used if used != 0 else f32(0)
    if np.isinf(inverse):
        return [0] * len(block), scale, zero
    return [clip(roundf(f32(v) * inverse) + zero, 15) for v in block], scale, zero


def gather(block, encoding):
    kind = encoding.scale_type.dtype.type
    if not encoding.has_zero_point:
        scale = signed_extreme(block) / kind(-8)
        codes = [8 if scale == 0 else int(min(max(np.rint(v / scale), -8), 7)) + 8 for v in block]
        return codes, scale, 8
    low, high = min(*block, kind(0)), max(*block, kind(0))
    scale = abs(high - low) / kind(15)
    if scale == 0:
        return [8] * len(block), scale, 8
    zero = kind(min(max(np.rint(-low / scale), 0), 15))
    return [int(min(max(np.rint(v / scale + zero), 0), 15)) for v in block], scale, zero


def qmoe(block, encoding):
    middle, x = encoding.offset, [f32(v) for v in block]
    largest = next(v for v in x if abs(v) == max(abs(u) for u in x))
    scale = largest / f32(-middle)
    if abs(scale) < np.finfo(f32).eps:
        scale = np.finfo(f32).eps
    return [int(min(max(np.rint(v / scale), -middle), middle - 1)) + middle for v in x], scale, middle


def rtn(block, encoding):
    n, kind = 2**encoding.bits - 1, encoding.scale_type.dtype.type
    low, high = min(block), max(block)
    if encoding.has_zero_point:
        scale = f64(1) if low == high else f64(high - low) / n
        zero = min(max(np.rint(f64(-low) / scale), 0), n)
    else:
        size = max(abs(low), abs(high))
        scale, zero = f64(1) if size == 0 else f64(size * kind(2)) / n, encoding.offset
    return [int(min(max(np.rint(f64(v) / scale + zero), 0), n)) for v in block], scale, zero


def k_quant(block, encoding):
    """On the whole block at a time: the order of the sums is NumPy's own."""
    n, x = f32(2**encoding.bits - 1), block.astype(f32)
    w = np.sqrt(np.sum(x * x) / f32(x.size)) + np.abs(x)
    sum_w, sum_x = np.sum(w), np.sum(w * x)
    low, high = min(x), max(x)
    inverse = f32(1) if low == high else n / (high - low)
    scale = f32(1) / inverse
    codes = np.clip(np.rint(inverse * (x - low)), 0, n)
    best = np.sum(w * (scale * codes + low - x) ** 2)
    for step in range(20):
        inverse = f32(1) if low == high else f32(-1 + 0.1 * step + float(n)) / (high - low)
        codes = np.clip(np.rint(inverse * (x - low)), 0, n)
        wl = w * codes
        sum_l, sum_l2, sum_xl = np.sum(wl), np.sum(wl * codes), np.sum(wl * x)
        determinant = sum_w * sum_l2 - sum_l**2
        new_scale = (sum_w * sum_xl - sum_x * sum_l) / determinant
        new_low = (sum_l2 * sum_x - sum_l * sum_xl) / determinant
        error = np.sum(w * (new_scale * codes + new_low - x) ** 2)
        if error < best:
            best, scale, low = error, new_scale, new_low
    zero = np.nan_to_num(np.clip(np.rint(-low / scale), 0, n))
    codes = np.nan_to_num(np.clip(np.rint(x / f64(scale) + f64(zero)), 0, n))
    return codes.astype(int).tolist(), scale, zero


FORMULAS = {"default": default, "qdq": qdq, "gather": gather, "qmoe": qmoe, "rtn": rtn, "k_quant": k_quant}


@every_method
@few
@given(data=st.data())
def test_equals_the_formula(method, data):
    encoding = data.draw(st.sampled_from(ir.ONNX_AFFINE[method]))
    x = data.draw(tiles(encoding.block_size)).astype(encoding.scale_type.dtype)
    if encoding.scale_type == ir.BF16:
        x = x.astype(f32)
    blocks = encode(x, encoding)
    codes = blocks.codes.transpose(1, 0, 2).reshape(len(blocks), -1).tolist()
    for b, block in enumerate(x):
        with np.errstate(all="ignore"):
            expected, scale, zero = FORMULAS[method](block, encoding)
            stored = encoding.scale_type.dtype.type(scale)
        assert codes[b] == expected
        assert blocks.scales[b] == stored
        assert blocks.zero_points is None or blocks.zero_points[b] == zero


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [4, 8])
def test_next_to_every_half(bits, symmetric):
    """Where two additions and one might be rounded otherwise, and where adding 0.5 is too much."""
    encoding, n = ir.onnx_affine(bits, 16, ir.F32, symmetric=symmetric), 2**bits - 1
    halves = np.arange(-n, n).astype(f32) + f32(0.5)
    near = (halves.view(np.int32)[:, None] + np.arange(-3, 4, dtype=np.int32)).view(f32).reshape(-1, 1)
    near = near[np.abs(near[:, 0]) <= (n + 1) // 2] if symmetric else near
    ends = [-encoding.offset] * 2 if symmetric else [0, n]
    x = np.concatenate([np.array([ends] * len(near), f32), np.repeat(near, 14, axis=1)], axis=1)
    blocks = encode(x, encoding)
    codes = blocks.codes.transpose(1, 0, 2).reshape(len(blocks), -1).tolist()
    with np.errstate(all="ignore"):
        assert codes == [default(block, encoding)[0] for block in x]


# ------------------------------------------------------------------------------------------------ properties


@pytest.mark.parametrize("method", ["default", "qdq", "gather"])
@pytest.mark.parametrize("symmetric", [True, False])
@few
@given(data=st.data())
def test_error_is_at_most_half_a_step(method, symmetric, data):
    encoding = ir.onnx_affine(4, 32, ir.F32, symmetric=symmetric, method=method)
    x = data.draw(tiles(32))
    x[np.abs(x) < 1e-30] = 0
    blocks = encode(x, encoding)
    levels = (decode(blocks, 32) - x) / np.where(blocks.scales == 0, 1, np.abs(blocks.scales))[:, None]
    # A whole step where the end that is not the largest is cut off; half a step more with a rounded zero.
    assert np.abs(levels).max() <= 1.0001


@pytest.mark.parametrize("encoding", ALL, ids=lambda e: e.name)
def test_what_is_not_finite_is_seen_and_stays_in_its_block(encoding):
    for bad in (np.nan, np.inf, -np.inf):
        x = np.random.default_rng(0).standard_normal((3, 256)).astype(encoding.scale_type.dtype)
        x[1, 7] = bad
        blocks = encode(x, encoding)
        assert checks.count_nonfinite(blocks) == 1
        assert not np.isfinite(blocks.scales[256 // encoding.block_size].astype(f32))
        assert blocks.codes.max() < 1 << encoding.bits
        assert np.isfinite(decode(blocks, 256)[[0, 2]]).all()


@pytest.mark.parametrize("cut", [0, 1, 3])
@every_method
def test_tile_size_does_not_matter(method, cut):
    encoding = ir.ONNX_AFFINE[method][-1]
    x = np.random.default_rng(0).standard_normal((9, 256)).astype(encoding.scale_type.dtype)
    whole = encode(x, encoding)
    joined = ir.Blocks.join([encode(x[:cut], encoding), encode(x[cut:], encoding)])
    np.testing.assert_array_equal(joined.codes, whole.codes)
    np.testing.assert_array_equal(joined.scales, whole.scales)
    if encoding.has_zero_point:
        np.testing.assert_array_equal(joined.zero_points, whole.zero_points)


@every_method
def test_importance_is_ignored_and_input_stays_as_it_was(method):
    encoding = ir.ONNX_AFFINE[method][0]
    x = np.random.default_rng(0).standard_normal((4, 256)).astype(encoding.scale_type.dtype)
    before = x.copy()
    blocks = encode(x, encoding, np.arange(256, dtype=f32))
    np.testing.assert_array_equal(blocks.codes, encode(x, encoding).codes)
    np.testing.assert_array_equal(x, before)


@every_method
def test_no_rows(method):
    encoding = ir.ONNX_AFFINE[method][0]
    blocks = encode(np.empty((0, 256), f32), encoding)
    assert len(blocks) == 0
    assert decode(blocks, 256).shape == (0, 256)


def test_rows_that_are_no_whole_blocks_are_refused():
    with pytest.raises(UsageError, match="rows of 100 weights cannot be cut into onnx_int4_g32_f16 blocks"):
        encode(np.zeros((2, 100), f32), ir.onnx_affine(4, 32, ir.F16))
