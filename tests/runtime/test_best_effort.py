"""``--effort best`` in the real runtimes: at the same size they predict more as the unquantized model does.

The calibration texts come with phiconv; the test text is of other documents.
"""

from __future__ import annotations

import numpy as np
import pytest

import phiconv
from llama_runtime import llama_logits
from mlx_runtime import run_logits
from onnx_runtime import onnx_logits
from openvino_runtime import infer
from paths import FIXTURES
from phiconv.tokenization.encoder import encode

pytestmark = pytest.mark.runtime

# The most that the divergence may be of the one that the runtime's own codes give.
CASES = [
    ("tiny-phi3", "gguf", "Q4_0", 0.4),
    ("tiny-phi3", "onnx", "int4", 0.4),
    ("tiny-phi3", "openvino", "int4-sym", 0.4),
    ("tiny-phi4mini", "gguf", "Q4_K_M", 0.45),
    ("tiny-phi4mini", "onnx", "int4-asym", 0.4),
    ("tiny-phi4mini", "openvino", "int4-asym", 0.4),
    ("tiny-phi4mini", "mlx", "4bit", 0.45),
]
LENGTH = 384


@pytest.fixture(scope="module")
def source(request, tmp_path_factory):
    """The folder, its calibration, tokens of a text, and its predictions of them."""
    folder = FIXTURES / request.param
    calibration = phiconv.calibrate(folder, None, tmp_path_factory.mktemp("c") / "calibration")
    text = (FIXTURES / "test.txt").read_text(encoding="utf-8")
    ids = np.array(encode(phiconv.open_model(folder).tokenizer, text[20_000:23_000])[:LENGTH])
    return folder, calibration, ids, phiconv.logits(folder, ids[None])[0].astype(np.float64)


@pytest.fixture
def run(llama, mlx_lm, ort, openvino):
    """The logits that a target's runtime gives."""

    def logits(target, out, ids):
        if target == "gguf":
            return llama_logits(llama, out, ids)
        if target == "mlx":
            return run_logits(mlx_lm, out, ids)
        if target == "onnx":
            return onnx_logits(ort, out, ids)
        return infer(openvino.Core().compile_model(out / "openvino_model.xml", "CPU"), ids[None])[0]

    return logits


def divergence(logits, expected):
    p, q = (x - np.log(np.exp(x - x.max(-1, keepdims=True)).sum(-1, keepdims=True)) for x in (
        expected - expected.max(-1, keepdims=True), logits.astype(np.float64) - logits.max(-1, keepdims=True)
    ))  # fmt: skip
    return float((np.exp(p) * (p - q)).sum(-1).mean())


@pytest.mark.parametrize(("source", "target", "quant", "bound"), CASES, indirect=["source"])
def test_a_runtime_predicts_better(source, run, tmp_path, target, quant, bound):
    folder, calibration, ids, expected = source
    found, sizes = [], []
    # mlx-lm does not switch LongRoPE's factors, which would be most of the divergence.
    short = target == "mlx" and folder.name == "tiny-phi4mini"
    for effort in ("exact", "best"):
        out = tmp_path / (f"{effort}.gguf" if target == "gguf" else effort)
        choices = phiconv.Choices(effort=effort, short_context=short)
        measured = calibration if effort == "best" else None
        result = phiconv.convert(folder, out, to=target, quant=quant, choices=choices, calibration=measured)
        sizes.append(result.size)
        found.append(divergence(run(target, out, ids), expected))
    assert sizes[0] == sizes[1]
    assert found[1] < bound * found[0]
