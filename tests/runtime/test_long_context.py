"""With ``--long-context`` runtimes have LongRoPE's long factors at every length, as NumPy computes them."""

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

CHOICES = phiconv.Choices(long_context=True)


@pytest.fixture(params=["phi4mini", "phimoe"])
def source(request, tmp_path, make_model):
    """A model whose factors differ, and so do those of cos and sin if it has such."""
    folder = make_model(tmp_path / "s", request.param, seed=7)
    config = json.loads((folder / "config.json").read_text())
    if request.param == "phimoe":
        config["rope_scaling"]["short_mscale"] = 1.1
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture
def expected(tmp_path, source):
    """Logits with the long factors: of the model whose short ones are the same."""
    folder = shutil.copytree(source, tmp_path / "long")
    config = json.loads((folder / "config.json").read_text())
    scaling = config["rope_scaling"]
    config["rope_scaling"] |= {
        name.replace("long", "short"): scaling[name] for name in scaling if "long_" in name
    }
    (folder / "config.json").write_text(json.dumps(config))
    return lambda ids: phiconv.logits(folder, ids[None])[0]


def ids_of(source, length):
    """Ids of a text; a short one has other logits with the short factors."""
    model = phiconv.open_model(source)
    assert model.hyperparameters.rope.original_context == 512
    return np.random.default_rng(3).integers(0, model.hyperparameters.vocab_size, length)


def test_numpy_would_see_the_difference(source, expected):
    ids = ids_of(source, 40)
    assert relative_l2(phiconv.logits(source, ids[None])[0], expected(ids)) > 0.01


def test_openvino(openvino, tmp_path, source, expected):
    """A long text in chunks, too, which without the option has the short factors in the first ones."""
    for choices, right in ((CHOICES, True), (phiconv.Choices(), False)):
        phiconv.convert(source, tmp_path / f"{right}.xml", quant="f32", choices=choices)
        compiled = openvino.Core().compile_model(tmp_path / f"{right}.xml", "CPU", STRICT)
        for length, chunks in ((40, None), (560, [200, 200, 160])):
            ids = ids_of(source, length)
            error = relative_l2(infer(compiled, ids[None], chunks)[0], expected(ids))
            assert (error < 5e-5) is right


def test_onnx(ort, tmp_path, source, expected):
    ids = ids_of(source, 40)
    phiconv.convert(source, tmp_path / "m", to="onnx", quant="f32", choices=CHOICES)
    assert relative_l2(onnx_logits(ort, tmp_path / "m", ids), expected(ids)) < 5e-5


def test_mlx(mlx_lm, tmp_path, source, expected):
    """It has them at every length anyway."""
    ids = ids_of(source, 40)
    for choices in (CHOICES, phiconv.Choices()):
        folder = tmp_path / f"{choices.long_context}"
        result = phiconv.convert(source, folder, to="mlx", quant="f32", choices=choices)
        assert relative_l2(run_logits(mlx_lm, folder, ids), expected(ids)) < 5e-5
        assert any("rotary factors" in note for note in result.plan.package.notes) is not choices.long_context


@pytest.mark.parametrize("source", ["phi4mini"], indirect=True)  # it mixes experts in a way of its own
def test_llama_cpp(llama, tmp_path, source, expected):
    """It goes by the room that it is given, not by the text: in 512 positions it has the short ones."""
    ids = ids_of(source, 40)
    for choices, right in ((CHOICES, True), (phiconv.Choices(), False)):
        path = tmp_path / f"{right}.gguf"
        phiconv.convert(source, path, quant="f32", choices=choices)
        assert (relative_l2(llama_logits(llama, path, ids), expected(ids)) < 5e-5) is right
