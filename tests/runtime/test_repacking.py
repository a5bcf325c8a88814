"""Blocks that go from one runtime's file to another's and back: the same bytes, and both compute the same."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

import phiconv
from builder_folder import rewrite
from llama_runtime import llama_logits
from mlx_runtime import run_logits
from onnx_runtime import onnx_logits
from paths import FIXTURES
from phiconv import ir
from references import relative_l2

pytestmark = [
    pytest.mark.runtime,
    # transformers' own, as it loads a tokenizer
    pytest.mark.filterwarnings("ignore:.*:DeprecationWarning", "ignore:.*:FutureWarning"),
]

TRAINED = ["tiny-phi3", "tiny-phi4mini"]


def check_blocks(first, second):
    """All tensors of two files are stored alike, number for number."""
    a, b = (phiconv.open_model(path).stored for path in (first, second))
    assert a.keys() == b.keys()
    for name, tensor in a.items():
        assert b[name].encoding == tensor.encoding
        x, y = (t.read(0, t.rows) for t in (tensor, b[name]))
        for field in ("codes", "scales", "minima") if isinstance(x, ir.Blocks) else ():
            np.testing.assert_array_equal(getattr(y, field), getattr(x, field), f"{name}: {field}")
        if not isinstance(x, ir.Blocks):
            assert x.tobytes() == y.tobytes(), name


def there_and_back(tmp_path, source, quant, target):
    """A GGUF, the folder made of it, and a GGUF made of that: not one tensor is quantized again."""
    pure = phiconv.Choices(pure=True)
    level = phiconv.Choices(accuracy_level=0) if target[0] == "onnx" else None
    first, folder, last = (tmp_path / name for name in ("a.gguf", "m", "b.gguf"))
    phiconv.convert(source, first, quant=quant, choices=pure)
    for made in (
        phiconv.convert(first, folder, to=target[0], quant=target[1], repack_only=True, choices=level),
        phiconv.convert(folder, last, quant=quant, repack_only=True),
    ):
        assert {t.action for t in made.plan.tensors} <= {"copied", "repacked", "widened"}
    check_blocks(first, last)
    return first, folder, last


@pytest.mark.parametrize(("quant", "recipe"), [("Q4_0", "int4"), ("Q8_0", "int8")])
@pytest.mark.parametrize("name", TRAINED)
def test_gguf_to_onnx_and_back(ort, llama, tmp_path, name, quant, recipe):
    first, folder, last = there_and_back(tmp_path, FIXTURES / name, quant, ("onnx", recipe))
    ids = np.arange(3, 40)
    logits = onnx_logits(ort, folder, ids)
    assert relative_l2(phiconv.logits(folder, ids[None])[0], logits) < 2e-6
    before = llama_logits(llama, first, ids)
    np.testing.assert_array_equal(llama_logits(llama, last, ids), before)
    # llama.cpp rounds activations to 8 bits before it multiplies.
    assert relative_l2(before, logits) < 3e-2


@pytest.mark.parametrize("name", TRAINED)
def test_gguf_to_mlx_and_back(llama, mlx_lm, tmp_path, name):
    first, folder, last = there_and_back(tmp_path, FIXTURES / name, "Q4_1", ("mlx", "4bit-g32"))
    ids = np.arange(3, 40)
    logits = run_logits(mlx_lm, folder, ids)
    if name == "tiny-phi3":  # mlx-lm takes other rotary factors for the other one
        assert relative_l2(logits, phiconv.logits(first, ids[None])[0]) < 2e-6
    before = llama_logits(llama, first, ids)
    np.testing.assert_array_equal(llama_logits(llama, last, ids), before)
    assert relative_l2(before, logits) < 3e-2


def test_a_folder_for_servers_to_gguf_and_back(llama, tmp_path):
    """llama.cpp reads over the key of scales that were bfloat16."""
    first, file, last = (tmp_path / name for name in ("a", "a.gguf", "b"))
    choices = phiconv.Choices(dtype="bf16")
    phiconv.convert(
        FIXTURES / "tiny-phi3", first, to="compressed-tensors", quant="w4a16-g32", choices=choices
    )
    made = phiconv.convert(first, file, repack_only=True)
    assert made.plan.recipe == "Q4_0"
    phiconv.convert(file, last, to="compressed-tensors", quant="w4a16-g32", choices=choices)
    check_blocks(first, last)
    ids = np.arange(3, 40)
    assert relative_l2(llama_logits(llama, file, ids), phiconv.logits(first, ids[None])[0]) < 3e-2


@pytest.mark.parametrize(
    ("kind", "recipe", "form"),
    [
        ("phi2", "int4-asym", {"rtn_names": True}),
        ("phi2", "f32", {}),
        ("phi3", "int4", {"qdq": True}),
        ("phi3", "int4-asym", {"qdq": True}),
        ("phi4", "int8", {}),
    ],
)
def test_builder_folder(ort, model_folder, tmp_path, kind, recipe, form):
    choices = phiconv.Choices(accuracy_level=0)
    phiconv.convert(model_folder(kind), tmp_path / "a", to="onnx", quant=recipe, choices=choices)
    rewrite(tmp_path / "a", tmp_path / "b", **form)
    ids = np.arange(3, 40)
    logits = onnx_logits(ort, tmp_path / "a", ids)
    assert relative_l2(phiconv.logits(tmp_path / "b", ids[None])[0], logits) < 2e-6
    # ONNX Runtime multiplies behind DequantizeLinear at level 4.
    assert relative_l2(onnx_logits(ort, tmp_path / "b", ids), logits) < (0.1 if form.get("qdq") else 1e-6)


@pytest.mark.parametrize("target", ["cuda", "dml", "webgpu"])
def test_float16_folders(ort, model_folder, tmp_path, target):
    choices = phiconv.Choices(accuracy_level=0, target=target)
    phiconv.convert(model_folder("phi3"), tmp_path / "m", to="onnx", quant="int4-asym", choices=choices)
    ids = np.arange(3, 40)
    logits = onnx_logits(ort, tmp_path / "m", ids)
    assert relative_l2(phiconv.logits(tmp_path / "m", ids[None])[0], logits) < 5e-3


def test_scales_are_marked_for_no_runtime(tmp_path):
    """The mark of float16 scales is a note that ONNX's checker takes."""
    phiconv.convert(
        FIXTURES / "tiny-phi3", tmp_path / "a.gguf", quant="Q4_0", choices=phiconv.Choices(pure=True)
    )
    phiconv.convert(tmp_path / "a.gguf", tmp_path / "m", to="onnx", quant="int4")
    onnx.checker.check_model(str(tmp_path / "m/model.onnx"))
