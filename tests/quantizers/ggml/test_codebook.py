"""The codebook quantizers against their formulas, one block and one weight at a time."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from phiconv import ir
from phiconv.ir.codebooks import grid
from phiconv.quantizers import decode, encode
from phiconv.quantizers.ggml.neighbours import grid_of
from phiconv.quantizers.numerics.tiles import column_sums

f32 = np.float32

SEARCHED = [ir.IQ4_NL, ir.IQ4_XS]
ROUNDED = [ir.MXFP4, ir.NVFP4, ir.TQ1_0, ir.TQ2_0]

GRIDS = [ir.IQ2_XXS, ir.IQ2_XS, ir.IQ2_S, ir.IQ3_XXS, ir.IQ3_S]

ONE_BIT = [ir.IQ1_S, ir.IQ1_M]  # see test_onebit.py

every_grid = pytest.mark.parametrize("encoding", GRIDS, ids=lambda e: e.name)
every_encoding = pytest.mark.parametrize(
    "encoding", [*SEARCHED, *ROUNDED, *GRIDS, *ONE_BIT], ids=lambda e: e.name
)
every_rounded = pytest.mark.parametrize("encoding", ROUNDED, ids=lambda e: e.name)
every_searched = pytest.mark.parametrize("encoding", SEARCHED, ids=lambda e: e.name)
few = settings(max_examples=15, deadline=None)


def weights(size, max_blocks=2):
    """Blocks of usual and of extreme weights, with many equal magnitudes and zeros of both signs."""
    usual = st.floats(-2, 2, width=16)
    some = st.sampled_from([0.0, -0.0, 1.0, -1.0, 0.5, -0.5, 3.0, -3.0, 12.0, -5.0])
    any_size = st.floats(-1e4, 1e4, width=32)
    seeds = st.integers(0, 1 << 32).map(np.random.default_rng)
    normal = seeds.map(lambda rng: (rng.standard_normal((2, size)) * 10.0 ** rng.uniform(-6, 3)).astype(f32))
    shape = st.tuples(st.integers(1, max_blocks), st.just(size))
    return st.one_of(normal, *(hnp.arrays(f32, shape, elements=e, fill=e) for e in (usual, some, any_size)))


def codes_of(blocks):
    """Codes as (n, block_size), in the order of the weights."""
    return blocks.codes.transpose(1, 0, 2).reshape(len(blocks), -1).tolist()


# -------------------------------------------------------------------------------------- the formulas of ggml


def reference_ternary(x, _encoding):
    scale = max(abs(v) for v in x)
    inverse = f32(1) / scale if scale else f32(0)
    if not np.isfinite(inverse):
        return [1] * len(x), scale
    return [1 + int(math.copysign(math.floor(abs(float(v * inverse)) + 0.5), v)) for v in x], scale


def first_nearest(x, scale, encoding):
    errors = [abs(f32(value) * scale - x) for value in encoding.table]
    return errors.index(min(errors))


def reference_mxfp4(x, encoding):
    largest = max(abs(v) for v in x)
    exponent = int(np.floor(np.log2(np.float64(largest)).astype(f32))) + 125 if largest else 0
    scale = f32(2.0 ** (exponent % 256 - 128))
    return [first_nearest(v, scale, encoding) for v in x], scale


def reference_nvfp4(x, encoding):
    largest = float(max(abs(v) for v in x) / f32(6))
    if largest < 2.0**-6:
        scale = min(math.floor(f32(largest * 512) + f32(0.5)), 7) / 512
    elif largest >= 248:
        scale = 448.0
    else:
        step = 2.0 ** (math.frexp(largest)[1] - 4)
        scale = math.floor(largest / step + 0.5) * step
    scale = f32(scale / 2)
    return [first_nearest(v, scale, encoding) for v in x], scale


REFERENCES = {
    ir.MXFP4: reference_mxfp4,
    ir.NVFP4: reference_nvfp4,
    ir.TQ1_0: reference_ternary,
    ir.TQ2_0: reference_ternary,
}


def nearest(x, table):
    """The code of the nearest value; of two, the upper one's."""
    if math.isnan(x):
        return len(table) - 1
    return (
        max(range(len(table)), key=lambda code: (-abs(table[code] - float(x)), code))
        if abs(x) < 1e6
        else (0 if x < 0 else len(table) - 1)
    )


