"""Every byte of the codebook blocks equals what the real ggml writes, with and without importance."""

from __future__ import annotations

import numpy as np
import pytest

from phiconv import ir
from phiconv.quantizers import encode
from phiconv_formats.gguf.packing import pack

pytestmark = pytest.mark.runtime

UNWEIGHTED = [ir.MXFP4, ir.NVFP4, ir.TQ1_0, ir.TQ2_0]
GRIDS = [ir.IQ1_S, ir.IQ1_M, ir.IQ2_XXS, ir.IQ2_XS, ir.IQ2_S, ir.IQ3_XXS, ir.IQ3_S]
ENCODINGS = [ir.IQ4_NL, ir.IQ4_XS, *UNWEIGHTED, *GRIDS]

f32 = np.float32
SHAPE = (24, 512)


def gaussian(rng, stored=ir.F32):
    return (rng.standard_normal(SHAPE) * 0.02).astype(stored.dtype)


def heavy_tailed(rng, stored=ir.F32):
    return (rng.standard_t(3, SHAPE) * 0.02).astype(stored.dtype)


def of(rng, *values):
    return rng.choice(np.array(values, f32), SHAPE)


def next_to_powers_of_two(rng):
    mantissas = f32(1) - f32(2.0**-24) * rng.integers(0, 64, (40, 256))
    return np.ldexp(mantissas, rng.integers(-149, 30, (40, 1))).astype(f32)


TILES = {
    "gaussian": gaussian,
    "student_t": heavy_tailed,
    "gaussian_bf16": lambda rng: gaussian(rng, ir.BF16),
    "student_t_bf16": lambda rng: heavy_tailed(rng, ir.BF16),
    "student_t_f16": lambda rng: heavy_tailed(rng, ir.F16),
    "few_values": lambda rng: rng.integers(-3, 4, SHAPE).astype(f32) / 4,
    "halves": lambda rng: rng.integers(-254, 255, SHAPE).astype(f32) / 2,
    "every_size": lambda rng: (rng.standard_normal(SHAPE) * 10.0 ** rng.uniform(-44, 4, SHAPE)).astype(f32),
    "block_sizes": lambda rng: (rng.standard_normal((60, 256)) * 10.0 ** rng.uniform(-44, 5, (60, 1))).astype(
        f32
    ),
    "sub_block_sizes": lambda rng: (
        (rng.standard_normal((960, 16)) * 10.0 ** rng.uniform(-10, 4, (960, 1))).astype(f32).reshape(-1, 256)
    ),
    "all_positive": lambda rng: np.abs(gaussian(rng)),
    "all_negative": lambda rng: -np.abs(gaussian(rng)),
    "zeros_of_both_signs": lambda rng: of(rng, 0.0, -0.0),
    "positive_and_zeros": lambda rng: of(rng, 0.0, -0.0, 1.5, 2.0),
    "negative_and_zeros": lambda rng: of(rng, 0.0, -0.0, -1.5, -2.0),
    "ties": lambda rng: of(rng, 0.75, -0.75),
    "mostly_zero": lambda rng: gaussian(rng) * (rng.random(SHAPE) < 0.05),
    "outliers": lambda rng: np.where(rng.random(SHAPE) < 0.01, f32(3000), gaussian(rng)),
    "one_outlier": lambda rng: np.where(np.arange(512) == 77, f32(-30000), gaussian(rng)),
    "subnormal": lambda rng: rng.integers(1, 1 << 23, SHAPE, dtype=np.uint32).view(f32),
    "next_to_powers_of_two": next_to_powers_of_two,
}

for value in (0.0, -0.0, 1.0, -1.0, 1e-20, -1e-20, 1e4, -1e4, 65504.0, 1e-45, 2.0**-126, 2.0**-125, 1e-14):
    TILES[f"constant_{value!r}"] = lambda _, value=value: np.full((1, 256), value, f32)

IMPORTANCE = {
    "none": lambda _rng, _columns: None,
    "uneven": lambda rng, columns: rng.random(columns).astype(f32) ** 4 + f32(1e-3),
    "sparse": lambda rng, columns: (rng.random(columns) < 0.3).astype(f32),
    "zero": lambda _rng, columns: np.zeros(columns, f32),
}


def any_zero_group(values):
    """Whether 32 weights are 0, but not all of their block."""
    groups = (values.astype(f32).reshape(-1, 8, 32) == 0).all(axis=2)
    return bool((groups.any(axis=1) & ~groups.all(axis=1)).any())


CASES = [
    pytest.param(encoding, importance, id=f"{encoding.name}-{importance}")
    for encoding in ENCODINGS
    for importance in (("none", "uneven") if encoding in UNWEIGHTED else IMPORTANCE)
    if encoding not in {ir.IQ1_S, ir.IQ2_XXS, ir.IQ2_XS} or importance != "none"  # ggml asks for it
]


@pytest.mark.parametrize("name", TILES)
@pytest.mark.parametrize(("encoding", "importance"), CASES)
def test_bytes_are_equal(ggml_quantize, encoding, importance, name):
    rng = np.random.default_rng(7)
    values = TILES[name](rng)
    columns = IMPORTANCE[importance](rng, values.shape[1])
    if encoding in GRIDS:
        values = values[:6]
    if encoding == ir.IQ3_S and any_zero_group(values):
        values[values == 0] = 0.01  # see `lattice`: ggml writes such a block wrongly
    expected = ggml_quantize(values.astype(f32), encoding.name, columns)
    assert np.count_nonzero(pack(encode(values, encoding, columns)) != expected) == 0
