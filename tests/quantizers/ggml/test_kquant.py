"""K-quants, and the importance variants of the classic blocks, against their formulas one block at a time."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from phiconv import ir
from phiconv.quantizers import decode, encode
from phiconv.quantizers.ggml import search

f32 = np.float32

AFFINE = {ir.Q2_K: (0.1, -0.5, 15), ir.Q4_K: (0.1, -1.0, 20), ir.Q5_K: (0.1, -0.5, 15)}
SUPER_BLOCKS = [ir.Q2_K, ir.Q3_K, ir.Q4_K, ir.Q5_K, ir.Q6_K]
CLASSIC = [ir.Q4_0, ir.Q4_1, ir.Q5_0, ir.Q5_1]

every_encoding = pytest.mark.parametrize("encoding", SUPER_BLOCKS, ids=lambda e: e.name)
few_examples = settings(max_examples=8, deadline=None)


@st.composite
def rows(draw, count=2):
    """Rows of 256 weights, usual or with many equal ones, zeros and sub-blocks of other sizes."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    usual = rng.standard_normal((count, 256)) * 0.02
    kinds = {
        "usual": usual,
        "few": rng.integers(-3, 4, (count, 256)) / 4,
        "sparse": usual * (rng.random((count, 256)) < 0.1),
        "sizes": usual * 10.0 ** rng.uniform(-6, 3, (count, 16)).repeat(16, axis=1),
        "positive": np.abs(usual),
        "negative": -np.abs(usual) - 0.25,
    }
    return kinds[draw(st.sampled_from(sorted(kinds)))].astype(f32)


@st.composite
def importances(draw):
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    return draw(st.sampled_from([None, np.exp(rng.standard_normal(256)).astype(f32), np.ones(256, f32)]))


# ------------------------------------------------------------------------------------- the formulas of ggml


def total(terms):
    """A sum in order, in float32."""
    result = f32(0)
    for term in terms:
        result += term
    return result


def rounded(value, low, high):
    return min(max(int(np.rint(value)), low), high)


def first_extreme(x):
    return x[int(np.argmax(np.abs(x)))]


def linear(x, weights, half):
    """Scale and codes from 0 to 2 * half - 1."""
    extreme = first_extreme(x)
    if abs(extreme) < 1e-15:
        return f32(0), [0] * len(x)
    scale = best = codes = None
    for step in [0, *range(-9, 0), *range(1, 10)]:
        inverse = -(f32(half) + f32(0.1) * f32(step)) / extreme
        found = [rounded(inverse * v, -half, half - 1) for v in x]
        sum_lx = total(w * v * f32(c) for w, v, c in zip(weights, x, found, strict=True))
        sum_l2 = total(w * f32(c) * f32(c) for w, c in zip(weights, found, strict=True))
        if best is None or (sum_l2 > 0 and sum_lx * sum_lx > best * sum_l2):
            scale = sum_lx / sum_l2 if sum_l2 else f32(0)
            best, codes = scale * sum_lx, [c + half for c in found]
    return scale, codes


def affine(x, weights, limit, step, start, steps, absolute):
    """Scale, minimum to subtract, and codes."""

    def codes_for(inverse, low):
        return [rounded(inverse * (v - low), 0, limit) for v in x]

    def error(codes, scale, low):
        differences = [scale * f32(c) + low - v for c, v in zip(codes, x, strict=True)]
        return total(w * (abs(d) if absolute else d * d) for w, d in zip(weights, differences, strict=True))

    low, high = min(*x, f32(0)), max(x)
    if low == high:
        return f32(0), -low, [0] * len(x)
    weight, weight_x = total(weights), total(w * v for w, v in zip(weights, x, strict=True))
    inverse = f32(limit) / (high - low)
    scale, codes = 1 / inverse, codes_for(inverse, low)
    best = error(codes, scale, low)
    for i in range(steps + 1):
        inverse = (f32(start) + f32(step) * f32(i) + f32(limit)) / (high - low)
        found = codes_for(inverse, low)
        products = [w * f32(c) for w, c in zip(weights, found, strict=True)]
        sum_l = total(products)
        sum_l2 = total(p * f32(c) for p, c in zip(products, found, strict=True))
        sum_lx = total(p * v for p, v in zip(products, x, strict=True))
        determinant = weight * sum_l2 - sum_l * sum_l
        if not determinant > 0:
            continue
        new_scale = (weight * sum_lx - weight_x * sum_l) / determinant
        new_low = (sum_l2 * weight_x - sum_l * sum_lx) / determinant
        if new_low > 0:
            new_scale, new_low = sum_lx / sum_l2, f32(0)
        found_error = error(found, new_scale, new_low)
        if found_error < best:
            best, scale, low, codes = found_error, new_scale, new_low, found
    return scale, -low, codes


