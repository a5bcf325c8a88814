"""Files of Google's own converter: what it keeps no names and no config.json of is found again."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import phiconv
from make_litert import EXPORTS, FILES, source
from paths import FIXTURES
from phiconv import ir
from phiconv.conversion.plans import LOSSLESS
from phiconv.quantizers import decode, encode
from phiconv.tokenization import encoder

KINDS = {"wi8": "litert_int8", "wi4": "litert_int4", "wi4b32": "litert_int4_b32"}
KEPT = [(name, what) for name, (*_, kept) in EXPORTS.items() for what in kept]


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """``exported(name, what)``: a file of fixtures/litert, and the model that it was made of."""
    root = tmp_path_factory.mktemp("litert")

    def unpack(name, what):
        folder = root / name
        if not folder.exists():
            source(folder, name)
            for file in folder.iterdir():
                if what != "container" and file.name not in ("config.json", "model.safetensors"):
                    file.unlink()
        path = root / f"{name}-{FILES[what]}"
        if not path.exists():
            with np.load(FIXTURES / "litert" / f"{name}.npz") as content:
                path.write_bytes(content[what].tobytes())
        return path, folder

    return unpack


@pytest.mark.parametrize(("name", "what"), KEPT)
def test_every_weight_is_found_again(exported, name, what):
    """Exactly: floats are the source's, integers those that phiconv makes of it."""
    path, folder = exported(name, what)
    model, original = phiconv.open_model(path), phiconv.open_model(folder)
    assert model.tensors.keys() == original.tensors.keys()
    kinds = set()
    for role, tensor in model.tensors.items():
        expected = phiconv.read(original.tensors[role])
        if isinstance(tensor.encoding, ir.BlockEncoding):
            expected = decode(encode(expected, tensor.encoding), tensor.columns)
            kinds.add(tensor.encoding.name.partition("_g")[0])
        assert np.array_equal(phiconv.read(tensor), expected), role
    assert kinds == ({KINDS[EXPORTS[name][2].split("_")[-2]]} if what != "floats" else set())


@pytest.mark.parametrize(("name", "what"), KEPT)
def test_what_config_json_would_say_is_told_from_the_graph(exported, name, what):
    """All but for how many positions the model was trained: a graph has those of its cache."""
    path, folder = exported(name, what)
    found, expected = (phiconv.open_model(each).hyperparameters for each in (path, folder))
    assert found.max_position_embeddings == 32
    rope = replace(expected.rope, original_context=found.rope.original_context)
    assert found == replace(expected, max_position_embeddings=32, rope=rope)


def test_a_config_json_says_more(exported):
    path, folder = exported("qwen3", "integers")
    model = phiconv.open_model(path, config=folder)
    assert model.hyperparameters == phiconv.open_model(folder).hyperparameters


def test_a_container_has_tokenizer_and_template(exported):
    path, folder = exported("qwen2", "container")
    own, original = (phiconv.open_model(each).tokenizer for each in (path, folder))
    text = "a list of 3.5 \u00e9\u4e2d\n\tx"
    assert encoder.encode(own, text) == encoder.encode(original, text)
    assert own.chat_templates == original.chat_templates
    assert set(own.eos_ids) <= set(original.eos_ids)
    assert own.eos_ids


def test_blocks_are_not_quantized_again(exported, tmp_path):
    path, _ = exported("qwen2", "container")
    choices = phiconv.Choices(pure=True)
    plan = phiconv.convert(path, tmp_path / "m.gguf", quant="Q4_0", choices=choices).plan
    assert {t.action for t in plan.tensors} <= {*LOSSLESS}
    assert sum(t.action == "repacked" for t in plan.tensors) == 15
    plan = phiconv.convert(path, tmp_path / "m.litertlm").plan
    assert {t.action for t in plan.tensors} == {"copied"}


def test_a_family_that_phiconv_does_not_know_is_named(exported, tmp_path):
    path, _ = exported("llama", "integers")
    other = tmp_path / "other.tflite"
    other.write_bytes(path.read_bytes().replace(b"LlamaForCausalLM_", b"OlmoeForCausalLM_"))
    with pytest.raises(phiconv.UnsupportedModelError, match="model OlmoeForCausalLM: this architecture"):
        phiconv.open_model(other)


def test_what_the_graph_does_not_say_for_certain_is_asked_for(exported, tmp_path):
    """Frequencies that no base gives: somebody has scaled them."""
    path, folder = exported("llama", "integers")
    frequencies = np.array(
        phiconv.open_model(path).hyperparameters.rope.inverse_frequencies(long=False), np.float32
    )
    scaled = frequencies.copy()
    scaled[3:] /= 8
    other = tmp_path / "other.tflite"
    data = path.read_bytes()
    assert data.count(frequencies.tobytes())
    other.write_bytes(data.replace(frequencies.tobytes(), scaled.tobytes()))
    with pytest.raises(phiconv.errors.MissingFileError, match=r"rotary embedding with certainty.*--config"):
        phiconv.open_model(other)
    assert phiconv.open_model(other, config=folder).architecture == "llama"
