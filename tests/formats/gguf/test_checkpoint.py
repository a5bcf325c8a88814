"""A GGUF opens as the same model as the folder that it was made of."""

from __future__ import annotations

import re
import struct
from dataclasses import replace

import numpy as np
import pytest

import phiconv
from phiconv.errors import ConfigError, InputError, MalformedFileError
from phiconv.ir.model import Role
from phiconv.tokenization.tokenizer import Split, TokenType
from phiconv_formats.gguf.config import _fraction
from phiconv_formats.gguf.entries import shortest
from phiconv_formats.gguf.values import GgufValue, ValueType, serialize_tensor_info

KINDS = [
    "phi", "phi-fp16", "phi2", "phi3", "phi3-gqa", "phi3-su", "phi3-sharded", "phi4", "phi4mini",
    "phi4mini-transformers5", "phimoe", "phimoe-transformers5", "phimoe-stacked", "phimoe-tiny",
    "llama", "llama3", "llama-bias", "qwen2", "qwen3-untied", "tiny-phi3", "tiny-phi4mini",
]  # fmt: skip
STRING = ValueType.STRING


def bits(tensor):
    return phiconv.read(tensor).view(np.uint32)


def through_float32(rope):
    """What is left of a rotary embedding: there is one factor for cos and sin, and it is a float32."""
    mscale = shortest(rope.short_mscale)
    formula = rope.longrope_mscale(4096 / rope.original_context, rope.original_context)
    mscale = formula if shortest(formula) == mscale else mscale
    return replace(rope, short_mscale=mscale, long_mscale=mscale)


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_model_as_the_folder(kind, model_folder, gguf_of):
    folder, file = phiconv.open_model(model_folder(kind)), phiconv.open_model(gguf_of(kind))
    assert (file.format, file.architecture) == ("gguf", folder.architecture)
    expected = folder.hyperparameters
    if expected.rope.long_factor:
        expected = replace(expected, rope=through_float32(expected.rope))
    assert file.hyperparameters == expected
    assert set(file.tensors) == set(folder.tensors)
    for role, tensor in folder.tensors.items():
        assert file.tensors[role].shape == tensor.shape
        assert np.array_equal(bits(file.tensors[role]), bits(tensor)), role


def as_a_gguf_says(tokenizer, pre, *, strips):
    """What is left of a tokenizer: this function is the list of what a file cannot say."""
    end_ids = [i for i, t in enumerate(tokenizer.tokens) if t in {"</s>", "<|end|>", "<|endoftext|>"}]
    added = []
    for token in tokenizer.added:
        looks = tokenizer.kind == "byte-bpe" and re.fullmatch(r"<\|.*\|>", token.content)
        stripped = strips and token.content not in {"<unk>", "<s>", "<|endoftext|>"}
        special = token.special or bool(looks)
        added.append(replace(token, special=special, rstrip=stripped, lstrip=False, normalized=False))
    types = list(tokenizer.types)
    for token in added:
        types[token.id] = TokenType.CONTROL if token.special else TokenType.USER_DEFINED
    return replace(
        tokenizer,
        merges=tokenizer.merges if tokenizer.kind == "byte-bpe" else (),
        types=tuple(types),
        added=tuple(added),
        eos_ids=tuple(dict.fromkeys([tokenizer.special_ids["eos"], *end_ids])),
        split=Split(tokenizer.split.name, pre) if tokenizer.split else None,
        add_prefix_space=None,
    )


@pytest.mark.parametrize("kind", ["phi", "phi3", "phi4mini", "phimoe-tiny", "tiny-phi3", "tiny-phi4mini"])
def test_the_same_tokenizer_as_the_folder(kind, model_folder, gguf_of):
    folder, file = phiconv.open_model(model_folder(kind)), phiconv.open_model(gguf_of(kind))
    name = file.metadata["general.name"].value.lower()
    strips = "phi-3" in name or "phi3" in name
    assert strips == (folder.tokenizer.kind == "sentencepiece")  # see `name_for_runtime`
    assert file.tokenizer == as_a_gguf_says(folder.tokenizer, "gpt-4o", strips=strips)


def test_decimals_come_back(gguf_of):
    config = phiconv.open_model(gguf_of("phi4mini")).card.config
    assert config["rms_norm_eps"] == 1e-5
    assert config["rope_scaling"]["short_factor"][1] == 1.0437
    assert "attention_factor" not in config["rope_scaling"]  # it is the formula's
    assert shortest(float(np.float32(0.1))) == 0.1


