"""What a writer writes, its reader reads: every format, with any settings that phiconv takes."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import Phase, example, given, settings
from hypothesis import strategies as st

import phiconv
from paths import FIXTURES
from phiconv.errors import PhiconvError

MODEL = FIXTURES / "tiny-phi4mini"
WRITERS = {
    "gguf": ("m.gguf", "q8_0"),
    "safetensors": ("m", None),
    "mlx": ("m", "8bit"),
    "onnx": ("m", "int8"),
    "openvino": ("m", "int8"),
    "compressed-tensors": ("m", "w8a16"),
}
EXAMPLES = int(os.environ.get("PHICONV_FUZZ_EXAMPLES", "0"))
PHASES = [Phase.explicit, Phase.generate]  # a conversion is slow: what fails is not made smaller
SAMPLING = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")

EDGES = [
    0, 0.0, -0.0, -1, -1.0, 1, 0.7, 40.0, 40.5, 1e-300, 1e-45, 1.1754942e-38, 1.1754943508222875e-38, 1e-30,
    3.4028234663852886e38, 3.4028235e38, 3.40282356e38, 1e39, 1.7e308, 10**400, 2**31 - 1, 2**31, -(2**31),
    -(2**31) - 1, 2**63, 2**64, True, None, "1", [],
]  # fmt: skip
NUMBERS = st.one_of(st.sampled_from(EDGES), st.floats(allow_nan=False, allow_infinity=False), st.integers())
POSITIVE = st.one_of(st.sampled_from(EDGES), st.floats(2.0**-126, 3.4e38), st.floats(1e-7, 1e7))
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
COUNTS = st.one_of(st.sampled_from(EDGES), st.integers(1, 1 << 20))
IDS = st.one_of(st.sampled_from(EDGES), st.integers(-2, 2200), st.lists(st.integers(-2, 2200), max_size=3))

CONFIG = {
    "rms_norm_eps": POSITIVE,
    "rope_theta": POSITIVE,
    "max_position_embeddings": COUNTS,
    "original_max_position_embeddings": COUNTS,
    "sliding_window": COUNTS,
    "bos_token_id": IDS,
    "eos_token_id": IDS,
    "pad_token_id": IDS,
    "_name_or_path": TEXTS,
    "torch_dtype": st.one_of(TEXTS, st.just("float16")),
    "unknown": NUMBERS,
}
SCALING = {"factor": POSITIVE, "attention_factor": POSITIVE, "long": POSITIVE, "short": POSITIVE}
GENERATION = {**dict.fromkeys(SAMPLING, NUMBERS), "do_sample": NUMBERS, "eos_token_id": IDS, "x": TEXTS}
TOKENIZER = {
    "chat_template": TEXTS,
    "add_bos_token": st.booleans(),
    "model_max_length": NUMBERS,
    "bos_token": st.one_of(TEXTS, st.just("<|endoftext|>")),
    "clean_up_tokenization_spaces": NUMBERS,
}
CARD = {"name": TEXTS, "author": TEXTS, "tags": st.lists(TEXTS, max_size=2), "base_model": TEXTS}


def some_of(keys):
    return st.fixed_dictionaries({}, optional=keys)


def folder_with(folder, config=(), scaling=(), generation=(), tokenizer=(), card=()):
    """The model with other settings; LongRoPE's factors are all the same number."""
    folder.mkdir()
    for path in MODEL.iterdir():
        if path.name.startswith(("model.", "tokenizer", "vocab", "merges", "special", "added")):
            shutil.copy(path, folder)
    read = {
        n: json.loads((MODEL / n).read_text())
        for n in ("config.json", "generation_config.json", "tokenizer_config.json")
    }
    rope, others = read["config.json"]["rope_scaling"], dict(scaling)
    for name in ("long", "short"):
        if name in others:
            rope[f"{name}_factor"] = [others.pop(name)] * len(rope[f"{name}_factor"])
    rope |= others
    read["config.json"] |= dict(config)
    read["generation_config.json"] |= dict(generation)
    read["tokenizer_config.json"] |= dict(tokenizer)
    for name, value in read.items():
        (folder / name).write_text(json.dumps(value))
    head = "".join(f"{key}: {json.dumps(value)}\n" for key, value in dict(card).items())
    (folder / "README.md").write_text(f"---\n{head}---\n", encoding="utf-8")
    return folder


