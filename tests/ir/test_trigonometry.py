"""Sines and cosines that are the same everywhere, against the exact ones."""

from __future__ import annotations

import math
from decimal import Decimal, localcontext

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from phiconv.ir.trigonometry import cosine, sine

PI = Decimal("3.14159265358979323846264338327950288419716939937510582097494459230781640628620899")


def exact(angle: float, quarters: int) -> Decimal:
    """The sine of an angle and some quarter turns, to 40 digits."""
    with localcontext() as context:
        context.prec = 70
        x = (Decimal(angle) + quarters * PI / 2) % (2 * PI)
        term, total, n = x, x, 1
        while abs(term) > Decimal(10) ** -45:
            n += 2
            term *= -x * x / (n * (n - 1))
            total += term
        return total


def nearest(value: Decimal) -> np.float32:
    """The nearest float32: by way of float64, which is off by less than any of these are from halfway."""
    return np.float32(float(value))


@given(st.floats(-(2.0**20), 2.0**20, width=32) | st.integers(0, 1 << 20).map(float))
def test_they_are_the_nearest_numbers(angle):
    x = np.array([angle], np.float32)
    assert sine(x)[0] == nearest(exact(angle, 0))
    assert cosine(x)[0] == nearest(exact(angle, 1))


# float32 numbers close to a multiple of pi / 2, where only the third part of it says what is left.
@pytest.mark.parametrize(
    "angle", [math.pi, math.pi / 2, 355.0, 52174.0, 710 * 8.0, 5419351.0 / 4, 2549491779 / 2**12]
)
def test_what_is_left_of_whole_turns_is_right(angle):
    x = np.array([angle], np.float32)
    assert sine(x)[0] == nearest(exact(float(x[0]), 0))
    assert cosine(x)[0] == nearest(exact(float(x[0]), 1))


def test_a_long_table():
    angles = np.arange(131072, dtype=np.float32)[:, None] * np.float32([1, 0.31, 0.0123])
    for ours, numpy in ((sine, np.sin), (cosine, np.cos)):
        other = numpy(angles.astype(np.float64)).astype(np.float32)
        assert np.count_nonzero(ours(angles) != other) < 3  # by the last bit of a float64


def test_angles_that_mean_nothing():
    x = np.array([0.0, -0.0, 3e38, -1e30, 2.0**27, 2.0**28], np.float32)
    for function in (sine, cosine):
        assert (np.abs(function(x)) <= 1).all()
    assert sine(x[:2]).tolist() == [0, 0]
    assert sine(np.zeros((0, 3), np.float32)).shape == (0, 3)
