"""Folders of safetensors: the same weights from every source, under the hub's names."""

from __future__ import annotations

import json

import numpy as np
import pytest

import phiconv
from paths import FIXTURES
from phiconv.recipes import override
from phiconv_formats.shared.safetensors import open_safetensors

KINDS = [
    "tiny-phi3", "tiny-phi4mini", "phi", "phi-fp16", "phi2", "phi3-su", "phi3-sharded",
    "phi4mini-transformers5", "phimoe", "phimoe-transformers5", "phimoe-stacked", "phimoe-tiny",
    "llama3", "llama-bias", "qwen2", "qwen3-untied",
]  # fmt: skip


def to_safetensors(source, folder, quant=None, **options):
    return phiconv.convert(source, folder, to="safetensors", quant=quant, **options)


def weights(model):
    return {
        role: (t.shape, t.encoding.name, t.read(0, t.rows).tobytes()) for role, t in model.tensors.items()
    }


def config_of(folder):
    return json.loads((folder / "config.json").read_text())


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_type_changes_no_bit(kind, model_folder, tmp_path):
    source = phiconv.open_model(model_folder(kind))
    result = to_safetensors(source, tmp_path / "m", repack_only=True)
    assert {t.action for t in result.plan.tensors} == {"copied"}
    again = phiconv.open_model(tmp_path / "m")
    assert again.hyperparameters == source.hyperparameters
    assert again.tokenizer == source.tokenizer
    assert weights(again) == weights(source)
    if kind != "phimoe-stacked":
        assert set(again.stored) == set(source.stored)
    config = config_of(tmp_path / "m")
    assert "rope_parameters" not in config
    assert (
        config["torch_dtype"] == {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}[result.plan.recipe]
    )


def test_experts_are_apart_and_matrices_fused(model_folder, tmp_path):
    to_safetensors(model_folder("phimoe-stacked"), tmp_path / "m")
    names = set(open_safetensors(tmp_path / "m" / "model.safetensors").tensors)
    assert names == set(open_safetensors(model_folder("phimoe") / "model.safetensors").tensors)
    assert "model.layers.1.block_sparse_moe.experts.3.w2.weight" in names


@pytest.mark.parametrize("kind", ["tiny-phi3", "tiny-phi4mini", "phi2", "phimoe"])
def test_from_a_gguf_of_the_same_type(kind, model_folder, tmp_path):
    source = phiconv.open_model(model_folder(kind))
    phiconv.convert(source, tmp_path / "x.gguf")
    to_safetensors(tmp_path / "x.gguf", tmp_path / "m")
    again = phiconv.open_model(tmp_path / "m")
    assert weights(again) == weights(source)
    assert again.tokenizer.tokens == source.tokenizer.tokens
    assert again.tokenizer.chat_templates == source.tokenizer.chat_templates
    assert again.hyperparameters.num_hidden_layers == source.hyperparameters.num_hidden_layers
    assert again.tokenizer.eos_ids == phiconv.open_model(tmp_path / "x.gguf").tokenizer.eos_ids != ()


@pytest.mark.parametrize(("to", "name"), [("gguf", "x.gguf"), ("mlx", "x")])
@pytest.mark.parametrize(("quant", "dtype"), [(None, np.float16), ("f32", np.float32)])
def test_quantized_weights_are_rounded_once(to, name, quant, dtype, tmp_path):
    phiconv.convert(FIXTURES / "tiny-phi3", tmp_path / name, to=to, quant="q4")
    source = phiconv.open_model(tmp_path / name)
    result = to_safetensors(source, tmp_path / "m", quant)
    again = phiconv.open_model(tmp_path / "m")
    assert result.plan.recipe == (quant or "f16")
    for role, tensor in source.tensors.items():
        found = again.tensors[role]
        assert np.array_equal(
            found.read(0, found.rows), phiconv.read(tensor).reshape(found.rows, -1).astype(dtype)
        )
    config = config_of(tmp_path / "m")
    assert "quantization" not in config
    assert "quantization_config" not in config


def test_folder_has_what_transformers_looks_for(tmp_path):
    result = to_safetensors(FIXTURES / "tiny-phi3", tmp_path / "m")
    names = {p.name for p in result.files}
    assert {"config.json", "model.safetensors", "tokenizer.json", "generation_config.json"} <= names
    assert {".phiconv.json", "receipt.json", *names} == {p.name for p in (tmp_path / "m").iterdir()}
    data = (tmp_path / "m" / "model.safetensors").read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    assert header["__metadata__"] == {"format": "pt"}
    assert result.size == sum(p.stat().st_size for p in result.files) == result.plan.size


def test_remote_code_is_left_out(model_folder, make_model, tmp_path):
    auto = {"AutoConfig": "configuration_phi3.Phi3Config"}
    to_safetensors(make_model(tmp_path / "s", "phi3", auto_map=auto), tmp_path / "m")
    assert "auto_map" not in config_of(tmp_path / "m")


