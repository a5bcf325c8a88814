"""Resizing, against plain sums and against Pillow's bytes where it is installed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from phiconv.forward.layers import erf
from phiconv.forward.resampling import antialiased, bicubic, resized
from phiconv.perception.pictures import resized_pixels

SIZES = st.integers(1, 90)


@given(SIZES, SIZES)
def test_weights_are_fractions_of_one(old, new):
    for taps in (antialiased(old, new), bicubic(old, new)):
        assert np.allclose(taps.weights.sum(axis=1), 1)
        assert taps.indices.min() >= 0
        assert taps.indices.max() < old


@given(SIZES)
def test_the_same_size_changes_nothing(size):
    x = np.arange(size, dtype=np.float64)[:, None] ** 2
    for taps in (antialiased(size, size), bicubic(size, size)):
        assert np.allclose(resized(x, taps, 0), x)


@given(SIZES, SIZES)
def test_a_ramp_stays_one_inside(old, new):
    """The kernel is symmetric, so the mean place of a new pixel is its own."""
    x = np.arange(old, dtype=np.float64)
    found = resized(x, antialiased(old, new), 0)
    places = (np.arange(new) + 0.5) * old / new - 0.5
    reach = max(old / new, 1)
    inside = (places - reach >= 0) & (places + reach <= old - 1)
    assert np.allclose(found[inside], places[inside], atol=0.26 * reach)
    assert (np.diff(found) >= -1e-9).all()


@pytest.mark.parametrize("size", [(31, 47), (8, 200), (300, 9), (61, 61), (64, 63), (31, 60)])
def test_pillows_bytes(size):
    image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
    pixels = np.random.Generator(np.random.PCG64(1)).integers(0, 256, (61, 64, 3), dtype=np.uint8)
    height, width = size
    theirs = image.fromarray(pixels).resize((width, height), image.Resampling.BILINEAR)
    assert (resized_pixels(pixels, height, width) == np.asarray(theirs)).all()


def test_the_error_function():
    import math

    x = np.linspace(-8, 8, 4001)
    exact = [math.erf(value) for value in x]
    assert np.abs(erf(x) - exact).max() < 2e-9
    assert erf(x.astype(np.float32)).dtype == np.float32
