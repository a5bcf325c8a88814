"""How a tokenizer.json splits text is read from what it says, whatever its vocabulary."""

from __future__ import annotations

import json

import pytest

from paths import FIXTURES
from phiconv.errors import ConfigError
from phiconv.tokenization.tokenizer import GPT2_SPLIT, SPLITS
from phiconv_formats.tokenizers.folder import read_tokenizer


@pytest.fixture
def read(tmp_path):
    """Reads the fixture's tokenizer.json with other values of some keys."""

    def make(**changes):
        data = json.loads((FIXTURES / "tiny-phi4mini" / "tokenizer.json").read_text(encoding="utf-8"))
        data["model"] |= changes.pop("model", {})
        (tmp_path / "tokenizer.json").write_text(json.dumps(data | changes), encoding="utf-8")
        return read_tokenizer(tmp_path, vocab_size=2112, config={})

    return make


BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
DIGITS = {"type": "Digits", "individual_digits": True}
GPT2 = {"type": "Split", "pattern": {"Regex": GPT2_SPLIT}, "behavior": "Isolated", "invert": False}
DIGIT = {"type": "Split", "pattern": {"Regex": r"\p{N}"}, "invert": False}


@pytest.mark.parametrize(
    ("pre_tokenizer", "name"),
    [
        (BYTE_LEVEL | {"use_regex": True}, "gpt2"),
        (BYTE_LEVEL, "gpt2"),
        (BYTE_LEVEL | {"add_prefix_space": True}, None),
        ({"type": "Sequence", "pretokenizers": [DIGITS | {"individual_digits": False}, BYTE_LEVEL]}, None),
        ({"type": "Sequence", "pretokenizers": [DIGITS, BYTE_LEVEL]}, "smollm"),
        ({"type": "Sequence", "pretokenizers": [DIGIT | {"behavior": "Isolated"}, BYTE_LEVEL]}, "smollm"),
        ({"type": "Sequence", "pretokenizers": [DIGIT | {"behavior": "Removed"}, BYTE_LEVEL]}, None),
        ({"type": "Sequence", "pretokenizers": [DIGITS, BYTE_LEVEL | {"use_regex": False}]}, None),
        ({"type": "Sequence", "pretokenizers": [DIGITS, DIGITS, BYTE_LEVEL]}, None),
        ({"type": "Sequence", "pretokenizers": [DIGITS, GPT2, BYTE_LEVEL | {"use_regex": False}]}, "smollm"),
        ({"type": "Sequence", "pretokenizers": [DIGITS, GPT2, BYTE_LEVEL]}, None),
        ({"type": "Sequence", "pretokenizers": [DIGITS, DIGITS, BYTE_LEVEL | {"use_regex": False}]}, None),
        ({"type": "Sequence", "pretokenizers": [BYTE_LEVEL, DIGITS]}, None),
    ],
)
def test_pre_tokenizers(read, pre_tokenizer, name):
    split = read(pre_tokenizer=pre_tokenizer).split
    assert split.name == name
    assert SPLITS.get(split.text, name) == name  # the text of a known split counts, too


def test_whole_words(read):
    assert read(model={"ignore_merges": True}).ignore_merges
    assert not read().ignore_merges
    with pytest.raises(ConfigError, match=r"model\.ignore_merges"):
        read(model={"ignore_merges": 1})


NFC = {"type": "NFC"}


@pytest.mark.parametrize("normalizer", [NFC, {"type": "Sequence", "normalizers": [NFC]}])
def test_nfc(read, normalizer):
    tokenizer = read(normalizer=normalizer)
    assert (tokenizer.split.name, tokenizer.nfc) == ("o200k", True)


@pytest.mark.parametrize(
    "normalizer", [{"type": "NFKC"}, {"type": "Sequence", "normalizers": [NFC, {"type": "Lowercase"}]}]
)
def test_a_normalizer_is_no_known_split(read, normalizer):
    assert read(normalizer=normalizer).split.name is None


CL100K = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@pytest.mark.parametrize(
    ("regex", "behavior", "invert", "name"),
    [
        (CL100K, "Isolated", False, "cl100k"),
        (CL100K, "Removed", True, "cl100k"),
        (CL100K, "Removed", False, None),
        (CL100K.replace("{1,3}", ""), "Isolated", False, "qwen2"),
        (CL100K.replace("{1,3}", "{1,2}"), "Isolated", False, None),
    ],
)
def test_expressions(read, regex, behavior, invert, name):
    split = {"type": "Split", "pattern": {"Regex": regex}, "behavior": behavior, "invert": invert}
    words = BYTE_LEVEL | {"use_regex": False}
    found = read(pre_tokenizer={"type": "Sequence", "pretokenizers": [split, words]}).split
    assert found.name == name
    assert regex in found.text