def descend(codes, x, weights, sums, low, high):
    """Lets one code after the other change, five times; codes are from low to high."""
    sum_lx, sum_l2 = sums
    for _ in range(5):
        before = list(codes)
        for i, (v, w) in enumerate(zip(x, weights, strict=True)):
            rest_lx = sum_lx - w * v * f32(codes[i])
            rest_l2 = sum_l2 - w * f32(codes[i]) * f32(codes[i])
            if not rest_lx > 0 or (low == 0 and not rest_l2 > 0):
                continue
            new = rounded(v * rest_l2 / rest_lx, low, high)
            new_lx, new_l2 = rest_lx + w * v * f32(new), rest_l2 + w * f32(new) * f32(new)
            if new != codes[i] and new_l2 > 0 and new_lx * new_lx * sum_l2 > sum_lx * sum_lx * new_l2:
                codes[i], sum_lx, sum_l2 = new, new_lx, new_l2
        if codes == before:
            break
    return sum_lx / sum_l2 if sum_l2 > 0 else f32(0)


def sums_of(codes, x, weights):
    return (
        total(w * v * f32(c) for w, v, c in zip(weights, x, codes, strict=True)),
        total(w * f32(c) * f32(c) for w, c in zip(weights, codes, strict=True)),
    )


def positive(x, weights, limit):
    high = max(x)
    if high < 1e-15:
        return f32(0), [0] * len(x)
    best = inverse = None
    for step in [0, *range(-4, 0), *range(1, 5)]:
        candidate = (f32(0.1) * f32(step) + f32(limit)) / high
        differences = [v - 1 / candidate * f32(rounded(candidate * v, 0, limit)) for v in x]
        error = total(w * d * d for w, d in zip(weights, differences, strict=True))
        if best is None or error < best:
            best, inverse = error, candidate
    codes = [rounded(inverse * v, 0, limit) for v in x]
    return descend(codes, x, weights, sums_of(codes, x, weights), 0, limit), codes


def descended(x):
    extreme = first_extreme(x)
    if abs(extreme) < 1e-15:
        return f32(0), [0] * len(x)
    codes = [rounded(f32(-4) / extreme * v, -4, 3) for v in x]
    scale = descend(codes, x, x * x, sums_of(codes, x, x * x), -4, 3)
    return scale, [c + 4 for c in codes]


def reference_weights(x, encoding, importance, factor):
    if importance is not None:
        mean = f32(factor) * total(v * v for v in x) / f32(x.size)
        return importance * np.sqrt(mean + x * x)
    if encoding == ir.Q2_K:
        return np.abs(x)
    if encoding.has_minimum:
        parts = x.reshape(-1, encoding.sub_block_size)
        average = [np.sqrt(total(v * v for v in part) / f32(part.size)) for part in parts]
        return np.abs(x) + np.repeat(np.array(average, f32), encoding.sub_block_size)
    return x * x


def reference_affine(x, encoding, importance):
    limit, top = (1 << encoding.bits) - 1, (1 << encoding.scale_bits) - 1
    factor = 1 if encoding == ir.Q2_K else 2
    weights = reference_weights(x, encoding, importance, factor).reshape(encoding.sub_blocks, -1)
    step, start, steps = AFFINE[encoding] if importance is None else (0.05, -0.9, 36)
    absolute = encoding == ir.Q2_K and importance is None
    parts = x.reshape(encoding.sub_blocks, -1)
    fits = [affine(p, w, limit, step, start, steps, absolute) for p, w in zip(parts, weights, strict=True)]
    units, integers = [], []
    for numbers in ([fit[0] for fit in fits], [fit[1] for fit in fits]):
        if importance is None:
            largest = max(*numbers, f32(0))
            units.append(np.float16(largest / f32(top)))
            inverse = f32(top) / largest if largest > 0 else f32(0)
            integers.append([rounded(inverse * number, 0, top) for number in numbers])
        else:
            unit, codes = positive(numbers, [total(w) for w in weights], top)
            units.append(np.float16(unit))
            integers.append(codes)
    codes = []
    for part, fit, s, m in zip(parts, fits, *integers, strict=True):
        scale, minimum = f32(units[0]) * f32(s), f32(units[1]) * f32(m)
        codes += fit[2] if scale == 0 else [rounded((v + minimum) / scale, 0, limit) for v in part]
    return codes, units, integers


