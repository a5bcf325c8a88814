"""Tensors without a model make a file that no runtime loads: only who asks for that gets it."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from gguf import GGUFReader, GGUFWriter
from safetensors.numpy import load_file, save_file

import phiconv
from paths import FIXTURES
from phiconv.errors import InputError, MissingFileError, UnsupportedModelError, UsageError

TINY = FIXTURES / "tiny-phi3"
PLAIN = phiconv.Choices(plain=True)
TARGETS = {"gguf": "o.gguf", "safetensors": "s", "mlx": "m", "onnx": "n", "openvino": "v"}


def alone(folder, kind):
    """A file of weights with nothing beside it."""
    target = folder / "alone"
    target.mkdir()
    if kind == "safetensors":
        return shutil.copy(TINY / "model.safetensors", target)
    if kind == "pytorch":
        return shutil.copy(FIXTURES / "pytorch" / "state_dict.pth", target)
    if kind == "gguf":
        return phiconv.convert(
            alone(folder / "made", "safetensors"), target / "x.gguf", quant="q8", choices=PLAIN
        ).files[0]
    names = {
        "onnx": ("model.onnx", "model.onnx.data"),
        "openvino": ("openvino_model.xml", "openvino_model.bin"),
    }
    phiconv.convert(TINY, folder / kind, to=kind, quant="q8")
    for name in names[kind]:
        shutil.copy(folder / kind / name, target)
    return target / names[kind][0]


@pytest.mark.parametrize("kind", ["safetensors", "pytorch", "gguf", "onnx", "openvino"])
def test_weights_alone_are_no_model(tmp_path, kind):
    (tmp_path / "made").mkdir()
    source = alone(tmp_path, kind)
    for to, name in TARGETS.items():
        with pytest.raises(MissingFileError) as caught:
            phiconv.plan(source, tmp_path / name, to=to)
        message = str(caught.value)
        assert "no config.json beside these weights" in message
        assert "put config.json, tokenizer.json" in message
        assert ("--plain" in message) == (to in {"gguf", "safetensors"})
    for to in ("gguf", "safetensors"):
        plan = phiconv.plan(source, tmp_path / TARGETS[to], to=to, choices=PLAIN)
        assert any("no runtime loads this" in note for note in plan.package.notes)
    for to in ("mlx", "onnx", "openvino"):
        with pytest.raises(MissingFileError, match="name their folder with --config"):
            phiconv.plan(source, tmp_path / TARGETS[to], to=to, choices=PLAIN)


@pytest.mark.parametrize("kind", ["safetensors", "onnx", "openvino"])
@pytest.mark.parametrize("named", ["folder", "file"])
def test_the_configuration_of_another_folder(tmp_path, kind, named):
    (tmp_path / "made").mkdir()
    config = TINY if named == "folder" else TINY / "config.json"
    source = alone(tmp_path, kind)
    model = phiconv.open_model(source, config=config)
    assert model.architecture == "phi3"
    assert model.tokenizer == phiconv.open_model(TINY).tokenizer
    result = phiconv.convert(source, tmp_path / "o.gguf", quant="f32", config=config)
    assert phiconv.compare(TINY, result.files[0]).total.relative_rmse < 0.01
    ids = [[1, 5, 9, 200]]
    found, expected = (phiconv.logits(m, ids) for m in (result.files[0], model))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_an_mlx_file_and_its_configuration(tmp_path):
    phiconv.convert(TINY, tmp_path / "m", to="mlx", quant="4bit")
    (tmp_path / "alone").mkdir()
    shutil.copy(tmp_path / "m" / "model.safetensors", tmp_path / "alone")
    model = phiconv.open_model(tmp_path / "alone" / "model.safetensors", config=tmp_path / "m")
    assert model.format == "mlx"
    assert phiconv.compare(tmp_path / "m", model).total.max_error == 0


def test_what_is_given_as_configuration_is_looked_at(tmp_path):
    for wrong in (tmp_path, tmp_path / "nothing", "org/model", "https://x.org/y"):
        with pytest.raises(MissingFileError):
            phiconv.open_model(TINY / "model.safetensors", config=wrong)
    with pytest.raises(InputError, match="shape"):
        phiconv.open_model(TINY / "model.safetensors", config=FIXTURES / "tiny-phi4mini")
    phiconv.convert(TINY, tmp_path / "x.gguf", quant="q8")
    with pytest.raises(UsageError, match="has its configuration and tokenizer itself"):
        phiconv.open_model(tmp_path / "x.gguf", config=TINY)
    with pytest.raises(UsageError, match="--plain contradicts --config"):
        phiconv.plan(TINY / "model.safetensors", tmp_path / "o.gguf", config=TINY, choices=PLAIN)


def other_architecture(path, kind=None):
    writer = GGUFWriter(path, "mamba")
    if kind:
        writer.add_string("general.type", kind)
    writer.add_tensor("token_embd.weight", np.ones((8, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize(("kind", "says"), [(None, "architecture 'mamba'"), ("adapter", "type 'adapter'")])
def test_a_gguf_of_another_kind(tmp_path, kind, says):
    source = other_architecture(tmp_path / "x.gguf", kind)
    for to in ("safetensors", "mlx", "onnx", "openvino"):
        with pytest.raises(UnsupportedModelError, match=f"a GGUF of the {says}"):
            phiconv.plan(source, tmp_path / TARGETS[to], to=to)
    (file,) = phiconv.convert(source, tmp_path / "s", to="safetensors", choices=PLAIN).files
    assert load_file(file)["token_embd.weight"].shape == (8, 32)
    # Another GGUF of it is what it was.
    phiconv.convert(source, tmp_path / "copy.gguf")
    assert GGUFReader(tmp_path / "copy.gguf").fields["general.architecture"].contents() == "mamba"


def test_plain_takes_a_whole_model_apart(tmp_path):
    (file,) = phiconv.convert(TINY, tmp_path / "o.gguf", quant="f16", choices=PLAIN).files
    model = phiconv.open_model(file)
    assert model.architecture is None
    assert model.stored.keys() == phiconv.open_model(TINY).stored.keys()
    with pytest.raises(UsageError, match="--plain: this is a whole model"):
        phiconv.plan(phiconv.open_model(TINY), tmp_path / "p.gguf", choices=PLAIN)


def test_a_model_that_phiconv_does_not_know(tmp_path):
    save_file({"w": np.ones((4, 32), np.float32)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"architectures": ["MambaForCausalLM"], "model_type": "mamba"}')
    with pytest.raises(UnsupportedModelError):
        phiconv.plan(tmp_path, tmp_path / ".." / "o.gguf")
    assert phiconv.plan(tmp_path, tmp_path.parent / "o.gguf", choices=PLAIN).tensors[0].name == "w"
