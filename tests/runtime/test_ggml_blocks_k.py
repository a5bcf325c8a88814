"""Every byte of K-quants, and of all blocks with importance weights, equals what the real ggml writes."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest
from gguf import GGMLQuantizationType

from phiconv import ir
from phiconv.quantizers import decode, encode
from phiconv_formats.gguf.packing import pack, unpack

pytestmark = pytest.mark.runtime

SUPER_BLOCKS = [ir.Q2_K, ir.Q3_K, ir.Q4_K, ir.Q5_K, ir.Q6_K]
CLASSIC = [ir.Q4_0, ir.Q4_1, ir.Q5_0, ir.Q5_1, ir.Q8_0]

COLUMNS = 1024

f32 = np.float32


def gaussian(rng):
    return (rng.standard_normal((12, COLUMNS)) * 0.02).astype(f32)


def heavy_tailed(rng):
    return (rng.standard_t(3, (12, COLUMNS)) * 0.02).astype(f32)


def choice(rng, *values):
    return rng.choice(np.array(values, f32), (12, COLUMNS))


def sizes(rng, shape, low):
    """Gaussian weights, every one, sub-block or row (by the shape) of a size of its own."""
    return (rng.standard_normal((12, COLUMNS // 16, 16)) * 10.0 ** rng.uniform(low, 4, shape)).astype(f32)


TILES = {
    "gaussian": gaussian,
    "gaussian_bf16": lambda rng: gaussian(rng).astype(ir.BF16.dtype),
    "student_t": heavy_tailed,
    "student_t_bf16": lambda rng: heavy_tailed(rng).astype(ir.BF16.dtype),
    "student_t_f16": lambda rng: heavy_tailed(rng).astype(ir.F16.dtype),
    "few_values": lambda rng: rng.integers(-3, 4, (12, COLUMNS)).astype(f32) / 4,
    "halves": lambda rng: rng.integers(-254, 255, (12, COLUMNS)).astype(f32) / 2,
    "every_size": lambda rng: sizes(rng, (12, COLUMNS // 16, 16), -44).reshape(-1, COLUMNS),
    "sub_block_sizes": lambda rng: sizes(rng, (12, COLUMNS // 16, 1), -12).reshape(-1, COLUMNS),
    "row_sizes": lambda rng: sizes(rng, (12, 1, 1), -44).reshape(-1, COLUMNS),
    "all_positive": lambda rng: np.abs(gaussian(rng)),
    "all_negative": lambda rng: -np.abs(gaussian(rng)),
    "above_one": lambda rng: np.abs(gaussian(rng)) + f32(1),
    "nearly_constant": lambda rng: f32(-1000) + gaussian(rng) / 100,
    "zeros_of_both_signs": lambda rng: choice(rng, 0.0, -0.0),
    "positive_and_zeros": lambda rng: choice(rng, 0.0, -0.0, 1.5, 2.0),
    "negative_and_zeros": lambda rng: choice(rng, 0.0, -0.0, -1.5, -2.0),
    "ties": lambda rng: choice(rng, 0.75, -0.75),
    "ties_of_two_sizes": lambda rng: choice(rng, 0.75, -0.75, 0.25, -0.25),
    "mostly_zero": lambda rng: gaussian(rng) * (rng.random((12, COLUMNS)) < 0.05),
    "outlier": lambda rng: np.where(rng.random((12, COLUMNS)) < 0.004, f32(3000), gaussian(rng)),
    "negative_outlier": lambda rng: np.where(rng.random((12, COLUMNS)) < 0.004, f32(-3000), gaussian(rng)),
    "tiny": lambda rng: gaussian(rng) * f32(1e-18),
    "around_the_smallest_sub_block": lambda rng: gaussian(rng) * f32(2e-14),
    "scale_underflows": lambda rng: gaussian(rng) * f32(1e-5),
    "large": lambda rng: gaussian(rng) * f32(5e5),
    "subnormal": lambda rng: rng.integers(1, 1 << 23, (8, COLUMNS), dtype=np.uint32).view(f32),
    "one_block": lambda rng: gaussian(rng)[:1, :256],
    "one_block_of_small_numbers": lambda rng: gaussian(rng)[:1, :256] * f32(1e-36),
    "constants": lambda _: np.repeat(
        np.array([0.0, -0.0, 1.0, -1.0, 1e-20, -1e-20, 1e4, -1e4, 1e-45, 2.0**-126, -1e-15, 1e-15], f32), 256
    ).reshape(-1, 256),
}


def importances(rng, columns):
    weights = np.exp(2 * rng.standard_normal(columns)).astype(f32)
    return {
        "none": None,
        "usual": weights,
        "ones": np.ones(columns, f32),
        "zeros": np.zeros(columns, f32),
        "some_zero": np.where(rng.random(columns) < 0.3, f32(0), weights),
    }


every_tile = pytest.mark.parametrize("name", TILES)


def check(ggml_quantize, encoding, name, importance):
    rng = np.random.default_rng(7)
    values = TILES[name](rng)
    weights = importances(rng, values.shape[1])[importance]
    if (name, importance) == ("every_size", "some_zero") and encoding == ir.Q2_K:
        pytest.skip("beyond what ggml can round: its assertions say so, and its builds differ")
    expected = ggml_quantize(values.astype(f32), encoding.name, weights)
    assert np.count_nonzero(pack(encode(values, encoding, weights)) != expected) == 0


@every_tile
@pytest.mark.parametrize("importance", ["none", "usual", "ones", "zeros", "some_zero"])
@pytest.mark.parametrize("encoding", SUPER_BLOCKS, ids=lambda e: e.name)
def test_bytes_are_equal(ggml_quantize, encoding, importance, name):
    check(ggml_quantize, encoding, name, importance)


@every_tile
@pytest.mark.parametrize("importance", ["usual", "zeros", "some_zero"])
@pytest.mark.parametrize("encoding", CLASSIC, ids=lambda e: e.name)
def test_bytes_of_classic_blocks_are_equal(ggml_quantize, encoding, importance, name):
    check(ggml_quantize, encoding, name, importance)


@pytest.mark.parametrize("encoding", SUPER_BLOCKS, ids=lambda e: e.name)
def test_every_block_alone(ggml_quantize, encoding):
    """NumPy must not add up a tile of one block in another order."""
    rng = np.random.default_rng(3)
    values = heavy_tailed(rng)[:10]
    weights = importances(rng, COLUMNS)["some_zero"]
    for importance in (None, weights):
        expected = ggml_quantize(values, encoding.name, importance)
        parts = np.split(np.arange(COLUMNS), COLUMNS // 256)
        blocks = [
            encode(row[None, part], encoding, None if importance is None else importance[part])
            for row in values
            for part in parts
        ]
        assert np.count_nonzero(pack(ir.Blocks.join(blocks)) != expected) == 0


@every_tile
@pytest.mark.parametrize("encoding", SUPER_BLOCKS, ids=lambda e: e.name)
def test_weights_are_equal(ggml, ggml_quantize, encoding, name):
    values = TILES[name](np.random.default_rng(7)).astype(f32)
    packed = ggml_quantize(values, encoding.name)
    expected = np.empty_like(values)
    read = getattr(ggml, f"dequantize_row_{encoding.name[:-1]}K")
    read.argtypes, read.restype = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64], None
    read(packed.ctypes.data, expected.ctypes.data, values.size)
    weights = decode(unpack(packed, encoding), values.shape[1])
    np.testing.assert_array_equal(weights.view(np.uint32), expected.view(np.uint32))


@pytest.mark.parametrize("encoding", SUPER_BLOCKS, ids=lambda e: e.name)
def test_weights_of_any_bytes_are_equal(ggml, encoding):
    rng = np.random.default_rng(5)
    block_bytes = ggml.ggml_row_size(GGMLQuantizationType[encoding.name.upper()].value, 256)
    packed = rng.integers(0, 256, 300 * block_bytes, dtype=np.uint8)
    blocks = unpack(packed, encoding)
    finite = np.isfinite(blocks.scales) & (np.isfinite(blocks.minima) if encoding.has_minimum else True)
    expected = np.empty((300, 256), f32)
    read = getattr(ggml, f"dequantize_row_{encoding.name[:-1]}K")
    read.argtypes, read.restype = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64], None
    read(packed.ctypes.data, expected.ctypes.data, expected.size)
    weights = decode(blocks, 256)[finite]
    np.testing.assert_array_equal(weights.view(np.uint32), expected[finite].view(np.uint32))
