"""One scale for each row: the formulas, a row at a time, and the least error of all factors."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from phiconv import ir
from phiconv.quantizers import decode, encode
from phiconv.quantizers.onnxruntime.channels import FACTORS
from phiconv_formats.onnx.integers import has_channels, is_standard, pack_integers, unpack_integers

f32 = np.float32
COLUMNS = 24

rows = st.one_of(
    hnp.arrays(f32, st.tuples(st.integers(1, 4), st.just(COLUMNS)), elements=elements, fill=elements)
    for elements in (st.floats(-2, 2, width=16), st.floats(-1e4, 1e4, width=32), st.just(0.0))
)


def codes_of(row, scale, low, high):
    return np.clip(np.rint(row / (scale or f32(1))), low, high).astype(f32)


def reference(row, bits):
    """Codes and scale of a row."""
    largest = np.abs(row).max()
    if bits == 8:
        scale = f32(largest / f32(127))
        return codes_of(row, scale, -127, 127), scale
    found = []
    for factor in FACTORS:
        scale = f32(factor * largest / f32(7))
        codes = codes_of(row, scale, -8, 7)
        found.append((float(np.sum(np.square(codes * scale - row, dtype=np.float64))), codes, scale))
    best = min(error for error, _, _ in found)
    return next((codes, scale) for error, codes, scale in found if error <= best * (1 + 1e-5) + 1e-30)


@given(values=rows)
@settings(max_examples=60)
def test_8_bits_are_the_formula(values):
    blocks = encode(values, ir.onnx_channel(8, COLUMNS))
    for i, row in enumerate(values):
        codes, scale = reference(row, 8)
        assert blocks.scales[i] == scale
        assert (decode(blocks, COLUMNS)[i] == codes * scale).all()


@given(values=rows)
@settings(max_examples=60)
def test_4_bits_have_the_least_error_of_the_factors(values):
    decoded = decode(encode(values, ir.onnx_channel(4, COLUMNS)), COLUMNS)
    for ours, row in zip(decoded, values, strict=True):
        codes, scale = reference(row, 4)
        best = np.sum(np.square(codes * scale - row, dtype=np.float64))
        assert np.sum(np.square(ours - row, dtype=np.float64)) <= best * (1 + 1e-4) + 1e-12


@pytest.mark.parametrize("bits", [4, 8])
def test_rows_do_not_depend_on_their_tile(bits):
    values = np.random.default_rng(3).standard_normal((37, 64)).astype(f32)
    encoding = ir.onnx_channel(bits, 64)
    whole = decode(encode(values, encoding), 64)
    for row in (0, 17, 36):
        assert (decode(encode(values[row : row + 1], encoding), 64)[0] == whole[row]).all()


def test_importance_moves_the_scale():
    values = np.random.default_rng(3).standard_normal((8, 64)).astype(f32)
    weights = np.ones(64, f32)
    weights[np.argmax(np.abs(values[0]))] = 1e4
    encoding = ir.onnx_channel(4, 64)
    plain, weighted = (decode(encode(values, encoding, w), 64) for w in (None, weights))
    errors = [np.sum(weights * np.square(found[0] - values[0])) for found in (plain, weighted)]
    assert errors[1] < errors[0]


@pytest.mark.parametrize("bits", [4, 8])
def test_packing_has_an_inverse(bits):
    values = np.random.default_rng(3).standard_normal((6, 20)).astype(f32)
    blocks = encode(values, ir.onnx_channel(bits, 20))
    assert has_channels(blocks.encoding)
    assert is_standard(blocks.encoding)
    packed = pack_integers(blocks)
    assert packed[0].size == 6 * 20 * bits // 8
    back = unpack_integers(blocks.encoding, *packed)
    assert (decode(back, 20) == decode(blocks, 20)).all()
