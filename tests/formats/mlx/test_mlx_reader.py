"""An MLX folder as a source: what was written is read back, and what does not fit together is refused."""

from __future__ import annotations

import json
import shutil
import struct

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import phiconv
from paths import FIXTURES
from phiconv.errors import PhiconvError
from phiconv_formats.shared.safetensors import open_safetensors

KINDS = [
    "phi",
    "phi2",
    "phi3",
    "phi4mini",
    "phi4mini-transformers5",
    "phimoe",
    "phimoe-stacked",
    "llama3",
    "qwen3",
]


def convert(source, target, quant, **options):
    return phiconv.convert(source, target, to="mlx", quant=quant, **options)


@pytest.mark.parametrize("kind", KINDS)
def test_unquantized_folder_is_the_model_again(tmp_path, model_folder, kind):
    convert(model_folder(kind), tmp_path / "m", "f32")
    first, second = phiconv.open_model(model_folder(kind)), phiconv.open_model(tmp_path / "m")
    assert second.format == "mlx"
    assert second.hyperparameters == first.hyperparameters
    assert second.tensors.keys() == first.tensors.keys()
    assert second.tokenizer == first.tokenizer
    for role, tensor in first.tensors.items():
        assert second.tensors[role].shape == tensor.shape, role
        np.testing.assert_array_equal(phiconv.read(second.tensors[role]), phiconv.read(tensor), str(role))


def codes_of(words, bits):
    """The codes of rows of 32-bit words, as one stream of bits from the lowest on."""
    stream = np.unpackbits(words.view(np.uint8), axis=1, bitorder="little")
    groups = stream.reshape(len(words), -1, bits)
    return (groups << np.arange(bits)).sum(axis=2)


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
def test_quantized_matrix_is_what_its_arrays_say(tmp_path, bits):
    convert(FIXTURES / "tiny-phi3", tmp_path / "m", f"{bits}bit-g32")
    name = "model.layers.2.mlp.down_proj"
    arrays = open_safetensors(tmp_path / "m" / "model.safetensors").tensors
    parts = {kind: arrays[f"{name}.{kind}"] for kind in ("weight", "scales", "biases")}
    words = parts["weight"].read(0, parts["weight"].rows)
    codes = codes_of(words, bits).astype(np.float32)
    scales, minima = (phiconv.read(parts[kind]).repeat(32, axis=1) for kind in ("scales", "biases"))
    found = phiconv.read(phiconv.open_model(tmp_path / "m").stored[f"{name}.weight"], 10, 200)
    np.testing.assert_array_equal(found, (codes * scales + minima)[10:200])


@pytest.mark.parametrize("quant", ["3bit-g32", "mxfp4", "nvfp4", "mxfp8", "mixed_3_6"])
def test_the_same_recipe_again_copies_every_byte(tmp_path, quant):
    convert(FIXTURES / "tiny-phi4mini", tmp_path / "a", quant)
    convert(tmp_path / "a", tmp_path / "b", quant)  # nothing is quantized a second time, so it is allowed
    a, b = (tmp_path / n / "model.safetensors" for n in "ab")
    assert a.read_bytes() == b.read_bytes()
    first, second = (json.loads((tmp_path / n / "config.json").read_text()) for n in "ab")
    assert first == second


def test_quantizing_again_is_refused_unless_it_is_allowed(tmp_path):
    convert(FIXTURES / "tiny-phi4mini", tmp_path / "a", "8bit")
    with pytest.raises(phiconv.UnsupportedModelError, match="--allow-requantize"):
        convert(tmp_path / "a", tmp_path / "b", "4bit")
    result = convert(tmp_path / "a", tmp_path / "b", "4bit", choices=phiconv.Choices(allow_requantize=True))
    assert any("second time" in note for note in result.plan.package.notes)


@pytest.mark.parametrize("kind", ["phi-fp16", "phi3", "phimoe"])
def test_gguf_of_a_folder_is_the_gguf_of_the_model(tmp_path, model_folder, kind):
    convert(model_folder(kind), tmp_path / "m", None)
    for quant in ("F16", "Q8_0", "Q4_0"):
        first = phiconv.convert(model_folder(kind), tmp_path / "a.gguf", quant=quant, force=True)
        second = phiconv.convert(tmp_path / "m", tmp_path / "b.gguf", quant=quant, force=True)
        a, b = (phiconv.open_model(r.files[0]).stored for r in (first, second))
        assert a.keys() == b.keys()
        for name, tensor in a.items():
            np.testing.assert_array_equal(phiconv.read(tensor), phiconv.read(b[name]), name)


# ---------------------------------------------------------------------------------------------------- hostile


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("mlx") / "m"
    convert(FIXTURES / "tiny-phi4mini", path, "4bit-g32")
    return path


def same(_):
    pass


def changed(folder, target, config=same, header=same):
    """A copy of the folder with a changed config.json, and a changed header of its weights."""
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(folder, target)
    values = json.loads((target / "config.json").read_text())
    config(values)
    (target / "config.json").write_text(json.dumps(values))
    data = (target / "model.safetensors").read_bytes()
    (size,) = struct.unpack("<Q", data[:8])
    names = json.loads(data[8 : 8 + size])
    header(names)
    text = json.dumps(names).encode()
    (target / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + data[8 + size :])
    return target


def without_quantization(config):
    del config["quantization"], config["quantization_config"]


def other(**values):
    def change(config):
        config["quantization"] |= values
        config["quantization_config"] = config["quantization"]

    return change


def renamed(old, new):
    def change(header):
        header[new] = header.pop(old)

    return change


def reshaped(name, shape):
    def change(header):
        header[name]["shape"] = shape

    return change


SCALES = "model.layers.0.mlp.down_proj.scales"


FAULTS = {
    "no quantization": (without_quantization, same, "does not say how"),
    "7 bits": (other(bits=7), same, "does not know"),
    "bits as text": (other(bits="4"), same, "does not know"),
    "another mode": (other(mode="mxfp4"), same, "do not fit"),
    "a list as mode": (other(mode=["x"]), same, "does not know"),
    "wrong groups": (other(group_size=64), same, "do not fit"),
    "wrong bits": (other(bits=8), same, "do not fit"),
    "scales of another shape": (same, reshaped(SCALES, [128, 32]), "do not fit"),
    "scales as a vector": (same, reshaped(SCALES, [4096]), "do not fit"),
    "no scales": (same, renamed(SCALES, "model.layers.0.mlp.down_proj.scale"), "do not fit"),
    "scales elsewhere": (same, renamed(SCALES, "model.layers.0.mlp.other.scales"), "do not fit"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_arrays_that_do_not_fit_are_refused(tmp_path, refused, folder, fault):
    config, header, says = FAULTS[fault]
    path = changed(folder, tmp_path / "m", config, header)
    refused(phiconv.open_model, path, says=says)


VALUES = st.none() | st.booleans() | st.integers(-3, 300) | st.sampled_from(["affine", "mxfp4", "x"])


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(st.dictionaries(st.sampled_from(["bits", "group_size", "mode", "lm_head", "model.norm"]), VALUES))
def test_any_configuration_opens_or_is_refused(tmp_path, folder, values):
    path = changed(folder, tmp_path / "m", other(**values))
    try:
        model = phiconv.open_model(path)
    except PhiconvError:
        return
    for tensor in list(model.tensors.values())[:3]:
        phiconv.read(tensor, 0, 1)
