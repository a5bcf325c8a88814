"""Exponents of scales come from logarithms, whose last bits differ between processors: they must not show."""

from __future__ import annotations

import numpy as np
import pytest

from phiconv.quantizers.ggml import codebook
from phiconv.quantizers.openvino import nncf

LAST_BITS = (1 - 2.0**-49, 1 + 2.0**-49)
"""Eight units in the last place of float64; NumPy's logarithms are off by four at most."""


def close_to_powers(smallest: int) -> np.ndarray:
    """float32 numbers on both sides of every power of two, where what is rounded up or down changes."""
    powers = np.ldexp(np.float32(1), np.arange(smallest, 128)).view(np.int32)
    return (powers[:, None] + np.arange(-400, 401)).astype(np.int32).view(np.float32).ravel()


@pytest.mark.parametrize("last_bits", LAST_BITS)
@pytest.mark.parametrize(
    ("name", "function", "numbers"),
    [
        ("log2", codebook._floor_log2, close_to_powers(-125)),
        ("log", lambda q: nncf._exponent(q, np.float32(1)), close_to_powers(-125)),
    ],
    ids=["ggml", "openvino"],
)
def test_no_library_can_round_an_exponent_otherwise(monkeypatch, last_bits, name, function, numbers):
    expected, logarithm = function(numbers), getattr(np, name)
    monkeypatch.setattr(np, name, lambda x: logarithm(x) * last_bits)
    assert len(np.unique(expected)) > 150
    assert np.array_equal(function(numbers), expected)