def reference_linear(x, encoding, importance):
    half, parts = encoding.offset, x.reshape(encoding.sub_blocks, -1)
    top = 1 << (encoding.scale_bits - 1)
    weights = reference_weights(x, encoding, None if encoding == ir.Q6_K else importance, 2)
    if encoding == ir.Q6_K and importance is not None:
        weights = importance
    weights = weights.reshape(encoding.sub_blocks, -1)
    searched = encoding == ir.Q6_K or importance is not None
    pairs = zip(parts, weights, strict=True)
    fits = [linear(p, w, half) if searched else descended(p) for p, w in pairs]
    scales = np.array([fit[0] for fit in fits], f32)
    extreme = first_extreme(scales)
    if encoding == ir.Q3_K and importance is not None:
        unit, integers = linear(scales, [total(w) for w in weights], top)
        integers = [i - top for i in integers]
    elif abs(extreme) < 1e-15:
        unit, integers = f32(0), [0 if encoding == ir.Q6_K else -top] * len(parts)
    else:
        inverse = f32(-top) / extreme
        unit, integers = 1 / inverse, [rounded(inverse * s, -top, top - 1) for s in scales]
    unit, codes = np.float16(unit), []
    for part, fit, s in zip(parts, fits, integers, strict=True):
        scale = f32(unit) * f32(s)
        codes += fit[1] if scale == 0 else [rounded(v / scale, -half, half - 1) + half for v in part]
    return codes, [unit], [integers]


def reference_classic(x, encoding, importance):
    mean = total(v * v for v in x) / f32(x.size)
    weights = (importance * np.sqrt(mean + x * x)).reshape(-1, 32)
    for part, w in zip(x.reshape(-1, 32), weights, strict=True):
        if encoding.offset:
            scale, codes = linear(part, w, encoding.offset)
            yield codes, scale, None
        else:
            scale, minimum, codes = affine(part, w, (1 << encoding.bits) - 1, 0.05, -0.9, 36, absolute=False)
            yield codes, scale, -minimum


def codes_of(blocks):
    """Codes as (n, block_size), in the order of the weights."""
    return blocks.codes.transpose(1, 0, 2).reshape(len(blocks), -1)


@every_encoding
@few_examples
@given(x=rows(), importance=importances())
def test_equals_the_formula(encoding, x, importance):
    blocks = encode(x, encoding, importance)
    reference = reference_affine if encoding.has_minimum else reference_linear
    for b, row in enumerate(x):
        codes, units, integers = reference(row, encoding, importance)
        assert codes_of(blocks)[b].tolist() == codes
        assert blocks.scales[b].tobytes() == units[0].tobytes()
        assert blocks.sub_scales[:, b].tolist() == integers[0]
        if encoding.has_minimum:
            assert blocks.minima[b].tobytes() == units[1].tobytes()
            assert blocks.sub_minima[:, b].tolist() == integers[1]
        else:
            assert blocks.minima is None
            assert blocks.sub_minima is None


@pytest.mark.parametrize("encoding", CLASSIC, ids=lambda e: e.name)
@few_examples
@given(x=rows(), importance=importances().filter(lambda weights: weights is not None))
def test_classic_blocks_equal_the_formula(encoding, x, importance):
    blocks = encode(x, encoding, importance)
    expected = [block for row in x for block in reference_classic(row, encoding, importance)]
    for b, (codes, scale, minimum) in enumerate(expected):
        assert codes_of(blocks)[b].tolist() == codes
        assert blocks.scales[b].tobytes() == np.float16(scale).tobytes()
        if minimum is not None:
            assert blocks.minima[b].tobytes() == np.float16(minimum).tobytes()


# ------------------------------------------------------------------------------------------ what must hold


@every_encoding
@given(x=rows(), importance=importances())
def test_no_nearer_code(encoding, x, importance):
    """Whatever the scales are, a weight has the code of least error, up to ties and rounding."""
    blocks = encode(x, encoding, importance)
    error = np.abs(decode(blocks, 256) - x)
    factors = (blocks.scales.astype(f32) * blocks.sub_scales).T.repeat(encoding.sub_block_size, axis=1)
    for code in range(1 << encoding.bits):
        codes = np.full_like(blocks.codes, code)
        other = ir.Blocks(encoding, codes, blocks.scales, blocks.minima, blocks.sub_scales, blocks.sub_minima)
        other_error = np.abs(decode(other, 256) - x)
        assert ((error <= other_error + 1e-5 * np.abs(x) + 1e-4 * np.abs(factors)) | (factors == 0)).all()


@every_encoding
@given(x=rows(), importance=importances())
def test_error_is_bounded(encoding, x, importance):
    error = np.abs(decode(encode(x, encoding, importance), 256) - x).max(axis=1)
    span = np.maximum(x.max(axis=1), 0) - np.minimum(x.min(axis=1), 0)
    assert (error <= span).all()


