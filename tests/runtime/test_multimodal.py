"""The text part of models that see or hear answers as it does in the model, in every runtime."""

from __future__ import annotations

import pytest

import phiconv
from llama_runtime import llama_logits
from mlx_runtime import run_logits
from onnx_runtime import onnx_logits
from openvino_runtime import STRICT, infer
from references import open_reference, relative_l2

pytestmark = pytest.mark.runtime

TEXTS = {"phi3v": "phi3-su", "phi4mm": "phi4mini", "phi4-multimodal": "phi4mini", "phi4-siglip": "phi4"}


@pytest.fixture(params=TEXTS)
def written(request, make_multimodal, tmp_path):
    """Writes a model for a target in float32; the path, a prompt, and how far logits of that are off."""
    kept = open_reference(f"references/{TEXTS[request.param]}.npz")

    def write(target):
        output = tmp_path / ("out.gguf" if target == "gguf" else "out")
        source = make_multimodal(tmp_path / "m", request.param, seed=7)
        # mlx-lm does not switch LongRoPE's factors.
        short = target == "mlx" and request.param != "phi4-siglip"
        choices = phiconv.Choices(short_context=short, text_only=True)
        phiconv.convert(source, output, to=target, quant="f32", choices=choices)
        return output, kept["input_ids"], lambda x: relative_l2(x[kept["positions"]], kept["logits"])

    return write


def test_onnx_runtime(ort, written):
    path, ids, distance = written("onnx")
    assert distance(onnx_logits(ort, path, ids)) < 1e-5


def test_openvino(openvino, written):
    path, ids, distance = written("openvino")
    compiled = openvino.Core().compile_model(path / "openvino_model.xml", "CPU", STRICT)
    assert distance(infer(compiled, ids[None])[0]) < 1e-5


def test_mlx_lm(mlx_lm, written):
    path, ids, distance = written("mlx")
    assert distance(run_logits(mlx_lm, path, ids)) < 1e-5


def test_llama_cpp(llama, written):
    path, ids, distance = written("gguf")
    assert distance(llama_logits(llama, path, ids)) < 1e-5
