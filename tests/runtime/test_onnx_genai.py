"""ONNX folders: ONNX Runtime GenAI loads them, tokenizes, and generates what transformers does."""

from __future__ import annotations

import json

import numpy as np
import pytest

import phiconv
from paths import FIXTURES

pytestmark = pytest.mark.runtime


@pytest.fixture(scope="module")
def genai():
    return pytest.importorskip("onnxruntime_genai", reason="onnxruntime-genai is not installed")


def convert(source, folder, quant):
    return phiconv.convert(source, folder, to="onnx", quant=quant)


def generate(genai, folder, ids, count):
    model = genai.Model(str(folder))
    options = genai.GeneratorParams(model)
    options.set_search_options(max_length=len(ids) + count, do_sample=False)
    generator = genai.Generator(model, options)
    generator.append_tokens(ids)
    tokens = []
    while not generator.is_done() and len(tokens) < count:
        generator.generate_next_token()
        tokens.append(int(generator.get_next_tokens()[0]))
    return tokens


@pytest.mark.parametrize("name", ["tiny-phi3", "tiny-phi4mini"])
def test_genai_generates_what_transformers_does(genai, tmp_path, name):
    convert(FIXTURES / name, tmp_path / "m", "f32")
    ends = phiconv.open_model(FIXTURES / name).tokenizer.eos_ids
    for item in json.loads((FIXTURES / name / "generations.json").read_text())["items"]:
        expected = item["greedy_ids"]
        stop = next((i + 1 for i, token in enumerate(expected) if token in ends), len(expected))
        assert generate(genai, tmp_path / "m", item["prompt_ids"], len(expected)) == expected[:stop]


@pytest.mark.parametrize("kind", ["phi", "phi2", "phi3-gqa", "phimoe"])
def test_genai_generates_what_numpy_does(genai, model_folder, tmp_path, kind):
    convert(model_folder(kind), tmp_path / "m", "f32")
    prompt = list(range(100, 120))
    expected = list(phiconv.generate(model_folder(kind), prompt, 12))
    assert generate(genai, tmp_path / "m", prompt, 12) == expected


@pytest.mark.parametrize("kind", ["phi4mini", "phimoe", "llama3", "qwen3"])
def test_genai_generates_with_a_quantized_model(genai, model_folder, tmp_path, kind):
    convert(model_folder(kind), tmp_path / "m", "q4")
    assert len(generate(genai, tmp_path / "m", list(range(100, 120)), 8)) == 8


def test_genai_tokenizes_and_fills_in_the_chat_template(genai, tmp_path):
    convert(FIXTURES / "tiny-phi3", tmp_path / "m", "q4")
    tokenizer = genai.Tokenizer(genai.Model(str(tmp_path / "m")))
    from phiconv.tokenization.encoder import encode

    text = "Once upon a time, 12 * 34 = 408?"
    own = phiconv.open_model(FIXTURES / "tiny-phi3").tokenizer
    assert tokenizer.encode(text).tolist() == list(encode(own, text))
    filled = tokenizer.apply_chat_template(
        json.dumps([{"role": "user", "content": "Hi"}]), add_generation_prompt=True
    )
    assert "<|user|>" in filled
    assert "Hi" in filled


def test_genai_finds_a_model_of_another_name(genai, tmp_path):
    phiconv.convert(FIXTURES / "tiny-phi3", tmp_path / "small.onnx", quant="q4")
    assert len(generate(genai, tmp_path, [374, 457, 999], 4)) == 4


def logits_of(folder, ids):
    """What ONNX Runtime computes without a cache."""
    session = pytest.importorskip("onnxruntime").InferenceSession(str(folder / "model.onnx"))
    feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    for given in session.get_inputs():
        if given.name.startswith("past"):
            feeds[given.name] = np.zeros((1, given.shape[1], 0, given.shape[3]), np.float32)
    return session.run(["logits"], feeds)[0]


def test_genai_takes_a_text_up_again_where_the_long_factors_begin(genai, make_model, tmp_path):
    """That is at token 4097, as in every published model: from there on all keys are rotated by them."""
    sizes = {"num_hidden_layers": 1, "max_position_embeddings": 8192}
    source = make_model(tmp_path / "s", "phi3-su", seed=7, original_max_position_embeddings=4096, **sizes)
    result = convert(source, tmp_path / "m", "f32")
    assert not result.plan.package.notes
    prompt = (np.arange(4092) * 37 % 2000).tolist()
    tokens = generate(genai, tmp_path / "m", prompt, 10)
    text = np.array([prompt + tokens])
    for stop in (4096, 4102):  # without a cache: short factors alone, then long ones alone
        logits = logits_of(tmp_path / "m", text[:, :stop])
        expected = logits[0].argmax(axis=-1)
        known = range(4092, 4097) if stop == 4096 else range(4097, 4102)
        assert [text[0, i] for i in known] == [expected[i - 1] for i in known]
