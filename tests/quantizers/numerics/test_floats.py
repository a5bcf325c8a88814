"""Conversions between float types have the bits of NumPy's and ml_dtypes' own casts."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from phiconv.ir import BF16, F16, F32, F64, FloatEncoding
from phiconv.quantizers.numerics import floats
from phiconv.quantizers.numerics.floats import narrow, widen

TYPES = [F16, BF16, F32]
EVERY_16_BITS = np.arange(1 << 16, dtype=np.uint16)


def bits(values):
    return values.view({2: np.uint16, 4: np.uint32, 8: np.uint64}[values.dtype.itemsize])


def cast(values, encoding: FloatEncoding):
    with np.errstate(all="ignore"):
        return values.astype(np.float32).astype(encoding.dtype)


def check(values, encoding: FloatEncoding):
    result = narrow(values, encoding)
    assert result.dtype == encoding.dtype
    assert result.shape == values.shape
    expected = cast(values, encoding)
    if encoding == F64:  # which bits a NaN gets depends on the way
        np.testing.assert_array_equal(result, expected)
        np.testing.assert_array_equal(np.signbit(result), np.signbit(expected))
    else:
        np.testing.assert_array_equal(bits(result), bits(expected))


@pytest.mark.parametrize(
    ("source", "target"),
    [(F16, BF16), (F16, F32), (F16, F64), (BF16, F16), (BF16, F32), (BF16, F64)],
    ids=lambda t: t.name,
)
def test_every_16_bit_value(source, target):
    check(EVERY_16_BITS.view(source.dtype), target)


def test_every_finite_float16():
    values = EVERY_16_BITS.view(np.float16)
    check(values[np.isfinite(values)], F32)


def test_float16_where_subnormals_are_zeros(monkeypatch):
    monkeypatch.setattr(floats, "_REBIAS", np.float32(0))
    test_every_finite_float16()


@pytest.mark.parametrize("target", [F16, BF16], ids=lambda t: t.name)
def test_where_rounding_changes(target):
    """Every number of the type, the middle between it and the next, and their neighbours."""
    with np.errstate(all="ignore"):
        exact = EVERY_16_BITS.view(target.dtype).astype(np.float32)
        middle = (exact[:-1] + exact[1:]) / 2
    near = np.concatenate([exact, middle])
    near = near[np.isfinite(near)]
    for direction in (-np.inf, np.inf):
        with np.errstate(all="ignore"):
            check(np.nextafter(near, np.float32(direction)), target)
    check(near, target)


@pytest.mark.parametrize("target", [F16, BF16], ids=lambda t: t.name)
def test_every_exponent(target):
    rng = np.random.default_rng(0)
    for exponent in range(256):
        mantissas = rng.integers(0, 1 << 23, 2000, dtype=np.uint32)
        signs = rng.integers(0, 2, 2000, dtype=np.uint32) << 31
        check((mantissas | (exponent << 23) | signs).view(np.float32), target)


@pytest.mark.parametrize("target", TYPES, ids=lambda t: t.name)
@given(patterns=hnp.arrays(np.uint32, st.integers(0, 50)))
def test_any_float32(target, patterns):
    check(patterns.view(np.float32), target)


@pytest.mark.parametrize("target", TYPES, ids=lambda t: t.name)
@given(values=hnp.arrays(np.float64, hnp.array_shapes(max_dims=3)))
def test_float64_is_rounded_to_float32_first(target, values):
    check(values, target)


@pytest.mark.parametrize("target", TYPES, ids=lambda t: t.name)
@pytest.mark.parametrize("source", TYPES, ids=lambda t: t.name)
def test_large_arrays_go_in_pieces(source, target):
    values = np.random.default_rng(1).standard_normal((3, 70_001)).astype(source.dtype)
    check(values, target)
    check(values[:, ::2].T, target)
    values[1, 5] = np.inf
    values[2, 7] = np.nan
    check(values, target)


@pytest.mark.parametrize("encoding", [*TYPES, F64], ids=lambda t: t.name)
def test_same_type_is_the_same_array(encoding):
    values = np.ones((2, 3), encoding.dtype)
    assert narrow(values, encoding) is values


def test_into_given_memory():
    out = np.empty((2, 3), np.float32)
    assert widen(np.full((2, 3), 0.5, BF16.dtype), out) is out
    assert (out == 0.5).all()
    assert widen(np.full((2, 3), 0.25, np.float32), out) is out
    assert (out == 0.25).all()
