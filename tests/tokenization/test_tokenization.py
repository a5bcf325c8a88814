"""Token ids are those of the Hugging Face library and of SentencePiece, and so is the text of ids."""

from __future__ import annotations

import io
import json
import random
import time
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paths import ROOT
from phiconv.errors import UnsupportedModelError
from phiconv.tokenization import bpe
from phiconv.tokenization.characters import OTHER, PROPERTIES, SIZE, WORD, kinds
from phiconv.tokenization.encoder import byte_alphabet, decode, encode
from phiconv.tokenization.tokenizer import SMOLLM_SPLIT, SPLITS, Split, Tokenizer, TokenType
from phiconv_formats.tokenizers.folder import read_tokenizer
from tokenizer_families import FAMILIES, tokenizer_json

tokenizers = pytest.importorskip("tokenizers")

FIXTURES = ROOT / "fixtures"
PAGE = (FIXTURES / "test.txt").read_text(encoding="utf-8")

CONTRACTIONS = "(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
SPLITTERS = {
    f"{name}'s split{', spelled out' if CONTRACTIONS in text else ''}": text for text, name in SPLITS.items()
}
METASPACES = {
    f"metaspace {scheme}{', cut at spaces' if split else ''}": (scheme, split)
    for scheme in ("always", "first", "never")
    for split in (False, True)
}
# The library gives a normalized added token back as it looked for it, with its prefix; no Phi model has one.
UNLIKE = {"normalized flags", "qwen2 flags"}
NAMES = (
    "tiny-phi3",
    "tiny-phi4mini",
    *SPLITTERS,
    *FAMILIES,
    *METASPACES,
    "flags",
    "normalized flags",
    "qwen2 flags",
)

TEXTS = [
    "", " ", "  ", "\n", " \n", "a", " a", "a ", "▁ ▁▁a▁", "Ġ Ċ", "\0", "<unk>", "<s>a</s>",
    "<0x0A> <0x41>", "Hello, world! It's 12345.678 degrees; I'VE we'll THEY'RE don't CAN'T 'ſ 'S a'ſb 'D'd",
    "naïve café Ünïcödé ŁÓDŹ straße İstanbul ǅ ʰello ªº ꙮ ａＢ",
    "e\u0301 a\u0308\u0323 Z\u0351\u036b \u0300alone",
    "東京特許許可局 日本語のテキスト 한국어 문장 中文，标点。 ภาษาไทย မြန်မာ ខ្មែរ",
    "مرحبا بالعالم שלום \u200fRTL\u200e 123",
    "हिन्दी में বাংলা తెలుగు தமிழ் ગુજરાતી ਪੰਜਾਬੀ العَرَبِيَّة नमस्ते१२३",
    "½ ² ٣ Ⅷ ①② 1２३4 1,000,000 0xDEADBEEF 1234567",
    "🙂 👩‍👩‍👧‍👦 🏳️‍🌈 🇩🇪 👍🏽 ✅ ⚡️ 𝒜𝓫 𐐀𐐨 \U0003f5b3's \u1af0&DQ \U000e0041 \uffff \U0010ffff",
    "control \x01\x02\x07\x0b\x0c\x1b[0m \x1c \x1f \x7f \x85 \u2028 \u180e \ufeff \ufffd \u3000全角\u00a0x",
    "tabs\tand\t\ttabs\t\t\t\tand  \t mixed \t  ones",
    "lines\n\nof\r\ntext\r\n\r\n\n\n  indented\n\tby tab\n \n  \n",
    "runs  of   spaces    and     more" + 40 * " " + "end" + 80 * " ", "/ // /\n//\n ./\r\n a/b",
    "a" * 70 + "é" * 70, "<|user|>\nHi<|end|>\n<|assistant|>\n",
    "<|user|> \t\u3000 x \u00a0<|end|>\u2028 <|end|><|end|>\x85y\x1c<|end|>\u180e",
    "text before  <|endoftext|>  after<|endoftext|>",
    "broken <|user| > <|nobody|> <|end <|end<|end|>|> </s>", "<|tool|>[]<|/tool|> <|tag|> x",
    "lefT and lefT<|end|>rigHt  lefT é  é x",
    "ｶ\u3099 \u1112\u1161\u11ab e\u0323\u0302 \u2126 \u08d3\u0301 q\u0307\u0323",
    "lefT\u0301 ne\u0301T<|end|>\u0301",
    "!\x04! a\x13\x04b \x13 \U00050000", "\x04",
    "qZ qZk aworD worD, worD worD\u0301 _worD worD_ 中worD Ⓐ worD½",
]  # fmt: skip


