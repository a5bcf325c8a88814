"""Rows by turns: of floats and of blocks, in any range."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from memory_rows import MemoryRows, in_memory
from phiconv import ir
from phiconv.ir.interleaving import deinterleave, halves_by_turns, halves_in_order, interleave
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


def swapped(rows, heads):
    """llama.cpp's converter, in NumPy: the two halves of each head by turns."""
    halves = rows.reshape(heads, 2, len(rows) // heads // 2, *rows.shape[1:])
    return halves.swapaxes(1, 2).reshape(rows.shape)


@given(
    st.sampled_from([ir.F32, ir.Q4_1, ir.Q8_0]),
    st.integers(1, 4),
    st.integers(1, 3),
    st.integers(0, 30),
    st.integers(0, 30),
)
def test_halves_of_heads_by_turns_and_in_order_again(encoding, heads, half, a, b):
    rows = 2 * heads * half
    values = np.random.default_rng(rows).standard_normal((rows, 64)).astype(np.float32)
    tensor = in_memory(values, encoding)
    by_turns = halves_by_turns(tensor, heads)
    start, stop = sorted((min(a, rows), min(b, rows)))
    expected = swapped(decode(tensor.read(0, rows), 64), heads)
    np.testing.assert_array_equal(decode(by_turns.read(start, stop), 64), expected[start:stop])
    again = halves_in_order(by_turns, heads)
    assert again.shape == tensor.shape
    first, second = (decode(each.read(start, stop), 64) for each in (tensor, again))
    np.testing.assert_array_equal(first, second)


def test_halves_of_a_bias_by_turns():
    bias = ir.constant([float(i) for i in range(12)], "b")
    by_turns = halves_by_turns(bias, 3)
    assert by_turns.shape == (12,)
    assert by_turns.read(0, 12).reshape(-1).tolist() == swapped(np.arange(12.0), 3).tolist()
    assert halves_in_order(by_turns, 3).read(0, 12).reshape(-1).tolist() == list(range(12))
