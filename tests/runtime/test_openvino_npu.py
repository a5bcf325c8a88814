"""OpenVINO GenAI's pipeline for NPUs, which has graphs of fixed sizes, goes on as NumPy does."""

from __future__ import annotations

import numpy as np
import pytest

import phiconv

pytestmark = pytest.mark.runtime

WINDOW = 24
NEAR = 0.005
"""Of the logits' deviation. The pipeline keeps keys and values in float16, so near ties may go either way."""


@pytest.fixture
def generate(openvino, genai):
    """Greedy continuations by the pipeline of a folder, which runs on a CPU here.

    It takes models of five layers or more.
    """
    if int(openvino.__version__.split(".")[0]) < 2026:
        pytest.skip("the pipeline of release 2025.4 has no such mask")

    def run(folder, prompts, count):
        options = {"NPUW_DEVICES": "CPU", "MAX_PROMPT_LEN": 64, "MIN_RESPONSE_LEN": 64}
        pipeline = genai.LLMPipeline(folder, "NPU", INFERENCE_PRECISION_HINT="f32", **options)
        config = genai.GenerationConfig(
            max_new_tokens=count, do_sample=False, ignore_eos=True, eos_token_id=0, stop_token_ids={0}
        )
        for ids in prompts:
            inputs = (openvino.Tensor(x) for x in (ids, np.ones_like(ids)))
            yield pipeline.generate(genai.TokenizedInputs(*inputs), config).tokens[0]

    return run


def prompts(model):
    """Shorter than the window, soon as long, as long, and longer."""
    for length in (5, 12, 24, 25, 60):
        yield np.random.default_rng(length).integers(0, model.hyperparameters.vocab_size, (1, length))


def chosen(model, ids, tokens):
    """How far each token is below the best one, in the logits' deviation."""
    logits = phiconv.logits(model, np.append(ids, [tokens], axis=1))[0, ids.shape[1] - 1 : -1]
    return (logits.max(axis=-1) - logits[np.arange(len(tokens)), tokens]) / logits.std()


@pytest.mark.parametrize("kind", ["phi3", "phi3-gqa"])
def test_a_sliding_window(generate, tmp_path, make_model, kind):
    folder = make_model(tmp_path / "s", kind, seed=7, num_hidden_layers=6, sliding_window=WINDOW)
    phiconv.convert(folder, tmp_path / "m", to="openvino", quant="f32")
    model = phiconv.open_model(folder)
    assert model.hyperparameters.sliding_window == WINDOW
    whole = make_model(tmp_path / "w", kind, seed=7, num_hidden_layers=6, sliding_window=None)
    differ = 0
    given = list(prompts(model))
    for ids, tokens in zip(given, generate(tmp_path / "m", given, 32), strict=True):
        assert chosen(model, ids, tokens).max() < NEAR
        differ += chosen(whole, ids, tokens).max() > NEAR
    assert differ == len(given)  # all of them are longer than the window at last


@pytest.mark.parametrize("kind", ["phi2", "phi4", "phi4mini", "qwen3"])
def test_models_whose_texts_fit_the_window(generate, tmp_path, make_model, kind):
    folder = make_model(tmp_path / "s", kind, seed=7, num_hidden_layers=6)
    phiconv.convert(folder, tmp_path / "m", to="openvino", quant="f32")
    model = phiconv.open_model(folder)
    given = list(prompts(model))
    for ids, tokens in zip(given, generate(tmp_path / "m", given, 16), strict=True):
        assert chosen(model, ids, tokens).max() < NEAR
