"""Every byte of quantized groups equals what the real MLX makes of the same weights on the CPU."""

from __future__ import annotations

import numpy as np
import pytest

from phiconv import ir
from phiconv.quantizers import decode, encode
from phiconv_formats.mlx.packing import pack

mx = pytest.importorskip("mlx.core", reason="mlx is not installed")

pytestmark = pytest.mark.runtime

f32 = np.float32
SHAPE = (16, 1024)
MODES = {ir.MLX_MXFP4: "mxfp4", ir.MLX_MXFP8: "mxfp8", ir.MLX_NVFP4: "nvfp4"}
ENCODINGS = [*ir.MLX_AFFINE, *MODES]

every_encoding = pytest.mark.parametrize("encoding", ENCODINGS, ids=lambda e: e.name)


def normal(rng):
    return rng.standard_normal(SHAPE)


TILES = {
    "normal": lambda rng: normal(rng) * 0.02,
    "uniform": lambda rng: rng.uniform(-1, 1, SHAPE),
    "heavy_tailed": lambda rng: rng.standard_t(2, SHAPE),
    "all_positive": lambda rng: np.abs(normal(rng)),
    "all_negative": lambda rng: -np.abs(normal(rng)),
    "tiny": lambda rng: normal(rng) * 1e-8,
    "zeros_of_both_signs": lambda rng: rng.choice([0.0, -0.0], SHAPE),
    "zeros_and_ones": lambda rng: rng.choice([0.0, -0.0, 1.0], SHAPE),
    "constants": lambda rng: np.repeat(rng.standard_normal((16, 8)), 128, axis=1),
    "integers": lambda rng: rng.integers(-40, 41, SHAPE),
    "halves": lambda rng: rng.integers(-64, 65, SHAPE) / 2,
    "powers_of_two": lambda rng: 2.0 ** rng.integers(-12, 12, SHAPE) * rng.choice([-1, 1], SHAPE),
    "outlier": lambda rng: np.where(rng.random(SHAPE) < 0.003, 3000.0, normal(rng) * 0.02),
    "large": lambda rng: normal(rng) * 1e4,
    "every_size": lambda rng: normal(rng) * np.repeat(10.0 ** rng.uniform(-9, 4, (16, 8)), 128, axis=1),
    "subnormal_float16": lambda rng: rng.integers(-40, 41, SHAPE) * 2.0**-24,
}


def quantize(values, encoding):
    """What MLX makes of weights: the bytes of codes, scales and, if there are any, biases."""
    array = mx.array(values.view(np.uint16) if values.dtype.itemsize == 2 else values)
    if values.dtype.itemsize == 2:
        array = array.view(mx.float16 if values.dtype == np.float16 else mx.bfloat16)
    mode = MODES.get(encoding, "affine")
    bits = encoding.bits if mode == "affine" else None
    parts = mx.quantize(array, encoding.block_size, bits, mode, stream=mx.cpu)
    return parts, [np.array(part.view(mx.uint8)).reshape(-1) for part in parts]


@pytest.mark.parametrize("name", TILES)
@every_encoding
def test_bytes_are_equal(encoding, name):
    values = TILES[name](np.random.default_rng(7)).astype(f32)
    for stored in (ir.F16, ir.BF16, ir.F32) if encoding in MODES else (encoding.scale_type,):
        weights = values.astype(stored.dtype)
        _, expected = quantize(weights, encoding)
        packed = pack(encode(weights, encoding))
        assert len(packed) == len(expected)
        assert [np.count_nonzero(a != b) for a, b in zip(packed, expected, strict=True)] == [0] * len(packed)


@every_encoding
def test_mlx_gives_the_same_weights_back(encoding):
    weights = normal(np.random.default_rng(0)).astype(f32)
    stored = encoding.scale_type.dtype if isinstance(encoding, ir.BlockEncoding) else weights.dtype
    parts, _ = quantize(weights.astype(stored), encoding)
    mode = MODES.get(encoding, "affine")
    if mode == "affine":
        parts = [part if i == 0 else part.astype(mx.float32) for i, part in enumerate(parts)]
    bits = encoding.bits if mode == "affine" else None
    options = {"group_size": encoding.block_size, "bits": bits, "mode": mode, "stream": mx.cpu}
    theirs = np.array(mx.dequantize(*parts, **options, dtype=mx.float32))
    ours = decode(encode(weights.astype(stored), encoding), SHAPE[1])
    np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("encoding", MODES, ids=lambda e: e.name)
@pytest.mark.parametrize("stored", [ir.F16, ir.BF16], ids=lambda t: t.name)
def test_every_largest_weight(encoding, stored):
    """Of a 16-bit type there are few enough; but not those where MLX computes nonsense."""
    largest = np.arange(1 << 15, dtype=np.uint16).view(stored.dtype).astype(f32)
    largest = largest[np.isfinite(largest) & ((largest > 1.4e-36) | (largest == 0)) & (largest < 1e10)]
    values = largest[:, None] * np.random.default_rng(0).uniform(-1, 1, (largest.size, 32)).astype(f32)
    values[:, 3::16] = largest[:, None]
    weights = values.astype(stored.dtype)
    _, expected = quantize(weights, encoding)
    for ours, theirs in zip(pack(encode(weights, encoding)), expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_scales_next_to_powers_of_two():
    for encoding, number in ((ir.MLX_MXFP4, 6), (ir.MLX_MXFP8, 448)):
        powers = (f32(number) * f32(2) ** np.arange(-60, 60, dtype=f32)).view(np.uint32)
        near = (powers[:, None] + np.arange(-20, 21)).astype(np.uint32).view(f32).reshape(-1, 1)
        values = near * np.linspace(-1, 1, 32, dtype=f32)
        _, expected = quantize(values, encoding)
        for ours, theirs in zip(pack(encode(values, encoding)), expected, strict=True):
            np.testing.assert_array_equal(ours, theirs)