@pytest.mark.parametrize(("kind", "quant"), [("tiny-phi3", "Q4_K_M"), ("phimoe", "Q8_0"), ("phi", "Q4_0")])
def test_rows_of_quantized_weights(kind, quant, gguf_of):
    model = phiconv.open_model(gguf_of(kind, quant))
    stored = {name: phiconv.read(tensor) for name, tensor in model.stored.items()}
    hp, seen = model.hyperparameters, 0
    q, kv = hp.num_attention_heads * hp.head_dim, hp.num_key_value_heads * hp.head_dim
    for role, tensor in model.tensors.items():
        name = {"experts_up": "ffn_up_exps", "experts_down": "ffn_down_exps"}.get(role.name, role.name)
        rows = stored.get(f"blk.{role.layer}.{name}.{role.part}")
        if model.architecture == "phi3" and role.name in {"attn_q", "attn_k", "attn_v"}:
            start, stop = {"attn_q": (0, q), "attn_k": (q, q + kv), "attn_v": (q + kv, q + 2 * kv)}[role.name]
            rows = stored[f"blk.{role.layer}.attn_qkv.weight"][start:stop]
        if model.architecture == "phi3" and role.name in {"ffn_gate", "ffn_up"}:
            both = stored[f"blk.{role.layer}.ffn_up.weight"]
            rows = both[: len(both) // 2] if role.name == "ffn_gate" else both[len(both) // 2 :]
        if rows is not None:
            assert np.array_equal(phiconv.read(tensor), rows), role
            seen += 1
    assert seen >= hp.num_hidden_layers * 6
    assert all(
        t.encoding.name != "f32" for r, t in model.tensors.items() if r.name == "attn_q" and r[2] != "bias"
    )


def test_a_split_file(model_folder, gguf_of, tmp_path):
    first = phiconv.convert(
        model_folder("phi3"), tmp_path / "m.gguf", quant="F32", split_max_size=200_000
    ).files[0]
    split, whole = phiconv.open_model(first), phiconv.open_model(gguf_of("phi3"))
    assert split.hyperparameters == whole.hyperparameters
    assert split.tokenizer == whole.tokenizer
    assert all(np.array_equal(bits(split.tensors[role]), bits(whole.tensors[role])) for role in whole.tensors)


@pytest.mark.parametrize("kind", ["phi", "phimoe", "phi3-gqa"])
def test_queries_keys_and_values_fused_or_apart(kind, gguf_of, contents, gguf_bytes, tmp_path):
    path = gguf_of(kind)
    (entries, tensors), whole = contents(path), phiconv.open_model(path)
    hp = whole.hyperparameters
    q, kv = hp.num_attention_heads * hp.head_dim, hp.num_key_value_heads * hp.head_dim
    for name in list(tensors):
        if "attn_qkv" in name:
            parts = np.split(tensors.pop(name), [q, q + kv])
            tensors |= {name.replace("attn_qkv", f"attn_{p}"): v for p, v in zip("qkv", parts, strict=True)}
        elif "attn_q" in name:
            names = [name.replace("attn_q", f"attn_{p}") for p in "qkv"]
            tensors[name.replace("attn_q", "attn_qkv")] = np.concatenate([tensors.pop(n) for n in names])
    other = tmp_path / "other.gguf"
    other.write_bytes(gguf_bytes(entries, tensors))
    model = phiconv.open_model(other)
    assert set(model.stored) != set(whole.stored)
    for role, tensor in whole.tensors.items():
        assert np.array_equal(bits(model.tensors[role]), bits(tensor)), role


def test_fused_and_apart_at_once_is_refused(gguf_of, contents, gguf_bytes, tmp_path):
    entries, tensors = contents(gguf_of("phi"))
    tensors["blk.0.attn_qkv.weight"] = np.concatenate([tensors[f"blk.0.attn_{p}.weight"] for p in "qkv"])
    path = tmp_path / "x.gguf"
    path.write_bytes(gguf_bytes(entries, tensors))
    with pytest.raises(MalformedFileError, match=re.escape("the first is blk.0.attn_qkv.weight")):
        phiconv.open_model(path)


# ------------------------------------------------------------------------------------------- plain tensors


@pytest.mark.parametrize(
    ("key", "value"),
    [("general.architecture", "gemma"), ("general.type", "adapter"), ("general.type", "imatrix")],
)
def test_what_stays_plain_tensors(key, value, gguf_of, contents, gguf_bytes, tmp_path):
    entries, tensors = contents(gguf_of("phi3"))
    path = tmp_path / "x.gguf"
    path.write_bytes(gguf_bytes(entries | {key: GgufValue(STRING, value)}, tensors))
    model = phiconv.open_model(path)
    assert (model.architecture, model.tokenizer, model.tensors) == (None, None, {})
    assert set(model.stored) == set(tensors)
    again = phiconv.open_model(phiconv.convert(model, tmp_path / "y.gguf", quant="Q8_0").files[0])
    assert again.metadata[key].value == value
    assert again.stored["blk.0.ffn_down.weight"].encoding.name == "q8_0"


def test_a_type_that_cannot_be_decoded(gguf_of, contents, gguf_bytes, tmp_path):
    entries, tensors = contents(gguf_of("phi3"))
    data = gguf_bytes(entries, tensors | {"numbers": np.zeros(8, np.float32)})
    dimensions = serialize_tensor_info("numbers", (8,), 0, 0)[:-12]
    as_i32 = data.replace(dimensions + bytes(4), dimensions + struct.pack("<I", 26))
    (tmp_path / "x.gguf").write_bytes(as_i32)
    model = phiconv.open_model(tmp_path / "x.gguf")
    assert (model.architecture, model.stored["numbers"].encoding.name) == (None, "i32")


@pytest.mark.parametrize("kind", ["phi2", "phi3", "phimoe"])
def test_a_gguf_goes_on_as_it_is(kind, model_folder, gguf_of, tmp_path):
    direct = phiconv.convert(model_folder(kind), tmp_path / "direct.gguf", quant="Q8_0").files[0]
    again = phiconv.convert(gguf_of(kind), tmp_path / "again.gguf", quant="Q8_0").files[0]
    assert again.read_bytes() == direct.read_bytes()


def test_a_gguf_without_a_tokenizer(gguf_of, contents, gguf_bytes, tmp_path):
    entries, tensors = contents(gguf_of("phi3"))
    entries = {key: value for key, value in entries.items() if not key.startswith("tokenizer.")}
    path = tmp_path / "x.gguf"
    path.write_bytes(gguf_bytes(entries, tensors))
    model = phiconv.open_model(path)
    assert (model.architecture, model.tokenizer) == ("phi3", None)
    copied = phiconv.open_model(phiconv.convert(model, tmp_path / "y.gguf").files[0])
    assert list(copied.stored) == list(model.stored)


# ------------------------------------------------------------------------------------------------- refusals

U32, FLOAT, INTS = ValueType.UINT32, ValueType.FLOAT32, ValueType.INT32


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("phi3.block_count", None, "key phi3.block_count: missing"),
        ("phi3.block_count", GgufValue(STRING, "2"), "expected an integer, found '2' (STRING)"),
        ("phi3.block_count", GgufValue(U32, 2**32 - 1), "must be an integer from 0 on"),
        (
            "phi3.block_count",
            GgufValue(U32, 2**31 - 1),
            "model.layers.2.input_layernorm.weight: this tensor is",
        ),
        ("phi3.attention.head_count", GgufValue(U32, 0), "num_attention_heads: must be an integer"),
        ("phi3.attention.head_count", GgufValue(ValueType.ARRAY, [4, 4], U32), "found an array of UINT32"),
        ("phi3.attention.head_count_kv", GgufValue(U32, 3), "3 does not divide num_attention_heads"),
        ("phi3.attention.key_length", GgufValue(U32, 32), "self_attn.qkv_proj.weight: has shape [192, 64]"),
        ("phi3.attention.value_length", GgufValue(U32, 8), "is not the size of a key"),
        ("phi3.attention.layer_norm_rms_epsilon", None, "layer_norm_rms_epsilon: missing"),
        (
            "phi3.attention.layer_norm_rms_epsilon",
            GgufValue(FLOAT, float("nan")),
            "must be a positive number",
        ),
        ("phi3.rope.dimension_count", GgufValue(U32, 17), "rotates 17 of the 16 dimensions"),
        ("phi3.rope.freq_base", GgufValue(FLOAT, -1.0), "rope.freq_base: must be a positive number"),
        ("phi3.rope.scaling.type", GgufValue(STRING, "yarn"), "only longrope is supported"),
        ("phi3.rope.scaling.factor", GgufValue(FLOAT, 4.0), "only longrope is supported"),
        ("phi3.rope.scaling.attn_factor", GgufValue(FLOAT, 1.5), "there are no LongRoPE factors"),
        ("tokenizer.ggml.model", GgufValue(STRING, "bert"), "a tokenizer of the kind 'bert'"),
        ("tokenizer.ggml.scores", None, "tokenizer.ggml.scores: missing"),
        (
            "tokenizer.ggml.scores",
            GgufValue(ValueType.ARRAY, [0.0] * 9, FLOAT),
            "has 9 entries, where 2112 are",
        ),
        ("tokenizer.ggml.token_type", GgufValue(ValueType.ARRAY, [9] * 2112, INTS), "no token type 9"),
        ("tokenizer.ggml.tokens", None, "tokenizer.ggml.tokens: missing"),
        ("tokenizer.ggml.tokens", GgufValue(ValueType.ARRAY, ["a"] * 2112, STRING), "'a' is there twice"),
        (
            "tokenizer.ggml.tokens",
            GgufValue(ValueType.ARRAY, [f"t{i}" for i in range(2113)], STRING),
            "the id 2112 has no row in the embedding",
        ),
        (
            "tokenizer.ggml.tokens",
            GgufValue(ValueType.ARRAY, [*map(str, range(2111)), "\udcff"], STRING),
            "string 2111 is not valid UTF-8",
        ),
        (
            "tokenizer.chat_templates",
            GgufValue(ValueType.ARRAY, ["{arch}{0}"], STRING),
            "no template of the name",
        ),
    ],
)
def test_refused_keys(key, value, says, gguf_of, contents, gguf_bytes, tmp_path):
    entries, tensors = contents(gguf_of("phi3"))
    entries.pop(key, None)
    if value is not None:
        entries[key] = value
    path = tmp_path / "x.gguf"
    path.write_bytes(gguf_bytes(entries, tensors))
    with pytest.raises(InputError) as caught:
        phiconv.open_model(path)
    assert says in str(caught.value)
    assert str(caught.value).startswith(str(path))


