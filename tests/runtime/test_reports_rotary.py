"""Models whose config.json has rotary keys in two styles compute the same in the real runtimes.

The expected logits are NumPy's of the source; what its keys mean is compared with transformers in
tests/reports/test_rotary_keys.py.
"""

from __future__ import annotations

import json

import numpy as np
import pytest

import phiconv
from llama_runtime import llama_logits
from mlx_runtime import run_logits
from onnx_runtime import onnx_logits
from openvino_runtime import STRICT, infer
from references import relative_l2

pytestmark = pytest.mark.runtime

IDS = np.arange(5, 29)
LINEAR = {"rope_type": "linear", "factor": 2.0, "rope_theta": 5e4}
DEFAULT = {"rope_type": "default", "rope_theta": 7e4}
FACTORS = {"short_factor": [1 + i / 8 for i in range(8)], "long_factor": [1 + i / 8 for i in range(8)]}
SOURCES = {
    "llama-both": {"rope_parameters": LINEAR, "rope_scaling": {"type": "linear", "factor": 2.0}},
    "llama-empty": {"rope_parameters": {}, "rope_scaling": {"type": "linear", "factor": 2.0}},
    "qwen2-thetas": {"rope_parameters": DEFAULT},
    "phi3-inside": {"rope_scaling": {"type": "longrope", **FACTORS, "rope_theta": 3e4}},
    "phimoe-new": {"rope_parameters": {"rope_type": "default"}},
}


@pytest.fixture(scope="module", params=SOURCES)
def source(request, make_model, tmp_path_factory):
    """A folder and what its weights give; the keys at the top stand beside those of the case."""
    kind = request.param.partition("-")[0]
    folder = make_model(tmp_path_factory.mktemp("rotary") / kind, kind, seed=3)
    config = json.loads((folder / "config.json").read_text())
    config |= {"rope_theta": 5e4, "rope_scaling": None} | SOURCES[request.param]
    (folder / "config.json").write_text(json.dumps(config))
    return folder, phiconv.logits(folder, IDS[None])[0]


def convert(source, tmp_path, target):
    out = tmp_path / ("m.gguf" if target == "gguf" else "m")
    phiconv.convert(source[0], out, to=target, quant="f32")
    return out


def check(logits, source):
    assert relative_l2(logits, source[1]) < 1e-5


def test_llama_cpp(llama, source, tmp_path):
    if source[0].name == "phimoe":
        pytest.skip("it computes a phimoe otherwise")
    check(llama_logits(llama, convert(source, tmp_path, "gguf"), IDS), source)


def test_mlx_lm(mlx_lm, source, tmp_path):
    check(run_logits(mlx_lm, convert(source, tmp_path, "mlx"), IDS), source)


def test_onnx_runtime(ort, source, tmp_path):
    check(onnx_logits(ort, convert(source, tmp_path, "onnx"), IDS), source)


def test_openvino(openvino, source, tmp_path):
    document = convert(source, tmp_path, "openvino") / "openvino_model.xml"
    compiled = openvino.Core().compile_model(document, "CPU", STRICT)
    check(infer(compiled, IDS[None])[0], source)
