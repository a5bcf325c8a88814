"""Tokenizer metadata has the keys, types, values and order of llama.cpp's converter."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from paths import FIXTURES
from phiconv.errors import ConfigError
from phiconv.tokenization.tokenizer import AddedToken, Metaspace, Split, Tokenizer, TokenType
from phiconv_formats.gguf.values import ValueType
from phiconv_formats.gguf.vocabulary import name_for_runtime, tokenizer_metadata, tokenizer_notes
from phiconv_formats.tokenizers.folder import read_tokenizer

N, C, U = TokenType.NORMAL, TokenType.CONTROL, TokenType.USER_DEFINED

BYTE_BPE = Tokenizer(
    kind="byte-bpe",
    tokens=("a", "b", "ab", None, "<|tool|>", "x\u2581y", "<|end|>"),
    types=(N, N, N, TokenType.UNUSED, U, U, C),
    merges=(("a", "b"),),
    added=(AddedToken(4, "<|tool|>"), AddedToken(5, "x\u2581y"), AddedToken(6, "<|end|>", special=True)),
    special_ids={"bos": 6, "pad": 4, "eos": 6, "cls": 0},
    eos_ids=(6, 4),
    add_special={"bos": False, "eos": True, "sep": False},
    chat_templates={"default": "d", "tool use": "t"},
    split=Split("gpt2", ""),
)


def fixture(name):
    folder = FIXTURES / name
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return read_tokenizer(folder, vocab_size=config["vocab_size"], config=config)


def test_a_byte_level_tokenizer():
    metadata = tokenizer_metadata(BYTE_BPE, architecture="phi3", vocab_size=9)
    assert [(k, v.type.name, v.item_type and v.item_type.name, v.value) for k, v in metadata] == [
        ("tokenizer.ggml.model", "STRING", None, "gpt2"),
        ("tokenizer.ggml.pre", "STRING", None, "gpt-2"),
        ("tokenizer.ggml.tokens", "ARRAY", "STRING",
         ["a", "b", "ab", "[PAD3]", "<|tool|>", "x y", "<|end|>", "[PAD7]", "[PAD8]"]),
        ("tokenizer.ggml.token_type", "ARRAY", "INT32", [1, 1, 1, 5, 3, 4, 3, 5, 5]),
        ("tokenizer.ggml.merges", "ARRAY", "STRING", ["a b"]),
        ("tokenizer.ggml.bos_token_id", "UINT32", None, 6),
        ("tokenizer.ggml.padding_token_id", "UINT32", None, 4),
        ("tokenizer.ggml.eos_token_id", "UINT32", None, 6),
        ("tokenizer.ggml.add_bos_token", "BOOL", None, False),
        ("tokenizer.ggml.add_eos_token", "BOOL", None, True),
        ("tokenizer.ggml.add_sep_token", "BOOL", None, False),
        ("tokenizer.chat_template.tool_use", "STRING", None, "t"),
        ("tokenizer.chat_templates", "ARRAY", "STRING", ["tool_use"]),
        ("tokenizer.chat_template", "STRING", None, "d"),
    ]  # fmt: skip


def test_phi2_says_first_that_there_is_no_bos():
    metadata = tokenizer_metadata(replace(BYTE_BPE, add_special={}), architecture="phi2", vocab_size=7)
    assert [key for key, _ in metadata].count("tokenizer.ggml.add_bos_token") == 1
    assert (metadata[0][0], metadata[0][1].value) == ("tokenizer.ggml.add_bos_token", False)
    assert metadata[2][1].value == "phi-2"


@pytest.mark.parametrize(
    ("split", "pre"),
    [
        ("gpt2", "gpt-2"),
        ("cl100k", "dbrx"),
        ("o200k", "gpt-4o"),
        ("smollm", "smollm"),
        ("qwen2", "deepseek-r1-qwen"),
    ],
)
def test_the_name_of_the_split(split, pre):
    tokenizer = replace(BYTE_BPE, split=Split(split, ""))
    assert (
        dict(tokenizer_metadata(tokenizer, architecture="phi3", vocab_size=7))["tokenizer.ggml.pre"].value
        == pre
    )


def test_qwen2_composes_characters():
    tokenizer = replace(BYTE_BPE, split=Split("qwen2", ""), nfc=True)
    found = dict(tokenizer_metadata(tokenizer, architecture="qwen2", vocab_size=7))
    assert found["tokenizer.ggml.pre"].value == "qwen2"


def test_whole_words_as_tokens():
    tokenizer = replace(BYTE_BPE, split=Split("cl100k", ""), ignore_merges=True)
    found = dict(tokenizer_metadata(tokenizer, architecture="llama", vocab_size=7))
    assert found["tokenizer.ggml.pre"].value == "llama-bpe"
    assert list(found).count("tokenizer.ggml.add_bos_token") == 1


def test_phi3():
    tokenizer = fixture("tiny-phi3")
    metadata = dict(tokenizer_metadata(tokenizer, architecture="phi3", vocab_size=2112))
    assert list(metadata) == [
        "tokenizer.ggml.model", "tokenizer.ggml.pre", "tokenizer.ggml.tokens", "tokenizer.ggml.scores",
        "tokenizer.ggml.token_type", "tokenizer.ggml.bos_token_id", "tokenizer.ggml.eos_token_id",
        "tokenizer.ggml.unknown_token_id", "tokenizer.ggml.padding_token_id", "tokenizer.ggml.add_bos_token",
        "tokenizer.ggml.add_eos_token", "tokenizer.chat_template",
    ]  # fmt: skip
    tokens, scores, types = (
        metadata[f"tokenizer.ggml.{key}"].value for key in ("tokens", "scores", "token_type")
    )
    ids = [0, 1, 2, 3, 259, 300, 2048, 2058, 2059, 2111]
    assert [types[i] for i in ids] == [3, 3, 4, 6, 1, 1, 3, 3, 5, 5]
    own = tokenizer.scores
    assert [scores[i] for i in ids] == [
        -1000, -1000, -1000, 0, own[259], own[300], -1000, -1000, -10000, -10000
    ]  # fmt: skip
    assert (tokens[2058], tokens[2059], tokens[2111]) == ("<|user|>", "[PAD2059]", "[PAD2111]")
    assert metadata["tokenizer.ggml.scores"].item_type is ValueType.FLOAT32


def test_sentencepiece_without_dummy_prefix_says_so():
    tokenizer = fixture("tiny-phi3")
    options = replace(tokenizer.sentencepiece, add_dummy_prefix=False)
    changed = dict(
        tokenizer_metadata(replace(tokenizer, sentencepiece=options), architecture="phi3", vocab_size=2112)
    )
    assert changed["tokenizer.ggml.add_space_prefix"].value is False


def test_a_space_before_some_texts_only_is_told():
    tokenizer = fixture("tiny-phi3")
    assert tokenizer_notes(tokenizer, "Phi-3") == tokenizer_notes(None, "") == []
    assert tokenizer_notes(BYTE_BPE, "x") == []
    options = replace(tokenizer.sentencepiece, metaspace=Metaspace("first", split=False))
    assert "puts a space before" in tokenizer_notes(replace(tokenizer, sentencepiece=options), "Phi-3")[0]


def test_white_space_that_the_name_decides_about_is_told():
    tokenizer = fixture("tiny-phi3")
    for name, says in (("Phi 3", "together with"), ("Phi-3", None)):
        notes = tokenizer_notes(tokenizer, name)
        assert ([] if says is None else [f"11 added tokens, as '</s>', should be found {says}"]) == [
            note.split(" the white")[0] for note in notes
        ]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"split": Split(None, "Digits + ByteLevel")}, "text is split: Digits + ByteLevel"),
        ({"tokens": ("a", "b", "ab", None, "<|tool|>", "x", "[PAD3]")}, "tokens 3 and 6 are both '[PAD3]'"),
        ({"ignore_merges": True}, "no name for gpt2's way to split text with whole words as tokens"),
        ({"merges": ()}, "the tokenizer has no merges"),
        ({"tokens": (*BYTE_BPE.tokens, "c")}, "8 tokens, and the embedding has 7 rows"),
    ],
)
def test_what_the_runtime_cannot_do(change, says):
    with pytest.raises(ConfigError) as caught:
        tokenizer_metadata(replace(BYTE_BPE, **change), architecture="phi3", vocab_size=7)
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("name", "strips", "runtime_name"),
    [
        ("Phi 3 Mini 4k Instruct", True, "Phi-3 Mini 4k Instruct"),
        ("Phi 3.5 Mini", True, "Phi-3.5 Mini"),
        ("my_PHI_3", True, "my_PHI-3"),
        ("Phi-3 Mini", True, "Phi-3 Mini"),
        ("phi3", True, "phi3"),
        ("Assistant", True, "Assistant (Phi-3)"),
        ("", True, "(Phi-3)"),
        ("Phi 3 Mini", False, "Phi 3 Mini"),
        ("Phi-3 Mini", False, "Phi 3 Mini"),
        ("tiny-phi3 from Phi-3", False, "tiny-phi 3 from Phi 3"),
        ("Assistant", False, "Assistant"),
    ],
)
def test_the_name_that_makes_the_runtime_strip(name, strips, runtime_name):
    tokenizer = fixture("tiny-phi3")
    added = tuple(
        replace(token, rstrip=strips and token.content not in {"<s>", "<unk>", "<|endoftext|>"})
        for token in tokenizer.added
    )
    assert name_for_runtime(name, replace(tokenizer, added=added)) == runtime_name


def test_a_vocabulary_that_the_runtime_would_refuse_under_that_name():
    tokenizer = fixture("tiny-phi4mini")
    assert name_for_runtime("Phi-3 student", tokenizer) == "Phi 3 student"
    assert name_for_runtime("Phi 4 Mini", tokenizer) == "Phi 4 Mini"


def test_llama_says_first_what_its_settings_say_of_a_space():
    for said in (True, False, None):
        metadata = tokenizer_metadata(
            replace(BYTE_BPE, add_prefix_space=said), architecture="llama", vocab_size=7
        )
        first = [(key, value.value) for key, value in metadata[:1]]
        assert first == [
            ("tokenizer.ggml.add_space_prefix", said)
            if said is not None
            else ("tokenizer.ggml.model", "gpt2")
        ]
    tokenizer = fixture("tiny-phi3")
    options = replace(tokenizer.sentencepiece, add_dummy_prefix=False)
    changed = replace(tokenizer, sentencepiece=options, add_prefix_space=True)
    metadata = tokenizer_metadata(changed, architecture="llama", vocab_size=2112)
    spaces = [value.value for key, value in metadata if key == "tokenizer.ggml.add_space_prefix"]
    assert spaces == [False]


def test_a_llama_of_49152_tokens_says_last_that_it_has_no_bos():
    silent = replace(BYTE_BPE, add_special={})
    metadata = tokenizer_metadata(silent, architecture="llama", vocab_size=49152)
    assert (metadata[-1][0], metadata[-1][1].value) == ("tokenizer.ggml.add_bos_token", False)
    said = tokenizer_metadata(BYTE_BPE, architecture="llama", vocab_size=49152)
    assert [key for key, _ in said].count("tokenizer.ggml.add_bos_token") == 1
    assert said[-1][0] == "tokenizer.chat_template"
