"""Hostile compressed-tensors folders: shapes that lie, a config that contradicts, numbers that are none."""

from __future__ import annotations

import json
import struct

import numpy as np
import pytest

import make_golden_server as peers
import phiconv
from phiconv.errors import MalformedFileError, UnsupportedModelError, WeightError

DOWN = "model.layers.0.mlp.down_proj"
WORDS = f"tensor {DOWN}.weight"


@pytest.fixture(scope="module")
def folders(make_model, tmp_path_factory):
    """A folder of a recipe, made once: its tensors and its config.json."""
    root = tmp_path_factory.mktemp("folders")
    source = make_model(root / "source", "phi3")
    made = {}

    def find(recipe):
        if recipe not in made:
            phiconv.convert(source, root / recipe, to="compressed-tensors", quant=recipe)
            config = json.loads((root / recipe / "config.json").read_text())
            made[recipe] = root / recipe, peers.tensors_of(root / recipe), config
        return made[recipe]

    return find


@pytest.fixture
def changed(folders, tmp_path):
    """Writes a folder with other tensors, or another configuration."""

    def write(recipe, tensors=lambda found: found, config=lambda said: said):
        folder, found, said = folders(recipe)
        for file in folder.glob("*token*.json"):
            (tmp_path / file.name).write_bytes(file.read_bytes())
        whole = json.loads(json.dumps(said))
        whole["quantization_config"] = config(whole["quantization_config"])
        (tmp_path / "config.json").write_text(json.dumps(whole))
        header, data = {}, b""
        for name, (dtype, shape, stored) in tensors(dict(found)).items():
            header[name] = {
                "dtype": dtype,
                "shape": shape,
                "data_offsets": [len(data), len(data) + len(stored)],
            }
            data += stored
        text = json.dumps(header).encode()
        (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + data)
        return tmp_path

    return write


@pytest.fixture
def out_folder(tmp_path_factory):
    return tmp_path_factory.mktemp("out")


def test_the_sources_are_good(changed):
    for recipe in ("w4a16-g32", "w4a16-asym-g32", "w8a8", "w4a16-channel", "fp8-block", "nvfp4a16", "mxfp8"):
        assert phiconv.open_model(changed(recipe)).format == "compressed-tensors"


def with_tensor(suffix, change):
    """Changes one array: its type, shape and bytes; None leaves it out."""

    def tensors(found):
        name = f"{DOWN}.{suffix}"
        made = change(*found.pop(name))
        return found if made is None else found | {name: made}

    return tensors


def with_shape(*numbers):
    return with_tensor("weight_shape", lambda *_: ("I64", [len(numbers)], np.array(numbers, "<i8").tobytes()))


