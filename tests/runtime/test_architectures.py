"""Architectures besides Phi's reach every runtime, and come back from it.

References: fixtures/references/*.npz, which transformers computed.
"""

from __future__ import annotations

import numpy as np
import pytest

import phiconv
from llama_runtime import llama_logits
from mlx_runtime import run_logits
from onnx_runtime import onnx_logits
from openvino_runtime import STRICT, infer
from references import RANDOM, open_reference, random_model, relative_l2

pytestmark = pytest.mark.runtime

NAMES = [name for name in RANDOM if not name.startswith("phi")]
KINDS = [name for name in NAMES if not name.endswith("-long")]
BOUND = 1e-5


@pytest.fixture(scope="module")
def folder_of(make_model, make_models, tmp_path_factory):
    """The folder of a reference's model."""
    root, made = tmp_path_factory.mktemp("models"), {}

    def find(name):
        if name not in made:
            made[name] = random_model(make_model, make_models, root / name, name)
        return made[name]

    return find


@pytest.fixture(scope="module")
def written(folder_of, tmp_path_factory):
    """A model written for a target, in float32 unless said otherwise."""
    root = tmp_path_factory.mktemp("written")

    def write(name, target, quant="f32"):
        path = root / f"{name}-{target}-{quant}" / (f"{name}.gguf" if target == "gguf" else "m")
        if not path.exists():
            path.parent.mkdir()
            phiconv.convert(folder_of(name), path, to=target, quant=quant)
        return path

    return write


def check(logits, name):
    kept = open_reference(f"references/{name}.npz")
    assert relative_l2(logits[kept["positions"]], kept["logits"]) < BOUND
    assert (logits.argmax(axis=-1) == kept["argmax"]).all()


def ids_of(name):
    return open_reference(f"references/{name}.npz")["input_ids"]


@pytest.mark.parametrize("name", NAMES)
def test_onnx_runtime(ort, written, name):
    check(onnx_logits(ort, written(name, "onnx"), ids_of(name)), name)


@pytest.mark.parametrize("name", NAMES)
def test_openvino(openvino, written, name):
    document = written(name, "openvino") / "openvino_model.xml"
    compiled = openvino.Core().compile_model(document, "CPU", STRICT)
    check(infer(compiled, ids_of(name)[None])[0], name)


@pytest.mark.parametrize("name", NAMES)
def test_mlx_lm(mlx_lm, written, name):
    check(run_logits(mlx_lm, written(name, "mlx"), ids_of(name)), name)


@pytest.mark.parametrize("name", NAMES)
def test_llama_cpp(llama, written, name):
    check(llama_logits(llama, written(name, "gguf"), ids_of(name)), name)


@pytest.mark.parametrize("target", ["gguf", "mlx", "onnx", "openvino"])
@pytest.mark.parametrize("name", KINDS)
def test_every_written_model_is_read_back(folder_of, written, name, target):
    original, copy = phiconv.open_model(folder_of(name)), phiconv.open_model(written(name, target))
    assert copy.architecture == original.architecture
    # A runtime may want biases that the model has not; these are zero.
    assert copy.tensors.keys() >= original.tensors.keys()
    for role, tensor in copy.tensors.items():
        expected = phiconv.read(original.tensors[role]) if role in original.tensors else 0
        assert (phiconv.read(tensor) == expected).all(), str(role)
    ids = ids_of(name)[None, :16]
    assert np.array_equal(phiconv.logits(copy, ids), phiconv.logits(original, ids))


@pytest.mark.parametrize("name", KINDS)
def test_a_gguf_gives_the_checkpoint_back(folder_of, written, tmp_path, name):
    gguf = written(name, "gguf", "bf16")
    phiconv.convert(gguf, tmp_path / "back", to="safetensors")
    original, back = (phiconv.open_model(path).stored for path in (folder_of(name), tmp_path / "back"))
    assert back.keys() == original.keys()
    for key, tensor in original.items():
        # llama.cpp keeps vectors in float32; what was bfloat16 is so again.
        assert (back[key].encoding, back[key].shape) == (tensor.encoding, tensor.shape), key
        assert back[key].read(0, tensor.rows).tobytes() == tensor.read(0, tensor.rows).tobytes(), key


@pytest.mark.parametrize(
    ("target", "quant"), [("onnx", "int4"), ("openvino", "int4-asym-g32"), ("mlx", "4bit-g32")]
)
@pytest.mark.parametrize("name", KINDS)
def test_quantized_models_are_near(folder_of, written, name, target, quant):
    ids = ids_of(name)[None]
    original = phiconv.logits(folder_of(name), ids)
    assert 1e-3 < relative_l2(phiconv.logits(written(name, target, quant), ids), original) < 0.35


@pytest.mark.parametrize("name", KINDS)
def test_blocks_of_a_gguf_go_to_onnx_and_back(written, tmp_path, name):
    source = written(name, "gguf", "Q8_0")
    phiconv.convert(source, tmp_path / "onnx", to="onnx", quant="int8", repack_only=True)
    phiconv.convert(tmp_path / "onnx", tmp_path / "back.gguf", quant="Q8_0", repack_only=True)
    first, second = (phiconv.open_model(path).stored for path in (source, tmp_path / "back.gguf"))
    assert first.keys() == second.keys()
    for key, tensor in first.items():
        assert np.array_equal(phiconv.read(tensor), phiconv.read(second[key])), key
