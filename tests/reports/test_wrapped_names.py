"""Checkpoints whose names have what training left in them are read, and others say what they are."""

from __future__ import annotations

import json
import re
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import phiconv
from paths import FIXTURES
from phiconv.architectures import ARCHITECTURES
from phiconv.architectures.stored_names import unwrapped
from phiconv.errors import InputError, MalformedFileError, UnsupportedModelError
from phiconv.spelling import folded
from phiconv_formats.huggingface.quantized import METHODS

IDS = [[5, 9, 200, 31, 7]]


@pytest.fixture
def changed(make_model, tmp_path):
    """A copy of a random model whose tensors a function has changed, and the model."""

    def make(change, kind="llama3", **config):
        original = make_model(tmp_path / "original", kind, torch_dtype="float32", **config)
        folder = tmp_path / "changed"
        shutil.copytree(original, folder)
        save_file(change(load_file(original / "model.safetensors")), folder / "model.safetensors")
        return folder, original

    return make


def prefixed(prefix):
    return lambda tensors: {prefix + name: tensor for name, tensor in tensors.items()}


def inside(part):
    parts = (".self_attn.", ".mlp.")

    def change(tensors):
        names = {name: name for name in tensors}
        for place in parts:
            names = {old: new.replace(place, f".{part}{place[1:]}") for old, new in names.items()}
        return {names[old]: tensor for old, tensor in tensors.items()}

    return change


def without_root(tensors):
    return {name.removeprefix("model."): tensor for name, tensor in tensors.items()}


def with_trained_embedding(tensors):
    """PEFT keeps the original of a module that it trains as a whole."""
    rest = {n: t for n, t in tensors.items() if n != "model.embed_tokens.weight"}
    mine = tensors["model.embed_tokens.weight"]
    saved = {
        "model.embed_tokens.modules_to_save.default.weight": mine,
        "model.embed_tokens.original_module.weight": mine + 1,
    }
    return prefixed("base_model.model.")({**rest, **saved})


WRAPPED = {
    "DDP": prefixed("module."),
    "compile": prefixed("_orig_mod."),
    "DDP and compile": prefixed("module._orig_mod."),
    "PEFT": prefixed("base_model.model."),
    "DeepSpeed": prefixed("_forward_module."),
    "Lightning": prefixed("model._forward_module.module."),
    "multimodal": prefixed("language_model."),
    "FSDP": inside("_fsdp_wrapped_module."),
    "checkpointing": inside("_checkpoint_wrapped_module."),
    "FSDP and DDP": lambda t: prefixed("module._fsdp_wrapped_module.")(inside("_fsdp_wrapped_module.")(t)),
    "compiled layers": inside("_orig_mod."),
    "no root": without_root,
    "module without root": lambda t: prefixed("transformer.")(without_root(t)),
    "modules to save": with_trained_embedding,
}


@pytest.mark.parametrize("wrapper", WRAPPED)
@pytest.mark.parametrize("kind", ["llama3", "phi3", "phimoe"])
def test_wrappers_are_taken_off(changed, tmp_path, wrapper, kind):
    folder, original = changed(WRAPPED[wrapper], kind)
    expected = phiconv.logits(original, IDS)
    np.testing.assert_array_equal(phiconv.logits(folder, IDS), expected)
    phiconv.convert(folder, tmp_path / "o.gguf", quant="f32")
    phiconv.convert(original, tmp_path / "e.gguf", quant="f32")
    stored, wanted = (phiconv.open_model(tmp_path / f"{name}.gguf").stored for name in "oe")
    assert {n: phiconv.read(t).tobytes() for n, t in stored.items()} == {
        n: phiconv.read(t).tobytes() for n, t in wanted.items()
    }


def test_a_checkpoint_gets_its_own_names_back(changed, tmp_path):
    folder, original = changed(WRAPPED["FSDP and DDP"], "phi3")
    phiconv.convert(folder, tmp_path / "back", to="safetensors", quant="f32")
    stored, wanted = (phiconv.open_model(path).stored for path in (tmp_path / "back", original))
    assert stored.keys() == wanted.keys()


def test_what_is_not_known_after_that_is_refused(changed):
    folder, _ = changed(lambda t: prefixed("module.")(t) | {"other.weight": np.zeros((2, 2), np.float32)})
    with pytest.raises(MalformedFileError, match=r"1 tensor.* the first is other\.weight"):
        phiconv.open_model(folder)


def test_a_missing_weight_is_named_without_the_wrapper(changed):
    folder, _ = changed(lambda t: prefixed("module.")({n: x for n, x in t.items() if "1.mlp.up" not in n}))
    with pytest.raises(
        MalformedFileError, match=r"tensor model\.layers\.1\.mlp\.up_proj\.weight: .* missing"
    ):
        phiconv.open_model(folder)


