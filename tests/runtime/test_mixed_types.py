"""Models whose parts are stored in different types compute the same in ONNX Runtime and in OpenVINO."""

from __future__ import annotations

import numpy as np
import pytest

import phiconv
from mixed_types import mixed_types

pytestmark = pytest.mark.runtime

IDS = np.arange(5, 29).reshape(1, 24)


@pytest.fixture(scope="module", params=["phi3-gqa", "phimoe"])
def mixed(request, model_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("mixed")
    phiconv.convert(model_folder(request.param), folder / "f32.gguf", quant="f32")
    return mixed_types(folder / "f32.gguf", folder / "mixed.gguf")


def check(logits, source):
    expected = phiconv.logits(source, IDS).astype(np.float64)
    assert np.linalg.norm(logits - expected) < 1e-5 * np.linalg.norm(expected)


def test_onnx_runtime(mixed, tmp_path):
    ort = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    phiconv.convert(mixed, tmp_path / "m", to="onnx", quant="f32")
    session = ort.InferenceSession(tmp_path / "m" / "model.onnx", providers=["CPUExecutionProvider"])
    feeds = {"input_ids": IDS, "attention_mask": np.ones_like(IDS), "position_ids": np.arange(24)[None]}
    inputs = {i.name: i for i in session.get_inputs()}
    for name, value in inputs.items():
        if name.startswith("past"):
            feeds[name] = np.zeros((1, value.shape[1], 0, value.shape[3]), np.float32)
    check(session.run(["logits"], {name: feeds[name] for name in inputs})[0], mixed)


def test_openvino(mixed, tmp_path):
    openvino = pytest.importorskip("openvino", reason="OpenVINO is not installed", exc_type=ImportError)
    phiconv.convert(mixed, tmp_path / "m.xml", quant="f32")
    precise = {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32"}
    request = openvino.Core().compile_model(tmp_path / "m.xml", "CPU", precise).create_infer_request()
    request.infer(
        {
            "input_ids": IDS,
            "attention_mask": np.ones_like(IDS),
            "position_ids": np.arange(24)[None],
            "beam_idx": np.zeros(1, np.int32),
        }
    )
    check(request.get_tensor("logits").data, mixed)
