"""ONNX Runtime GenAI tokenizes with the tokenizer.json that phiconv writes like the Hugging Face library."""

from __future__ import annotations

import shutil
import unicodedata

import pytest

import phiconv
from paths import FIXTURES
from phiconv.tokenization.encoder import encode
from phiconv_formats.tokenizers.writer import tokenizer_files
from tokenizer_families import FAMILIES, write_tokenizer

pytestmark = pytest.mark.runtime

TEXTS = [
    (FIXTURES / "test.txt").read_text(encoding="utf-8")[:20_000],
    "Hello 12345  67 don'T DON'T we'll x1", "the thing ing 1 2  3", "  12   a   1", " ", "\n",
    "\n\n x  \n y\r\n\r\n", "!!\n/x", "naïve café Ünïcödé 東京特許許可局 한국어 🙂 ٣½Ⅷ",
    "<|user|>Hi 1<|end|><|assistant|>",
]  # fmt: skip


@pytest.mark.parametrize("source", ["folder", "tokenizer"])
@pytest.mark.parametrize("family", FAMILIES)
def test_other_families_have_the_ids(family, source, tmp_path):
    library = pytest.importorskip("onnxruntime_genai", reason="onnxruntime-genai is not installed")
    folder = shutil.copytree(FIXTURES / "tiny-phi4mini", tmp_path / "source")
    tokenizer = write_tokenizer(family, folder)
    if source == "tokenizer":  # as of a GGUF
        for name, content in tokenizer_files(tokenizer).items():
            (folder / name).write_bytes(content)
    phiconv.convert(folder, tmp_path / "model", to="onnx")
    runtime = library.Tokenizer(library.Model(str(tmp_path / "model")))
    for text in TEXTS:
        assert list(map(int, runtime.encode(text))) == encode(tokenizer, text)
    if tokenizer.nfc:  # it composes nothing
        text = "e\u0301"
        assert list(map(int, runtime.encode(text))) != encode(tokenizer, text)
        composed = unicodedata.normalize("NFC", text)
        assert list(map(int, runtime.encode(composed))) == encode(tokenizer, text)
