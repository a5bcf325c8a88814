"""Weights and scales that are no numbers any more are counted, whatever type they have."""

from __future__ import annotations

import numpy as np
import pytest

from phiconv import ir
from phiconv.conversion import checks
from phiconv.ir.server import CT_MXFP4, CT_MXFP8, CT_NVFP4
from phiconv.quantizers import decode, encode
from phiconv_formats.shared.small_scales import powers

f32 = np.float32


@pytest.mark.parametrize(
    ("stored", "largest", "overflows"),
    [(ir.F16, 6.5e4, 0), (ir.F16, 7e4, 2), (ir.BF16, 3.3e38, 0), (ir.BF16, 3.4e38, 2), (ir.F32, 3.4e38, 0)],
)
def test_scales_and_minima_beyond_their_type(stored, largest, overflows):
    x = np.random.default_rng(0).standard_normal((3, 64)).astype(f32)
    x[0] = -np.abs(x[0])
    x[0, 5], x[2, 9] = -largest, largest
    encoding = ir.mlx_affine(4, 64, stored)
    blocks = encode(x, encoding)
    assert checks.may_overflow(ir.F32, encoding)
    assert checks.count_nonfinite(blocks) == overflows
    assert np.isfinite(blocks.scales.astype(f32)).all()


def test_a_scale_beyond_float16():
    x = np.zeros((1, 32), f32)
    x[0, :2] = 9e5, -8e5
    assert checks.count_nonfinite(encode(x, ir.mlx_affine(2, 32, ir.F16))) == 2
    assert checks.count_nonfinite(encode(x, ir.mlx_affine(2, 32, ir.BF16))) == 0


def test_a_saturated_scale_is_a_number():
    x = np.full((2, 32), f32(3.4e38))
    assert checks.may_overflow(ir.F32, ir.MLX_NVFP4)
    assert checks.count_nonfinite(encode(x, ir.MLX_NVFP4)) == 0


MICROSCALING = [ir.MLX_MXFP4, ir.MLX_MXFP8, ir.OPENVINO_MXFP4, ir.OPENVINO_MXFP8, CT_MXFP4, CT_MXFP8]


@pytest.mark.parametrize("encoding", MICROSCALING, ids=lambda e: e.name)
@pytest.mark.parametrize(("largest", "overflows"), [(2.5e38, 0), (3.39e38, 1)])
def test_a_scale_whose_weights_are_no_numbers(encoding, largest, overflows):
    """The nearest number of these blocks is 2**128: finite weights would become infinite."""
    x = np.ones((3, 32), f32)
    x[1, 7] = -largest
    blocks = encode(x, encoding)
    assert np.isfinite(blocks.scales).all()
    assert checks.count_nonfinite(blocks) == overflows
    assert np.isinf(decode(blocks, 32)).sum() == overflows


@pytest.mark.parametrize(("byte", "bad"), [(0xFB, 0), (0xFC, 0), (0xFD, 1), (0xFE, 1)])
def test_stored_scales_whose_weights_are_no_numbers(byte, bad):
    codes = np.full((8, 2, 4), 1, np.uint8)
    codes[3, 1, 2] = 7
    blocks = ir.Blocks(ir.MXFP4, codes, powers(np.array([127, byte], np.uint8), doubled=True))
    assert checks.count_nonfinite(blocks) == bad


def test_a_quotient_of_scales_is_looked_at():
    blocks = ir.Blocks(CT_NVFP4, np.ones((4, 2, 4), np.uint8), np.ones(2, f32), global_scales=f32([1, 1e-44]))
    assert checks.count_nonfinite(blocks) == 1


@pytest.mark.parametrize(
    ("encoding", "bits"),
    [(ir.F64, 0x7FF0000000000001), (ir.F32, 0x7F800001), (ir.F16, 0x7C01), (ir.BF16, 0x7F81)],
    ids=lambda e: getattr(e, "name", ""),
)
def test_a_signalling_nan_is_found_without_a_warning(encoding, bits):
    x = np.zeros((3, 8), f"<u{encoding.dtype.itemsize}")
    x[1, 5] = bits
    values = x.view(encoding.dtype)
    assert checks.count_nonfinite(values) == 1
    assert checks.first_nonfinite(values) == (1, 5)