def flagged(data, *, normalized):
    """Adds tokens of all kinds to a tokenizer.json."""
    texts = [
        "lefT",
        "<|both|>",
        "rigHt",
        "worD",
        "qZ",
        "qZk",
        "   ",
        "\t\t\t\t",
        "é ",
        "Zk",
        "Ünï",
        "ne\u0301T",
    ]
    for i, text in enumerate(texts):
        flags = {"lstrip": i in (0, 1), "rstrip": i in (1, 2), "single_word": text == "worD"}
        odd = normalized and (i % 2 == 1 or i == len(texts) - 1)
        token = {"id": 2080 + i, "content": text, "normalized": odd, "special": i % 3 == 0, **flags}
        data["added_tokens"].append(token)


@pytest.fixture(scope="module")
def load(tmp_path_factory):
    """A tokenizer of ours and the library's, both from one tokenizer.json."""
    made = {}

    def make(name):
        if name in made:
            return made[name]
        sentencepiece = name in ("tiny-phi3", "normalized flags", *METASPACES)
        base = "tiny-phi3" if sentencepiece else "tiny-phi4mini"
        family = name.split()[0]
        known = family in FAMILIES
        text = (FIXTURES / base / "tokenizer.json").read_text(encoding="utf-8")
        data = tokenizer_json(family) if known else json.loads(text)
        if name in SPLITTERS:
            data["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = SPLITTERS[name]
        if "flags" in name:
            flagged(data, normalized=name in UNLIKE)
        if name in METASPACES:
            scheme, split = METASPACES[name]
            data["normalizer"] = None
            data["pre_tokenizer"] = {
                "type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": split
            }  # fmt: skip
            if scheme == "never":
                del data["decoder"]["decoders"][-1]
        folder = tmp_path_factory.mktemp("tokenizer")
        (folder / "tokenizer.json").write_text(json.dumps(data), encoding="utf-8")
        for token in data["added_tokens"]:  # or else the library renumbers those after a gap
            data["model"]["vocab"][token["content"]] = token["id"]
        tokenizer = read_tokenizer(folder, vocab_size=2112, config={})
        made[name] = tokenizer, tokenizers.Tokenizer.from_str(json.dumps(data))
        return made[name]

    return make


def differing(pair, texts):
    tokenizer, library = pair
    return [text for text in texts if encode(tokenizer, text) != ids_of(library, text)]


def ids_of(library, text):
    return library.encode(text, add_special_tokens=False).ids


def test_a_page_has_the_ids_of_the_library(load):
    for name in ("tiny-phi3", "tiny-phi4mini"):
        tokenizer, library = load(name)
        ids = encode(tokenizer, PAGE)
        assert len(ids) > 70000
        assert ids == ids_of(library, PAGE)
        assert decode(tokenizer, ids) == PAGE


@pytest.mark.parametrize("name", NAMES)
def test_texts_have_the_ids_of_the_library(name, load):
    assert differing(load(name), [*TEXTS, "".join(TEXTS), "\n".join(TEXTS), PAGE[:5000]]) == []


@pytest.mark.parametrize("name", [name for name in NAMES if name not in UNLIKE])
def test_ids_have_the_text_of_the_library(name, load):
    tokenizer, library = load(name)
    draw = random.Random(7)  # noqa: S311 - no secrets here
    rows = [[draw.randrange(2200) for _ in range(30)] for _ in range(200)]
    for ids in [*rows, *(encode(tokenizer, text) for text in TEXTS)]:
        assert decode(tokenizer, ids) == library.decode(ids, skip_special_tokens=False)
        assert decode(tokenizer, ids, skip_special=True) == library.decode(ids)


PIECES = st.one_of(
    st.text(max_size=12),
    st.text("aB'sſtDl \n\r\t/.1é中\u0301▁", max_size=12),
    st.sampled_from(
        [
            "<|end|>",
            "<|user|>",
            "lefT",
            "rigHt",
            "worD",
            "qZk",
            "<0x41>",
            "</s>",
            "日本",
            "\u2028",
            "e\u0301\u0323",
        ]
    ),
    st.sampled_from(["  ", "    ", "\n\n", "\r\n", "\x85", "\u00a0"]).flatmap(
        lambda c: st.integers(1, 30).map(lambda n: c * n)
    ),
)
LISTS = st.lists(st.lists(PIECES, max_size=8).map("".join), min_size=8, max_size=8)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=50)
@given(texts=LISTS)
def test_any_text_has_the_ids_of_the_library(name, load, texts):
    tokenizer, library = load(name)
    assert differing((tokenizer, library), texts) == []
    for text in texts:
        ids = encode(tokenizer, text)
        assert name in UNLIKE or decode(tokenizer, ids, skip_special=True) == library.decode(ids)


