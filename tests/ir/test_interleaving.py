"""Rows by turns: of floats and of blocks, in any range."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from memory_rows import MemoryRows, in_memory
from phiconv import ir
from phiconv.ir.interleaving import deinterleave, interleave
from phiconv.quantizers import decode, encode


@given(
    st.sampled_from([ir.F32, ir.Q4_1, ir.Q4_K, ir.Q8_0]),
    st.integers(0, 10),
    st.integers(0, 10),
    st.integers(),
)
def test_any_range(encoding, a, b, seed):
    values = np.random.default_rng(abs(seed)).standard_normal((2, 5, 512)).astype(np.float32)
    even, odd = (in_memory(half, encoding) for half in values)
    joined = interleave(even, odd)
    assert joined.shape == (10, 512)
    start, stop = sorted((a, b))
    expected = [decode(encode(values[i % 2, i // 2, None], encoding), 512)[0] for i in range(start, stop)]
    found = decode(joined.read(start, stop), 512)
    assert found.shape == (stop - start, 512)
    assert (found == np.array(expected, np.float32).reshape(-1, 512)).all()


def test_stacks_keep_their_first_dimension():
    stack = ir.Tensor.of(MemoryRows(np.arange(24, dtype=np.float32).reshape(6, 4)), (2, 3, 4))
    assert interleave(stack, stack).shape == (2, 6, 4)


def test_only_alike_tensors():
    a = in_memory(np.zeros((2, 4), np.float32))
    with pytest.raises(ValueError, match="cannot interleave"):
        interleave(a, a.slice_rows(0, 1))


@given(st.sampled_from([ir.F32, ir.Q4_1, ir.Q8_0]), st.integers(0, 10), st.integers(0, 10))
def test_and_apart_again(encoding, a, b):
    values = np.random.default_rng(a).standard_normal((2, 10, 64)).astype(np.float32)
    halves = [in_memory(half, encoding) for half in values]
    start, stop = sorted((a, b))
    for half, found in zip(halves, deinterleave(interleave(*halves)), strict=True):
        assert found.shape == half.shape
        first, second = (decode(tensor.read(start, stop), 64) for tensor in (half, found))
        np.testing.assert_array_equal(first, second)


def test_only_pairs_of_rows_come_apart():
    with pytest.raises(ValueError, match="not those of two tensors"):
        deinterleave(ir.constant([1.0, 2.0], "v"))
