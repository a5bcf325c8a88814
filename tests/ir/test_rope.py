"""Frequencies of rotary embeddings, and how they are scaled.

The reference version below is transformers' in float64. That numbers are rounded where theirs are show the
logits of tests/runtime/test_architectures.py and the factors in fixtures/converted.json.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from phiconv.ir.rope import Rope, RopeScaling

LLAMA_31 = RopeScaling("llama3", 8.0, 1.0, 4.0, 8192)
DIMENSIONS = st.sampled_from([16, 32, 64, 96, 128])
THETAS = st.sampled_from([1e4, 2.5e5, 5e5, 1e6]) | st.floats(1e3, 1e7)


def plain(dimensions, theta):
    return 1 / np.float64(np.float32(theta)) ** (np.arange(0, dimensions, 2) / dimensions)


def llama3(frequencies, scaling):
    """Frequencies as in transformers' _compute_llama3_parameters."""
    result = []
    for frequency in frequencies:
        wave = 2 * math.pi / frequency
        if wave < scaling.original_context / scaling.high_freq_factor:
            result.append(frequency)
        elif wave > scaling.original_context / scaling.low_freq_factor:
            result.append(frequency / scaling.factor)
        else:
            share = scaling.original_context / wave - scaling.low_freq_factor
            share /= scaling.high_freq_factor - scaling.low_freq_factor
            result.append((1 - share) * frequency / scaling.factor + share * frequency)
    return np.array(result)


@given(DIMENSIONS, THETAS)
def test_plain_frequencies(dimensions, theta):
    found = Rope(dimensions, theta, 4096).inverse_frequencies(long=False)
    np.testing.assert_allclose(found, plain(dimensions, theta), rtol=1e-6)
    assert Rope(dimensions, theta, 4096).divisors() == (1.0,) * (dimensions // 2)


@given(DIMENSIONS, THETAS, st.floats(1, 64))
def test_linear_scaling_divides_all(dimensions, theta, factor):
    rope = Rope(dimensions, theta, 4096, scaling=RopeScaling("linear", factor))
    found = rope.inverse_frequencies(long=False)
    np.testing.assert_allclose(found, plain(dimensions, theta) / factor, rtol=1e-6)


@given(
    DIMENSIONS,
    THETAS,
    st.floats(1.5, 64),
    st.floats(0.5, 3),
    st.floats(1, 16),
    st.integers(64, 1 << 20),
)
def test_llama3_scaling(dimensions, theta, factor, low, more, context):
    scaling = RopeScaling("llama3", factor, low, low + more, context)
    frequencies = plain(dimensions, theta)
    waves = 2 * np.pi / frequencies
    for limit in (context / scaling.low_freq_factor, context / scaling.high_freq_factor):
        assume(np.abs(waves / limit - 1).min() > 1e-5)  # on a limit rounding decides
    rope = Rope(dimensions, theta, 4096, scaling=scaling)
    expected = llama3(frequencies, scaling)
    np.testing.assert_allclose(rope.inverse_frequencies(long=False), expected, rtol=2e-5)
    np.testing.assert_allclose(rope.divisors(), frequencies / expected, rtol=2e-5)


def test_llama_31():
    divisors = Rope(128, 5e5, 8192, scaling=LLAMA_31).divisors()
    assert divisors[:29] == (1.0,) * 29
    assert divisors[35:] == (8.0,) * 29
    assert list(divisors[28:36]) == sorted(set(divisors))  # six in between, each its own
    assert all(float(np.float32(d)) == d for d in divisors)


def test_scaling_is_part_of_what_a_rope_is():
    assert Rope(16, 1e4, 4096) != Rope(16, 1e4, 4096, scaling=LLAMA_31)
    assert len({Rope(16, 1e4, 4096, scaling=LLAMA_31), Rope(16, 1e4, 4096, scaling=LLAMA_31)}) == 1


@pytest.mark.parametrize("length", [1, 8192, 100_000])
def test_scaled_frequencies_hold_at_every_length(length):
    assert not Rope(16, 1e4, 4096, scaling=LLAMA_31).is_long(length)


@pytest.mark.parametrize("theta", [1e4, 1e5, 1.5e5, 2.5e5, 3e5, 5e5, 1e6, 5e6, 1e7])
def test_no_library_can_round_a_power_otherwise(theta):
    """A power comes in float64 from the C library, whose last bits are its own: float32 must not see them."""
    for dimensions in (32, 40, 48, 64, 80, 96, 112, 128, 160, 192, 256):
        exponents = np.float32(np.arange(0, dimensions, 2) / dimensions).tolist()
        powers = np.array([theta**exponent for exponent in exponents])
        for last_bits in (1 - 2.0**-50, 1 + 2.0**-50):
            assert np.array_equal(np.float32(powers), np.float32(powers * last_bits))
