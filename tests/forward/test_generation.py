"""A text that grows token by token against the whole of it computed at once."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import phiconv
from phiconv.errors import UsageError
from phiconv.forward import held, layers
from phiconv.forward.generation import Generation, KeysAndValues
from phiconv.forward.interpreter import compute
from phiconv.forward.ops import Attention
from phiconv.ir.model import Role
from phiconv.ir.rope import Rope
from references import relative_l2

IDS = np.random.default_rng(3).integers(0, 2000, 24).tolist()
KINDS = ("phi", "phi3-gqa", "phi4mini", "phimoe", "llama-bias", "qwen3")


def one_by_one(model, prompt, ids, **options):
    """The logits that follow the prompt, and each of the ids that it grows by."""
    generation = Generation(model, **options)
    return np.stack([generation.start(prompt), *map(generation.extend, ids)])


def check_like_whole(model, first):
    """Every step gives what the text up to there gives as a whole."""
    found = one_by_one(model, IDS[:first], IDS[first:])
    whole = [compute(model, [IDS[:n]]).at(np.array([n - 1]))[0] for n in range(first, len(IDS) + 1)]
    assert relative_l2(found, np.stack(whole)) < 1e-5
    assert (found.argmax(axis=-1) == np.stack(whole).argmax(axis=-1)).all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_growing_text(kind, model_folder):
    check_like_whole(phiconv.open_model(model_folder(kind)), 5)


@pytest.mark.parametrize("kind", ["phi3", "phimoe"])
@pytest.mark.parametrize("first", [1, 4, 11])
def test_a_window_forgets(kind, first, make_model, tmp_path):
    check_like_whole(phiconv.open_model(make_model(tmp_path, kind, sliding_window=7)), first)


@pytest.mark.parametrize("kind", ["phi4mini", "phimoe"])
@pytest.mark.parametrize("context", [9, 10, 16])
def test_long_factors_turn_all_tokens_again(kind, context, model_folder):
    model = phiconv.open_model(model_folder(kind))
    rope = replace(model.hyperparameters.rope, original_context=context)
    assert rope.short_factor != rope.long_factor
    check_like_whole(replace(model, hyperparameters=replace(model.hyperparameters, rope=rope)), 10)


@pytest.mark.parametrize("quant", ["f16", "q8", "q4"])
def test_what_is_held_is_what_is_read(quant, model_folder, tmp_path, monkeypatch):
    phiconv.convert(model_folder("phimoe"), tmp_path / "x.gguf", quant=quant)
    model = phiconv.open_model(tmp_path / "x.gguf")
    monkeypatch.setattr(held, "_ONE_TILE", 1 << 10)
    read = one_by_one(model, IDS[:5], IDS[5:12], memory=0)
    np.testing.assert_array_equal(one_by_one(model, IDS[:5], IDS[5:12], memory=1 << 30), read)
    np.testing.assert_array_equal(one_by_one(model, IDS[:5], IDS[5:12], memory=5000), read)


def test_weights_are_read_once_if_they_fit(model_folder, monkeypatch):
    model = phiconv.open_model(model_folder("phi3"))
    source = type(model.tensors[Role("output")].runs[0].source)
    read, original = [], source.read
    monkeypatch.setattr(
        source, "read", lambda self, start, stop: read.append(self.name) or original(self, start, stop)
    )
    generation = Generation(model, memory=1 << 30)
    generation.start(IDS[:3])
    generation.extend(5)
    read.clear()
    generation.extend(6)
    assert {name for name in read if "embed_tokens" not in name} == set()


def test_features_stand_for_embeddings(model_folder):
    model = phiconv.open_model(model_folder("phi4mini"))
    rope = replace(model.hyperparameters.rope, original_context=8)
    model = replace(model, hyperparameters=replace(model.hyperparameters, rope=rope))
    embedding = phiconv.read(model.tensors[Role("token_embedding")])
    expected = one_by_one(model, IDS[:6], IDS[6:10])

    hidden = [-1 if place in {1, 2, 5} else token for place, token in enumerate(IDS[:6])]
    generation = Generation(model)
    found = [generation.start(hidden, embedding[np.array(IDS)[[1, 2, 5]]])]
    found += map(generation.extend, IDS[6:10])
    np.testing.assert_array_equal(np.stack(found), expected)


@pytest.mark.parametrize(
    ("ids", "features"), [([], None), ([5, 99999], None), ([5, -1], None), ([5, -1], np.ones((2, 64)))]
)
def test_wrong_prompts(ids, features, model_folder):
    with pytest.raises(UsageError):
        Generation(phiconv.open_model(model_folder("phi3"))).start(ids, features)


@given(st.lists(st.integers(1, 90), min_size=1, max_size=12), st.none() | st.integers(1, 100))
def test_what_a_token_sees_is_kept(counts, window):
    kept = KeysAndValues(Attention(4, 2, 3, Rope(2, 1e4, 99), window), np.dtype(np.float32))
    numbers = np.arange(sum(counts) * 6, dtype=np.float32).reshape(-1, 2, 3)
    stop = 0
    for count in counts:
        kept.append(numbers[stop : stop + count], -numbers[stop : stop + count])
        stop += count
        seen = numbers[max(stop - (window or stop), 0) : stop].transpose(1, 0, 2)
        keys, values = kept.visible()
        np.testing.assert_array_equal(keys, seen)
        np.testing.assert_array_equal(values, -seen)


def test_attention_of_the_last_token():
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((30, heads, 8)).astype(np.float32) for heads in (6, 2, 2))
    expected = layers.attend(q, k, v, None)[-1]
    found = layers.attend_last(q[-1], k.transpose(1, 0, 2), v.transpose(1, 0, 2))
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_memory_to_spare_is_half_of_what_is_free(monkeypatch):
    texts = {"/proc/meminfo": "MemTotal: 9 kB\nMemAvailable:    4096 kB\n"}

    def read_text(path, **_):
        if str(path) not in texts:
            raise FileNotFoundError
        return texts[str(path)]

    monkeypatch.setattr(held.Path, "read_text", read_text)
    assert held.spare_memory() == 2 << 20
    texts["/sys/fs/cgroup/memory.max"] = "max\n"
    assert held.spare_memory() == 2 << 20
    texts["/sys/fs/cgroup/memory.max"] = "1048576\n"
    assert held.spare_memory() == 1 << 19
    del texts["/proc/meminfo"]
    assert held.spare_memory() == 0
