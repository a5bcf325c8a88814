"""Adapters as PEFT saves them, read strictly: what cannot be merged exactly is refused by its key."""

from __future__ import annotations

import json
import shutil
from collections import OrderedDict
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

import phiconv
from adapters import PREFIX, QKV, STORED, low_rank, stored_adapter, write_adapter
from phiconv.errors import (
    ConfigError,
    InputError,
    MalformedFileError,
    MissingFileError,
    UnsupportedModelError,
)
from phiconv_formats.peft import adapter_folder, open_adapter

TENSORS = low_rank(QKV, 192, 64)
A, B = TENSORS
DORA = {f"{QKV}.lora_magnitude_vector": np.ones(192, np.float32)}


@pytest.mark.parametrize("name", STORED)
def test_stored_adapters(name):
    adapter = open_adapter(stored_adapter(name))
    parts = sum(2 + (change.magnitude is not None) for change in adapter.changes.values())
    assert parts + len(adapter.replaced) == len(adapter.stored)
    assert all(change.scale > 0 for change in adapter.changes.values())


def test_scales_and_ranks():
    changes = open_adapter(stored_adapter("patterns")).changes
    found = {name: (change.rank, change.scale) for name, change in changes.items()}
    assert found["model.layers.0.self_attn.qkv_proj"] == (4, 3 / 4)
    assert found["model.layers.1.mlp.down_proj"] == (2, 8 / 2)
    assert found["model.layers.0.self_attn.o_proj"] == (4, 8 / 4)
    assert found["model.layers.1.self_attn.o_proj"] == (8, 8 / 8)
    assert {c.scale for c in open_adapter(stored_adapter("rslora")).changes.values()} == {6 / 4**0.5}


def test_a_path_of_an_adapter(tmp_path, model_folder):
    folder = write_adapter(tmp_path / "a", TENSORS)
    paths = (folder, folder / "adapter_config.json", folder / "adapter_model.safetensors")
    for path in paths:
        assert adapter_folder(path) == folder
        assert open_adapter(path).path == folder
    (folder / "optimizer.pt").write_bytes(b"")  # of a training
    assert adapter_folder(folder) == folder
    shutil.copy(model_folder("phi3") / "model.safetensors", folder)
    assert [adapter_folder(path) for path in paths] == [None, folder, folder]
    assert adapter_folder(model_folder("phi3")) is None
    assert adapter_folder(tmp_path / "nothing") is None


def test_an_adapter_of_pytorch(tmp_path, model_folder, make_pytorch):
    folder = write_adapter(tmp_path / "a", TENSORS)
    expected = phiconv.open_model(model_folder("phi3"), lora=[folder])
    views, storages = make_pytorch.plain(make_pytorch.read_safetensors(folder / "adapter_model.safetensors"))
    make_pytorch.write_zip(folder / "adapter_model.bin", make_pytorch.whole(OrderedDict(views)), storages)
    (folder / "adapter_model.safetensors").unlink()
    found = phiconv.open_model(model_folder("phi3"), lora=[folder])
    for role, tensor in expected.tensors.items():
        np.testing.assert_array_equal(phiconv.read(found.tensors[role]), phiconv.read(tensor))


