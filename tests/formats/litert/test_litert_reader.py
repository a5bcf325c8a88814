"""LiteRT files as a source: everything comes back, and blocks are not quantized again."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

import phiconv
from paths import FIXTURES
from phiconv.conversion.plans import LOSSLESS
from phiconv.recipes import override
from phiconv.tokenization.encoder import encode

TRAINED = ["tiny-phi3", "tiny-phi4mini"]


def same_weights(a, b):
    """Whether all tensors of two models have the same numbers."""
    a, b = phiconv.open_model(a), phiconv.open_model(b)
    assert a.tensors.keys() == b.tensors.keys()
    assert a.hyperparameters == b.hyperparameters
    return all(np.array_equal(phiconv.read(a.tensors[r]), phiconv.read(b.tensors[r])) for r in a.tensors)


@pytest.mark.parametrize("end", ["litertlm", "tflite"])
@pytest.mark.parametrize("name", [*TRAINED, "phi2", "qwen2"])
def test_floats_come_back(tmp_path, model_folder, name, end):
    path = tmp_path / f"m.{end}"
    phiconv.convert(model_folder(name), path, quant="f32")
    assert same_weights(path, model_folder(name))


def test_a_file_says_all_that_it_was_made_of(tmp_path):
    for name in TRAINED:
        path = tmp_path / "m.litertlm"
        phiconv.convert(FIXTURES / name, path, quant="wi8", force=True)
        own, source = phiconv.open_model(path), phiconv.open_model(FIXTURES / name)
        text = "a list of <|end|> 3.5 \u00e9\u4e2d\n\tx"
        for model in (own, source):
            assert model.tokenizer is not None
        assert encode(own.tokenizer, text) == encode(source.tokenizer, text)
        assert own.tokenizer.eos_ids == source.tokenizer.eos_ids
        assert own.tokenizer.chat_templates == source.tokenizer.chat_templates
        assert dict(own.tokenizer.special_ids) == dict(source.tokenizer.special_ids)
        assert dict(own.card.generation) == dict(source.card.generation)


@pytest.mark.parametrize("quant", ["wi8", "wi4", "wi4b32", "wi4b64", "f16"])
def test_a_second_file_is_the_first(tmp_path, quant):
    first, second = tmp_path / "a.litertlm", tmp_path / "b.litertlm"
    phiconv.convert(FIXTURES / "tiny-phi3", first, quant=quant)
    plan = phiconv.convert(first, second, quant=quant).plan
    assert {t.action for t in plan.tensors} == {"copied"}
    assert same_weights(first, second)
    phiconv.convert(first, tmp_path / "c.litertlm")  # as it is
    assert same_weights(first, tmp_path / "c.litertlm")
    assert phiconv.plan(first, tmp_path / "d.litertlm").recipe == quant


def test_blocks_become_those_of_llama_cpp(tmp_path):
    choices = phiconv.Choices(match_runtime=True)
    phiconv.convert(FIXTURES / "tiny-phi3", tmp_path / "m.litertlm", quant="wi4b32", choices=choices)
    plan = phiconv.convert(
        tmp_path / "m.litertlm", tmp_path / "m.gguf", quant="Q4_0", choices=phiconv.Choices(pure=True)
    ).plan
    assert {t.action for t in plan.tensors} <= {*LOSSLESS}
    assert sum(t.action == "repacked" for t in plan.tensors) > 20
    assert same_weights(tmp_path / "m.litertlm", tmp_path / "m.gguf")


def test_blocks_of_llama_cpp_are_others(tmp_path):
    """Half of Q4_0's scales are negative, and LiteRT has none: that is a second quantization, and said."""
    phiconv.convert(
        FIXTURES / "tiny-phi3", tmp_path / "m.gguf", quant="Q4_0", choices=phiconv.Choices(pure=True)
    )
    with pytest.raises(phiconv.UnsupportedModelError, match="--allow-requantize"):
        phiconv.plan(tmp_path / "m.gguf", tmp_path / "m.litertlm", quant="wi4b32")


def test_a_graph_alone_needs_a_tokenizer_to_become_more(tmp_path):
    phiconv.convert(FIXTURES / "tiny-phi3", tmp_path / "m.tflite", quant="wi8")
    with pytest.raises(phiconv.errors.MissingFileError, match="no tokenizer"):
        phiconv.plan(tmp_path / "m.tflite", tmp_path / "x.litertlm")
    model = phiconv.open_model(tmp_path / "m.tflite", config=FIXTURES / "tiny-phi3")
    assert phiconv.plan(model, tmp_path / "x.litertlm").recipe == "wi8"


def test_a_file_is_known_by_what_is_in_it(tmp_path):
    for end in ("litertlm", "tflite"):
        phiconv.convert(FIXTURES / "tiny-phi3", tmp_path / f"m.{end}", quant="wi8")
        shutil.copy(tmp_path / f"m.{end}", tmp_path / f"{end}.dat")
        assert phiconv.open_model(tmp_path / f"{end}.dat").format == "litert"


def test_types_of_single_matrices_come_back(tmp_path):
    types = (override("lm_head=f16"), override(r"layers\.0\.mlp=wi4b64"), override("q_proj=f32"))
    choices = phiconv.Choices(tensor_types=types)
    phiconv.convert(FIXTURES / "tiny-phi3", tmp_path / "m.tflite", quant="wi4", choices=choices)
    found = {n: t.encoding.name for n, t in phiconv.open_model(tmp_path / "m.tflite").stored.items()}
    assert found["lm_head.weight"] == "f16"
    assert found["model.layers.0.mlp.down_proj.weight"] == "litert_int4_b64"
    assert found["model.layers.1.mlp.down_proj.weight"] == "litert_int4_g768"
    assert found["model.layers.1.self_attn.q_proj.weight"] == "f32"
    assert found["model.embed_tokens.weight"] == "litert_int8_g256"


def test_inspect_says_what_a_runtime_will_find(tmp_path):
    for target, cache in (("cpu", "grows"), ("gpu", "512 positions")):
        path = tmp_path / f"{target}.litertlm"
        choices = phiconv.Choices(context=512, target=target)
        phiconv.convert(FIXTURES / "tiny-phi3", path, quant="wi8", choices=choices)
        found = phiconv.open_model(path).metadata
        assert cache in found["cache"]
        assert found["signatures"].startswith("decode, prefill")
        assert "12 DYNAMIC_UPDATE_SLICE" in found["operators that XNNPACK does not take"]
        assert "tf_lite_prefill_decode" in found["section 2"]
        assert ("backend_constraint cpu" in found["section 2"]) is (target == "cpu")
