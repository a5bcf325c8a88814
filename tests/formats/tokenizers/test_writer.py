"""What is written of a tokenizer is read as the same tokenizer."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

import phiconv
from phiconv.errors import ConfigError, UnsupportedModelError
from phiconv.tokenization.tokenizer import (
    AddedToken,
    Metaspace,
    SentencePieceOptions,
    Split,
    Tokenizer,
    TokenType,
)
from phiconv_formats.tokenizers.folder import read_tokenizer
from phiconv_formats.tokenizers.writer import tokenizer_files

N, C, U = TokenType.NORMAL, TokenType.CONTROL, TokenType.USER_DEFINED

BYTE_BPE = Tokenizer(
    kind="byte-bpe",
    tokens=("a", "b", "ab", None, "<|tool|>", "<|end|>"),
    types=(N, N, N, TokenType.UNUSED, U, C),
    merges=(("a", "b"),),
    added=(
        AddedToken(4, "<|tool|>", lstrip=True, normalized=True),
        AddedToken(5, "<|end|>", special=True, rstrip=True),
    ),
    special_ids={"bos": 5, "eos": 5, "pad": 4},
    add_special={"bos": False, "eos": False},
    chat_templates={"default": "{{ messages }} ü"},
    split=Split("gpt2", "ByteLevel"),
    add_prefix_space=False,
)  # fmt: skip
PIECES = Tokenizer(
    kind="sentencepiece",
    tokens=("<unk>", "<s>", "</s>", "<0x41>", "\u2581\u2581", "\u2581a", "\u2581", "a", "aa", "<x>"),
    types=(TokenType.UNKNOWN, C, C, TokenType.BYTE, N, N, N, N, N, C),
    scores=(0.0, 0.0, 0.0, 0.0, -0.0, -1.0, -3.0, -4.0, -2.0, 0.0),
    added=tuple(AddedToken(i, text, special=True) for i, text in ((1, "<s>"), (2, "</s>"), (9, "<x>"))),
    special_ids={"bos": 1, "eos": 2, "unk": 0},
    add_special={"bos": True},
    sentencepiece=SentencePieceOptions(),
)  # fmt: skip


@pytest.fixture
def again(tmp_path):
    """Writes a tokenizer and reads it."""

    def run(tokenizer, vocab_size=None):
        for name, content in tokenizer_files(tokenizer).items():
            (tmp_path / name).write_bytes(content)
        return read_tokenizer(tmp_path, vocab_size=vocab_size or len(tokenizer), config={})

    return run


def content(tokenizer):
    return json.loads(tokenizer_files(tokenizer)["tokenizer.json"])


@pytest.mark.parametrize("kind", ["tiny-phi3", "tiny-phi4mini"])
def test_the_fixtures_come_back(kind, model_folder, again):
    tokenizer = phiconv.open_model(model_folder(kind)).tokenizer
    found = again(tokenizer)
    # Which ids end a generation stands elsewhere; scores are made up from merges.
    same = {"eos_ids": tokenizer.eos_ids, "scores": tokenizer.scores}
    if tokenizer.split:
        same["split"] = tokenizer.split  # the same split in another spelling
        assert found.split.name == tokenizer.split.name
    assert replace(found, **same) == tokenizer
    merged = sorted(range(259, len(tokenizer.scores[:2048])), key=lambda i: -tokenizer.scores[i])
    assert merged == sorted(merged, key=lambda i: -found.scores[i])


def test_flags_templates_and_gaps(again):
    assert again(BYTE_BPE) == BYTE_BPE
    named = replace(BYTE_BPE, chat_templates={"default": "d", "tool_use": "t"})
    assert again(named) == named


@pytest.mark.parametrize("split", ["cl100k", "o200k", "qwen2", "smollm"])
def test_splits(split, again):
    assert again(replace(BYTE_BPE, split=Split(split, ""))).split.name == split


def test_nfc_and_whole_words(again):
    assert again(replace(BYTE_BPE, nfc=True)).nfc
    whole_words = replace(BYTE_BPE, ignore_merges=True)
    assert again(whole_words) == whole_words


def test_tokens_around_the_text(again):
    both = replace(BYTE_BPE, add_special={"bos": True, "eos": True}, special_ids={"bos": 4, "eos": 5})
    found = again(both)
    assert (found.add_bos, found.add_eos, dict(found.special_ids)) == (True, True, {"bos": 4, "eos": 5})


def test_merges_from_scores():
    model = content(PIECES)["model"]
    # The best score first; no control token or byte takes part.
    assert model["merges"] == [["\u2581", "\u2581"], ["\u2581", "a"], ["a", "a"]]
    assert [value for key, value in model.items() if key.startswith("unk")] == ["<unk>"]


def test_sentencepiece_options(again):
    charsmap = b"\4\0\0\0\0\1\2\3"
    options = SentencePieceOptions(add_dummy_prefix=False, remove_extra_whitespaces=True, charsmap=charsmap)
    assert again(replace(PIECES, sentencepiece=options)).sentencepiece == options


@pytest.mark.parametrize("scheme", ["always", "first", "never"])
def test_metaspace(scheme, again):
    options = SentencePieceOptions(
        add_dummy_prefix=scheme != "never", metaspace=Metaspace(scheme, split=scheme != "first")
    )
    assert again(replace(PIECES, sentencepiece=options)).sentencepiece == options


def test_refusals():
    with pytest.raises(UnsupportedModelError, match=r"splits text is not known: llama-bpe"):
        tokenizer_files(replace(BYTE_BPE, split=Split(None, "llama-bpe")))
    with pytest.raises(ConfigError, match="one text"):
        tokenizer_files(replace(BYTE_BPE, tokens=("a", "b", "ab", "a", "<|tool|>", "<|end|>")))
    with pytest.raises(ConfigError, match=r"no valid Unicode: \\ud800"):
        tokenizer_files(replace(BYTE_BPE, tokens=("a", "b", "ab", "\ud800", "<|tool|>", "<|end|>")))
