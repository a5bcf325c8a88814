"""Products with blocks whose weights are not put in their order first."""

from __future__ import annotations

import numpy as np
import pytest

from phiconv import ir
from phiconv.quantizers import decode, encode
from phiconv.quantizers.decoding import multiplies, product


@pytest.mark.parametrize("encoding", [ir.Q8_0, ir.Q4_0, ir.Q4_1, ir.Q5_1], ids=lambda e: e.name)
def test_product_is_that_of_the_decoded_weights(encoding):
    generator = np.random.default_rng(0)
    weights = generator.standard_normal((5, 96), np.float32)
    vector = generator.standard_normal(96, np.float32)
    blocks = encode(weights, encoding)
    assert multiplies(blocks)
    exact = decode(blocks, 96).astype(np.float64) @ vector.astype(np.float64)
    np.testing.assert_allclose(product(vector, blocks), exact, atol=1e-5)


def test_blocks_of_many_quads_and_floats_are_decoded():
    weights = np.ones((2, 256), np.float32)
    assert not multiplies(encode(weights, ir.Q4_K))
    assert not multiplies(weights)