@every_encoding
@given(x=rows(count=6), random=st.randoms(use_true_random=False))
def test_blocks_do_not_see_each_other(encoding, x, random):
    order = list(range(len(x)))
    random.shuffle(order)
    whole, shuffled = encode(x, encoding), encode(x[order], encoding)
    np.testing.assert_array_equal(shuffled.codes, whole.codes[:, order])
    np.testing.assert_array_equal(shuffled.sub_scales, whole.sub_scales[:, order])
    np.testing.assert_array_equal(shuffled.scales, whole.scales[order])


@every_encoding
@given(x=rows(count=5), importance=importances(), cut=st.integers(0, 5))
def test_tile_size_does_not_matter(encoding, x, importance, cut):
    whole = encode(x, encoding, importance)
    joined = ir.Blocks.join([encode(part, encoding, importance) for part in (x[:cut], x[cut:])])
    for part in ("codes", "scales", "minima", "sub_scales", "sub_minima"):
        np.testing.assert_array_equal(getattr(joined, part), getattr(whole, part))


@every_encoding
def test_dequantizes_by_the_formula(encoding):
    blocks = encode(np.random.default_rng(0).standard_normal((4, 512)).astype(f32), encoding)
    size = encoding.sub_block_size
    scales = (blocks.scales.astype(f32) * blocks.sub_scales).T.repeat(size, axis=1)
    expected = scales * (codes_of(blocks).astype(f32) - f32(encoding.offset))
    if encoding.has_minimum:
        expected -= (blocks.minima.astype(f32) * blocks.sub_minima).T.repeat(size, axis=1)
    np.testing.assert_array_equal(decode(blocks, 512), expected.reshape(4, 512))


@every_encoding
@pytest.mark.parametrize("dtype", [ir.F16.dtype, ir.BF16.dtype, ir.F64.dtype], ids=str)
def test_any_stored_type(encoding, dtype):
    x = np.random.default_rng(0).standard_normal((3, 512)).astype(dtype)
    for stored in (x, np.asfortranarray(x)):
        np.testing.assert_array_equal(encode(stored, encoding).codes, encode(x.astype(f32), encoding).codes)


@every_encoding
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 3e38])
def test_what_does_not_fit_is_seen_in_the_scale(encoding, bad, weighted):
    x = np.random.default_rng(0).standard_normal((3, 256)).astype(f32)
    x[1, 7] = bad
    blocks = encode(x, encoding, np.ones(256, f32) if weighted else None)
    parts = [blocks.scales] if blocks.minima is None else [blocks.scales, blocks.minima]
    finite = np.all([np.isfinite(part) for part in parts], axis=0)
    assert finite.tolist() == [True, False, True]
    assert np.isfinite(decode(blocks, 256)[[0, 2]]).all()


@every_encoding
def test_sums_are_the_same_without_einsum(encoding, monkeypatch):
    x = np.random.default_rng(0).standard_normal((8, 512)).astype(f32)
    blocks = encode(x, encoding)
    monkeypatch.setattr(search, "_EINSUM", False)
    np.testing.assert_array_equal(encode(x, encoding).codes, blocks.codes)


@every_encoding
def test_threads_do_not_share_memory(encoding):
    rng = np.random.default_rng(0)
    tiles = [rng.standard_normal((4, 2048)).astype(f32) for _ in range(8)]
    expected = [encode(tile, encoding).codes for tile in tiles]
    with ThreadPoolExecutor(4) as pool:
        for blocks, codes in zip(pool.map(lambda t: encode(t, encoding), tiles), expected, strict=True):
            np.testing.assert_array_equal(blocks.codes, codes)


@pytest.mark.parametrize("encoding", [*SUPER_BLOCKS, *CLASSIC, ir.Q8_0], ids=lambda e: e.name)
@pytest.mark.parametrize("importance", [None, np.ones(512, f32)], ids=["plain", "weighted"])
def test_input_stays_as_it_was(encoding, importance):
    x = np.random.default_rng(0).standard_normal((4, 512)).astype(f32)
    before = x.copy()
    first = encode(x, encoding, importance).codes.copy()
    np.testing.assert_array_equal(x, before)
    np.testing.assert_array_equal(encode(x, encoding, importance).codes, first)
    assert importance is None or (importance == 1).all()


@pytest.mark.parametrize("encoding", [*SUPER_BLOCKS, *CLASSIC], ids=lambda e: e.name)
@pytest.mark.parametrize("importance", [None, np.ones(512, f32)], ids=["plain", "weighted"])
def test_no_rows(encoding, importance):
    blocks = encode(np.empty((0, 512), f32), encoding, importance)
    assert len(blocks) == 0
    assert decode(blocks, 512).shape == (0, 512)
