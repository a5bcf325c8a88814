"""Tokenizers like those of other families, made of the fixture's: its vocabulary with their settings."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from paths import FIXTURES
from phiconv_formats.tokenizers.folder import read_tokenizer
from phiconv_formats.tokenizers.tokenizer_json import REGEX_OF_SPLIT

if TYPE_CHECKING:
    from pathlib import Path

    from phiconv.tokenization.tokenizer import Tokenizer

__all__ = ["FAMILIES", "VOCAB_SIZE", "tokenizer_json", "write_tokenizer"]

VOCAB_SIZE = 2112

_BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}


def _split(name: str) -> dict[str, Any]:
    words = {
        "type": "Split",
        "pattern": {"Regex": REGEX_OF_SPLIT[name]},
        "behavior": "Isolated",
        "invert": False,
    }
    return {"type": "Sequence", "pretokenizers": [words, _BYTE_LEVEL]}


_BOS = {"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}}
_BOS_FIRST = {
    "type": "TemplateProcessing",
    "single": [_BOS, {"Sequence": {"id": "A", "type_id": 0}}],
    "pair": [_BOS, {"Sequence": {"id": "A", "type_id": 0}}, _BOS, {"Sequence": {"id": "B", "type_id": 1}}],
    "special_tokens": {"<|endoftext|>": {"id": "<|endoftext|>", "ids": [2049], "tokens": ["<|endoftext|>"]}},
}
_DIGITS = {"type": "Digits", "individual_digits": True}

FAMILIES: dict[str, dict[str, Any]] = {
    "smollm": {
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [_DIGITS, _BYTE_LEVEL | {"use_regex": True}],
        }
    },
    "llama3": {
        "pre_tokenizer": _split("cl100k"),
        "model": {"ignore_merges": True},
        "post_processor": {"type": "Sequence", "processors": [_BYTE_LEVEL, _BOS_FIRST]},
    },
    "phi2": {"pre_tokenizer": _BYTE_LEVEL | {"use_regex": True}},
    "qwen2": {"normalizer": {"type": "NFC"}, "pre_tokenizer": _split("qwen2")},
}
"""What the tokenizer.json of a family has otherwise than the fixture's."""


_ABSENT = {"smollm": "\u0104\u0113\u00f1\u00f2"}
"""Bytes without a token: control characters, and where some unassigned characters begin."""


def tokenizer_json(family: str) -> dict[str, Any]:
    """The content of a tokenizer.json, with the added tokens in the vocabulary.

    Recent releases of the library renumber added tokens behind a gap that are not there.
    """
    data: dict[str, Any] = json.loads((FIXTURES / "tiny-phi4mini" / "tokenizer.json").read_text("utf-8"))
    changes = FAMILIES[family]
    model = data["model"] | changes.get("model", {})
    if model["ignore_merges"]:  # then some tokens should be there that no merges make
        apart = {token for token in model["vocab"] if len(token) > 2 and sum(token.encode()) % 5 == 0}
        model["merges"] = [pair for pair in model["merges"] if pair.replace(" ", "") not in apart]
    data |= changes | {"model": model}
    for character in _ABSENT.get(family, ""):
        del model["vocab"][character]
    data["model"]["vocab"] |= {token["content"]: token["id"] for token in data["added_tokens"]}
    for token in data["added_tokens"]:  # llama.cpp strips for no family but Phi-3
        token["lstrip"] = token["rstrip"] = False
    return data


def write_tokenizer(family: str, folder: Path) -> Tokenizer:
    """Puts the tokenizer.json of a family into a folder; returns what is read of it."""
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer_json(family)), encoding="utf-8")
    tokenizer = read_tokenizer(folder, vocab_size=VOCAB_SIZE, config={})
    assert tokenizer is not None
    return tokenizer
