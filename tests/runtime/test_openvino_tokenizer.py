"""OpenVINO GenAI, given the IRs that phiconv writes, tokenizes like the Hugging Face library."""

from __future__ import annotations

import json
import random
import unicodedata
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from added_variants import FLAGS as ADDED
from added_variants import TEXTS_WITH_ADDED, with_added
from paths import FIXTURES
from phiconv.tokenization.composition import compose
from phiconv.tokenization.encoder import decode, encode
from phiconv.tokenization.tokenizer import SPLITS, AddedToken, Split
from phiconv_formats.openvino.tokenizer_ir import tokenizer_ir
from phiconv_formats.openvino.tokenizer_patterns import odd_added
from phiconv_formats.tokenizers.folder import read_tokenizer
from tokenizer_families import FAMILIES, write_tokenizer

pytestmark = pytest.mark.runtime

PAGE = (FIXTURES / "test.txt").read_text(encoding="utf-8")
SPELLINGS = {f"{name} {i}": Split(name, text) for i, (text, name) in enumerate(SPLITS.items())}
FLAGS = {"strips": [{"lstrip": True, "rstrip": True}, {"lstrip": True}], "normalized": [{"normalized": True}]}
NAMES = ("tiny-phi3", "tiny-phi4mini", *SPELLINGS, *FLAGS, *FAMILIES, "around", "scores")

TEXTS = [
    " ", "  ", "\n", "a", " a ", "▁ ▁▁a▁", "Ġ Ċ", "\0", "<unk>", "<s>a</s>", "<0x0A> <0x41>A",
    "Hello, world! It's 12345.678 degrees; I'VE we'll THEY'RE don't CAN'T 'ſ 'S a'ſb 'D'd",
    "naïve café Ünïcödé ŁÓDŹ straße İstanbul ǅ ʰello ªº ꙮ ａＢ e\u0301 a\u0308\u0323 \u0300alone",
    "東京特許許可局 日本語のテキスト 한국어 문장 中文，标点。 ภาษาไทย မြန်မာ हिन्दी नमस्ते१२३ العَرَبِيَّة \u200fR",
    "½ ² ٣ Ⅷ ①② 1２３4 1,000,000 0xDEADBEEF 🙂👩‍👩‍👧‍👦🏳️‍🌈🇩🇪👍🏽 𝒜𝓫 𐐀𐐨 \U000e0041 \uffff \U0010ffff",
    "control \x01\x07\x0b\x0c\x1b[0m \x1c \x7f \x85 \u2028 \u180e \ufeff \ufffd \u3000全角\u00a0x\u200b",
    "tabs\tand\t\ttabs\t\t\t\tand  \t mixed\n\nof\r\ntext\r\n\r\n\n\n  indented\n \n  \n",
    "runs  of   spaces    and     more" + 40 * " " + "end" + 80 * " ", "/ // /\n//\n ./\r\n a/b",
    "!\x04! a\x13\x04b \x13 \U00050000", "\x04",
    "<|user|>\nHi<|end|>\n<|assistant|>\n", "<|user|> \t\u3000 x \u00a0<|end|>\u2028 <|end|><|end|>\x85y\x1c",
    "<|end|>\u180e \u180e <|end|>", "broken <|user| > <|nobody|> <|end <|end<|end|>|> </s> <|tag|>\n x",
    *("".join(c * n for c in (" ", "\n", "a", "é", "1")) for n in range(1, 40, 6)),
]  # fmt: skip
DECOMPOSED = [
    *(
        unicodedata.normalize("NFD", text)
        for text in ("naïve café Ünïcödé ŁÓDŹ", "Tiếng Việt ộ", "한국어 문장 パが")
    ),
    "e\u0301<|end|>e\u0301 \u2126",
]
PIECES = st.one_of(
    st.text(max_size=12),
    st.text("aB'sſtDl \n\r\t/.1é中\u0301▁\u180e", max_size=12),
    st.sampled_from(
        ["<|end|>", "<|user|>", "lefT", "qZk", "   ", "<0x41>", "</s>", "日本", "\u2028", "\x85"]
    ),
)
LISTS = st.lists(st.lists(PIECES, min_size=1, max_size=8).map("".join), min_size=8, max_size=8)