def half(dtype, shape, data):
    return dtype, [shape[0], shape[1] // 2], data[: len(data) // 2]


def as_type(other):
    return lambda _, shape, data: (other, shape, data)


SHAPES = {
    "rows too many": ("w4a16-g32", with_shape(1 << 40, 64)),
    "columns too many": ("w4a16-g32", with_shape(32, 1 << 60)),
    "a negative size": ("w4a16-g32", with_shape(32, -64)),
    "no size": ("w4a16-g32", with_shape(32, 0)),
    "three sizes": ("w4a16-g32", with_shape(32, 64, 1)),
    "no shape": ("w4a16-g32", with_tensor("weight_shape", lambda *_: None)),
    "half the words": ("w4a16-g32", with_tensor("weight_packed", half)),
    "words of floats": ("w4a16-g32", with_tensor("weight_packed", as_type("F32"))),
    "half the scales": ("nvfp4a16", with_tensor("weight_scale", half)),
    "scales of integers": ("w4a16-g32", with_tensor("weight_scale", as_type("I16"))),
    "no scales": ("w4a16-g32", with_tensor("weight_scale", lambda *_: None)),
    "no zero points": ("w4a16-asym-g32", with_tensor("weight_zero_point", lambda *_: None)),
    "zero points of floats": ("w4a16-asym-g32", with_tensor("weight_zero_point", as_type("F32"))),
    "codes of bytes": ("w8a8", with_tensor("weight", as_type("U8"))),
    "a row of codes": ("w8a8", with_tensor("weight", lambda d, s, b: (d, [s[0] * s[1]], b))),
    "two scales of the tensor": (
        "nvfp4a16",
        with_tensor("weight_global_scale", lambda d, _, b: (d, [2], 2 * b)),
    ),
    "no scale of the tensor": ("nvfp4a16", with_tensor("weight_global_scale", lambda *_: None)),
    "squares as rows": ("fp8-block", with_tensor("weight_scale", lambda d, s, b: (d, [1, *s], b))),
    "exponents of floats": ("mxfp8", with_tensor("weight_scale", as_type("F8_E4M3"))),
}


@pytest.mark.parametrize("what", SHAPES)
def test_arrays_that_do_not_fit_are_refused(changed, refused, what):
    recipe, tensors = SHAPES[what]
    refused(phiconv.open_model, changed(recipe, tensors), says=WORDS, kind=MalformedFileError)


def weights(**keys):
    """Changes what config.json says of the weights."""

    def config(said):
        said["config_groups"]["group_0"]["weights"] |= keys
        return said

    return config


def said_with(**keys):
    return lambda said: said | keys


CONTRADICTIONS = {
    "other bits": weights(num_bits=8),
    "other groups": weights(group_size=64),
    "groups of nothing": weights(group_size=0),
    "groups that are no number": weights(group_size="32"),
    "groups of a truth": weights(group_size=True),
    "a channel": weights(strategy="channel"),
    "strategies": weights(strategy=["group"]),
    "zero points": weights(symmetric=False),
    "floats": weights(type="float"),
    "ignored": said_with(ignore=[DOWN]),
}


@pytest.mark.parametrize("what", CONTRADICTIONS)
def test_a_configuration_that_contradicts_is_refused(changed, refused, what):
    folder = changed("w4a16-g32", config=CONTRADICTIONS[what])
    refused(phiconv.open_model, folder, says="tensor model.layers.0", kind=MalformedFileError)


@pytest.mark.parametrize(
    "groups", [None, [], {}, {"group_0": None}, {"group_0": {}}, {"group_0": {"weights": 4}}]
)
def test_groups_that_are_none_are_refused(changed, refused, groups):
    folder = changed("w4a16-g32", config=said_with(config_groups=groups))
    refused(phiconv.open_model, folder, says="quantization_config.config_groups", kind=MalformedFileError)


UNKNOWN = {
    "3 bits": weights(num_bits=3),
    "bits that are a list": weights(num_bits=[4]),
    "sparse": said_with(sparsity_config={"format": "sparse-24-bitmask"}),
    "rotated": said_with(transform_config={"config_groups": {"r": {}}}),
}


@pytest.mark.parametrize("what", UNKNOWN)
def test_what_is_not_read_is_named(changed, refused, what):
    folder = changed("w4a16-g32", config=UNKNOWN[what])
    refused(phiconv.open_model, folder, says="phiconv does not read", kind=UnsupportedModelError)


def test_a_matrix_that_is_there_twice_is_refused(changed, refused):
    def twice(found):
        return found | {f"{DOWN}.weight": ("BF16", [64, 96], bytes(2 * 64 * 96))}

    refused(phiconv.open_model, changed("w4a16-g32", twice), says="is there twice", kind=MalformedFileError)


def test_an_order_of_activations_is_named(changed, refused):
    def ordered(found):
        return found | {f"{DOWN}.weight_g_idx": ("I32", [96], bytes(4 * 96))}

    refused(phiconv.open_model, changed("w4a16-g32", ordered), says="actorder", kind=UnsupportedModelError)


def test_patterns_of_names_are_not_run(changed):
    """An expression that takes for ever, if it is tried."""

    def config(said):
        said["config_groups"]["group_0"]["targets"] = ["re:(.*.*.*.*.*)*x$"]
        said["ignore"] = ["re:(.*.*.*.*.*)*x$"]
        return said

    assert phiconv.open_model(changed("w4a16-g32", config=config)).architecture == "phi3"


NO_NUMBERS = {
    "a scale": ("w4a16-g32", with_tensor("weight_scale", lambda d, s, b: (d, s, b"\xc0\x7f" + b[2:]))),
    "an infinite scale": ("w8a8", with_tensor("weight_scale", lambda d, s, b: (d, s, b"\x80\x7f" + b[2:]))),
    "a code": ("fp8-block", with_tensor("weight", lambda d, s, b: (d, s, b"\xff" + b[1:]))),
    "a small scale": ("nvfp4a16", with_tensor("weight_scale", lambda d, s, b: (d, s, b"\x7f" + b[1:]))),
    "an exponent": ("mxfp8", with_tensor("weight_scale", lambda d, s, b: (d, s, b"\xff" + b[1:]))),
}


@pytest.mark.parametrize("what", NO_NUMBERS)
def test_numbers_that_are_none_are_refused(changed, out_folder, what):
    recipe, tensors = NO_NUMBERS[what]
    folder, choices = changed(recipe, tensors), phiconv.Choices(allow_requantize=True)
    for target in ("x.gguf", "o"):
        to = None if target == "x.gguf" else "compressed-tensors"
        with pytest.raises(WeightError, match="NaN or infinite"):
            phiconv.convert(folder, out_folder / target, to=to, choices=choices)


@pytest.mark.parametrize("value", [np.nan, np.inf, 0, -1])
def test_a_scale_of_the_tensor_must_be_a_number(changed, refused, value):
    data = np.array([value], "<f4").tobytes()
    folder = changed("nvfp4a16", with_tensor("weight_global_scale", lambda d, s, _: (d, s, data)))
    refused(phiconv.open_model, folder, says="no positive number", kind=MalformedFileError)


def test_a_byte_with_more_than_its_bits_is_refused(folders, changed, tmp_path, make_model):
    source = peers.make_source(tmp_path / "s", "phi3")
    phiconv.convert(source, tmp_path / "o", to="compressed-tensors", quant="w4a8")
    file = tmp_path / "o" / "model.safetensors"
    data = bytearray(file.read_bytes())
    length = struct.unpack("<Q", data[:8])[0]
    start = 8 + length + json.loads(data[8 : 8 + length])[f"{DOWN}.weight"]["data_offsets"][0]
    data[start] = 8
    file.write_bytes(data)
    (tmp_path / "g").mkdir()
    with pytest.raises(MalformedFileError, match=r"no integers of 4 bits") as caught:
        phiconv.convert(tmp_path / "o", tmp_path / "g" / "x.gguf", quant="f16")
    assert caught.value.at == WORDS
    assert list((tmp_path / "g").iterdir()) == []