# Keys of adapter_config.json, and what the refusal says.
KEYS = {
    "another method": ({"peft_type": "LOHA"}, "key peft_type: is LOHA, and only LORA can be merged"),
    "no method": ({"peft_type": None}, "key peft_type: is None"),
    "method of another kind": ({"peft_type": ["LORA"]}, "key peft_type"),
    **{
        key: ({key: value}, f"key {key}: is set, and this cannot be merged")
        for key, value in {
            "alora_invocation_tokens": [1],
            "arrow_config": {"top_k": 3},
            "ensure_weight_tying": True,
            "kasa_config": {"beta": 1},
            "layer_replication": [[0, 2]],
            "lora_bias": True,
            "megatron_config": {"x": 1},
            "monteclora_config": {"x": 1},
            "target_parameters": ["experts"],
            "trainable_token_indices": [5],
            "use_bdlora": {"nblocks": 2},
            "use_qalora": True,
            "velora_config": {"x": 1},
            "of_the_future": "yes",
        }.items()
    },
    "pissa": (
        {"init_lora_weights": "pissa_niter_4"},
        "key init_lora_weights: is pissa_niter_4, which changed",
    ),
    "corda": ({"init_lora_weights": "corda"}, "key init_lora_weights"),
    "init of another kind": ({"init_lora_weights": [1]}, "key init_lora_weights"),
    "no rank": ({"r": None}, "key r: missing"),
    "rank 0": ({"r": 0}, "key r: must be an integer of at least 1, not 0"),
    "negative rank": ({"r": -2}, "key r"),
    "rank as text": ({"r": "2"}, "key r"),
    "rank as truth": ({"r": True}, "key r"),
    "another rank": ({"r": 3}, "is of rank 2, and adapter_config.json says 3"),
    "another rank by pattern": (
        {"rank_pattern": {"qkv_proj": 8}},
        "is of rank 2, and adapter_config.json says 8",
    ),
    "no alpha": ({"lora_alpha": None}, "key lora_alpha: must be a number other than 0"),
    "alpha 0": ({"lora_alpha": 0}, "key lora_alpha"),
    "huge alpha": ({"lora_alpha": 1e300}, "key lora_alpha"),
    "alpha as text": ({"lora_alpha": "8"}, "key lora_alpha"),
    "alpha as truth": ({"lora_alpha": True}, "key lora_alpha"),
    "alpha of a pattern": ({"alpha_pattern": {"q": [1]}}, "key alpha_pattern.q"),
    "rank of a pattern": ({"rank_pattern": {"q": 2.5}}, "key rank_pattern.q"),
    "patterns as a list": ({"rank_pattern": ["q"]}, "key rank_pattern: must be an object"),
    "a pattern that takes forever": ({"alpha_pattern": {"(.*)*x": 4}}, "is no pattern that phiconv takes"),
    "many repetitions": ({"alpha_pattern": {".*.*.*.*x": 4}}, "is no pattern that phiconv takes"),
    "a set in a set": ({"alpha_pattern": {"[[a]]": 4}}, "is no pattern that phiconv takes"),
    "a difference of sets": ({"alpha_pattern": {"[a--b]": 4}}, "is no pattern that phiconv takes"),
    "a long pattern": ({"alpha_pattern": {"x" * 201: 4}}, "is no pattern that phiconv takes"),
    "no regular expression": ({"alpha_pattern": {"(x": 4}}, "is no regular expression"),
    "dora without lengths": ({"use_dora": True}, "use_dora is True, which the tensors contradict"),
    "dora of another kind": ({"use_dora": "yes"}, "key use_dora: must be true or false"),
    "rslora of another kind": ({"use_rslora": 1}, "key use_rslora: must be true or false"),
    "saved and not there": ({"modules_to_save": ["norm"]}, "says that norm is saved as a whole"),
    "saved of another kind": ({"modules_to_save": [5]}, "key modules_to_save: must be a list of names"),
}


@pytest.mark.parametrize("case", KEYS)
def test_keys_that_are_refused(tmp_path, refused, case):
    keys, says = KEYS[case]
    folder = write_adapter(tmp_path / "a", TENSORS, **keys)
    refused(open_adapter, folder, says=says)


@pytest.mark.parametrize(
    "keys",
    [
        {"init_lora_weights": True},
        {"init_lora_weights": "gaussian"},
        {"fan_in_fan_out": True, "lora_dropout": 0.1, "target_modules": "all-linear", "inference_mode": True},
        {"loftq_config": {"loftq_bits": 4}, "auto_mapping": {"base_model_class": "X"}, "revision": "main"},
        {
            "alora_invocation_tokens": None,
            "target_parameters": [],
            "use_qalora": False,
            "of_the_future": None,
        },
        {"rank_pattern": {r"^model\.layers\.\d+\.mlp": 7}, "alpha_pattern": {"o_proj|down_proj": 7}},
    ],
)
def test_keys_that_change_nothing(tmp_path, keys):
    folder = write_adapter(tmp_path / "a", TENSORS, **keys)
    assert open_adapter(folder).changes[QKV].scale == 2


@pytest.mark.parametrize(
    ("names", "patterns"),
    [
        (["a." * 400], [".*a.*a.*x"]),
        ([f"{'m' * 80}{n}" for n in range(200)], [f".*q.*{n}" for n in range(200)]),
    ],
    ids=["a long name", "many names"],
)
def test_patterns_that_take_long_with_these_modules_are_refused(tmp_path, refused, names, patterns):
    tensors = {}
    for name in names:
        tensors |= low_rank(name, 1, 1, rank=1)
    folder = write_adapter(tmp_path / "a", tensors, r=1, rank_pattern=dict.fromkeys(patterns, 1))
    refused(open_adapter, folder, says="it would take long")