@pytest.mark.parametrize("name", FAMILIES)
def test_tokens_are_put_around_the_text_as_in_the_library(name, load):
    tokenizer, library = load(name)
    assert encode(tokenizer, "a b", special=True) == library.encode("a b").ids
    assert tokenizer.add_bos == (name == "llama3")


def test_text_comes_back(load):
    tokenizer, _ = load("tiny-phi4mini")
    assert all(decode(tokenizer, encode(tokenizer, text)) == text for text in TEXTS if "<|" not in text)
    tokenizer, _ = load("tiny-phi3")
    back = {text: decode(tokenizer, encode(tokenizer, text)) for text in TEXTS if "<" not in text}
    assert all(text == other.replace("▁", " ") for other, text in back.items() if "▁" not in other)


# ------------------------------------------------------------------------------------------ SentencePiece


def sentencepiece_model(tmp_path, **options):
    """A SentencePiece model trained on the page, as ours and as its own library's."""
    sentencepiece = pytest.importorskip("sentencepiece")
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(PAGE[:60000].split("\n")), model_writer=written, model_type="bpe",
        vocab_size=600, minloglevel=2, **options,
    )  # fmt: skip
    (tmp_path / "tokenizer.model").write_bytes(written.getvalue())
    tokenizer = read_tokenizer(tmp_path, vocab_size=600, config={})
    return tokenizer, sentencepiece.SentencePieceProcessor(model_proto=written.getvalue())


@pytest.mark.parametrize(
    "options",
    [
        {"byte_fallback": True, "normalization_rule_name": "identity", "remove_extra_whitespaces": False},
        {"byte_fallback": False, "normalization_rule_name": "identity", "add_dummy_prefix": False},
        {"byte_fallback": True, "normalization_rule_name": "nmt_nfkc"},
        {"byte_fallback": False, "normalization_rule_name": "nfkc_cf", "remove_extra_whitespaces": False},
        {"split_by_whitespace": False, "normalization_rule_name": "identity", "byte_fallback": True},
    ],
)
def test_sentencepiece_models_have_the_ids_of_sentencepiece(options, tmp_path):
    tokenizer, library = sentencepiece_model(tmp_path, **options)
    assert tokenizer.merges == ()
    assert bool(tokenizer.sentencepiece.charsmap) == (options["normalization_rule_name"] != "identity")
    special = ("<unk>", "<s>", "</s>", "<0x", "\0")  # read as text by both, but the library warns or differs
    texts = [text for text in TEXTS if not any(mark in text for mark in special)]
    for text in [*texts, PAGE[60000:80000], "ﬁ Å ㍿ ｶﾞ ½ ǆ"]:
        assert encode(tokenizer, text) == library.encode(text), text


def test_sentencepiece_without_merges_has_the_ids_of_sentencepiece(tmp_path):
    sentencepiece = pytest.importorskip("sentencepiece")
    data = (FIXTURES / "tiny-phi3" / "tokenizer.model").read_bytes()
    (tmp_path / "tokenizer.model").write_bytes(data)
    tokenizer = read_tokenizer(tmp_path, vocab_size=2112, config={})
    library = sentencepiece.SentencePieceProcessor(model_proto=data)
    assert encode(tokenizer, PAGE[:50000]) == library.encode(PAGE[:50000])


# ----------------------------------------------------------------------------------------------- the parts


def plain_merge(symbols, merges):
    """Byte-pair encoding as it is defined: look at all pairs, merge the best, begin again."""
    ids = list(symbols)
    while True:
        pairs = [merges.get(pair) for pair in pairwise(ids)]
        best = min((found[0], i) for i, found in enumerate(pairs) if found) if any(pairs) else None
        if best is None:
            return ids
        ids[best[1] : best[1] + 2] = [pairs[best[1]][1]]


