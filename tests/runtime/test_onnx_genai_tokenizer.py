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


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    pytest.importorskip("onnxruntime_genai", reason="onnxruntime-genai is not installed")
    made = tmp_path_factory.mktemp("genai") / "model"
    phiconv.convert(FIXTURES / "tiny-phi4mini", made, to="onnx")
    return made


@pytest.mark.parametrize("family", FAMILIES)
def test_other_families_have_the_ids(family, folder, tmp_path):
    library = pytest.importorskip("onnxruntime_genai")
    copy = shutil.copytree(folder, tmp_path / "model")
    tokenizer = write_tokenizer(family, tmp_path)
    for name, content in tokenizer_files(tokenizer).items():
        (copy / name).write_bytes(content)
    runtime = library.Tokenizer(library.Model(str(copy)))
    for text in TEXTS:
        assert list(map(int, runtime.encode(text))) == encode(tokenizer, text)
    if tokenizer.nfc:  # it composes nothing
        text = "e\u0301"
        assert list(map(int, runtime.encode(text))) != encode(tokenizer, text)
        composed = unicodedata.normalize("NFC", text)
        assert list(map(int, runtime.encode(composed))) == encode(tokenizer, text)
