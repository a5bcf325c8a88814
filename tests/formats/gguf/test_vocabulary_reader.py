"""A tokenizer comes back from the metadata that says it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from phiconv.tokenization.tokenizer import AddedToken, Split, Tokenizer, TokenType
from phiconv_formats.gguf.entries import Entries
from phiconv_formats.gguf.values import GgufValue, ValueType
from phiconv_formats.gguf.vocabulary import SPLIT_OF_PRE, tokenizer_metadata
from phiconv_formats.gguf.vocabulary_reader import read_vocabulary

N, C = TokenType.NORMAL, TokenType.CONTROL

BYTE_BPE = Tokenizer(
    kind="byte-bpe",
    tokens=("a", "b", "ab", "<|im_end|>"),
    types=(N, N, N, C),
    merges=(("a", "b"),),
    added=(AddedToken(3, "<|im_end|>", special=True),),
    special_ids={"eos": 3},
    eos_ids=(3,),
    add_special={"bos": False},
    split=Split("gpt2", "gpt-2"),
)


def again(tokenizer, **changes):
    metadata = dict(tokenizer_metadata(tokenizer, architecture="llama", vocab_size=len(tokenizer)))
    values = {f"tokenizer.{key}": value for key, value in changes.items()}
    return read_vocabulary(Entries(metadata | values, Path("m.gguf")), len(tokenizer))


def text(value):
    return GgufValue(ValueType.STRING, value)


@pytest.mark.parametrize(
    ("split", "changes"),
    [
        (Split("gpt2", "gpt-2"), {}),
        (Split("cl100k", "dbrx"), {}),
        (Split("o200k", "gpt-4o"), {}),
        (Split("cl100k", "llama-bpe"), {"ignore_merges": True}),
        (Split("smollm", "smollm"), {}),
        (Split("qwen2", "qwen2"), {"nfc": True}),
        (Split("qwen2", "deepseek-r1-qwen"), {}),
    ],
)
def test_what_is_written_is_read(split, changes):
    tokenizer = replace(BYTE_BPE, split=split, **changes)
    assert again(tokenizer) == tokenizer


@pytest.mark.parametrize("pre", SPLIT_OF_PRE)
def test_other_names(pre):
    found = again(BYTE_BPE, **{"ggml.pre": text(pre)})
    assert found.split == Split(SPLIT_OF_PRE[pre], pre)
    assert found.nfc == (pre == "qwen2")
    assert found.ignore_merges == (pre in ("llama-bpe", "llama3", "llama-v3"))
    assert found.add_bos is False


def test_what_is_said_of_a_space_in_front():
    assert again(BYTE_BPE).add_prefix_space is None
    said = GgufValue(ValueType.BOOL, value=False)
    assert again(BYTE_BPE, **{"ggml.add_space_prefix": said}).add_prefix_space is False


def test_an_unknown_name_is_no_known_split():
    found = again(BYTE_BPE, **{"ggml.pre": text("falcon")})
    assert (found.split, found.nfc) == (Split(None, "falcon"), False)


def test_who_puts_bos_before_the_text_with_llama_bpe():
    silent = replace(BYTE_BPE, split=Split("cl100k", "llama-bpe"), ignore_merges=True, add_special={})
    assert again(silent).add_bos is False
    metadata = dict(tokenizer_metadata(silent, architecture="llama", vocab_size=len(silent)))
    del metadata["tokenizer.ggml.add_bos_token"]
    assert read_vocabulary(Entries(metadata, Path("m.gguf")), len(silent)).add_bos is True


def test_tokens_that_end_a_generation():
    texts = ("a", "<|eot_id|>", "<|x|>", "<reponame>")
    tokenizer = replace(BYTE_BPE, tokens=texts, types=(N, C, C, C), merges=(("a", "a"),), added=())
    metadata = dict(tokenizer_metadata(tokenizer, architecture="llama", vocab_size=4))
    metadata["tokenizer.ggml.merges"] = GgufValue(ValueType.ARRAY, [], ValueType.STRING)
    assert read_vocabulary(Entries(metadata, Path("m.gguf")), 4).eos_ids == (3, 1)