@pytest.mark.parametrize(
    ("name", "array", "kind", "says"),
    [
        ("token_embd.weight", None, MalformedFileError, "tensor token_embd.weight: this tensor is missing"),
        (
            "rope_factors_short.weight",
            None,
            MalformedFileError,
            "rope_factors_short.weight: this tensor is missing",
        ),
        ("rope_factors_long.weight", np.ones(7), ConfigError, "has shape [7], but half of the rotated"),
        ("rope_factors_long.weight", np.zeros(12), MalformedFileError, "a divisor is not positive"),
        ("blk.0.attn_q.scale", np.ones(1), MalformedFileError, "the first is blk.0.attn_q.scale"),
        ("blk.٣.attn_qkv.weight", np.ones((256, 128)), MalformedFileError, "the first is blk.٣.attn_qkv"),
    ],
)
def test_refused_tensors(name, array, kind, says, gguf_of, contents, gguf_bytes, tmp_path):
    entries, tensors = contents(gguf_of("phi4mini"))
    tensors.pop(name, None)
    if array is not None:
        tensors[name] = array.astype(np.float32)
    path = tmp_path / "x.gguf"
    path.write_bytes(gguf_bytes(entries, tensors))
    with pytest.raises(kind, match=re.escape(says)):
        phiconv.open_model(path)


