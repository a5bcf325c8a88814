"""Which blocks another runtime can have as they are, and that not one weight changes."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest

from phiconv import ir
from phiconv.errors import UsageError, WeightError
from phiconv.quantizers import decode, encode
from phiconv.quantizers.repack import repack, repackable

STORED = (ir.Q4_0, ir.Q4_1, ir.Q5_0, ir.Q5_1, ir.Q8_0, ir.Q4_K, ir.MXFP4, ir.F16)
TARGETS = [ir.onnx_affine(b, g, t) for b in (4, 8) for g in (32, 64) for t in (ir.F16, ir.BF16, ir.F32)]
OPENVINO = [ir.openvino_affine(b, 64, symmetric=s) for b in (4, 8) for s in (True, False)]
RUNTIMES = [
    *(ir.Q4_0, ir.Q4_1, ir.Q5_1, ir.Q8_0),
    *(ir.mlx_affine(b, g, t) for b in (4, 8) for g in (32, 128) for t in (ir.F16, ir.BF16, ir.F32)),
    *(ir.onnx_affine(b, 32, t, symmetric=s) for b in (4, 8) for t in (ir.F16, ir.F32) for s in (True, False)),
]

REPACKABLE = {
    ("q4_0", "onnx_int4_g32_f16"),
    ("q4_0", "onnx_int4_g32_f32"),
    ("q8_0", "onnx_int8_g32_f16"),
    ("q8_0", "onnx_int8_g32_f32"),
}
FROM_OPENVINO = {
    "openvino_int4_sym_g64": {
        *("q4_0", "q4_1", "mlx_4bit_g32_f16", "mlx_4bit_g32_f32", "onnx_int4_g32_f16", "onnx_int4_g32_f32"),
    },
    "openvino_int4_asym_g64": {"mlx_4bit_g32_f32", "onnx_int4_asym_g32_f16", "onnx_int4_asym_g32_f32"},
    "openvino_int8_sym_g64": {
        *("q8_0", "mlx_8bit_g32_f16", "mlx_8bit_g32_f32", "onnx_int8_g32_f16", "onnx_int8_g32_f32"),
    },
    "openvino_int8_asym_g64": {"mlx_8bit_g32_f32", "onnx_int8_asym_g32_f16", "onnx_int8_asym_g32_f32"},
}
"""The zero points of the asymmetric ones would be minima of float16 with more bits than it has."""


def test_which_are_repackable():
    found = {(a.name, b.name) for a, b in itertools.product(STORED, TARGETS) if repackable(a, b)}
    assert found == REPACKABLE
    for stored in OPENVINO:
        assert {e.name for e in RUNTIMES if repackable(stored, e)} == FROM_OPENVINO[stored.name]


def test_symmetric_blocks_are_not_those_with_zero_points():
    asymmetric = ir.onnx_affine(4, 32, ir.F16, symmetric=False)
    assert not repackable(ir.Q4_0, asymmetric)
    assert not repackable(asymmetric, ir.onnx_affine(4, 32, ir.F16))
    assert repackable(asymmetric, ir.onnx_affine(4, 32, ir.F16, symmetric=False, method="k_quant"))
    assert repackable(ir.onnx_affine(8, 32, ir.F16), ir.Q8_0)
    assert not repackable(ir.onnx_affine(8, 32, ir.F32), ir.Q8_0)
    assert not repackable(ir.onnx_affine(4, 32, ir.F32), ir.mlx_affine(4, 32, ir.F32))  # its sums are rounded
    assert not repackable(ir.Q4_1, ir.Q4_0)


PAIRS = sorted(REPACKABLE | {(a, b) for a, targets in FROM_OPENVINO.items() for b in targets})


@pytest.mark.parametrize(("stored", "target"), PAIRS)
def test_no_weight_changes(stored, target):
    encoding = next(e for e in (*STORED, *OPENVINO) if e.name == stored)
    wanted = next(e for e in (*TARGETS, *RUNTIMES) if e.name == target)
    values = np.random.default_rng(0).standard_normal((8, 128)).astype(np.float32)
    values *= 10.0 ** np.arange(-6, 2)[:, None]  # down to scales that are subnormal float16
    blocks = encode(values, encoding)
    before = blocks.codes.copy()
    packed = repack(blocks, wanted)
    assert packed.encoding == wanted
    assert packed.codes.dtype == (np.int8 if target == "q8_0" else np.uint8)
    assert packed.codes.flags.c_contiguous
    assert packed.scales.dtype == wanted.scale_type.dtype
    np.testing.assert_array_equal(decode(packed, 128), decode(blocks, 128))
    np.testing.assert_array_equal(blocks.codes, before)


def test_a_minimum_beyond_float16_is_refused():
    blocks = ir.Blocks(ir.Q4_0, np.zeros((8, 1, 4), np.uint8), np.array([8192], np.float16))
    with pytest.raises(WeightError, match="a minimum that f16 cannot hold"):
        repack(blocks, ir.Q4_1)
    packed = repack(blocks, ir.mlx_affine(4, 32, ir.F32))
    np.testing.assert_array_equal(decode(packed, 32), decode(blocks, 32))


@pytest.mark.parametrize("symmetric", [True, False])
def test_scales_of_bfloat16_become_float16_where_they_can(symmetric):
    stored = ir.onnx_affine(4, 64, ir.BF16, symmetric=symmetric)
    target = ir.onnx_affine(4, 32, ir.F16, symmetric=symmetric)
    assert repackable(stored, target)
    assert not repackable(stored, ir.mlx_affine(4, 32, ir.F16))  # its minima are not looked at
    assert not repackable(ir.onnx_affine(4, 64, ir.F32, symmetric=symmetric), target)
    values = np.random.default_rng(0).standard_normal((8, 128)).astype(np.float32)
    blocks = encode(values, stored)
    packed = repack(blocks, target)
    np.testing.assert_array_equal(decode(packed, 128), decode(blocks, 128))
    for wrong in (1e-9, 1e5, 1.0078125 * 2**-22):
        scales = blocks.scales.copy()
        scales[3] = wrong
        with pytest.raises(WeightError, match="is no number of float16"):
            repack(replace(blocks, scales=scales), target)
    scales[3] = np.nan  # for whoever counts these
    assert np.isnan(repack(replace(blocks, scales=scales), target).scales[6:8]).all()


def test_every_code_of_q8_0():
    codes = np.arange(-128, 128, dtype=np.int8).reshape(8, 8, 4)
    blocks = ir.Blocks(ir.Q8_0, codes, np.ones(8, np.float16))
    packed = repack(blocks, ir.onnx_affine(8, 32, ir.F16))
    np.testing.assert_array_equal(packed.codes, codes.astype(int) + 128)


def test_every_code_becomes_one_of_q8_0_again():
    stored = ir.onnx_affine(8, 32, ir.F16)
    codes = np.arange(256, dtype=np.uint8).reshape(8, 8, 4)
    blocks = repack(ir.Blocks(stored, codes, np.ones(8, np.float16)), ir.Q8_0)
    assert blocks.codes.dtype == np.int8
    np.testing.assert_array_equal(blocks.codes, codes.astype(int) - 128)


def test_others_are_refused():
    blocks = encode(np.zeros((1, 32), np.float32), ir.Q4_1)
    with pytest.raises(UsageError, match="blocks of q4_1 are no blocks of onnx_int4_g32_f16"):
        repack(blocks, ir.onnx_affine(4, 32, ir.F16))
