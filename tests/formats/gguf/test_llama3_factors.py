"""A GGUF has llama3's divisors only; a scaling is found that gives the same frequencies."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from phiconv.errors import ConfigError
from phiconv.ir.rope import Rope, RopeScaling
from phiconv_formats.gguf.entries import Entries
from phiconv_formats.gguf.llama3_factors import find_llama3

ENTRIES = Entries({}, Path("x.gguf"), "llama")


def found(dimensions, theta, scaling):
    divisors = Rope(dimensions, theta, 8192, scaling=scaling).divisors()
    result = find_llama3(divisors, theta, dimensions, ENTRIES)
    assert result["rope_type"] == "llama3"
    return RopeScaling(
        "llama3",
        result["factor"],
        result["low_freq_factor"],
        result["high_freq_factor"],
        result["original_max_position_embeddings"],
    )


@pytest.mark.parametrize("dimensions", [64, 128])
@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_the_usual_numbers_come_back(dimensions, factor):
    scaling = RopeScaling("llama3", factor, 1.0, 4.0, 8192)
    assert found(dimensions, 500000.0, scaling) == scaling


@example(128, 10000.0, 8, 2.0, 0.5, 2628)  # few pairs between the limits, which leave few digits
@example(64, 10000.0, 29, 1.5, 0.5, 12575)
@example(64, 500000.0, 15, 1.5, 0.5, 15140)
@example(64, 10000.0, 32, 2.0, 0.5, 16761)
@given(
    st.sampled_from([16, 32, 64, 128]),
    st.sampled_from([10000.0, 500000.0]),
    st.integers(2, 40),
    st.sampled_from([1.0, 1.5, 2.0]),
    st.sampled_from([0.5, 2.25, 3.0, 7.0]),
    st.integers(100, 20_000),
)
def test_other_numbers_give_the_same_frequencies(dimensions, theta, factor, low, more, context):
    scaling = RopeScaling("llama3", float(factor), low, low + more, context)
    first, second = (
        Rope(dimensions, theta, 8192, scaling=each).inverse_frequencies(long=False)
        for each in (scaling, found(dimensions, theta, scaling))
    )
    np.testing.assert_allclose(first, second, rtol=3e-6)


def test_other_divisors_are_refused():
    with pytest.raises(ConfigError, match=r"rope_freqs\.weight: these factors .* are not those of llama3"):
        find_llama3((1.0, 5.0, 2.0, 8.0, 1.0, 3.0, 3.0, 1.5), 10000.0, 16, ENTRIES)
