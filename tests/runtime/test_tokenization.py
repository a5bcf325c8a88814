"""llama.cpp, given the metadata that phiconv writes, tokenizes like the Hugging Face library."""

from __future__ import annotations

import ctypes
import faulthandler
import importlib.metadata
import json
import os
import shutil
import signal
import unicodedata
from dataclasses import replace
from types import SimpleNamespace

import pytest

from added_variants import FLAGS, TEXTS_WITH_ADDED, with_added
from paths import FIXTURES
from phiconv.errors import UnsupportedModelError
from phiconv.tokenization.encoder import encode
from phiconv.tokenization.tokenizer import AddedToken, TokenType
from phiconv_formats.gguf.values import GgufValue, ValueType, serialize_header, serialize_kv
from phiconv_formats.gguf.vocabulary import name_for_runtime, tokenizer_metadata, tokenizer_notes
from phiconv_formats.gguf.vocabulary_reader import ENDS
from phiconv_formats.tokenizers.folder import read_tokenizer
from phiconv_formats.tokenizers.limits import check_bytes
from tokenizer_families import FAMILIES, VOCAB_SIZE, write_tokenizer

pytestmark = pytest.mark.runtime


# The structure below is that of this release; another one may have moved its members.
LAYOUT_OF = "2026.10.11549"

PROSE = [
    "Hello, world! It's 12345.678 degrees; I'VE we'll THEY'RE don't CAN'T.",
    "naïve café Ünïcödé ŁÓDŹ straße İstanbul ǅ ʰello",
    "東京特許許可局 日本語のテキスト 한국어 문장 中文，标点。 ภาษาไทย",
    "🙂 👩‍👩‍👧‍👦 🏳️‍🌈 🇩🇪 👍🏽 ✅ ⚡️ \U0001f9d1\u200d\U0001f680",
    "مرحبا بالعالم שלום עולם \u200fRTL\u200e mixed 123",
    "e\u0301 a\u0308\u0323 n\u0303 Z\u0351\u036b\u0343 combining \u0300alone",
    "runs  of   spaces    and     more          here                                   end",
    "tabs\tand\t\ttabs\t\t\t\tand  \t mixed \t  ones",
    "lines\n\nof\r\ntext\r\n\r\n\n\n  indented\n\tby tab\n \n  \n",
    "control \x01\x02\x07\x0b\x0c\x1b[0m \x7f \x85 \u2028 \ufeff \ufffd",
    "def f(x: int) -> str:\n    return f'{x!r:>10}'  # done\n\n\nclass A(B):\n\tpass\n",
    "if (a <= b && c != d) { return *p++ ? x->y : ~z; } // #include <stdio.h>",
    "1 12 123 1234 12345 123456 1.5e-10 0xDEADBEEF ½ ² ٣ Ⅷ 1,000,000",
    "https://example.com/path?query=1&b=%20#frag user@host.org C:\\dir\\file",
    " leading space", "trailing space ", " ", "  ", "\n", "\n ", "\t", "a", "▁ ▁▁", "Ġ Ċ",
    "हिन्दी में বাংলা తెలుగు தமிழ் العَرَبِيَّة", "𝒜𝓫 𐐀𐐨 ①② 1２३4 'S 'ſ ’s \u3000全角\u00a0x",
    "<0x0A> [PAD5] <unk> not tokens < | user | >",
]  # fmt: skip

CHAT = [
    "<|user|>\nHi<|end|>\n<|assistant|>\n",
    "<|system|>\nBe brief.<|end|>\n<|user|>\nWhat is  1+1?<|end|>\n<|assistant|>\nTwo.<|end|>\n<|endoftext|>",
    "<|user|>Hi<|end|><|assistant|>",
    "<|user|>   three spaces<|end|> one",
    "text before<|end|>\n\n\n after",
    "<|endoftext|>\nafter <|endoftext|> x",
    "<|end|><|end|>\t<|end|>",
    "broken <|user| > <|nobody|> <|end",
]


