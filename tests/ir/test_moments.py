"""Second moments in tiles and of rounded inputs, against plain products."""

from __future__ import annotations

import numpy as np
import pytest

from phiconv.ir import moments
from phiconv.ir.moments import Moments, Sample, add_products, complete_products, tiles


@pytest.fixture
def x():
    return np.random.default_rng(5).standard_normal((90, 33)).astype(np.float32)


def sample(x, rows=None):
    count = len(x) if rows is None else len(rows)
    inputs, scales = (x * 4).astype(np.float16), np.full(len(x), 0.25, np.float32)
    return Sample(count, x.shape[1], None, inputs, scales, rows)


@pytest.mark.parametrize("width", [1, 7, 11, 33, 40])
def test_tiles(x, width, monkeypatch):
    monkeypatch.setattr(moments, "_TILE", width)
    total = np.zeros((33, 33), np.float32)
    for some in (x[:50], x[50:]):
        for tile in tiles(33):
            add_products(total, some, tile)
    for tile in tiles(33):
        complete_products(total, 90, tile)
    np.testing.assert_allclose(total, x.T.astype(np.float64) @ x / 90, atol=1e-6)
    np.testing.assert_array_equal(total, total.T)


def test_inputs_in_chunks(x, monkeypatch):
    rows = np.array([3, 4, 80, 17, 5])
    part = sample(x, rows)
    assert [len(chunk) for chunk in part.chunks(2)] == [2, 2, 1]
    np.testing.assert_allclose(np.concatenate([*part.chunks(2)]), x[rows], rtol=1e-3)
    np.testing.assert_allclose(part.moments(), x[rows].T @ x[rows] / 5, atol=2e-3)
    block = slice(30, None)
    np.testing.assert_allclose(part.moments(block), part.moments()[block, block], atol=1e-6)
    assert not list(Sample(9, 33, np.eye(33, dtype=np.float32)).chunks())


def test_both_forms_say_the_same_of_an_error(x):
    inputs = sample(x)
    matrix = Sample(90, 33, inputs.moments())
    difference = np.random.default_rng(6).standard_normal((4, 33)).astype(np.float32)
    np.testing.assert_allclose(inputs.errors(difference), matrix.errors(difference), rtol=1e-5)


def test_parts_are_weighed_by_their_tokens(x):
    squares = (x.astype(np.float64) ** 2).sum(axis=0)
    whole = sample(x).moments()
    both = Moments(squares, sample(x[:70]), sample(x[70:]))
    assert both.tokens == 90
    np.testing.assert_allclose(both.all(), whole, atol=1e-6)
    np.testing.assert_allclose(both.diagonal(), np.diagonal(whole), rtol=1e-3)
    stored = Moments(squares, Sample(70, 33, sample(x[:70]).moments()), sample(x[70:]))
    before = stored.fit().copy()
    np.testing.assert_allclose(stored.all(), whole, atol=1e-6)
    np.testing.assert_array_equal(stored.fit(), before)  # what is stored is not written to
    empty = Moments(squares, sample(x), sample(x[:0]))
    np.testing.assert_array_equal(empty.all(), whole)
    assert not empty.check().moments().any()
