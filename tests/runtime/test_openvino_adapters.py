"""OpenVINO GenAI applies adapters (LoRA) to what phiconv writes: it finds their modules in the graph."""

from __future__ import annotations

import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import phiconv
from adapters import STORED, stored_adapter
from openvino_runtime import STRICT

pytestmark = pytest.mark.runtime

SCALE = 2.0
"""PEFT's ``lora_alpha / r``, which GenAI is told, since it does not read adapter_config.json."""


def adapter(weights, modules, path):
    """Writes a random adapter as PEFT does, and returns what it adds to each weight."""
    random, tensors, added = np.random.default_rng(5), {}, {}
    for name, weight in weights.items():
        module = name.removesuffix(".weight")
        if module.rpartition(".")[2] in modules:
            a, b = (random.normal(0, 0.1, shape) for shape in ((4, weight.shape[1]), (weight.shape[0], 4)))
            tensors[f"base_model.model.{module}.lora_A.weight"] = a.astype(np.float32)
            tensors[f"base_model.model.{module}.lora_B.weight"] = b.astype(np.float32)
            added[name] = (SCALE * b @ a).astype(np.float32)
    save_file(tensors, path)
    return added


def greedy(model, ids, count):
    for _ in range(count):
        ids = np.append(ids, phiconv.logits(model, ids)[:, -1:].argmax(axis=-1), axis=1)
    return ids[0, -count:].tolist()


@pytest.mark.parametrize("backend", ["SDPA", "PA"])
@pytest.mark.parametrize(
    ("kind", "quant", "modules"),
    [
        ("phi3", "f32", "qkv_proj o_proj gate_up_proj down_proj lm_head"),
        ("phi3-gqa", "int4-asym-g32", "qkv_proj down_proj"),
        ("phi2", "f32", "q_proj v_proj dense fc1 fc2"),
        ("phi4mini", "f32", "o_proj lm_head"),
        ("llama3", "f32", "q_proj k_proj v_proj gate_proj up_proj"),
        ("phimoe", "f32", "q_proj o_proj"),
    ],
)
def test_an_adapter_of_the_hubs_names(openvino, genai, tmp_path, model_folder, kind, quant, modules, backend):
    phiconv.convert(model_folder(kind), tmp_path / "m", to="openvino", quant=quant)
    phiconv.convert(tmp_path / "m", tmp_path / "s", to="safetensors", quant="f32")
    file, config_file = tmp_path / "s" / "model.safetensors", tmp_path / "s" / "config.json"
    weights = load_file(file)
    if "lm_head" in modules and "lm_head.weight" not in weights:  # the adapter is one of the head alone
        config_file.write_text(
            json.dumps(json.loads(config_file.read_text()) | {"tie_word_embeddings": False})
        )
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"].copy()
    ids = np.random.default_rng(1).integers(0, 256, (1, 12))
    save_file(weights, file)
    plain = greedy(tmp_path / "s", ids, 8)
    added = adapter(weights, modules.split(), tmp_path / "adapter_model.safetensors")
    assert {name.split(".")[-2] for name in added} == set(modules.split())
    save_file({n: w + added[n] if n in added else w for n, w in weights.items()}, file)
    expected = greedy(tmp_path / "s", ids, 8)
    assert expected != plain

    chosen = genai.AdapterConfig(genai.Adapter(tmp_path / "adapter_model.safetensors"), SCALE)
    pipeline = genai.LLMPipeline(tmp_path / "m", "CPU", adapters=chosen, ATTENTION_BACKEND=backend, **STRICT)
    settings = {"max_new_tokens": 8, "do_sample": False, "ignore_eos": True}
    config = genai.GenerationConfig(**settings, eos_token_id=0, stop_token_ids={0})
    inputs = genai.TokenizedInputs(*(openvino.Tensor(x) for x in (ids, np.ones_like(ids))))
    assert pipeline.generate(inputs, config).tokens[0] == expected
    assert pipeline.generate(inputs, config, adapters=genai.AdapterConfig()).tokens[0] == plain


@pytest.mark.parametrize(("name", "alpha"), [("plain", 2.0), ("rslora", 3.0), ("apart", 2.0)])
def test_an_adapter_as_peft_saves_it(openvino, genai, tmp_path, model_folder, name, alpha):
    """GenAI answers as the model that it is merged into."""
    folder, lora = model_folder(STORED[name]), stored_adapter(name)
    phiconv.convert(folder, tmp_path / "m", to="openvino", quant="f32")
    ids = np.random.default_rng(1).integers(0, 256, (1, 12))
    expected = greedy(phiconv.open_model(folder, lora=[lora]), ids, 8)
    chosen = genai.AdapterConfig(genai.Adapter(lora / "adapter_model.safetensors"), alpha)
    pipeline = genai.LLMPipeline(tmp_path / "m", "CPU", adapters=chosen, **STRICT)
    settings = {"max_new_tokens": 8, "do_sample": False, "ignore_eos": True}
    config = genai.GenerationConfig(**settings, eos_token_id=0, stop_token_ids={0})
    inputs = genai.TokenizedInputs(*(openvino.Tensor(x) for x in (ids, np.ones_like(ids))))
    assert pipeline.generate(inputs, config).tokens[0] == expected