class ModelParams(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("devices", "tensor_buft_overrides")),
        *(
            (name, ctypes.c_int32)
            for name in ("n_gpu_layers", "split_mode", "load_mode", "lazy_mode", "main_gpu")
        ),
        *((name, ctypes.c_void_p) for name in ("tensor_split", "progress", "progress_data", "kv_overrides")),
        *(
            (name, ctypes.c_bool)
            for name in ("vocab_only", "check_tensors", "use_extra_bufts", "no_host", "no_alloc", "load_mtp")
        ),
    )


@pytest.fixture(scope="module")
def llama(ggml):
    found = importlib.metadata.version("xllamacpp")
    if found != LAYOUT_OF:
        pytest.skip(f"the layout of llama_model_params is that of xllamacpp {LAYOUT_OF}, not of {found}")
    pointer, number = ctypes.c_void_p, ctypes.c_int32
    for name, result, arguments in (
        ("llama_model_default_params", ModelParams, []),
        ("llama_model_load_from_file", pointer, [ctypes.c_char_p, ModelParams]),
        ("llama_model_get_vocab", pointer, [pointer]),
        ("llama_model_free", None, [pointer]),
        (
            "llama_tokenize",
            number,
            [pointer, ctypes.c_char_p, number, pointer, number, ctypes.c_bool, ctypes.c_bool],
        ),
        ("llama_vocab_is_eog", ctypes.c_bool, [pointer, ctypes.c_int32]),
        ("llama_log_set", None, [pointer, pointer]),
    ):
        function = getattr(ggml, name)
        function.restype, function.argtypes = result, arguments
    quiet = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, pointer)(lambda *_: None)
    ggml.llama_log_set(quiet, None)
    ggml.quiet = quiet  # the library calls it as long as it is loaded
    ggml.llama_backend_init()
    params = ggml.llama_model_default_params()
    assert (params.use_extra_bufts, params.n_gpu_layers, params.vocab_only) == (True, -1, False)
    return ggml


@pytest.fixture
def tokenize_with(llama, tmp_path):
    """Loads a vocabulary under a name; returns its tokenizing function, or None if the runtime refuses it."""
    models = []

    def load(tokenizer, name, vocab_size):
        metadata = [
            ("general.architecture", GgufValue(ValueType.STRING, "phi3")),
            ("general.name", GgufValue(ValueType.STRING, name)),
            *tokenizer_metadata(tokenizer, architecture="phi3", vocab_size=vocab_size),
        ]
        path = tmp_path / "vocabulary.gguf"
        path.write_bytes(serialize_header(0, len(metadata)) + b"".join(serialize_kv(*kv) for kv in metadata))
        params = llama.llama_model_default_params()
        params.vocab_only = True
        model = llama.llama_model_load_from_file(str(path).encode(), params)
        if not model:
            return None
        models.append(model)

        def tokenize(text):
            data = text.encode()
            ids = (ctypes.c_int32 * (len(data) + 8))()
            vocabulary = llama.llama_model_get_vocab(model)
            count = llama.llama_tokenize(vocabulary, data, len(data), ids, len(ids), False, True)
            return list(ids[:count])

        tokenize.ends = [
            i for i in range(vocab_size) if llama.llama_vocab_is_eog(llama.llama_model_get_vocab(model), i)
        ]
        return tokenize

    yield load
    for model in models:
        llama.llama_model_free(model)


@pytest.fixture
def reference():
    """The Hugging Face library's tokenizer of a folder."""
    tokenizers = pytest.importorskip("tokenizers")

    def load(folder):
        data = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
        for token in data["added_tokens"]:  # or else the library renumbers those after a gap
            data["model"]["vocab"][token["content"]] = token["id"]
        hugging_face = tokenizers.Tokenizer.from_str(json.dumps(data))
        return lambda text: hugging_face.encode(text, add_special_tokens=False).ids

    return load


def open_fixture(name):
    folder = FIXTURES / name
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return (
        folder,
        read_tokenizer(folder, vocab_size=config["vocab_size"], config=config),
        config["vocab_size"],
    )


