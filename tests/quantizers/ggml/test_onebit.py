"""IQ1_S and IQ1_M against their formulas, a split of a group and a weight at a time."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from phiconv import ir
from phiconv.ir.codebooks import grid
from phiconv.quantizers import decode, encode
from phiconv.quantizers.ggml.splits import best_split

f32 = np.float32

every_encoding = pytest.mark.parametrize("encoding", [ir.IQ1_S, ir.IQ1_M], ids=lambda e: e.name)
few = settings(max_examples=8, deadline=None)

UP = [f32(-0.875), f32(0.125), f32(1.125)]
DOWN = [f32(-1.125), f32(-0.125), f32(0.875)]
POINTS = grid(ir.IQ1_S)
NUMBERS = {tuple(point): number for number, point in enumerate(POINTS.tolist())}


# -------------------------------------------------------------------------------------- the formulas of ggml


def running(terms):
    """Sums over 0, 1, ... terms."""
    sums = [f32(0)]
    for term in terms:
        sums.append(sums[-1] + term)
    return sums


def one_shift(x, w, order):
    """A function that gives product and square of a split for both shifts."""
    sx, sw = running([w[i] * x[i] for i in order]), running([w[i] for i in order])

    def formula(first, second):
        for a, b, c in (UP, DOWN):
            product = sx[first] * a + (sx[second] - sx[first]) * b + (sx[-1] - sx[second]) * c
            square = sw[first] * a * a + (sw[second] - sw[first]) * b * b + (sw[-1] - sw[second]) * c * c
            yield product, square

    return formula


def two_shifts(x, w, order):
    """The same for both shifts of both halves, in another order of operations."""
    halves = []
    for half in range(2):
        own = [w[i] * f32(i // (len(x) // 2) == half) for i in order]
        halves.append((running([wi * x[i] for wi, i in zip(own, order, strict=True)]), running(own)))

    def of_half(sx, sw, first, second):
        for a, b, c in (UP, DOWN):
            square = sw[-1] * c * c + sw[first] * (a * a - b * b) + sw[second] * (b * b - c * c)
            yield sx[-1] * c - (sx[first] + sx[second]), square

    def formula(first, second):
        one, other = (list(of_half(*half, first, second)) for half in halves)
        for product, square in one:
            for other_product, other_square in other:
                yield product + other_product, square + other_square

    return formula


def reference_split(x, w, *, halves):
    """Codes, shifts and scale of a group; None where there are none."""
    order = sorted(range(len(x)), key=lambda i: x[i])
    formula = (two_shifts if halves else one_shift)(x, w, order)
    best, found = np.finfo(f32).min, None
    for first in range(len(x) + 1):
        for second in range(first, len(x) + 1):
            for shifts, (product, square) in enumerate(formula(first, second)):
                if square > 0 and product * product > best * square:
                    scale = product / square
                    best = scale * product
                    found = first, second, shifts, scale
    if found is None:
        return None
    first, second, shifts, scale = found
    codes = [0] * len(x)
    for place, i in enumerate(order):
        codes[i] = int(place >= first) + int(place >= second)
    down = [shifts >= 2, shifts % 2 == 1] if halves else [shifts == 1] * 2
    if scale < 0:
        return [2 - code for code in codes], [not d for d in down], -scale
    return codes, down, scale


def nearby(codes):
    """Points at the three least distances, the nearest first."""
    squares = np.square(POINTS.astype(int) - codes).sum(axis=1)
    last = np.unique(squares)[2]
    return sorted(np.flatnonzero(squares <= last).tolist(), key=lambda j: (squares[j], j))


def point_of(codes, x, w, scale, values):
    """The number of the point for 8 codes, and whether they are one."""
    if tuple(codes) in NUMBERS:
        return NUMBERS[tuple(codes)], True
    errors = []
    for number in (candidates := nearby(codes)):
        error = f32(0)
        for code, xi, wi in zip(POINTS[number], x, w, strict=True):
            difference = scale * values[code] - xi
            error += wi * difference * difference
        errors.append(error)
    return candidates[errors.index(min(errors))], False


def reference_group(x, w, encoding):
    """Points, shifts and scale of the weights that share a sub-scale."""
    eights = len(x) // 8
    zeros = [0] * eights, [False] * eights, f32(0)
    if max(abs(v) for v in x) < f32(1e-12 if encoding == ir.IQ1_S else 1e-7):
        return zeros
    split = reference_split(x, w, halves=encoding == ir.IQ1_M)
    if split is None:
        return zeros
    codes, down, scale = split
    down = [d for d in down for _ in range(eights // 2)]
    values = [DOWN if d else UP for d in down]
    parts = [slice(8 * k, 8 * k + 8) for k in range(eights)]
    found = [point_of(codes[p], x[p], w[p], scale, v) for p, v in zip(parts, values, strict=True)]
    points = [number for number, _ in found]
    if not all(on_grid for _, on_grid in found):
        product, square = sums_of_points(x, w, points, values, 1)
        if product > 0 and square > 0:
            scale = product / square
    return points, down, scale


def sums_of_points(x, w, points, values, factor):
    product = square = f32(0)
    for i, (xi, wi) in enumerate(zip(x, w, strict=True)):
        q = values[i // 8][POINTS[points[i // 8]][i % 8]] * f32(factor[i // 16] if factor != 1 else 1)
        product += wi * q * xi
        square += wi * q * q
    return product, square


def reference(x, encoding, importance):
    """Codes, scale and sub-scales of a block."""
    mean = f32(0)
    for v in x:
        mean += v * v
    mean = f32(2) * mean / f32(256)
    w = x * x if importance is None else importance * np.sqrt(mean + x * x)
    size = encoding.sub_block_size
    groups = [reference_group(x[i : i + size], w[i : i + size], encoding) for i in range(0, 256, size)]
    scales = [scale for _, _, scale in groups]
    points = [p for group, _, _ in groups for p in group]
    if max(scales) == 0:
        return [c for p in points for c in POINTS[p].tolist()], f32(0), [1] * len(groups)
    down = [d for _, group, _ in groups for d in group]
    step = max(scales) / f32(15)
    inverse = f32(1) / step
    subs = [2 * int(np.clip(np.rint(f32(0.5) * (inverse * s - f32(1))), 0, 7)) + 1 for s in scales]
    if encoding == ir.IQ1_M:
        product, square = sums_of_points(x, w, points, [DOWN if d else UP for d in down], subs)
        if square > 0:
            step = product / square
    codes = [c + 4 * d for p, d in zip(points, down, strict=True) for c in POINTS[p].tolist()]
    return codes, step * f32(1.125 if encoding == ir.IQ1_S else 1.1125), subs


def check(x, encoding, importance=None):
    blocks = encode(x, encoding, importance)
    codes = blocks.codes.transpose(1, 0, 2).reshape(len(blocks), -1).tolist()
    per_row = x.shape[1] // 256
    for b, block in enumerate(x.reshape(-1, 256)):
        columns = None if importance is None else importance.reshape(per_row, -1)[b % per_row]
        with np.errstate(all="ignore"):
            expected, scale, subs = reference(block, encoding, columns)
            assert codes[b] == expected
            assert blocks.scales[b].tobytes() == np.float16(scale).tobytes()
            assert blocks.sub_scales[:, b].tolist() == subs


def weights():
    """A block of usual or of extreme weights, with many equal magnitudes and zeros of both signs."""
    usual = st.floats(-2, 2, width=16)
    some = st.sampled_from([0.0, -0.0, 1.0, -1.0, 0.5, -0.5, 3.0, -3.0])
    any_size = st.floats(-1e4, 1e4, width=32)
    seeds = st.integers(0, 1 << 32).map(np.random.default_rng)
    normal = seeds.map(lambda rng: (rng.standard_normal((1, 256)) * 10.0 ** rng.uniform(-6, 3)).astype(f32))
    return st.one_of(
        normal, *(hnp.arrays(f32, (1, 256), elements=e, fill=e) for e in (usual, some, any_size))
    )


@every_encoding
@few
@given(x=weights(), importance=hnp.arrays(f32, 256, elements=st.floats(0, 100, width=16)))
def test_equals_the_formula(encoding, x, importance):
    check(x, encoding)
    check(x, encoding, importance)


@every_encoding
def test_importance_belongs_to_the_column(encoding):
    rng = np.random.default_rng(0)
    check(rng.standard_normal((2, 512)).astype(f32), encoding, rng.random(512).astype(f32))


# ------------------------------------------------------------------------------------------ what must hold


@every_encoding
def test_codes_are_points_of_the_grid(encoding):
    x = np.random.default_rng(0).standard_normal((8, 256)).astype(f32)
    blocks = encode(x, encoding, np.ones(256, f32))
    eights = blocks.codes.transpose(1, 0, 2).reshape(-1, 8)
    assert {tuple(p) for p in (eights & 3).tolist()} <= set(NUMBERS)
    shared = 4 if encoding == ir.IQ1_S else 1
    shifts = (eights >> 2).reshape(-1, 8 * shared)
    assert (shifts == shifts[:, :1]).all()
    assert set(np.unique(blocks.sub_scales)) <= set(range(1, 16, 2))
    assert np.sqrt(np.square(decode(blocks, 256) - x).mean()) < 0.6


@pytest.mark.parametrize("halves", [False, True])
@pytest.mark.parametrize("size", [1, 1e-30, 1e-12, 1e-9, 1e6, 1e12])
@np.errstate(all="ignore")
def test_the_split_is_the_best_of_all(halves, size):
    """Also where squares leave the range of float32."""
    x = (np.random.default_rng(0).standard_normal((16, 6)) * size).astype(f32)
    w = np.abs(x)
    split = best_split(x, w, halves=halves)
    for m in range(6):
        codes, down, scale = reference_split(x[:, m], w[:, m], halves=halves)
        negative = split.scale[m] < 0
        ours = 2 - split.codes[:, m] if negative else split.codes[:, m]
        assert (ours.tolist(), abs(split.scale[m])) == (codes, abs(scale))
        assert (split.down[:, m] ^ negative).tolist() == down


@every_encoding
@pytest.mark.parametrize("importance", [None, np.ones(256, f32)], ids=["plain", "importance"])
def test_overflow_is_seen_in_the_scale(encoding, importance):
    x = np.random.default_rng(0).standard_normal((3, 256)).astype(f32)
    x[1] *= f32(1e25)
    assert np.isfinite(encode(x, encoding, importance).scales).tolist() == [True, False, True]


@every_encoding
def test_zeros_beside_other_weights_become_the_first_point(encoding):
    x = np.random.default_rng(0).standard_normal((1, 256)).astype(f32)
    x[0, 64:96] = 0
    blocks = encode(x, encoding)
    assert not blocks.codes[16:24].any()
    assert (blocks.sub_scales[64 // encoding.sub_block_size] == 1).all()
    np.testing.assert_array_equal(decode(blocks, 256)[0, 64:96], f32(-0.875) * blocks.scales[0].astype(f32))