def variant(name, tokenizers):
    """A tokenizer of the fixtures, perhaps changed."""
    if name in tokenizers:
        return tokenizers[name]
    small = tokenizers["tiny-phi4mini"]
    if name in SPELLINGS:
        return replace(small, split=SPELLINGS[name])
    if name == "around":
        return replace(tokenizers["tiny-phi3"], add_special={"bos": True, "eos": True})
    if name == "scores":
        return replace(tokenizers["tiny-phi3"], merges=())
    texts = ["lefT", "é中", "qZ", "worD", "qZk"] + (["   ", " " * 4, " " * 8] if name == "normalized" else [])
    flags = FLAGS[name]
    new = [
        AddedToken(len(small) + i, text, **flags[i * len(flags) // len(texts)])
        for i, text in enumerate(texts)
    ]
    return replace(
        small,
        tokens=(*small.tokens, *texts),
        types=(*small.types, *len(texts) * [small.types[0]]),
        added=(*small.added, *new),
    )


@pytest.fixture(scope="module")
def load(tmp_path_factory):
    """A tokenizer by name, and the runtime's, which has only the files that phiconv wrote."""
    library = pytest.importorskip("openvino_genai", reason="openvino-genai is not installed")
    tokenizers, made = {}, {}
    for name in ("tiny-phi3", "tiny-phi4mini"):
        config = json.loads((FIXTURES / name / "config.json").read_text(encoding="utf-8"))
        tokenizers[name] = read_tokenizer(FIXTURES / name, vocab_size=config["vocab_size"], config=config)
    for name in FAMILIES:
        tokenizers[name] = write_tokenizer(name, tmp_path_factory.mktemp("family"))

    def load(name):
        if name not in made:
            folder = tmp_path_factory.mktemp("openvino")
            for file, content in tokenizer_ir(variant(name, tokenizers)).items():
                (folder / file).write_bytes(content)
            made[name] = variant(name, tokenizers), library.Tokenizer(folder)
        return made[name]

    return load


def ids_of(runtime, texts, **options):
    """Ids of each text, without those that fill it up."""
    found = runtime.encode(texts, **{"add_special_tokens": False, **options})
    rows = zip(found.input_ids.data.tolist(), found.attention_mask.data.tolist(), strict=True)
    return [[i for i, real in zip(*row, strict=True) if real] for row in rows]


def differing(pair, texts):
    tokenizer, runtime = pair
    rows = zip(texts, ids_of(runtime, texts), strict=True)
    return [text for text, ids in rows if ids != encode(tokenizer, text)]


@pytest.mark.parametrize("name", ["tiny-phi3", "tiny-phi4mini"])
def test_a_page_has_the_ids(name, load):
    tokenizer, runtime = load(name)
    ids = encode(tokenizer, PAGE)
    assert ids_of(runtime, [PAGE]) == [ids]
    assert runtime.decode(ids) == PAGE
    assert differing(load(name), [text for text in PAGE[:100_000].split("\n\n") if text]) == []


@pytest.mark.parametrize("name", NAMES)
def test_texts_have_the_ids(name, load):
    tokenizer, runtime = load(name)
    texts = [*TEXTS, "".join(TEXTS), "\n".join(TEXTS)]
    if tokenizer.nfc:  # see below for what the runtime composes
        texts = [*map(compose, texts), *DECOMPOSED]
    assert differing((tokenizer, runtime), texts) == []
    for text in TEXTS:
        ids = encode(tokenizer, text)
        for skip in (False, True):
            assert runtime.decode(ids, skip_special_tokens=skip) == decode(tokenizer, ids, skip_special=skip)


@pytest.mark.parametrize("name", ["tiny-phi3", "tiny-phi4mini", "gpt2 0", "strips", "normalized", *FAMILIES])
@settings(max_examples=30)
@given(texts=LISTS)
def test_any_text_has_the_ids(name, load, texts):
    tokenizer, runtime = load(name)
    texts = [compose(text) if tokenizer.nfc else text for text in texts]
    assert differing((tokenizer, runtime), [*texts, "a"]) == []  # of nothing but "" the runtime makes one row
    for text in texts:
        ids = encode(tokenizer, text)
        assert runtime.decode(ids) == decode(tokenizer, ids, skip_special=True)


def test_the_runtime_composes_fewer_sequences_than_unicode(load):
    # Marks out of order, and a mark after a character that is composed already.
    texts = ["a\u0308\u0323", "\u00ea\u0301", "\uac00\u11a8"]
    assert differing(load("qwen2"), [*texts, *DECOMPOSED]) == texts


@pytest.mark.parametrize("name", ["tiny-phi3", "tiny-phi4mini"])
def test_ids_that_are_text_have_that_text(name, load):
    tokenizer, runtime = load(name)
    draw = random.Random(7)  # noqa: S311 - no secrets here
    known = [i for i, token in enumerate(tokenizer.tokens) if token is not None]
    rows = [[draw.choice(known) for _ in range(12)] for _ in range(300)]
    texts = {tuple(ids): decode(tokenizer, ids) for ids in rows}
    valid = {ids: text for ids, text in texts.items() if "\ufffd" not in text}
    assert len(valid) > 50
    for ids, text in valid.items():
        assert runtime.decode(list(ids), skip_special_tokens=False) == text
    gap = [i for i, token in enumerate(tokenizer.tokens) if token is None][:3]
    assert runtime.decode([known[40], *gap, len(tokenizer) + 1, known[41]]) == decode(tokenizer, known[40:42])


def test_special_tokens_are_put_around_the_text(load):
    tokenizer, runtime = load("around")
    for text in ("a b", "<|end|>"):
        assert ids_of(runtime, [text], add_special_tokens=True) == [encode(tokenizer, text, special=True)]
    ids = encode(tokenizer, PAGE[:100])
    options = {"add_special_tokens": True, "truncation": True, "max_length": 7}
    assert ids_of(runtime, [PAGE[:100]], **options) == [[1, *ids[:5], 2048]]


def test_batches_are_filled_up_and_cut_where_they_should(load):
    tokenizer, runtime = load("tiny-phi3")
    texts = ["a", "Hello, world", ""]
    rows = [encode(tokenizer, text) for text in texts]
    width = max(map(len, rows))
    left = runtime.encode(texts)
    assert left.input_ids.data.tolist() == [[2048] * (width - len(ids)) + ids for ids in rows]
    right = runtime.encode(texts, padding_side="right")
    assert right.input_ids.data.tolist() == [ids + [2048] * (width - len(ids)) for ids in rows]
    assert right.attention_mask.data.tolist() == [[1] * len(ids) + [0] * (width - len(ids)) for ids in rows]
    assert ids_of(runtime, texts, truncation=True, max_length=2) == [ids[:2] for ids in rows]


def test_the_chat_template_is_there(load):
    for name, expected in (
        ("tiny-phi3", "<|user|>\nHi<|end|>\n<|assistant|>\n"),
        ("tiny-phi4mini", "<|user|>Hi<|end|><|assistant|>"),
    ):
        tokenizer, runtime = load(name)
        assert runtime.chat_template == tokenizer.chat_templates["default"]
        chat = [{"role": "user", "content": "Hi"}]
        assert runtime.apply_chat_template(chat, add_generation_prompt=True) == expected
        ids = (runtime.get_bos_token_id(), runtime.get_eos_token_id(), runtime.get_pad_token_id())
        assert ids == tuple(tokenizer.special_ids[role] for role in ("bos", "eos", "pad"))


def test_strings_of_the_vocabulary_are_those_of_the_text(load):
    # They say which tokens fit a grammar (structured output): SentencePiece's mark would fit none.
    tokenizer, runtime = load("tiny-phi3")
    assert runtime.get_vocab()[b" the"] == tokenizer.tokens.index("▁the")


@pytest.mark.parametrize("flags", ADDED)
@pytest.mark.parametrize("name", ["tiny-phi3", "tiny-phi4mini"])
def test_what_is_told_of_added_tokens_is_what_the_runtime_does(name, flags, load, tmp_path):
    library = pytest.importorskip("openvino_genai")
    tokenizer, _ = with_added(load(name)[0], flags)
    for file, content in tokenizer_ir(tokenizer).items():
        (tmp_path / file).write_bytes(content)
    differs = differing((tokenizer, library.Tokenizer(tmp_path)), TEXTS_WITH_ADDED) != []
    assert differs == any(token.content == "<mine>" for _, token in odd_added(tokenizer))