def differing(expected, actual, texts):
    return [text for text in texts if expected(text) != actual(text)]


@pytest.mark.parametrize("name", ["tiny-phi3", "tiny-phi4mini"])
def test_prose_has_the_ids_of_the_hugging_face_library(name, tokenize_with, reference):
    folder, tokenizer, vocab_size = open_fixture(name)
    page = (FIXTURES / "test.txt").read_text(encoding="utf-8")[:20000]
    actual = tokenize_with(tokenizer, name_for_runtime("Phi", tokenizer), vocab_size)
    assert differing(reference(folder), actual, [*PROSE, page, "\n".join(PROSE)]) == []


def test_chat_without_white_space_has_the_ids_also_where_tokens_strip(tokenize_with, reference):
    # The runtime cannot be told that Phi-4-mini's tokens strip; its own chat template has nothing to strip.
    folder, tokenizer, vocab_size = open_fixture("tiny-phi4mini")
    actual = tokenize_with(tokenizer, name_for_runtime("My Phi-3 student", tokenizer), vocab_size)
    texts = [
        "<|system|>Be brief.<|end|><|user|>Hi  there\n<|end|><|assistant|>",
        "<|tool|>[]<|/tool|><|end|>x",
    ]
    assert differing(reference(folder), actual, texts) == []
    assert differing(reference(folder), actual, ["<|user|>\n"]) == ["<|user|>\n"]


def test_the_name_decides_whether_tokens_strip(tokenize_with, reference):
    folder, tokenizer, vocab_size = open_fixture("tiny-phi3")
    expected = reference(folder)
    plain = replace(tokenizer, added=tuple(replace(token, rstrip=False) for token in tokenizer.added))
    assert name_for_runtime("Phi-3 April", plain) == "Phi 3 April"
    assert differing(expected, tokenize_with(tokenizer, "phi3", vocab_size), CHAT) == []
    assert differing(expected, tokenize_with(tokenizer, "Phi 3", vocab_size), CHAT[:1]) == CHAT[:1]


def test_a_name_that_the_runtime_refuses_is_avoided(tokenize_with):
    _, tokenizer, vocab_size = open_fixture("tiny-phi4mini")
    assert tokenize_with(tokenizer, "Phi-3 student", vocab_size) is None
    assert tokenize_with(tokenizer, name_for_runtime("Phi-3 student", tokenizer), vocab_size) is not None


def test_sentencepiece_from_tokenizer_json_alone(tokenize_with, reference, tmp_path):
    folder, _, vocab_size = open_fixture("tiny-phi3")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(folder / name, tmp_path / name)
    tokenizer = read_tokenizer(tmp_path, vocab_size=vocab_size, config={})
    actual = tokenize_with(tokenizer, name_for_runtime("Phi", tokenizer), vocab_size)
    page = (FIXTURES / "test.txt").read_text(encoding="utf-8")[:20000]
    assert differing(reference(folder), actual, [*PROSE, *CHAT, page]) == []


@pytest.mark.parametrize("family", FAMILIES)
def test_other_families_have_the_ids_of_the_hugging_face_library(family, tokenize_with, reference, tmp_path):
    tokenizer = write_tokenizer(family, tmp_path)
    actual, expected = tokenize_with(tokenizer, family, VOCAB_SIZE), reference(tmp_path)
    composed = [unicodedata.normalize("NFC", text) for text in PROSE]  # the runtime composes nothing
    page = (FIXTURES / "test.txt").read_text(encoding="utf-8")[:20000]
    assert differing(expected, actual, [*composed, *CHAT, page, "\n".join(composed)]) == []


def test_chat_has_the_ids_of_the_hugging_face_library(tokenize_with, reference):
    folder, tokenizer, vocab_size = open_fixture("tiny-phi3")
    actual = tokenize_with(tokenizer, name_for_runtime("Phi 3 Mini", tokenizer), vocab_size)
    assert differing(reference(folder), actual, CHAT) == []


