"""A real model of Llama's shape, trained and quantized by others, goes to every target and answers sensibly.

Reference: fixtures/references/smollm2.npz, which transformers computed from the same file.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

import phiconv
from llama_runtime import llama_logits
from mlx_runtime import run_logits
from onnx_runtime import onnx_logits
from openvino_runtime import STRICT, infer
from paths import ROOT
from phiconv.tokenization.encoder import decode, encode
from references import open_reference, relative_l2

pytestmark = pytest.mark.runtime

PROMPT = "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
QUANTS = {"onnx": "int8", "openvino": "int8-asym", "mlx": "8bit", "gguf": "Q4_K_M"}


@pytest.fixture(scope="module")
def smollm2():
    """The file, fetched on the first run."""
    script = ROOT / "fixtures" / "fetch_smollm2.py"
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False)
    if done.returncode == 3:
        pytest.skip(f"no SmolLM2: run fixtures/fetch_smollm2.py ({done.stderr.strip()})")
    assert done.returncode == 0, done.stderr
    return Path(done.stdout.strip())


def check(logits):
    kept = open_reference("references/smollm2.npz")
    assert relative_l2(logits[kept["positions"]], kept["logits"]) < 1e-5
    assert (logits.argmax(axis=-1) == kept["argmax"]).all()


@pytest.fixture
def scratch():
    """A folder that does not stay: half a gigabyte each time."""
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


@pytest.fixture
def ids():
    return open_reference("references/smollm2.npz")["input_ids"]


def test_numpy(smollm2, ids):
    check(phiconv.logits(smollm2, ids[None])[0])


def test_onnx_runtime(ort, smollm2, scratch, ids):
    phiconv.convert(smollm2, scratch / "m", to="onnx", quant="f32")
    check(onnx_logits(ort, scratch / "m", ids))


def test_openvino(openvino, smollm2, scratch, ids):
    phiconv.convert(smollm2, scratch / "m.xml", quant="f32")
    compiled = openvino.Core().compile_model(scratch / "m.xml", "CPU", STRICT)
    check(infer(compiled, ids[None])[0])


def test_mlx_lm(mlx_lm, smollm2, scratch, ids):
    phiconv.convert(smollm2, scratch / "m", to="mlx", quant="f32")
    check(run_logits(mlx_lm, scratch / "m", ids))


def test_llama_cpp(llama, smollm2, scratch, ids):
    phiconv.convert(smollm2, scratch / "m.gguf", quant="F32")
    check(llama_logits(llama, scratch / "m.gguf", ids))


@pytest.mark.parametrize("target", QUANTS)
def test_quantized_models_answer(smollm2, scratch, target):
    path = scratch / ("m.gguf" if target == "gguf" else "m")
    choices = phiconv.Choices(allow_requantize=True)
    phiconv.convert(smollm2, path, to=target, quant=QUANTS[target], choices=choices)
    model = phiconv.open_model(path)
    tokens = list(phiconv.generate(model, encode(model.tokenizer, PROMPT), 8))
    assert "Paris" in decode(model.tokenizer, tokens)