def same(a, b):
    """Equal as float32."""
    return a == b or np.float32(a) == np.float32(b)


def written_and_read(target, where, **chosen):
    """Converts a model with some settings, if phiconv takes them; returns it, and what is read back."""
    name, quant = WRITERS[target]
    folder = folder_with(where / "source", **chosen)
    with contextlib.suppress(PhiconvError):
        source = phiconv.open_model(folder)
        phiconv.convert(source, where / name, to=target, quant=quant)
        return source, phiconv.open_model(where / name) if (where / name).exists() else None
    assert [p.name for p in where.iterdir()] in (["source"], []), "an output that is refused"
    return None, None


def check(target, **chosen):
    with tempfile.TemporaryDirectory() as where:
        source, again = written_and_read(target, Path(where), **chosen)
        if source is None:
            return
        ours, theirs = source.hyperparameters, again.hyperparameters
        assert same(ours.norm_epsilon, theirs.norm_epsilon)
        assert same(ours.rope.theta, theirs.rope.theta)
        assert all(map(same, ours.rope.long_factor, theirs.rope.long_factor))
        assert same(ours.rope.long_mscale, theirs.rope.long_mscale)
        assert ours.rope.original_context == theirs.rope.original_context
        assert ours.max_position_embeddings == theirs.max_position_embeddings
        for key in SAMPLING:
            if (found := again.card.generation.get(key)) is not None:
                assert same(found, source.card.generation[key])


def examples(target):
    return EXAMPLES or {"gguf": 25}.get(target, 5)


@pytest.mark.parametrize("target", WRITERS)
def test_any_settings(target):
    @settings(max_examples=examples(target), phases=PHASES)
    @given(some_of(CONFIG), some_of(SCALING), some_of(GENERATION), some_of(TOKENIZER), some_of(CARD))
    @example({"rope_theta": 3.4028235e38}, {}, {}, {}, {})
    @example({}, {"long": 3.4028235e38, "short": 1e-38}, {}, {}, {})
    def run(config, scaling, generation, tokenizer, card):
        check(target, config=config, scaling=scaling, generation=generation, tokenizer=tokenizer, card=card)

    run()


@pytest.mark.parametrize("target", WRITERS)
def test_any_generation_settings(target):
    """By themselves, since other settings are often refused."""

    @settings(max_examples=examples(target), phases=PHASES)
    @given(some_of(GENERATION), some_of(CARD))
    def run(generation, card):
        check(target, generation=generation, card=card)

    run()


@pytest.mark.parametrize("target", WRITERS)
def test_legal_sampling_settings_come_back(target, tmp_path):
    legal = {"temperature": 0.0, "top_k": -1, "top_p": 1, "min_p": 0, "repetition_penalty": 0}
    source, again = written_and_read(target, tmp_path, generation=legal)
    assert source is not None
    assert {key: again.card.generation.get(key) for key in legal} == legal


def test_what_a_gguf_cannot_hold_is_left_out_with_a_note(tmp_path):
    wrong = {
        "temperature": 1e39,
        "top_k": 2**31,
        "top_p": 1e-300,
        "min_p": 10**400,
        "repetition_penalty": 1.1,
    }
    result = phiconv.convert(folder_with(tmp_path / "m", generation=wrong), tmp_path / "m.gguf", quant="f16")
    notes = [n for n in result.plan.package.notes if n.startswith("generation_config.json: ")]
    assert len(notes) == 4
    assert all(any(key in note for note in notes) for key in list(wrong)[:4])
    assert phiconv.open_model(tmp_path / "m.gguf").card.generation == {"repetition_penalty": 1.1}


@pytest.mark.parametrize("key", ["rms_norm_eps", "rope_theta", "long", "factor", "attention_factor"])
@pytest.mark.parametrize("value", [1e-300, 1e-45, 3.4028236e38, 10**400, -1.0, 0])
def test_numbers_that_float32_has_not_are_refused_by_name(tmp_path, refused, key, value):
    part = "config" if key in CONFIG else "scaling"
    folder = folder_with(tmp_path / "m", **{part: {key: value}})
    error = refused(phiconv.open_model, folder, says=key)
    assert "float32" in str(error) or "positive" in str(error)