@given(st.lists(st.integers(0, 2), max_size=30), st.randoms(use_true_random=False))
def test_merging_is_what_it_is_defined_as(symbols, draw):
    words = ["a", "b", "c"]
    for _ in range(12):
        word = draw.choice(words) + draw.choice(words)
        words += [word] if word not in words else []
    ids = {word: i for i, word in enumerate(words)}
    scores = [float(-draw.randrange(5)) for _ in words]
    by_score = bpe.merges_of_scores(ids, scores)
    assert bpe.merge(symbols, by_score) == plain_merge(symbols, by_score)
    pairs = [(words[a][:cut], words[a][cut:]) for a in range(len(words)) for cut in range(1, len(words[a]))]
    draw.shuffle(pairs)
    by_rank = bpe.merges_of_pairs(pairs, ids)
    assert bpe.merge(symbols, by_rank) == plain_merge(symbols, by_rank)


def test_the_kinds_of_characters_are_those_of_the_library():
    everything = "".join(map(chr, (code for code in range(SIZE) if not 0xD800 <= code < 0xE000)))
    signs = kinds(everything)
    edges = [i for i in range(1, len(signs)) if signs[i] != signs[i - 1]]
    some = sorted({*range(0x80), *edges, *(i - 1 for i in edges)})
    characters = [everything[i] for i in some if everything[i] != "\u2581"]
    found = {}
    for expression, sign in PROPERTIES.items():
        split = tokenizers.pre_tokenizers.Split(tokenizers.Regex(expression), "removed", invert=True)
        parts = split.pre_tokenize_str("\u2581".join(characters))
        found |= dict.fromkeys((part[0] for part, _ in parts), sign)
    outside = [c for c in characters if ord(c) >= 0x80]
    assert len(outside) > 2000
    assert [c for c in outside if found.get(c, OTHER) != kinds(c).replace(WORD, OTHER)] == []


def test_the_byte_alphabet_is_that_of_the_library():
    assert set(byte_alphabet().values()) == set(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    assert byte_alphabet()[0x20] == "Ġ"
    assert byte_alphabet()[0x0A] == "Ċ"


def test_special_tokens_are_put_around_the_text_where_the_tokenizer_says():
    base = byte_tokenizer()
    assert encode(base, "ab", special=True) == [97, 98]
    around = byte_tokenizer(special_ids={"bos": 256, "eos": 257}, add_special={"bos": True, "eos": True})
    assert encode(around, "ab", special=True) == [256, 97, 98, 257]
    assert encode(around, "ab") == [97, 98]
    assert encode(byte_tokenizer(add_special={"bos": True}), "ab", special=True) == [97, 98]


def byte_tokenizer(**changes):
    tokens = tuple(byte_alphabet()[byte] for byte in range(256))
    settings_ = {"kind": "byte-bpe", "split": Split("gpt2", ""), **changes}
    return Tokenizer(tokens=(*tokens, "<s>", None), types=(TokenType.NORMAL,) * 258, **settings_)


def test_what_cannot_be_tokenized_is_refused_or_left_out():
    with pytest.raises(UnsupportedModelError, match="no known way to split"):
        encode(byte_tokenizer(split=Split(None, "Digits")), "a")
    with pytest.raises(UnicodeEncodeError):
        encode(byte_tokenizer(), "\ud800")
    assert decode(byte_tokenizer(), [97, 257, 258, -1, 10**9, 0xFF]) == "a\ufffd"
    assert encode(byte_tokenizer(), "\U0010ffff") == [0xF4, 0x8F, 0xBF, 0xBF]


@pytest.mark.parametrize("name", ["tiny-phi3", "tiny-phi4mini"])
def test_long_runs_take_no_longer_than_other_text(name, load):
    tokenizer, library = load(name)
    start = time.process_time()
    found = [encode(tokenizer, c * 30_000) for c in ("a", " ", "\n", "中", "ab", "A1")]
    assert time.process_time() - start < 10
    assert found[:2] == [ids_of(library, "a" * 30_000), ids_of(library, " " * 30_000)]


@given(
    st.text(
        st.sampled_from("ab'stdrevml12 ٣½Ⅷ²\n\t\r.!\u00a0\u3000中\u0301🙂") | st.characters(codec="utf-8")
    )
)
def test_the_split_of_digits_and_gpt2_is_one_expression(text):
    pre = tokenizers.pre_tokenizers
    words = pre.Sequence([pre.Digits(individual_digits=True), pre.ByteLevel(add_prefix_space=False)])
    split = pre.Split(tokenizers.Regex(SMOLLM_SPLIT), "isolated")
    one = pre.Sequence([split, pre.ByteLevel(add_prefix_space=False, use_regex=False)])
    assert words.pre_tokenize_str(text) == one.pre_tokenize_str(text)
