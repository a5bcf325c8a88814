"""Where it is said how a folder is quantized."""

from __future__ import annotations

import json

import numpy as np
import pytest

import phiconv
from phiconv.errors import ConfigError, InputError, MalformedFileError, UnsupportedModelError
from quantized_folder import FOLDERS

BESIDE = [
    ("gptq-4-asym-g32", "quantize_config.json"),
    ("awq-g32", "quant_config.json"),
    ("modelopt-nvfp4", "hf_quant_config.json"),
]


def types(model):
    return {t.encoding.name for name, t in model.stored.items() if name.endswith("proj.weight")}


def moved(folder, name):
    """What config.json says is said in another file, without the method."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    said = config.pop("quantization_config")
    del said["quant_method"]
    path.write_text(json.dumps(config))
    if name == "hf_quant_config.json":
        said = {"producer": {"name": "modelopt"}, "quantization": said}
    (folder / name).write_text(json.dumps(said))
    return folder


@pytest.mark.parametrize(("name", "beside"), BESIDE)
def test_files_beside_say_it_too(name, beside, folder, tmp_path):
    source = folder(name)
    expected = types(phiconv.open_model(source))
    found = phiconv.open_model(moved(source, beside))
    assert types(found) == expected
    assert phiconv.plan(found, tmp_path / "x.gguf", quant="f16").size


def test_config_json_counts_more(folder):
    source = folder("gptq-4-asym-g32")
    (source / "quantize_config.json").write_text(json.dumps({"bits": 8}))
    assert types(phiconv.open_model(source)) == {"gptq_int4_asym_g32_f16"}


def test_an_error_names_the_file_that_says_it(folder, refused):
    source = moved(folder("gptq-4-asym-g32"), "quantize_config.json")
    said = json.loads((source / "quantize_config.json").read_text())
    (source / "quantize_config.json").write_text(json.dumps(said | {"bits": 5}))
    refused(phiconv.open_model, source, says="quantize_config.json", kind=ConfigError)
    (source / "quantize_config.json").write_text("[]")
    refused(phiconv.open_model, source, says="expected a JSON object", kind=MalformedFileError)


def test_a_folder_that_says_nothing_is_refused_as_what_it_looks_like(folder, refused):
    source = moved(folder("awq-g32"), "unheard_of.json")
    refused(phiconv.open_model, source, says="quantized already, by GPTQ or AWQ", kind=UnsupportedModelError)


@pytest.mark.parametrize("name", FOLDERS)
def test_another_method_is_refused(name, folder, refused):
    method = FOLDERS[name]["quantization_config"]["quant_method"]
    another = "fp8" if method == "gptq" else "gptq"
    source = folder(name, quant_method=another, bits=4, checkpoint_format="gptq")
    refused(phiconv.open_model, source, says="", kind=InputError)


def test_exceptions_by_name_are_found_in_the_arrays(folder):
    source = folder("gptq-8-asym-g64", bits=4, dynamic={"+:.*": {"bits": 8}})
    assert types(phiconv.open_model(source)) == {"gptq_int8_asym_g64_f16"}


def test_a_quantization_that_is_only_said_is_none(make_base, tmp_path):
    source = make_base(tmp_path / "m")
    config = json.loads((source / "config.json").read_text())
    said = {"quant_method": "gptq", "bits": 4, "group_size": 32}
    (source / "config.json").write_text(json.dumps(config | {"quantization_config": said}))
    assert types(phiconv.open_model(source)) == {"bf16"}


@pytest.mark.parametrize("name", ["gptq-4-order", "awq-g32", "bnb-nf4-double"])
def test_folders_of_pytorch(name, folder, make_pytorch, tmp_path):
    source = folder(name)
    made = make_pytorch.make_checkpoint(source, tmp_path / "torch", "zip")
    a, b = phiconv.open_model(source), phiconv.open_model(made)
    for full in FOLDERS[name]["weights"]:
        np.testing.assert_array_equal(phiconv.read(a.stored[full]), phiconv.read(b.stored[full]))
