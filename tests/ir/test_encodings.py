"""Which encodings mean the same, and what they cost."""

from __future__ import annotations

import itertools

import pytest

from phiconv import ir
from phiconv.ir import codebooks, encodings, same_meaning

NAMED = [
    value
    for module in (encodings, codebooks)
    for value in vars(module).values()
    if isinstance(value, ir.FloatEncoding | ir.BlockEncoding | ir.SuperBlockEncoding | ir.CodebookEncoding)
]
ALL = [*{e.name: e for e in (*NAMED, *ir.MLX_AFFINE)}.values()]

SAME = [
    {"q4_1", "mlx_4bit_g32_f16"},
    {"q5_1", "mlx_5bit_g32_f16"},
    {"mxfp4", "mlx_mxfp4"},
    {"mxfp4", "openvino_mxfp4"},
    {"mlx_mxfp4", "openvino_mxfp4"},
    {"mlx_mxfp8", "openvino_mxfp8"},
    {"nvfp4", "mlx_nvfp4"},
]


def test_no_others_mean_the_same():
    found = [{a.name, b.name} for a, b in itertools.combinations(ALL, 2) if same_meaning(a, b)]
    assert sorted(map(sorted, found)) == sorted(map(sorted, SAME))


@pytest.mark.parametrize("encoding", ALL, ids=lambda e: e.name)
def test_everything_means_what_itself_means(encoding):
    assert same_meaning(encoding, encoding)


def test_raw_bytes_mean_what_their_name_says():
    assert not same_meaning(ir.RawEncoding("i32", 1, 4), ir.RawEncoding("u32", 1, 4))
    assert same_meaning(ir.RawEncoding("i32", 1, 4), ir.RawEncoding("i32", 1, 4))
    assert not same_meaning(ir.RawEncoding("f32", 1, 4), ir.F32)


@pytest.mark.parametrize(("stored", "bits", "group"), [(ir.Q4_0, 4, 32), (ir.Q8_0, 8, 32)])
def test_symmetric_integers_of_openvino_are_those_of_llama_cpp(stored, bits, group):
    assert same_meaning(stored, ir.openvino_affine(bits, group, symmetric=True))
    assert not same_meaning(stored, ir.openvino_affine(bits, group, symmetric=False))
    assert not same_meaning(stored, ir.openvino_affine(bits, 2 * group, symmetric=True))


def test_names_and_sizes():
    encoding = ir.openvino_affine(4, 128, symmetric=False)
    assert encoding.name == "openvino_int4_asym_g128"
    assert encoding.bits_per_weight == 4 + (16 + 4) / 128
    assert ir.openvino_nf4(64).bits_per_weight == 4.25
    assert len(ir.MLX_AFFINE) == len({e.name for e in ir.MLX_AFFINE}) == 6 * 3 * 3
    encoding = ir.mlx_affine(4, 64, ir.BF16)
    assert encoding.name == "mlx_4bit_g64_bf16"
    assert encoding in ir.MLX_AFFINE
    assert encoding.bits_per_weight == 4.5
    assert ir.mlx_affine(4, 64, ir.F32).bits_per_weight == 5
    assert ir.Q8_0.bits_per_weight == 8.5
    assert ir.MLX_MXFP8.bits_per_weight == 8.25


def test_onnx_encodings_differ_in_the_method_and_the_name_alone():
    every = [e for encodings in ir.ONNX_AFFINE.values() for e in encodings]
    assert len({e.name for e in every}) == len(every) == 60 + 60 + 20 + 6 + 40 + 20
    meanings = ir.ONNX_AFFINE["default"]
    assert all(any(same_meaning(e, known) for known in meanings) for e in every)
    assert not any(same_meaning(a, b) for a, b in itertools.combinations(meanings, 2))


def test_names_and_sizes_of_onnx():
    symmetric = ir.onnx_affine(4, 32, ir.F16)
    assert (symmetric.name, symmetric.offset, symmetric.bits_per_weight) == ("onnx_int4_g32_f16", 8, 4.5)
    asymmetric = ir.onnx_affine(8, 64, ir.F32, symmetric=False, method="k_quant")
    assert (asymmetric.name, asymmetric.offset) == ("onnx_int8_k_quant_asym_g64_f32", 0)
    assert asymmetric.bits_per_weight == 8 + (32 + 8) / 64
    assert same_meaning(ir.Q4_0, symmetric)
    for other in (ir.onnx_affine(4, 32, ir.F32), ir.onnx_affine(4, 32, ir.F16, symmetric=False)):
        assert not same_meaning(ir.Q4_0, other)