def test_a_pattern_for_each_of_many_modules_is_taken(tmp_path):
    names = [f"model.layers.{n // 40}.block_sparse_moe.experts.{n % 40}.w1" for n in range(400)]
    tensors = {}
    for name in names:
        tensors |= low_rank(name, 1, 1, rank=1)
    folder = write_adapter(tmp_path / "a", tensors, r=2, rank_pattern=dict.fromkeys(names, 1))
    assert len(open_adapter(folder).changes) == 400


F = np.float32
# Tensors, keys of the configuration, and what the refusal says.
PARTS = {
    "no B": ({A: TENSORS[A]}, {}, "has not one A and one B"),
    "no A": ({B: TENSORS[B]}, {}, "has not one A and one B"),
    "two kinds of A": (TENSORS | {f"{QKV}.lora_embedding_A": TENSORS[A]}, {}, "has not one A and one B"),
    "ranks that differ": (TENSORS | {A: np.ones((3, 64), F)}, {}, "A of [3, 64] and B of [192, 2]"),
    "rank 0": ({A: np.ones((0, 64), F), B: np.ones((192, 0), F)}, {}, "A of [0, 64] and B of [192, 0]"),
    "no columns": (TENSORS | {A: np.ones((2, 0), F)}, {}, "A of [2, 0]"),
    "no rows": (TENSORS | {B: np.ones((0, 2), F)}, {}, "B of [0, 2]"),
    "vectors": ({A: np.ones(64, F), B: np.ones(192, F)}, {}, "A of [64] and B of [192]"),
    "convolutions": ({A: np.ones((2, 64, 1, 1), F), B: np.ones((192, 2, 1, 1), F)}, {}, "have no product"),
    "integers": (TENSORS | {A: np.ones((2, 64), np.int8)}, {}, "is stored as i8, and not in floats"),
    "lengths without dora": (TENSORS | DORA, {}, "use_dora is False, which the tensors contradict"),
    "too few lengths": (
        TENSORS | {f"{QKV}.lora_magnitude_vector": np.ones(64, F)},
        {"use_dora": True},
        "[64] lengths for 192 rows",
    ),
    "lengths twice": (
        TENSORS | DORA | {f"{QKV}.lora_magnitude_vector.weight": np.ones(192, F)},
        {"use_dora": True},
        "is there twice",
    ),
    "lengths alone": (DORA, {"use_dora": True}, "has not one A and one B"),
    "dora of an embedding": (
        {
            "e.lora_embedding_A": np.ones((2, 9), F),
            "e.lora_embedding_B": np.ones((4, 2), F),
            "e.lora_magnitude_vector": np.ones(4, F),
        },
        {"use_dora": True},
        "DoRA of an embedding cannot be merged",
    ),
    "another part": (TENSORS | {f"{QKV}.lora_E": np.ones((2, 1), F)}, {}, "is no part of a LoRA"),
    "a bias of B": (TENSORS | {f"{QKV}.lora_B.bias": np.ones(192, F)}, {}, "is no part of a LoRA"),
    "an adapter's name": ({f"{QKV}.lora_A.default.weight": TENSORS[A]}, {}, "is no part of a LoRA"),
    "a wrapper": (
        TENSORS | {"lm_head.modules_to_save.weight": np.ones((4, 4), F)},
        {},
        "is no part of a LoRA",
    ),
    "no module": ({".lora_A.weight": TENSORS[A]}, {}, "is no part of a LoRA"),
    "whole twice": (
        TENSORS | {"lm_head.weight": np.ones((4, 4), F), "lm_head.base_layer.weight": np.ones((4, 4), F)},
        {},
        "is there twice",
    ),
    "nothing": ({}, {}, "holds no tensors"),
}


@pytest.mark.parametrize("case", PARTS)
def test_tensors_that_are_refused(tmp_path, refused, case):
    tensors, keys, says = PARTS[case]
    folder = write_adapter(tmp_path / "a", tensors, **keys)
    refused(open_adapter, folder, says=says)


def test_names_without_the_prefix_of_peft(tmp_path, refused):
    folder = write_adapter(tmp_path / "a", TENSORS)
    save_file(dict(TENSORS), folder / "adapter_model.safetensors")
    refused(open_adapter, folder, says="is no part of a LoRA", kind=UnsupportedModelError)


