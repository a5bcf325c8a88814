"""llama.cpp adds an adapter's own file to a model while it runs: the logits are PEFT's."""

from __future__ import annotations

import numpy as np
import pytest

import phiconv
from adapters import QKV, STORED, low_rank, merged_logits, stored_adapter, write_adapter
from llama_runtime import Runtime

pytestmark = pytest.mark.runtime


@pytest.fixture
def runtime(llama, model_folder, tmp_path):
    """Loads models, which are freed at the end."""
    loaded = []

    def load(kind):
        path = tmp_path / f"{kind}.gguf"
        phiconv.convert(model_folder(kind), path, quant="f32")
        loaded.append(Runtime(llama, path))
        return loaded[-1]

    yield load
    for each in loaded:
        llama.llama_model_free(each.model)


def write(source, path, base, **options):
    return phiconv.convert(source, path, base=base, adapter_only=True, **options)


@pytest.mark.parametrize("name", ["plain", "rslora", "patterns", "apart", "some"])
def test_logits_are_those_of_peft(runtime, model_folder, tmp_path, name):
    """Also with Llama's rows, which stand by turns, and with scales of their own."""
    write(stored_adapter(name), tmp_path / "a.gguf", model_folder(STORED[name]), quant="f32")
    ids, expected = merged_logits(name)
    model = runtime(STORED[name])
    adapter = model.adapter(tmp_path / "a.gguf")
    found = model.logits(ids[0], adapter=adapter)[::8]
    assert np.abs(found - expected).max() < 1e-3 * np.abs(expected).max()
    plain = model.logits(ids[0])[::8]
    assert np.abs(plain - expected).max() > 0.1 * np.abs(expected).max()


def test_several_adapters_of_one_matrix_and_an_embedding(runtime, model_folder, tmp_path):
    """Queries and values of a Phi-3, which llama.cpp has in one matrix, and both ends of the model."""
    names = {"model.embed_tokens": (2112, 64), "lm_head": (2112, 64)}
    names |= {f"model.layers.0.self_attn.{part}_proj": (64, 64) for part in "qv"}
    tensors = {}
    for seed, (name, shape) in enumerate(names.items()):
        tensors |= low_rank(name, *shape, rank=2 + 2 * seed, seed=seed)
    for part, other in (("A", "B"), ("B", "A")):  # PEFT has the embedding the other way round
        matrix = tensors.pop(f"model.embed_tokens.lora_{part}.weight")
        tensors[f"model.embed_tokens.lora_embedding_{other}"] = matrix.T
    pattern = {"lm_head": 4, "q_proj": 6, "v_proj": 8}
    folder = write_adapter(tmp_path / "a", tensors, rank_pattern=pattern)
    write(folder, tmp_path / "a.gguf", model_folder("phi3"))
    ids = np.arange(3, 27)[None]
    expected = phiconv.logits(phiconv.open_model(model_folder("phi3"), lora=[folder]), ids)[0]
    model = runtime("phi3")
    found = model.logits(ids[0], adapter=model.adapter(tmp_path / "a.gguf"))
    assert np.abs(found - expected).max() < 1e-3 * np.abs(expected).max()
    half = phiconv.logits(phiconv.open_model(model_folder("phi3"), lora=[(folder, 0.5)]), ids)[0]
    found = model.logits(ids[0], adapter=model.adapter(tmp_path / "a.gguf"), scale=0.5)
    assert np.abs(found - half).max() < 1e-3 * np.abs(half).max()


@pytest.mark.parametrize("quant", ["f16", "bf16"])
def test_smaller_types(runtime, model_folder, tmp_path, quant):
    folder = write_adapter(tmp_path / "a", low_rank(QKV, 192, 64))
    write(folder, tmp_path / "a.gguf", model_folder("phi3"), quant=quant)
    ids = np.arange(3, 27)[None]
    expected = phiconv.logits(phiconv.open_model(model_folder("phi3"), lora=[folder]), ids)[0]
    model = runtime("phi3")
    found = model.logits(ids[0], adapter=model.adapter(tmp_path / "a.gguf"))
    assert np.abs(found - expected).max() < 1e-2 * np.abs(expected).max()
