"""What an adapter adds to a matrix: against the plain formula, however the rows are cut."""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from phiconv import ir
from phiconv.errors import WeightError
from phiconv.ir.adapter import LowRank
from phiconv.ir.interleaving import interleave
from phiconv.quantizers import decode, encode
from phiconv.quantizers.joining import join
from phiconv.quantizers.merging import merge

FLOATS = {ir.F64: np.float64, ir.F32: np.float32, ir.F16: np.float16, ir.BF16: ml_dtypes.bfloat16}


@dataclass(frozen=True, eq=False)
class Array:
    """Rows in memory (an `ir.Source`)."""

    values: Any
    encoding: Any
    label: str = "memory"

    def read(self, start, stop):
        return self.values[start:stop].copy()

    def changed(self):
        return False


@dataclass(frozen=True, eq=False)
class Quantized:
    """Rows that are quantized when they are read (an `ir.Source`)."""

    values: Any
    encoding: Any
    label: str = "memory"

    def read(self, start, stop):
        return encode(self.values[start:stop], self.encoding)

    def changed(self):
        return False


def tensor(values, encoding=ir.F32):
    values = np.asarray(values, FLOATS[encoding])
    return ir.Tensor.of(Array(values.reshape(len(values), -1), encoding), values.shape)


def change(rows, columns, rank, *, seed=0, scale=0.5, dora=False, encoding=ir.F32, transposed=False):
    random = np.random.default_rng(seed)
    a = random.normal(0, 1, (rank, rows if transposed else columns))
    b = random.normal(0, 1, (columns if transposed else rows, rank))
    magnitude = tensor(random.uniform(1, 2, rows)) if dora else None
    return LowRank(tensor(a, encoding), tensor(b, encoding), scale, magnitude, transposed)


def everything(view):
    return np.asarray(view.read(0, view.rows))


def plain(base, low):
    """The formula as PEFT's documentation has it, in float64."""
    w, a, b = (np.asarray(everything(t), np.float64) for t in (base, low.a, low.b))
    product = (b @ a).T if low.transposed else b @ a
    w = w + low.scale * product
    if low.magnitude is None:
        return w
    lengths = np.linalg.norm(w, axis=1, keepdims=True)
    return everything(low.magnitude) / lengths * w


BASE = np.random.default_rng(9).normal(0, 0.1, (24, 64))


@pytest.mark.parametrize("encoding", FLOATS)
@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("rank", [1, 2, 3, 64, 100])
def test_the_formula(encoding, rank, dora):
    base, low = tensor(BASE, encoding), change(24, 64, rank, dora=dora)
    view = merge(base, low)
    found = everything(view)
    assert found.dtype == (np.float64 if encoding == ir.F64 else np.float32)
    np.testing.assert_allclose(found, plain(base, low), rtol=3e-7, atol=1e-5)
    assert view.encoding.name == ("f64" if encoding == ir.F64 else f"{encoding.name}+lora")


@pytest.mark.parametrize("encoding", FLOATS)
def test_an_adapter_in_any_float_type(encoding):
    base, low = tensor(BASE), change(24, 64, 4, encoding=encoding)
    np.testing.assert_allclose(everything(merge(base, low)), plain(base, low), rtol=3e-7, atol=1e-5)


def test_an_embedding_is_added_transposed():
    base, low = tensor(BASE), change(24, 64, 4, transposed=True)
    assert low.shape == (24, 64)
    view = merge(base, low)
    np.testing.assert_allclose(everything(view), plain(base, low), rtol=3e-7, atol=1e-5)
    np.testing.assert_array_equal(view.read(5, 9), everything(view)[5:9])


@given(st.data())
def test_rows_are_the_same_however_they_are_cut(data):
    dora, transposed = data.draw(st.sampled_from([(False, False), (True, False), (False, True)]))
    low = change(24, 64, data.draw(st.integers(1, 9)), dora=dora, transposed=transposed)
    view = merge(tensor(BASE, ir.BF16), low)
    start = data.draw(st.integers(0, 23))
    stop = data.draw(st.integers(start + 1, 24))
    np.testing.assert_array_equal(view.read(start, stop), everything(view)[start:stop])
    np.testing.assert_array_equal(everything(view.slice_rows(start, 24)), everything(view)[start:])
    if not transposed:
        part = merge(tensor(BASE, ir.BF16).slice_rows(start, stop), low.slice_rows(start, stop))
        np.testing.assert_array_equal(everything(part), everything(view)[start:stop])