def test_files_that_are_missing(tmp_path):
    folder = write_adapter(tmp_path / "a", TENSORS)
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(MissingFileError, match=r"no adapter_model\.safetensors in this folder"):
        open_adapter(folder)
    (folder / "adapter_config.json").unlink()
    with pytest.raises(MissingFileError, match=r"no adapter_config\.json there"):
        open_adapter(folder)
    with pytest.raises(MissingFileError, match="no such file or folder"):
        open_adapter(tmp_path / "nothing")
    with pytest.raises(MissingFileError, match="it looks like a name on the Hugging Face hub"):
        open_adapter(Path("somebody/adapter"))
    with pytest.raises(InputError, match="File name too long"):
        open_adapter(tmp_path / ("x" * 300))


@pytest.mark.parametrize("text", ["", "[]", "{", '{"r": NaN}', '{"r": 1, "r": 2}', '{"lora_alpha": 1e999}'])
def test_a_configuration_that_is_no_json(tmp_path, refused, text):
    folder = write_adapter(tmp_path / "a", TENSORS)
    (folder / "adapter_config.json").write_text(text)
    refused(open_adapter, folder, says="adapter_config.json", kind=MalformedFileError)


def test_a_file_that_is_cut(tmp_path, refused):
    folder = write_adapter(tmp_path / "a", TENSORS)
    file = folder / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-10])
    refused(open_adapter, folder, says="truncated", kind=MalformedFileError)


def test_nan_is_found_before_anything_appears(tmp_path, model_folder):
    values = TENSORS[B].astype(ml_dtypes.bfloat16)
    values[7, 1] = np.nan
    folder = write_adapter(tmp_path / "a", TENSORS | {B: values})
    for allowed in (False, True):  # that is about the model
        with pytest.raises(phiconv.WeightError, match=rf"{PREFIX}{QKV}.lora_B.weight: the adapter holds NaN"):
            phiconv.convert(
                model_folder("phi3"), tmp_path / "o.gguf", lora=[folder], allow_nonfinite=allowed, jobs=1
            )
    assert not (tmp_path / "o.gguf").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a"]


def test_an_adapter_that_changes_meanwhile(tmp_path, model_folder):
    folder = write_adapter(tmp_path / "a", TENSORS)
    model = phiconv.open_model(model_folder("phi3"), lora=[folder])
    file = folder / "adapter_model.safetensors"
    content = file.read_bytes()
    file.unlink()
    file.write_bytes(content[:-4] + b"abcd")
    with pytest.raises(MalformedFileError, match="changed while it was"):
        phiconv.convert(model, tmp_path / "o.gguf")


def test_a_module_that_no_model_has(tmp_path, model_folder):
    folder = write_adapter(tmp_path / "a", low_rank("model.layers.7.self_attn.qkv_proj", 192, 64))
    with pytest.raises(UnsupportedModelError, match="the model has nothing of this name"):
        phiconv.open_model(model_folder("phi3"), lora=[folder])
    for name in (f"{QKV}.bias", "model.layers.0.input_layernorm.bias", "x.weight"):
        folder = write_adapter(tmp_path / name, {name: np.ones(192, np.float32)})
        with pytest.raises((UnsupportedModelError, ConfigError), match="module"):
            phiconv.open_model(model_folder("phi3"), lora=[folder])


@pytest.mark.parametrize(
    "shape", [((2, 63), (192, 2)), ((2, 64), (191, 2)), ((2, 64), (64, 2)), ((2, 192), (64, 2))]
)
def test_shapes_that_lie(tmp_path, model_folder, shape):
    a, b = (np.ones(s, np.float32) for s in shape)
    folder = write_adapter(tmp_path / "a", {A: a, B: b})
    with pytest.raises(ConfigError, match=r"but the model's is \[192, 64\]"):
        phiconv.open_model(model_folder("phi3"), lora=[folder])


def test_norms_of_another_length(tmp_path, model_folder):
    folder = write_adapter(
        tmp_path / "a", TENSORS | {"model.norm.weight": np.ones(65, np.float32)}, modules_to_save=["norm"]
    )
    with pytest.raises(ConfigError, match=r"\[65\], but the model's is \[64\]"):
        phiconv.open_model(model_folder("phi3"), lora=[folder])


def test_inspection(tmp_path):
    seen = phiconv.examine(stored_adapter("patterns"))
    assert seen.error is None
    assert seen.adapter is not None
    assert seen.found.format == "peft"
    broken = write_adapter(tmp_path / "a", TENSORS, use_qalora=True)
    assert phiconv.examine(broken).error is not None
    config = json.loads((stored_adapter("plain") / "adapter_config.json").read_text())
    assert phiconv.examine(stored_adapter("plain")).adapter.config == config
