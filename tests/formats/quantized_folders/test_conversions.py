"""What becomes of quantized folders: blocks move as they are, the rest is decoded exactly."""

from __future__ import annotations

import re

import ml_dtypes
import numpy as np
import pytest

import phiconv
from phiconv import ir
from phiconv.errors import UnsupportedModelError, WeightError
from quantized_folder import FOLDERS, array, arrays_of

DTYPE = phiconv.Choices(dtype="f32")

REPACKED = {
    ("gptq-4-sym-g32", "gguf"): "q4_0",
    ("gptq-4-sym-channel", "gguf"): "q4_0",
    ("gptq-8-sym-g128", "gguf"): "q8_0",
    ("modelopt-mxfp4", "gguf"): "mxfp4",
    ("torchao-int4", "gguf"): "q4_0",
    ("gptq-4-sym-g32", "onnx"): "onnx_int4_g32_f32",
    ("gptq-4-asym-g32", "onnx"): "onnx_int4_asym_g32_f32",
    ("gptq-4-asym-g32-v2", "onnx"): "onnx_int4_asym_g32_f32",
    ("gptq-8-sym-g128", "onnx"): "onnx_int8_g128_f32",
    ("gptq-8-asym-g64", "onnx"): "onnx_int8_asym_g64_f32",
    ("gptq-4-sym-channel", "onnx"): "onnx_int4_g128_f32",
    ("awq-g32", "onnx"): "onnx_int4_asym_g32_f32",
    ("awq-g128", "onnx"): "onnx_int4_asym_g128_f32",
    ("modelopt-int4", "onnx"): "onnx_int4_g128_f32",
    ("torchao-int8-g32", "onnx"): "onnx_int8_g32_f32",
    ("torchao-int4", "onnx"): "onnx_int4_g32_f32",
    ("torchao-int4-asym", "onnx"): "onnx_int4_asym_g32_f32",
    ("gptq-4-sym-g32", "openvino"): "openvino_int4_sym_g32",
    ("gptq-4-asym-g32", "openvino"): "openvino_int4_asym_g32",
    ("gptq-4-sym-channel", "openvino"): "openvino_int4_sym_g128",
    ("awq-g32", "openvino"): "openvino_int4_asym_g32",
    ("awq-g128", "openvino"): "openvino_int4_asym_g128",
    ("torchao-int4", "openvino"): "openvino_int4_sym_g32",
    ("modelopt-mxfp4", "openvino"): "openvino_mxfp4",
    ("modelopt-mxfp8", "openvino"): "openvino_mxfp8",
    ("modelopt-mxfp4", "mlx"): "mlx_mxfp4",
    ("modelopt-mxfp8", "mlx"): "mlx_mxfp8",
    ("gptq-4-sym-g32", "mlx"): "mlx_4bit_g32_f32",
    ("gptq-4-asym-g32", "mlx"): "mlx_4bit_g32_f32",
    ("gptq-8-asym-g64", "mlx"): "mlx_8bit_g64_f32",
    ("gptq-2-asym-g64", "mlx"): "mlx_2bit_g64_f32",
    ("gptq-3-sym-g64", "mlx"): "mlx_3bit_g64_f32",
    ("awq-g128", "mlx"): "mlx_4bit_g128_f32",
}
"""What the matrices of a folder become where nobody asks for a recipe; MLX with floats of float32."""


def matrices(plan):
    return [t for t in plan.tensors if not isinstance(t.stored, ir.FloatEncoding)]


@pytest.mark.parametrize(("name", "target"), REPACKED)
def test_blocks_move_as_they_are(name, target, folder, tmp_path):
    source = folder(name)
    choices = DTYPE if target == "mlx" else None
    made = phiconv.convert(source, tmp_path / "out", to=target, choices=choices)
    found = matrices(made.plan)
    assert {(t.encoding.name, t.action) for t in found} == {(REPACKED[name, target], "repacked")}
    compared = phiconv.compare(source, made.plan.files[0] if target == "gguf" else tmp_path / "out")
    assert compared.total.weights > 0
    quantized = [t.difference for t in compared.tensors if t.bits_a < 16]
    assert quantized
    assert all(d.max_error == 0 and not d.nonfinite for d in quantized)


@pytest.mark.parametrize("name", FOLDERS)
def test_every_folder_becomes_floats_exactly(name, folder, tmp_path):
    source = folder(name)
    made = phiconv.convert(source, tmp_path / "x.gguf", quant="f32")
    assert {t.action for t in matrices(made.plan)} == {"dequantized"}
    assert phiconv.compare(source, tmp_path / "x.gguf").total.max_error == 0


@pytest.mark.parametrize("name", FOLDERS)
def test_every_folder_computes_what_its_floats_compute(name, folder, tmp_path):
    source, ids = folder(name), np.arange(3, 20)[None]
    phiconv.convert(source, tmp_path / "f32", to="safetensors", quant="f32")
    np.testing.assert_array_equal(phiconv.logits(source, ids), phiconv.logits(tmp_path / "f32", ids))


@pytest.mark.parametrize("name", ["gptq-4-order", "bnb-int8", "bnb-nf4", "modelopt-w4a16-awq", "fp8-96"])
def test_quantizing_again_takes_leave(name, folder, tmp_path):
    source = folder(name)
    with pytest.raises(UnsupportedModelError, match="allow-requantize"):
        phiconv.plan(source, tmp_path / "x.gguf", quant="q4_0")
    allowed = phiconv.Choices(allow_requantize=True)
    made = phiconv.convert(source, tmp_path / "x.gguf", quant="q4_0", choices=allowed)
    assert "requantized" in {t.action for t in made.plan.tensors}


def test_gguf_is_the_same_for_any_number_of_threads(folder, tmp_path):
    source = folder("awq-g32")
    for jobs in (1, 3):
        phiconv.convert(source, tmp_path / f"{jobs}.gguf", quant="f16", jobs=jobs)
    assert (tmp_path / "1.gguf").read_bytes() == (tmp_path / "3.gguf").read_bytes()


def test_a_scale_that_float16_cannot_hold_is_named(folder, tmp_path):
    base = "model.layers.0.mlp.down_proj"
    scales = arrays_of("gptq-4-sym-g32")
    wide = {n: array("BF16", a.values.astype(ml_dtypes.bfloat16)) for n, a in scales.items() if "scales" in n}
    made = phiconv.convert(folder("gptq-4-sym-g32", arrays=wide), tmp_path / "x.gguf", receipt=False)
    assert {t.action for t in matrices(made.plan)} == {"repacked"}
    (tmp_path / "x.gguf").unlink()
    tiny = wide[f"{base}.scales"].values.copy()
    tiny[2, 5] = 1e-20
    source = folder("gptq-4-sym-g32", arrays=wide | {f"{base}.scales": array("BF16", tiny)})
    with pytest.raises(WeightError, match=r"blk\.0\.ffn_down.*is no number of float16"):
        phiconv.convert(source, tmp_path / "x.gguf")
    assert not list(tmp_path.glob("x.gguf*"))
    as_float = phiconv.Choices(tensor_types=((re.compile("ffn_down"), "F16"),))
    assert phiconv.convert(source, tmp_path / "x.gguf", quant="q4_0", choices=as_float)