@given(st.integers(1, 40), st.integers(0, 1 << 32), st.floats(1e-30, 1e30))
def test_the_sum_of_products_is_exact_in_any_order(rank, seed, size):
    """Every order of the sum, and so every BLAS library, gives the same bits."""
    low = change(8, 16, rank, seed=seed)
    low = LowRank(tensor(size * everything(low.a)), low.b, 1.0)
    order = np.random.default_rng(seed).permutation(rank)
    other = LowRank(tensor(everything(low.a)[order]), tensor(everything(low.b)[:, order]), 1.0)
    zero = tensor(np.zeros((8, 16)))
    np.testing.assert_array_equal(everything(merge(zero, low)), everything(merge(zero, other)))


def test_a_quantized_base():
    quantized = ir.Tensor.of(Quantized(BASE.astype(np.float32), ir.Q8_0), BASE.shape)
    low = change(24, 64, 4)
    view = merge(quantized, low)
    base = tensor(decode(quantized.read(0, 24), 64))
    np.testing.assert_array_equal(everything(view), everything(merge(base, low)))
    assert view.encoding == ir.MixedEncoding("q8_0+lora")


def test_adapters_one_after_the_other():
    base, first, second = tensor(BASE, ir.BF16), change(24, 64, 2, seed=1), change(24, 64, 3, seed=2)
    view = merge(merge(base, first), second)
    expected = plain(base, first) + plain(tensor(np.zeros((24, 64))), second)
    np.testing.assert_allclose(everything(view), expected, rtol=3e-7, atol=1e-5)
    assert view.encoding.name == "bf16+lora"


def test_it_joins_with_rows_that_stay():
    base = tensor(BASE, ir.BF16)
    view = merge(base.slice_rows(0, 8), change(8, 64, 2))
    joined = join([view, base.slice_rows(8, 24)])
    assert joined.encoding == view.encoding
    np.testing.assert_array_equal(joined.read(6, 12)[2:], BASE[8:12].astype(ml_dtypes.bfloat16))
    turns = interleave(view, merge(base.slice_rows(8, 16), change(8, 64, 2, seed=3)))
    np.testing.assert_array_equal(everything(turns)[::2], everything(view))


@pytest.mark.parametrize("part", ["a", "b", "magnitude"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_in_an_adapter_is_refused(part, value):
    low = change(24, 64, 2, dora=True)
    values = everything(getattr(low, part)).copy()
    values[1, 0] = value
    parts = {"a": low.a, "b": low.b, "magnitude": low.magnitude} | {
        part: tensor(values[:, 0] if part == "magnitude" else values)
    }
    view = merge(tensor(BASE), LowRank(scale=1.0, **parts))
    with pytest.raises(WeightError, match="NaN or infinity"):
        view.read(0, 24)


def test_what_is_not_finite_in_the_base_stays():
    values = BASE.copy()
    values[3, 5] = np.nan
    found = everything(merge(tensor(values), change(24, 64, 2)))
    assert np.argwhere(np.isnan(found)).tolist() == [[3, 5]]


def test_shapes_that_differ_are_a_mistake():
    with pytest.raises(ValueError, match="an adapter for"):
        merge(tensor(BASE), change(24, 32, 2))
    with pytest.raises(IndexError):
        change(24, 64, 2, transposed=True).slice_rows(0, 3)


def test_a_copy_in_another_process():
    """Nothing of what is kept from tile to tile goes along."""
    low = change(24, 64, 2)
    view = merge(tensor(BASE), low)
    expected = everything(view)
    copy = pickle.loads(pickle.dumps(view))  # noqa: S301 - what was pickled just now
    assert len(pickle.dumps(view)) < len(pickle.dumps((BASE, everything(low.a), everything(low.b)))) + 2000
    np.testing.assert_array_equal(everything(copy), expected)
