"""ONNX Runtime GenAI tokenizes with the tokenizer.json that phiconv writes like the Hugging Face library."""

from __future__ import annotations

import json
import shutil
import unicodedata
from dataclasses import replace

import pytest

import phiconv
from added_variants import FLAGS, TEXTS_WITH_ADDED, with_added
from paths import FIXTURES
from phiconv.tokenization.encoder import decode, encode
from phiconv.tokenization.tokenizer import SPLITS, Metaspace, Split
from phiconv_formats.onnx.tokenizer import tokenizer_notes
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


PAGE = (FIXTURES / "test.txt").read_text(encoding="utf-8")
PIECES = [PAGE[i : i + 400] for i in range(0, len(PAGE), 400)]
SPACES = [
    " ", "  ", "   ", " a", "  a", "a ", "a  ", "a  b", "a   b    c", "\t", "\t\ta", "\n\n", "a\r\n\r\nb",
    "\n  indented\n    more\n\tby tab\n", "def f(x):\n    return 1\n\n\n\n",
    *(" " * n + "x" for n in range(9)), "\U0001f642 \U0001f44d\U0001f3fd  \U0001f469\u200d\U0001f469 ",
    "na\u00efve caf\u00e9 \u6771\u4eac \u00a0x\u3000y",
    "12 123  1234 1.5e-10", "\u2581 \u2581\u2581 a\u2581b", "<0x0A> [PAD5]", "\x01a",
    "<|user|>Hi<|end|>", "<|user|> Hi<|end|> x", "<|user|>\nHi<|end|>\n<|assistant|>\n", "a <|end|> b",
    "a<|end|>b",
    "<|end|>  two", "a  <|end|>", "<|end|><|end|>", "<|endoftext|> x", "<|user|>   three spaces<|end|> one",
    "<s> a</s> b", "<unk> a",
]  # fmt: skip


@pytest.fixture
def runtime_of(tmp_path):
    """The runtime's tokenizer on what is written of a folder whose tokenizer may be another."""
    library = pytest.importorskip("onnxruntime_genai", reason="onnxruntime-genai is not installed")

    def load(source, tokenizer=None):
        folder = FIXTURES / source
        if tokenizer is not None:
            folder = shutil.copytree(folder, tmp_path / "source")
            (folder / "tokenizer.model").unlink(missing_ok=True)
            for name, content in tokenizer_files(tokenizer).items():
                (folder / name).write_bytes(content)
        phiconv.convert(folder, tmp_path / "model", to="onnx", quant="f32")
        return library.Tokenizer(library.Model(str(tmp_path / "model")))

    return load


def own(source):
    return phiconv.open_model(FIXTURES / source).tokenizer


def differing(runtime, tokenizer, texts):
    return [text for text in texts if list(map(int, runtime.encode(text))) != encode(tokenizer, text)]


SENTENCEPIECE = {
    "as it is": {},
    "from scores": {"merges": ()},
    "without a space in front": {"sentencepiece": {"add_dummy_prefix": False}},
    "bos and eos": {"add_special": {"bos": True, "eos": True}},
}


@pytest.mark.parametrize("name", SENTENCEPIECE)
def test_runs_of_spaces_have_the_ids_of_sentencepiece(name, runtime_of, tmp_path):
    tokenizer, change = own("tiny-phi3"), dict(SENTENCEPIECE[name])
    if "sentencepiece" in change:
        change["sentencepiece"] = replace(tokenizer.sentencepiece, **change["sentencepiece"])
    tokenizer = replace(tokenizer, **change)
    runtime = runtime_of("tiny-phi3", tokenizer if change else None)
    assert differing(runtime, tokenizer, [*PIECES, *SPACES]) == []
    assert list(map(int, runtime.encode("\0"))) == []  # a text ends there
    for text in PIECES:  # the space in front stays for this runtime
        space = " " * tokenizer.sentencepiece.add_dummy_prefix
        assert runtime.decode(encode(tokenizer, text)) == space + decode(tokenizer, encode(tokenizer, text))
    if not change:  # nobody else is told
        settings = json.loads((tmp_path / "model" / "tokenizer_config.json").read_text())
        assert settings["tokenizer_class"] == "LlamaTokenizer"


@pytest.mark.parametrize("text", SPLITS)
def test_every_split_has_the_ids(text, runtime_of):
    tokenizer = replace(own("tiny-phi4mini"), split=Split(SPLITS[text], text))
    runtime = runtime_of("tiny-phi4mini", tokenizer)
    assert differing(runtime, tokenizer, [*PIECES, *SPACES]) == []
    for piece in PIECES:
        assert runtime.decode(encode(tokenizer, piece)) == piece


@pytest.mark.parametrize(("scheme", "cut"), [("first", False), ("always", False), ("first", True)])
def test_metaspace_is_told_and_right_where_no_text_begins_with_a_space(scheme, cut, runtime_of):
    tokenizer = own("tiny-phi3")
    options = replace(tokenizer.sentencepiece, metaspace=Metaspace(scheme, split=cut))
    tokenizer = replace(tokenizer, sentencepiece=options)
    runtime = runtime_of("tiny-phi3", tokenizer)
    assert "(Metaspace)" in tokenizer_notes(tokenizer)[0]
    other = differing(runtime, tokenizer, PIECES)
    assert other
    if not cut:
        assert {text[0] for text in other} == {" "}
        if scheme == "always":
            texts = [text for text in SPACES if "<" not in text and not text.startswith((" ", "\u2581"))]
            assert differing(runtime, tokenizer, texts) == []


@pytest.mark.parametrize("flags", FLAGS)
@pytest.mark.parametrize("name", ["tiny-phi3", "tiny-phi4mini"])
def test_what_is_told_of_added_tokens_is_what_the_runtime_does(name, flags, runtime_of):
    tokenizer, _ = with_added(own(name), flags)
    differs = differing(runtime_of(name, tokenizer), tokenizer, TEXTS_WITH_ADDED) != []
    assert differs == any("<mine>" in note for note in tokenizer_notes(tokenizer))
