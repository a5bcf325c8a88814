"""NNCF's quantizers against their formulas, one group and one weight at a time."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from phiconv import checks, ir
from phiconv.quantizers import decode, encode

f32 = np.float32
EPS = f32(2.0**-23)
few = settings(max_examples=25, deadline=None)
every_size = pytest.mark.parametrize("size", [32, 64, 20])  # 20: a whole row
every_bits = pytest.mark.parametrize("bits", [4, 8])


def groups(size):
    """Groups of usual and of extreme weights, with ties, zeros of both signs and all of one sign."""
    usual = st.floats(-2, 2, width=16)
    some = st.sampled_from([0.0, -0.0, 1.0, -1.0, 0.5, -0.5, 3.0, -7.5, 15.0, 1e-9])
    any_size = st.floats(-1e4, 1e4, width=32)
    shape = st.tuples(st.integers(1, 3), st.just(size))
    return st.one_of(*(hnp.arrays(f32, shape, elements=e, fill=e) for e in (usual, some, any_size)))


def asymmetric(group, bits):
    """Codes, scale and zero point of a group, in float32."""
    n = f32(2**bits - 1)
    low, high = min(f32(0), *group), max(f32(0), *group)
    scale = max((high - low) / n, EPS)
    zero = min(max(-np.rint(low / scale), f32(0)), n)
    return [int(min(max(np.rint(v / scale + zero), f32(0)), n)) for v in group], scale, int(zero)


def symmetric(group, bits):
    """Codes from -2**(bits - 1) on, and the scale."""
    middle = f32(2 ** (bits - 1))
    low, high = abs(min(group)), max(group)
    scale = (low if low >= high else -high) / middle
    scale = EPS if abs(scale) < EPS else scale
    return [int(min(max(np.rint(v / scale), -middle), middle - 1)) for v in group], scale


def codes_of(blocks):
    return blocks.codes.transpose(1, 0, 2).reshape(len(blocks), -1).astype(int).tolist()


@every_size
@every_bits
@few
@given(data=st.data())
def test_asymmetric(data, size, bits):
    x = data.draw(groups(size))
    encoding = ir.openvino_affine(bits, size, symmetric=False)
    blocks = encode(x, encoding)
    for b, group in enumerate(x.reshape(-1, size)):
        codes, scale, zero = asymmetric(group, bits)
        assert codes_of(blocks)[b] == codes
        assert blocks.scales[b] == scale.astype(np.float16)
        assert blocks.zero_points[b] == zero
        expected = (np.array(codes, f32) - f32(zero)) * f32(blocks.scales[b])
        assert decode(blocks, size)[b].tobytes() == expected.tobytes()


@every_size
@every_bits
@few
@given(data=st.data())
def test_symmetric(data, size, bits):
    x = data.draw(groups(size))
    encoding = ir.openvino_affine(bits, size, symmetric=True)
    blocks = encode(x, encoding)
    for b, group in enumerate(x.reshape(-1, size)):
        codes, scale = symmetric(group, bits)
        assert [code - encoding.offset for code in codes_of(blocks)[b]] == codes
        assert blocks.scales[b] == scale.astype(np.float16)
        expected = np.array(codes, f32) * f32(blocks.scales[b])
        assert np.array_equal(decode(blocks, size)[b], expected)


@few
@given(groups(32))
def test_nf4_takes_the_nearest(x):
    encoding = ir.openvino_nf4(32)
    blocks = encode(x, encoding)
    table = np.array(encoding.table, np.float64)
    for b, group in enumerate(x.reshape(-1, 32)):
        scale = max(*abs(group), EPS)
        assert blocks.scales[b] == scale.astype(np.float16)
        ratio = (group / scale).astype(np.float64)
        distance = np.abs(ratio[:, None] - table)
        chosen = distance[np.arange(32), codes_of(blocks)[b]]
        assert np.all(chosen <= distance.min(axis=1) + 2e-7)


@few
@given(groups(32))
def test_mxfp4_takes_the_least_power_of_two(x):
    blocks = encode(x, ir.OPENVINO_MXFP4)
    for b, group in enumerate(x.reshape(-1, 32)):
        scale = 2 * float(blocks.scales[b])
        largest = float(max(*abs(group), EPS))
        assert np.log2(scale) == int(np.log2(scale))
        assert largest / 6 <= scale * (1 + 2**-23)
        assert largest / 6 > scale / 2
        nearest = [round_to_e2m1(float(v) / scale) for v in group]
        assert decode(blocks, 32)[b].tolist() == [v * scale for v in nearest]


def round_to_e2m1(value):
    """The nearest number of E2M1, of two the one with an even code."""
    magnitudes = [0, 0.5, 1, 1.5, 2, 3, 4, 6]
    best = min(range(8), key=lambda code: (abs(abs(value) - magnitudes[code]), code % 2))
    return float(np.copysign(magnitudes[best], value)) if best else 0.0


def test_a_tiny_weight_keeps_its_sign_in_mxfp4():
    x = np.zeros((1, 32), f32)
    x[0, :3] = [6, -0.1, -0.0]
    assert codes_of(encode(x, ir.OPENVINO_MXFP4))[0][:4] == [7, 8, 8, 0]


@pytest.mark.parametrize(
    "encoding",
    [
        ir.openvino_affine(4, 32, symmetric=False),
        ir.openvino_affine(8, 32, symmetric=True),
        ir.openvino_nf4(32),
    ],
    ids=lambda e: e.name,
)
def test_scales_that_are_too_large_show(encoding):
    x = np.full((1, 32), 3e38, f32)
    assert checks.count_nonfinite(encode(x, encoding)) == 1
    x[0, 3] = np.nan
    assert checks.count_nonfinite(encode(x, encoding)) == 1
