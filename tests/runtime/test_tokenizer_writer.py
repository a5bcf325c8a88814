"""The `tokenizers` library tokenizes with what phiconv writes as with the original files."""

from __future__ import annotations

import json

import pytest

import phiconv
from paths import FIXTURES
from phiconv_formats.tokenizers.writer import tokenizer_files
from tokenizer_families import FAMILIES, tokenizer_json, write_tokenizer

pytestmark = pytest.mark.runtime

TEXTS = [
    (FIXTURES / "test.txt").read_text(encoding="utf-8"),
    "naïve café Ünïcödé ŁÓDŹ 東京特許許可局 한국어 ภาษาไทย مرحبا हिन्दी",
    "🙂👩‍👩‍👧‍👦🇩🇪 e\u0301 \u200f \ufeff \x00\x1b[0m",
    "  two  spaces\tand\n\n\r\n lines 1234567 I'VE don'T __init__(self, /) -> 'ſ ▁▁ Ġ",
    "<|user|>\nHi<|end|>\n<|assistant|>\n",
    "a <|end|>  b<|endoftext|> c </s> d <s><unk> <|nobody|> <|end",
    "", " ", "\n",
]  # fmt: skip


@pytest.mark.parametrize("source", ["folder", "GGUF"])
@pytest.mark.parametrize("kind", ["tiny-phi3", "tiny-phi4mini"])
def test_the_same_ids(kind, source, model_folder, tmp_path):
    library = pytest.importorskip("tokenizers").Tokenizer
    folder = model_folder(kind)
    data = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    for token in data["added_tokens"]:  # or else the library renumbers those after a gap
        data["model"]["vocab"][token["content"]] = token["id"]
        if kind == "tiny-phi4mini" and source == "GGUF":  # no model name makes llama.cpp strip for it
            token["rstrip"] = False
    original = library.from_str(json.dumps(data))
    if source == "GGUF":
        folder = phiconv.convert(folder, tmp_path / "m.gguf", quant="q8").files[0]
    written = library.from_str(
        tokenizer_files(phiconv.open_model(folder).tokenizer)["tokenizer.json"].decode()
    )
    for text in TEXTS:
        expected = original.encode(text).ids
        assert written.encode(text).ids == expected
        assert written.decode(expected) == original.decode(expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_same_ids_for_other_families(family, tmp_path):
    library = pytest.importorskip("tokenizers").Tokenizer
    original = library.from_str(json.dumps(tokenizer_json(family)))
    written = library.from_str(tokenizer_files(write_tokenizer(family, tmp_path))["tokenizer.json"].decode())
    for text in TEXTS:
        expected = original.encode(text).ids
        assert written.encode(text).ids == expected
        assert written.decode(expected) == original.decode(expected)