def test_names_that_would_become_one_stay():
    phi3 = ARCHITECTURES["phi3"]
    assert unwrapped(["module.model.embed_tokens.weight", "model.embed_tokens.weight"], phi3) == {}
    assert unwrapped(["model.embed_tokens.weight"], phi3) == {}
    assert unwrapped(["something.else"], phi3) == {}
    assert unwrapped([], phi3) == {}


# ---------------------------------------------------------------------------- what another tool has quantized


def replaced(ends):
    """Every matrix of the layers in parts of a quantized checkpoint."""

    def change(tensors):
        result = {}
        for name, tensor in tensors.items():
            if "_proj.weight" not in name:
                result[name] = tensor
                continue
            stem = name.removesuffix("weight")
            result |= {stem + end: np.zeros((4, 4), dtype) for end, dtype in ends.items()}
        return result

    return change


QUANTIZED = {
    "gptq": {"qweight": np.int32, "qzeros": np.int32, "scales": np.float16, "g_idx": np.int32},
    "awq": {"qweight": np.int32, "qzeros": np.int32, "scales": np.float16},
    "compressed-tensors": {"weight_packed": np.int32, "weight_scale": np.float16, "weight_shape": np.int64},
    "bitsandbytes": {"weight": np.uint8, "weight.absmax": np.uint8, "weight.quant_map": np.float32},
    "fbgemm_fp8": {"weight": np.int8, "weight_scale": np.float32},
    "fp8": {"weight": np.uint8, "weight_scale_inv": np.float32},
}


@pytest.mark.parametrize("method", QUANTIZED)
@pytest.mark.parametrize("said", [True, False])
def test_quantized_checkpoints_are_named(changed, method, said):
    config = {"quantization_config": {"quant_method": method}} if said else {}
    folder, _ = changed(replaced(QUANTIZED[method]), "llama3", **config)
    if said and folded(method) in METHODS:  # then it is read, if it can be
        with pytest.raises(InputError, match=f"config_groups|bits: missing|{re.escape('layers.0.')}"):
            phiconv.open_model(folder)
        return
    with pytest.raises(UnsupportedModelError, match="is quantized already, by") as caught:
        phiconv.open_model(folder)
    assert "take the unquantized model" in str(caught.value)
    if said:
        assert f"by {method};" in str(caught.value)


def test_a_quantization_that_is_only_said_is_none(changed, tmp_path):
    config = {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}
    folder, original = changed(dict, "phi3", **config)
    np.testing.assert_array_equal(phiconv.logits(folder, IDS), phiconv.logits(original, IDS))
    phiconv.convert(folder, tmp_path / "o", to="safetensors")
    assert "quantization_config" not in json.loads((tmp_path / "o" / "config.json").read_text())


# --------------------------------------------------------------------------------------------------- adapters


def lora(tensors):
    name = "base_model.model.model.layers.0.self_attn.o_proj.lora_"
    return tensors | {f"{name}{part}.weight": np.zeros((4, 4), np.float32) for part in "AB"}


@pytest.fixture
def adapter(tmp_path):
    """A folder with adapter files, and perhaps the base's."""

    def make(*others, base="org/base"):
        folder = tmp_path / "adapter"
        folder.mkdir()
        save_file(lora({}), folder / "adapter_model.safetensors")
        (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": base, "r": 4}))
        for name in others:
            shutil.copy(FIXTURES / "tiny-phi3" / name, folder)
        return folder

    return make


@pytest.mark.parametrize("others", [(), ("config.json",), ("config.json", "tokenizer.json")])
def test_an_adapter_is_no_model(adapter, others):
    folder = adapter(*others)
    for path in (folder, folder / "adapter_model.safetensors"):
        with pytest.raises(UnsupportedModelError, match="this is an adapter of org/base, and no whole model"):
            phiconv.open_model(path)


@pytest.mark.parametrize("base", [None, 5, "", ["x"]])
def test_an_adapter_of_nothing(adapter, base):
    with pytest.raises(UnsupportedModelError, match="this is an adapter, and no whole model"):
        phiconv.open_model(adapter(base=base))


def test_an_adapter_beside_a_model_is_not_ignored(adapter):
    folder = adapter("config.json", "model.safetensors")
    for path in (folder, folder / "model.safetensors"):
        with pytest.raises(UnsupportedModelError, match="lies beside these weights, and would be ignored"):
            phiconv.open_model(path)


def test_an_adapter_by_its_tensors(changed):
    folder, _ = changed(lora)
    with pytest.raises(UnsupportedModelError, match="LoRA adapter"):
        phiconv.open_model(folder)
