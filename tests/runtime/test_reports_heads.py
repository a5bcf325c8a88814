"""The runtimes use a head that was trained apart, though the source's config.json calls it tied.

The expected logits are NumPy's of the same weights under a true config.json, which the references of
transformers vouch for elsewhere.
"""

from __future__ import annotations

import json
import shutil

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


@pytest.fixture(scope="module", params=["phi3", "llama", "qwen2-untied", "phi"])
def source(request, model_folder, tmp_path_factory):
    """The folder of an untied model that says it were tied, and what its weights give."""
    true = model_folder(request.param)
    folder = tmp_path_factory.mktemp("heads") / request.param
    shutil.copytree(true, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
    return folder, phiconv.logits(true, IDS[None])[0]


def convert(source, tmp_path, target):
    out = tmp_path / ("m.gguf" if target == "gguf" else "m")
    phiconv.convert(source[0], out, to=target, quant="f32")
    return out


def check(logits, source, bound=1e-5):
    assert relative_l2(logits, source[1]) < bound


def test_llama_cpp(llama, source, tmp_path):
    bound = 1e-3 if source[0].name == "phi" else 1e-5  # its GELU is a table of 16-bit numbers
    check(llama_logits(llama, convert(source, tmp_path, "gguf"), IDS), source, bound)


def test_mlx_lm(mlx_lm, source, tmp_path):
    check(run_logits(mlx_lm, convert(source, tmp_path, "mlx"), IDS), source)


def test_onnx_runtime(ort, source, tmp_path):
    check(onnx_logits(ort, convert(source, tmp_path, "onnx"), IDS), source)


def test_openvino(openvino, source, tmp_path):
    document = convert(source, tmp_path, "openvino") / "openvino_model.xml"
    compiled = openvino.Core().compile_model(document, "CPU", STRICT)
    check(infer(compiled, IDS[None])[0], source)