@pytest.mark.parametrize("text", [*sorted(ENDS), "<|begin_of_text|>", "<|fim_prefix|>"])
def test_the_runtime_ends_with_the_tokens_that_phiconv_reads_as_ends(text, tokenize_with):
    _, tokenizer, vocab_size = open_fixture("tiny-phi4mini")
    others = {token.id for token in tokenizer.added}
    added = AddedToken(len(tokenizer), text, special=True)
    plain = replace(
        tokenizer,
        tokens=(*(None if i in others else token for i, token in enumerate(tokenizer.tokens)), text),
        types=(*tokenizer.types, TokenType.CONTROL),
        added=(added,),
        special_ids={"eos": 0},
    )
    assert tokenize_with(plain, "x", vocab_size).ends == [0, *([added.id] if text in ENDS else [])]


def aborts(tokenize, text):
    """Whether the runtime ends the process at this text."""
    child = os.fork()
    if child == 0:
        faulthandler.disable()
        os.close(2)  # it says why
        tokenize(text)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGABRT


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the runtime ends the process")
@pytest.mark.parametrize(
    ("gone", "text"),
    [
        (range(256), "\n"), (range(256), "\x01"), ([0x0A], "\n"), (range(0xF0, 0x100), "\U0001f642"),
        ([0x41], None), ([], None),
    ],
)  # fmt: skip
def test_the_runtime_aborts_at_bytes_without_a_token(gone, text, tokenize_with):
    _, tokenizer, vocab_size = open_fixture("tiny-phi3")
    pieces = {f"<0x{byte:02X}>" for byte in gone}
    tokens = tuple(None if token in pieces else token for token in tokenizer.tokens)
    other = replace(tokenizer, tokens=tokens)
    tokenize = tokenize_with(other, "Phi-3", vocab_size)
    model = SimpleNamespace(tokenizer=other, path=FIXTURES)
    if text is None:
        check_bytes(model, "")
        assert not any(aborts(tokenize, t) for t in (*PROSE, *CHAT, "".join(map(chr, range(1, 256)))))
        return
    with pytest.raises(UnsupportedModelError):
        check_bytes(model, "")
    assert aborts(tokenize, text)
    assert not aborts(tokenize, "plain text")


@pytest.mark.parametrize("gone", ["Ċ", "Ġ", "A", "Ã"])
def test_byte_level_vocabularies_need_no_token_for_each_byte(gone, tokenize_with):
    _, tokenizer, vocab_size = open_fixture("tiny-phi4mini")
    merges = tuple(pair for pair in tokenizer.merges if gone not in pair)
    tokens = tuple(None if token == gone else token for token in tokenizer.tokens)
    other = replace(tokenizer, tokens=tokens, merges=merges)
    tokenize = tokenize_with(other, "x", vocab_size)
    # What stands on both sides of such a byte is not merged by the runtime, as in " \n ".
    assert [text for text in PROSE[:8] if tokenize(text) != encode(other, text)] == []


@pytest.mark.parametrize("special", [True, False])
@pytest.mark.parametrize("flags", FLAGS)
@pytest.mark.parametrize("name", ["tiny-phi3", "tiny-phi4mini"])
def test_what_is_told_of_added_tokens_is_what_the_runtime_does(name, flags, special, tokenize_with):
    tokenizer = open_fixture(name)[1]
    if name == "tiny-phi4mini":  # nothing makes the runtime strip for its own tokens
        tokenizer = replace(tokenizer, added=tuple(replace(t, rstrip=False) for t in tokenizer.added))
    tokenizer, size = with_added(tokenizer, flags, special=special)
    title = name_for_runtime("Phi", tokenizer)
    tokenize = tokenize_with(tokenizer, title, size)
    differs = any(tokenize(text) != encode(tokenizer, text) for text in TEXTS_WITH_ADDED)
    assert differs == any("<mine>" in note for note in tokenizer_notes(tokenizer, title))