@pytest.mark.parametrize(
    ("key", "says"),
    [("phimoe.expert_count", "gate.weight: has shape [4, 64]"), ("phimoe.block_count", "missing")],
)
def test_huge_counts_cost_nothing(key, says, gguf_of, contents, gguf_bytes, tmp_path, refused):
    entries, tensors = contents(gguf_of("phimoe"))
    path = tmp_path / "x.gguf"
    path.write_bytes(gguf_bytes(entries | {key: GgufValue(U32, 2**31 - 1)}, tensors))
    refused(phiconv.open_model, path, says=says)


def test_every_partial_rotation_can_be_said():
    for head_dim in range(1, 257):
        for rotated in range(1, head_dim + 1):
            assert int(head_dim * _fraction(rotated, head_dim)) == rotated


def test_a_factor_of_its_own(gguf_of, contents, gguf_bytes, tmp_path):
    entries, tensors = contents(gguf_of("phi4mini"))
    entries["phi3.rope.scaling.attn_factor"] = GgufValue(FLOAT, 1.25)
    path = tmp_path / "x.gguf"
    path.write_bytes(gguf_bytes(entries, tensors))
    model = phiconv.open_model(path)
    assert model.hyperparameters.rope.long_mscale == 1.25
    assert Role("output") not in model.tensors
    assert model.hyperparameters.tie_word_embeddings