def test_shards_and_their_index(tmp_path):
    to_safetensors(FIXTURES / "tiny-phi4mini", tmp_path / "m", split_max_size=900_000)
    index = json.loads((tmp_path / "m" / "model.safetensors.index.json").read_text())
    files = sorted(p.name for p in (tmp_path / "m").glob("*.safetensors"))
    assert len(files) > 2
    assert set(index["weight_map"].values()) == set(files)
    again, source = phiconv.open_model(tmp_path / "m"), phiconv.open_model(FIXTURES / "tiny-phi4mini")
    assert weights(again) == weights(source)
    assert index["metadata"]["total_size"] == 2 * source.size


def test_types_of_single_tensors(tmp_path):
    choices = phiconv.Choices(tensor_types=(override("norm=f32"),))
    to_safetensors(FIXTURES / "tiny-phi3", tmp_path / "m", "f16", choices=choices)
    stored = phiconv.open_model(tmp_path / "m").stored
    assert {t.encoding.name for n, t in stored.items() if "norm" in n} == {"f32"}
    assert {t.encoding.name for n, t in stored.items() if "norm" not in n} == {"f16"}


@pytest.mark.parametrize(
    ("quant", "options", "says"),
    [
        ("q4", {}, "safetensors has no quantization 'q4'"),
        ("f16", {"pure": True}, "--pure means nothing for safetensors"),
        ("f16", {"tensor_types": (override("x=q8_0"),)}, "no tensor can be stored as 'q8_0'"),
    ],
)
def test_what_it_does_not_know(quant, options, says, tmp_path):
    with pytest.raises(phiconv.UsageError, match=says):
        to_safetensors(FIXTURES / "tiny-phi3", tmp_path / "m", quant, choices=phiconv.Choices(**options))


def test_a_file_is_no_folder(tmp_path):
    with pytest.raises(phiconv.UsageError, match="--to safetensors writes a folder"):
        to_safetensors(FIXTURES / "tiny-phi3", tmp_path / "m.safetensors")
    with pytest.raises(phiconv.UsageError, match="cannot tell the format"):
        phiconv.plan(FIXTURES / "tiny-phi3", tmp_path / "m.safetensors")


def test_plain_tensors_keep_names_and_integers(write_safetensors, tmp_path):
    header = {
        "a": {"dtype": "I32", "shape": [2, 2], "data_offsets": [0, 16]},
        "b": {"dtype": "F32", "shape": [2], "data_offsets": [16, 24]},
        "none": {"dtype": "F32", "shape": [0, 3], "data_offsets": [24, 24]},
        "scalar": {"dtype": "F32", "shape": [], "data_offsets": [24, 28]},
    }
    data = np.arange(7, dtype="<f4").tobytes()
    source = write_safetensors(header, data, "x.safetensors")
    (file,) = to_safetensors(source, tmp_path / "m", "f32", choices=phiconv.Choices(plain=True)).files
    found = open_safetensors(file).tensors
    assert {n: (t.shape, t.encoding.name) for n, t in found.items()} == {
        "a": ((2, 2), "i32"),
        "b": ((2,), "f32"),
        "none": ((0, 3), "f32"),
        "scalar": ((), "f32"),
    }
    assert found["a"].read(0, 2).tobytes() + found["b"].read(0, 2).tobytes() == data[:24]


# ----------------------------------------------------------------------------------------------- what happens


@pytest.mark.parametrize(
    ("source", "first", "second", "to", "action", "lossless"),
    [
        ("tiny-phi3", None, "bf16", "gguf", "copied", True),
        ("tiny-phi3", None, "f32", "gguf", "widened", True),
        ("tiny-phi3", None, "f16", "gguf", "rounded", False),
        ("tiny-phi3", None, "q8", "gguf", "quantized", False),
        ("tiny-phi3", ("gguf", "Q8_0"), "Q8_0", "gguf", "copied", True),
        ("tiny-phi3", ("gguf", "Q8_0"), "f32", "safetensors", "dequantized", False),
        ("tiny-phi3", ("gguf", "Q8_0"), "Q4_0", "gguf", "requantized", False),
        ("tiny-phi3", ("mlx", "4bit-g32"), "Q4_1", "gguf", "repacked", True),
    ],
)
def test_plan_says_what_happens(source, first, second, to, action, lossless, tmp_path):
    path = FIXTURES / source
    if first:
        made = phiconv.convert(
            path, tmp_path / "first", to=first[0], quant=first[1],
            choices=phiconv.Choices(dtype="f16") if first[0] == "mlx" else phiconv.Choices(pure=True),
        )  # fmt: skip
        path = made.plan.folder if first[0] == "mlx" else made.files[0]
    choices = phiconv.Choices(allow_requantize=True, pure=to == "gguf")
    options = {"to": to, "quant": second, "choices": choices}
    plan = phiconv.plan(path, tmp_path / "out", **options)
    (tensor,) = (
        t for t in plan.tensors if t.name in {"blk.0.ffn_down.weight", "model.layers.0.mlp.down_proj.weight"}
    )
    assert tensor.action == action
    if lossless:
        phiconv.plan(path, tmp_path / "out", **options, repack_only=True)
    else:
        with pytest.raises(phiconv.UnsupportedModelError, match=f"would be {action}, from"):
            phiconv.convert(path, tmp_path / "out", **options, repack_only=True)
        assert not (tmp_path / "out").exists()
