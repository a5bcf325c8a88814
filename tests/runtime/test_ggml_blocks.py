"""Every byte of the classic blocks equals what the real ggml writes."""

from __future__ import annotations

import numpy as np
import pytest

from phiconv import ir
from phiconv.quantizers import encode
from phiconv_formats.gguf.packing import pack

pytestmark = pytest.mark.runtime

BLOCK_ENCODINGS = [ir.Q4_0, ir.Q4_1, ir.Q5_0, ir.Q5_1, ir.Q8_0]
ENCODINGS = [*BLOCK_ENCODINGS, ir.F16, ir.BF16, ir.F32]

f32 = np.float32


def gaussian(rng, stored=ir.F32):
    return (rng.standard_normal((64, 2048)) * 0.02).astype(stored.dtype)


def heavy_tailed(rng, stored=ir.F32):
    return (rng.standard_t(3, (64, 2048)) * 0.02).astype(stored.dtype)


def blocks_around_halves():
    """Blocks with a scale of 1 in Q8_0, and the numbers at and next to k + 0.5."""
    halves = np.arange(-127, 127, dtype=f32) + f32(0.5)
    near = np.concatenate([np.nextafter(halves, f32(-200)), halves, np.nextafter(halves, f32(200))])
    return np.insert(np.resize(near, (31, 31)), 0, 127, axis=1)


TILES = {
    "gaussian": gaussian,
    "student_t": heavy_tailed,
    "gaussian_bf16": lambda rng: gaussian(rng, ir.BF16),
    "student_t_bf16": lambda rng: heavy_tailed(rng, ir.BF16),
    "gaussian_f16": lambda rng: gaussian(rng, ir.F16),
    "student_t_f16": lambda rng: heavy_tailed(rng, ir.F16),
    "few_values": lambda rng: rng.integers(-3, 4, (64, 2048)).astype(f32) / 4,
    "halves": lambda rng: rng.integers(-254, 255, (64, 2048)).astype(f32) / 2,
    "just_off_halves": lambda _: blocks_around_halves(),
    "every_size": lambda rng: (
        rng.standard_normal((64, 2048)) * 10.0 ** rng.uniform(-44, 4, (64, 2048))
    ).astype(f32),
    "block_sizes": lambda rng: (
        rng.standard_normal((4096, 32)) * 10.0 ** rng.uniform(-44, 5, (4096, 1))
    ).astype(f32),
    "all_positive": lambda rng: np.abs(gaussian(rng)),
    "all_negative": lambda rng: -np.abs(gaussian(rng)),
    "zeros_of_both_signs": lambda rng: rng.choice(np.array([0.0, -0.0], f32), (512, 32)),
    "positive_and_zeros": lambda rng: rng.choice(np.array([0.0, -0.0, 1.5, 2.0], f32), (512, 32)),
    "negative_and_zeros": lambda rng: rng.choice(np.array([0.0, -0.0, -1.5, -2.0], f32), (512, 32)),
    "mostly_zero": lambda rng: gaussian(rng) * (rng.random((64, 2048)) < 0.05),
    "outlier": lambda rng: np.where(
        rng.random((512, 32)) < 0.02, f32(3000), gaussian(rng).reshape(-1, 32)[:512]
    ),
    "subnormal": lambda rng: rng.integers(1, 1 << 23, (512, 32), dtype=np.uint32).view(f32),
    "ties": lambda rng: np.where(rng.random((512, 32)) < 0.5, f32(0.75), f32(-0.75)),
}


for value in (0.0, -0.0, 1.0, -1.0, 1e-20, -1e-20, 1e4, -1e4, 65504.0, 1e-45, 2.0**-126, 2.0**-125, 3e-38):
    TILES[f"constant_{value!r}"] = lambda _, value=value: np.full((1, 32), value, f32)


@pytest.mark.parametrize("name", TILES)
@pytest.mark.parametrize("encoding", ENCODINGS, ids=lambda e: e.name)
def test_bytes_are_equal(ggml_quantize, encoding, name):
    values = TILES[name](np.random.default_rng(7))
    expected = ggml_quantize(values.astype(f32), encoding.name)
    assert np.count_nonzero(pack(encode(values, encoding)) != expected) == 0