def search(x, w, table):
    """The scale of 32 weights."""
    extreme = f32(0)
    for v in x:
        if abs(v) > abs(extreme):
            extreme = v
    if abs(extreme) < f32(1e-15):
        return f32(0)
    least = f32(table[0])
    inverses = [f32(1) / (-extreme / least), *((f32(k) + least) / extreme for k in range(-7, 8))]
    scale = best = None
    for inverse in inverses:
        product = square = f32(0)
        for v, weight in zip(x, w, strict=True):
            value = f32(table[nearest(v * inverse, table)])
            product += weight * value * v
            square += weight * value * value
        if best is None:
            scale = product / square if square > 0 else f32(0)
            best = scale * product
        elif square > 0 and product * product > best * square:
            scale = product / square
            best = scale * product
    return scale


def inverse_of(scale):
    return f32(1) / scale if scale else f32(0)


def reference_searched(x, encoding, importance):
    """Codes, scale and sub-scales of a block."""
    with np.errstate(all="ignore"):
        squares = x * x
        if importance is None:
            w = squares
        else:
            mean = f32(0)
            for square in squares:
                mean += square
            w = importance * np.sqrt(mean * f32(2 / len(x)) + squares)
        table = encoding.table
        found = [search(x[i : i + 32], w[i : i + 32], table) for i in range(0, len(x), 32)]
        if encoding == ir.IQ4_NL:
            return [nearest(v * inverse_of(found[0]), table) for v in x], found[0], None
        largest = f32(0)
        for scale in found:
            if abs(scale) > abs(largest):
                largest = scale
        scale = -largest / f32(32)
        subs = [int(np.clip(np.rint(inverse_of(scale) * s), -32, 31)) for s in found]
        codes = [nearest(v * inverse_of(scale * f32(subs[i // 32])), table) for i, v in enumerate(x)]
        return codes, scale, subs


def check_searched(x, encoding, importance=None):
    blocks = encode(x, encoding, importance)
    codes = codes_of(blocks)
    per_row = x.shape[1] // encoding.block_size
    for b, block in enumerate(x.reshape(-1, encoding.block_size).astype(f32)):
        columns = None if importance is None else importance.reshape(per_row, -1)[b % per_row]
        expected, scale, subs = reference_searched(block, encoding, columns)
        assert codes[b] == expected
        assert blocks.scales[b].tobytes() == np.float16(scale).tobytes()
        if subs is not None:
            assert blocks.sub_scales[:, b].tolist() == subs


def check_rounded(x, encoding):
    blocks = encode(x, encoding)
    codes = codes_of(blocks)
    for b, block in enumerate(x.reshape(-1, encoding.block_size).astype(f32)):
        with np.errstate(all="ignore"):
            expected, scale = REFERENCES[encoding](block, encoding)
            assert codes[b] == expected
            assert blocks.scales[b].tobytes() == scale.astype(blocks.scales.dtype).tobytes()


@every_rounded
@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_equals_the_formula(encoding, data):
    check_rounded(data.draw(weights(encoding.block_size)), encoding)


@every_searched
@few
@given(data=st.data())
def test_search_equals_the_formula(encoding, data):
    x = data.draw(weights(encoding.block_size))
    check_searched(x, encoding)
    elements = st.floats(0, 100, width=16)
    check_searched(x, encoding, data.draw(hnp.arrays(f32, x.shape[1], elements=elements, fill=elements)))


@every_searched
def test_importance_belongs_to_the_column(encoding):
    rng = np.random.default_rng(0)
    check_searched(rng.standard_normal((2, 512)).astype(f32), encoding, rng.random(512).astype(f32))


@pytest.mark.parametrize("exponent", [-149, -130, -126, -125, -124, -100, -2, -1, 0, 1, 2, 3, 5, 60, 120])
def test_mxfp4_exponent_next_to_a_power_of_two(exponent):
    power = np.ldexp(f32(1), exponent)
    blocks = np.outer(
        [power, np.nextafter(power, f32(0)), np.nextafter(power, f32(1e38))], np.linspace(0, 1, 32)
    )
    check_rounded(blocks.astype(f32), ir.MXFP4)


def test_nvfp4_rounds_its_scale_as_ggml():
    steps = np.concatenate([np.arange(0, 9, 0.5) / 512, np.arange(16, 33) / 1024, np.arange(220, 460, 4)])
    near = [np.nextafter(f32(6) * steps.astype(f32), f32(toward)) for toward in (0, 1e9)]
    largest = np.concatenate([*near, f32(6) * steps.astype(f32), [1e8, 1e20]]).astype(f32)
    check_rounded(np.insert(np.zeros((largest.size, 15), f32), 3, largest, axis=1), ir.NVFP4)


# ------------------------------------------------------------------------------------------ what must hold


@every_encoding
@pytest.mark.parametrize("dtype", [ir.F16.dtype, ir.BF16.dtype, ir.F64.dtype], ids=str)
def test_any_stored_type(encoding, dtype):
    x = np.random.default_rng(0).standard_normal((3, 512)).astype(dtype)
    expected, blocks = encode(x.astype(f32), encoding), encode(x, encoding)
    np.testing.assert_array_equal(blocks.codes, expected.codes)
    np.testing.assert_array_equal(blocks.scales, expected.scales)


@every_encoding
@pytest.mark.parametrize("cut", [0, 1, 2, 3, -3])
def test_tile_size_does_not_matter(encoding, cut):
    rows = 260 if encoding in {*GRIDS, *ONE_BIT} else 1100  # more than are computed at a time
    x = np.random.default_rng(0).standard_normal((rows, 256)).astype(f32)
    importance = np.random.default_rng(1).random(256).astype(f32)
    whole = encode(x, encoding, importance)
    joined = ir.Blocks.join([encode(x[:cut], encoding, importance), encode(x[cut:], encoding, importance)])
    np.testing.assert_array_equal(joined.codes, whole.codes)
    np.testing.assert_array_equal(joined.scales, whole.scales)
    if whole.sub_scales is not None:
        np.testing.assert_array_equal(joined.sub_scales, whole.sub_scales)


@every_encoding
def test_dequantizes_by_the_formula(encoding):
    blocks = encode(np.random.default_rng(0).standard_normal((4, 512)).astype(f32), encoding)
    values = np.array(encoding.table, f32)[codes_of(blocks)]
    scales = blocks.scales.astype(f32)[:, None]
    if blocks.sub_scales is not None:
        scales = scales * np.repeat(blocks.sub_scales, encoding.sub_block_size, axis=0).T
    np.testing.assert_array_equal(decode(blocks, 512), (values * scales).reshape(4, 512))


@every_encoding
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_seen_in_the_scale(encoding, bad):
    x = np.random.default_rng(0).standard_normal((3, encoding.block_size)).astype(f32)
    x[1, 7] = bad
    blocks = encode(x, encoding)
    assert np.isfinite(blocks.scales).tolist() == [True, False, True]
    assert np.isfinite(decode(blocks, encoding.block_size)[[0, 2]]).all()


@every_encoding
def test_input_stays_as_it_was(encoding):
    x = np.random.default_rng(0).standard_normal((4, 512)).astype(f32)
    before = x.copy()
    encode(x, encoding)
    np.testing.assert_array_equal(x, before)


@every_encoding
def test_no_rows(encoding):
    blocks = encode(np.empty((0, 512), f32), encoding)
    assert len(blocks) == 0
    assert decode(blocks, 512).shape == (0, 512)


@every_grid
def test_codes_are_points_of_the_grid(encoding):
    x = np.random.default_rng(0).standard_normal((8, 256)).astype(f32)
    points = grid(encoding)
    blocks = encode(x, encoding)
    sign = 8 if points.shape[1] == 4 else 4
    codes = np.array(codes_of(blocks))
    assert {tuple(p) for p in (codes % sign).reshape(-1, points.shape[1])} <= {tuple(p) for p in points}
    assert (blocks.sub_scales % 2 == 1).all()
    assert blocks.sub_scales.min() >= 1
    assert blocks.sub_scales.max() <= 31
    if encoding in {ir.IQ2_XXS, ir.IQ2_XS, ir.IQ3_XXS}:
        assert ((codes // sign).reshape(-1, 8).sum(axis=1) % 2 == 0).all()
    error = np.sqrt(np.square(decode(blocks, 256) - x).mean())
    assert error < (0.22 if sign == 8 else 0.45)


@pytest.mark.parametrize("encoding", [*GRIDS, ir.IQ1_S], ids=lambda e: e.name)
def test_neighbours_are_the_nearest_points(encoding):
    distances = {ir.IQ2_XXS: 2, ir.IQ2_XS: 2, ir.IQ2_S: 1, ir.IQ3_XXS: 2}.get(encoding, 3)
    found = grid_of(encoding, distances)
    powers = found.levels ** np.arange(found.length)
    for key in np.flatnonzero(found.counts)[::97]:
        place = key // powers % found.levels
        squares = np.square(grid(encoding).astype(int) - place).sum(axis=1)
        near = np.unique(squares)[:distances]
        expected = sorted((d, j) for j, d in enumerate(squares.tolist()) if d in near)
        first = found.first[key]
        assert found.neighbours[first : first + found.counts[key]].tolist() == [j for _, j in expected]


def test_nearest_point_is_that_with_the_least_error():
    rng = np.random.default_rng(0)
    found = grid_of(ir.IQ3_XXS, 2)
    keys = rng.choice(np.flatnonzero(found.counts), 200)
    x, w = rng.random((2, 200, 4)).astype(f32)
    scale = rng.random(200).astype(f32) * f32(0.1)
    points = found.nearest(keys, x, w, scale)
    for m, key in enumerate(keys):
        candidates = found.neighbours[found.first[key] : found.first[key] + found.counts[key]]
        errors = []
        for point in candidates:
            error = f32(0)
            for i in range(4):
                difference = scale[m] * found.values[point, i] - x[m, i]
                error += w[m, i] * difference * difference
            errors.append(error)
        assert points[m] == candidates[errors.index(min(errors))]


def test_zeros_within_an_iq3_s_block():
    x = np.random.default_rng(0).standard_normal((1, 256)).astype(f32)
    x[0, 64:96] = 0
    weights = decode(encode(x, ir.IQ3_S), 256)
    others = np.delete(np.arange(256), np.arange(64, 96))
    assert np.sqrt(np.square(weights - x)[0, others].mean()) < 0.22
    assert np.abs(weights[0, 64:96]).max() < 0.1


def test_better_importance_lowers_the_error_where_it_counts():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((64, 512)).astype(f32)
    importance = np.where(np.arange(512) % 4, f32(0.01), f32(1))
    plain, weighted = (
        np.square(decode(encode(x, ir.IQ4_XS, i), 512) - x)[:, ::4].mean() for i in (None, importance)
    )
    assert weighted < 0.9 * plain


@pytest.mark.parametrize("columns", [1, 2, 3, 4, 7, 8, 17, 1024])
def test_sums_run_down_the_columns_in_order(columns):
    x = np.random.default_rng(0).standard_normal((256, columns)).astype(f32)
    expected = np.zeros(columns, f32)
    for row in x:
        expected += row
    np.testing.assert_array_equal(column_sums(x), expected)
