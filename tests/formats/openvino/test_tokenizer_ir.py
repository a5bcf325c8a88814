"""What the tokenizer operations of OpenVINO are given says the same as the tokenizer does."""

from __future__ import annotations

import json
import re
import struct
import xml.etree.ElementTree as ET
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paths import FIXTURES
from phiconv.errors import ConfigError, UnsupportedModelError
from phiconv.tokenization.added_tokens import AddedTokens
from phiconv.tokenization.characters import PROPERTIES, SIZE, kinds
from phiconv.tokenization.encoder import decode, encode
from phiconv.tokenization.tokenizer import (
    SPLITS,
    AddedToken,
    Metaspace,
    SentencePieceOptions,
    Split,
    TokenType,
)
from phiconv_formats.openvino.tokenizer_ir import MAX_LENGTH, tokenizer_ir
from phiconv_formats.openvino.tokenizer_patterns import added_tokens_expression, split_expression
from phiconv_formats.openvino.tokenizer_tables import _made, decoder_strings, encoder_tables
from phiconv_formats.openvino.tokenizer_words import marking_expressions
from phiconv_formats.tokenizers.folder import read_tokenizer

PAGE = (FIXTURES / "test.txt").read_text(encoding="utf-8")
NAMES = ("tiny-phi3", "tiny-phi4mini")


@pytest.fixture(scope="module")
def tokenizers():
    """The tokenizers of the fixtures, by name."""
    read = {}
    for name in NAMES:
        config = json.loads((FIXTURES / name / "config.json").read_text(encoding="utf-8"))
        read[name] = read_tokenizer(FIXTURES / name, vocab_size=config["vocab_size"], config=config)
    return read


# ------------------------------------------------------------------------------------ vocabulary and merges


class BpeOperation:
    """BPETokenizer as it is: the longest strings that no merge makes, then the best merges."""

    def __init__(self, tables):
        ids = {text: i for i, text in enumerate(tables.vocabulary)}
        assert len(ids) == len(tables.vocabulary)
        self.merges = {
            (ids[left], ids[right]): (rank, ids[left + right])
            for rank, (left, right) in enumerate(tables.merges)
        }
        made = {left + right for left, right in tables.merges}
        self.whole = {text: i for text, i in ids.items() if text not in made}
        self.longest = max(map(len, self.whole))

    def __call__(self, text):
        ids, data = [], text.encode()
        while data:
            length = next(n for n in range(self.longest, 0, -1) if data[:n] in self.whole)
            ids.append(self.whole[data[:length]])
            data = data[length:]
        while found := [
            (*self.merges[pair], i) for i, pair in enumerate(pairwise(ids)) if pair in self.merges
        ]:
            _, joined, i = min(found)
            ids[i : i + 2] = [joined]
        return ids


WORDS = sorted({*re.findall(r"\w+", PAGE[:40000])})
ODD = ["é", "中文", "한국어", "🙂", "\0", "\x07", "\x7f", "\uffff", "\U0010ffff", "<0x41>", "<0x0A>", "AA<0x"]


def test_merging_gives_the_ids_of_words(tokenizers):
    sentencepiece, byte_level = (BpeOperation(encoder_tables(tokenizers[name])) for name in NAMES)
    for word in [*WORDS, *ODD]:
        assert sentencepiece(f"▁{word}") == encode(tokenizers["tiny-phi3"], word)
    letters = [word for word in WORDS if word.isalpha() and word.isascii() and word.islower()]
    assert len(letters) > 700
    for word in letters:
        assert byte_level(word) == encode(tokenizers["tiny-phi4mini"], word)


@pytest.mark.parametrize("name", NAMES)
def test_an_added_token_is_found_though_a_merge_makes_it(name, tokenizers):
    base = tokenizers[name]
    taken = max((pair for pair in base.merges if "".join(pair).isascii()), key=lambda p: len("".join(p)))
    text = "".join(taken)
    token = AddedToken(len(base) - 1, text)
    tokens = (*base.tokens[:-1], text)
    tokenizer = replace(base, tokens=tokens, added=(*base.added[:-1], token))
    tables = encoder_tables(tokenizer)
    assert BpeOperation(tables)(text) == [token.id]
    assert not any(text.encode() in left + right for left, right in tables.merges)
    assert sum(text.encode() in entry for entry in tables.vocabulary) == 1


def test_only_characters_made_and_added_tokens_can_be_found(tokenizers):
    base = tokenizers["tiny-phi3"]
    unmade = replace(base, merges=base.merges[1:])
    first = "".join(base.merges[0])
    assert first not in {"".join(pair) for pair in unmade.merges}
    i = base.tokens.index(first)
    assert encoder_tables(base).vocabulary[i] == first.encode()
    assert encoder_tables(unmade).vocabulary[i] == b"\xff\xfe%d" % i
    operation = BpeOperation(encoder_tables(unmade))
    for word in WORDS[:500]:
        assert operation(f"▁{word}") == encode(unmade, word)


def test_merges_come_from_scores_where_there_are_no_others(tokenizers):
    base = tokenizers["tiny-phi3"]
    assert set(encoder_tables(replace(base, merges=())).merges) == set(encoder_tables(base).merges)


@pytest.mark.parametrize("name", NAMES)
def test_decoded_strings_are_the_text(name, tokenizers):
    tokenizer = tokenizers[name]
    strings = decoder_strings(tokenizer)
    assert len(strings) == len(tokenizer)
    for text in [PAGE[:2000], "naïve 中 🙂\0<|end|>"]:
        joined = b"".join(strings[i] for i in encode(tokenizer, text)).decode()
        assert joined.removeprefix(" ") == decode(tokenizer, encode(tokenizer, text))
    gap = tokenizer.tokens.index(None) if None in tokenizer.tokens else None
    assert gap is None or strings[gap] == b""


# ------------------------------------------------------------------------------------------------- patterns


def for_python(expression):
    """An expression in PCRE2's syntax, in Python's."""
    return re.sub(r"\\x\{(\w+)\}", lambda match: f"\\u{int(match[1], 16):04x}", expression)


def pieces_of(expression, text):
    """What SpecialTokensSplit makes of a text: pieces, and whether each is an added token."""
    done, pieces = 0, []
    for match in re.finditer(for_python(expression), text):
        pieces += [(text[done : match.start()], False)] if done < match.start() else []
        pieces.append((match[match.lastindex], True))
        done = match.end()
    return pieces + ([(text[done:], False)] if done < len(text) else [])


def test_added_tokens_are_found_as_the_library_finds_them(tokenizers):
    flags = [{}, {"rstrip": True}, {"lstrip": True}, {"lstrip": True, "rstrip": True}]
    texts = ["<a>", "<b>", "<c>", "<d>", "<a>x", "((", "x|", "[\n]"]
    added = [AddedToken(i, text, **flags[i % 4]) for i, text in enumerate(texts)]
    tokenizer = replace(tokenizers["tiny-phi4mini"], added=tuple(added))
    expression = added_tokens_expression(tokenizer)
    library = AddedTokens(added, lambda text: text)
    white = ["", " ", "  ", "\n", "\u3000", "\x85", "\u180e", "\x1c", "\u200b", "y", "<", "a>"]

    @given(st.lists(st.sampled_from([*texts, *white]), max_size=12).map("".join))
    def check(text):
        expected = [(part, None) if i is None else (texts[i], i) for part, i in library.split(text)]
        assert pieces_of(expression, text) == [(part, i is not None) for part, i in expected]

    check()


def test_nothing_is_found_without_added_tokens(tokenizers):
    expression = added_tokens_expression(replace(tokenizers["tiny-phi3"], added=()))
    assert pieces_of(expression, "<s> a\n") == [("<s> a\n", False)]


def test_white_space_is_that_of_the_library(tokenizers):
    sign = PROPERTIES[r"\s"]
    tokenizer = replace(tokenizers["tiny-phi3"], added=(AddedToken(0, "|", rstrip=True),))
    inside = re.search(r"\[.*\]", added_tokens_expression(tokenizer))[0]
    everything = "".join(chr(code) for code in range(SIZE) if not 0xD800 <= code < 0xE000)
    found = re.findall(for_python(inside), everything)
    assert len(found) == 25
    signs = zip(everything, kinds(everything), strict=True)
    assert found == [c for c, kind in signs if kind in {sign, *" \t\n\r\v\f"}]


@pytest.mark.parametrize("text", SPLITS)
def test_splits_have_their_white_space_written_out(text):
    expression = split_expression(Split(SPLITS[text], text))
    assert r"\s" not in expression
    assert r"\S" not in expression
    assert expression == split_expression(Split(None, text))
    short = re.sub(r"\\x\{9\}.*?\\x\{3000\}", r"\\s", expression)
    assert re.sub(r"(?<!\^)\[\\s\]", r"\\s", short).replace(r"[^\s]", r"\S") == text


# ---------------------------------------------------------------------------------------------- the documents


def layers_of(content):
    """Layers by number, with their inputs: (layer, port) of the edge that leads to each."""
    net = ET.fromstring(content)  # noqa: S314 - our own
    layers = {layer.get("id"): layer for layer in net.find("layers")}
    sources = {}
    for edge in net.find("edges"):
        sources[edge.get("to-layer"), edge.get("to-port")] = edge.get("from-layer"), edge.get("from-port")
    return net, layers, sources


def constants_of(files, name, kind):
    """The inputs of the first layer of a kind that are constants: element type, shape and bytes by port."""
    _, layers, sources = layers_of(files[f"{name}.xml"])
    (number,) = (i for i, layer in layers.items() if layer.get("type") == kind)
    found = {}
    for (to, port), (source, _) in sources.items():
        if to == number and layers[source].get("type") == "Const":
            data = layers[source].find("data")
            start, size = int(data.get("offset")), int(data.get("size"))
            content = files[f"{name}.bin"][start : start + size]
            assert len(content) == size
            found[int(port)] = data.get("element_type"), data.get("shape"), content
    return found


@pytest.mark.parametrize("name", NAMES)
def test_edges_connect_ports_that_are_there(name, tokenizers):
    files = tokenizer_ir(tokenizers[name])
    assert list(files) == [
        f"openvino_{part}tokenizer.{kind}" for part in ("", "de") for kind in ("xml", "bin")
    ]
    assert files == tokenizer_ir(tokenizers[name])
    for content in (files["openvino_tokenizer.xml"], files["openvino_detokenizer.xml"]):
        net, layers, sources = layers_of(content)
        assert net.get("version") == "11"
        outputs = {
            (i, port.get("id")) for i, layer in layers.items() for port in layer.findall("output/port")
        }
        inputs = {(i, port.get("id")) for i, layer in layers.items() for port in layer.findall("input/port")}
        assert set(sources) == inputs
        assert set(sources.values()) <= outputs
        assert not inputs & outputs
        assert len({layer.get("name") for layer in layers.values()}) == len(layers)


def test_constants_are_in_the_file(tokenizers):
    tokenizer = tokenizers["tiny-phi3"]
    files = tokenizer_ir(tokenizer, max_length=100, truncation_side="left")
    bpe = constants_of(files, "openvino_tokenizer", "BPETokenizer")
    begins, ends = (struct.unpack(f"<{len(tokenizer)}i", bpe[port][2]) for port in (5, 6))
    strings = [bpe[7][2][a:b] for a, b in zip(begins, ends, strict=True)]
    assert strings == list(encoder_tables(tokenizer).vocabulary)
    cut = constants_of(files, "openvino_tokenizer", "Truncate")
    assert cut[3] == ("i32", "", struct.pack("<i", 100))
    assert cut[4] == ("u8", "4", b"left")
    skipped = constants_of(files, "openvino_detokenizer", "VocabDecoder")[4]
    control = [i for i, kind in enumerate(tokenizer.types) if kind is TokenType.CONTROL]
    assert skipped == ("i32", str(len(control)), struct.pack(f"<{len(control)}i", *control))


def test_special_tokens_are_put_around_the_text(tokenizers):
    base = tokenizers["tiny-phi3"]
    plain = constants_of(tokenizer_ir(base), "openvino_tokenizer", "CombineSegments")
    assert plain == {3: ("i32", "1", bytes(4))}
    around = replace(base, add_special={"bos": True, "eos": True})
    files = tokenizer_ir(around)
    segments = constants_of(files, "openvino_tokenizer", "CombineSegments")
    assert [segments[port][2] for port in (2, 8)] == [struct.pack("<i", i) for i in (1, 2048)]
    cut = constants_of(files, "openvino_tokenizer", "Truncate")[3][2]
    assert cut == struct.pack("<i", MAX_LENGTH - 2)


def test_the_runtime_is_told_of_special_tokens_and_the_chat_template(tokenizers):
    base = tokenizers["tiny-phi3"]
    template = "{{ a }}\n\t\"<&'>\r\n"
    files = tokenizer_ir(replace(base, chat_templates={"default": template, "other": "x"}))
    for content in (files["openvino_tokenizer.xml"], files["openvino_detokenizer.xml"]):
        info = {item.tag: item.get("value") for item in layers_of(content)[0].find("rt_info")}
        assert info.pop("openvino_tokenizers_version")
        ids = {"bos_token_id": "1", "eos_token_id": "2048", "pad_token_id": "2048"}
        assert info == {**ids, "chat_template": template}
    nothing = replace(base, chat_templates={}, special_ids={})
    content = tokenizer_ir(nothing)["openvino_tokenizer.xml"]
    assert [item.tag for item in layers_of(content)[0].find("rt_info")] == ["openvino_tokenizers_version"]


# ------------------------------------------------------------------------------------------------- refusals


def with_added(tokenizer, *added):
    return replace(tokenizer, added=(*tokenizer.added, *added))


def options(tokenizer, **changes):
    return replace(tokenizer, sentencepiece=replace(SentencePieceOptions(), **changes))


def without(tokenizer, token):
    return replace(tokenizer, tokens=tuple(None if t == token else t for t in tokenizer.tokens))


@pytest.mark.parametrize(
    ("name", "change", "says"),
    [
        ("tiny-phi3", lambda t: with_added(t, AddedToken(9, "▁w")), "mark of a space"),
        (
            "tiny-phi4mini",
            lambda t: replace(t, split=Split(None, "Digits")),
            "text into words: Digits",
        ),
        (
            "tiny-phi4mini",
            lambda t: with_added(t, *(AddedToken(i, f"<{i}>") for i in range(1000))),
            "1012 added tokens",
        ),
        ("tiny-phi4mini", lambda t: with_added(t, AddedToken(9, "x" * 24_000)), "13 added tokens"),
        ("tiny-phi4mini", lambda t: replace(t, split=None), "none is given"),
        ("tiny-phi3", lambda t: without(t, "<0xFE>"), "no token for the byte 0xfe"),
        ("tiny-phi3", lambda t: options(t, charsmap=b"x"), "that replaces characters"),
        ("tiny-phi3", lambda t: options(t, remove_extra_whitespaces=True), "that removes white space"),
        ("tiny-phi3", lambda t: options(t, metaspace=Metaspace("first", split=False)), "(Metaspace)"),
        ("tiny-phi3", lambda t: options(t, byte_fallback=False), "without bytes to fall back to"),
        (
            "tiny-phi3",
            lambda t: replace(t, merges=(("<0x41>", "a"),), tokens=(*t.tokens[:-1], "<0x41>a"), added=()),
            "bytes that are merged",
        ),
    ],
)
def test_what_openvino_cannot_express_is_refused(name, change, says, tokenizers):
    with pytest.raises(UnsupportedModelError, match=re.escape(says)):
        tokenizer_ir(change(tokenizers[name]))


@pytest.mark.parametrize("text", ["\0", "\x1b", "\ufffe", "\ud800"])
def test_a_template_that_xml_cannot_hold_is_refused(text, tokenizers):
    with pytest.raises(ConfigError, match="chat_template: a character that an XML file cannot hold"):
        tokenizer_ir(replace(tokenizers["tiny-phi3"], chat_templates={"default": f"a{text}"}))


def test_a_token_that_is_no_unicode_is_refused(tokenizers):
    base = tokenizers["tiny-phi3"]
    with pytest.raises(ConfigError, match="no valid Unicode"):
        tokenizer_ir(replace(base, tokens=(*base.tokens[:-1], "\ud800"), added=base.added[:-1]))


# ------------------------------------------------------------------------------------------- whole words


def test_words_that_only_a_whole_word_gives(tokenizers):
    base = tokenizers["tiny-phi4mini"]
    apart = {"Ġthe", "ing", "ĠĠ"}
    merges = tuple(pair for pair in base.merges if "".join(pair) not in apart)
    tokens = ("中", *base.tokens[1:])  # no byte-level token: no word is ever looked up so
    tokenizer = replace(base, tokens=tokens, merges=merges, ignore_merges=True)
    tables = encoder_tables(tokenizer)
    assert {" the", "ing", "  "} <= set(tables.whole_words)
    assert "中" not in tables.whole_words
    given = {word: tables.vocabulary[base.tokens.index(word)] for word in apart}
    assert given == {"Ġthe": b"a the", "ing": b"\ning", "ĠĠ": b"a  "}
    for word in apart:
        shown = word.replace("Ġ", " ")
        assert encode(tokenizer, shown) == [base.tokens.index(word)]
    assert encoder_tables(replace(base, merges=merges)).whole_words == ()


def test_expressions_of_whole_words_are_of_a_size_that_pcre2_compiles():
    texts = [f"w{i}" for i in range(20_000)] + [" (", "\n"]
    steps = list(marking_expressions(texts))
    assert all(len(search) < 24_100 for search, _ in steps)
    assert [put for _, put in steps] == ["\n$1"] * (len(steps) - 1) + ["a$1"]
    in_python = [search.replace(r"\z", r"\Z") for search, _ in steps]
    assert sum(re.search(search, "w19999") is not None for search in in_python) == 1
    assert re.search(in_python[-1], " (")[1] == " ("


@given(st.permutations([("a", "b"), ("ab", "c"), ("abc", "abc"), ("c", "d"), ("x", "a"), ("b", "xa")]))
def test_tokens_are_made_whatever_the_order_of_merges(merges):
    ids = {
        text: i for i, text in enumerate(("a", "b", "c", "d", "x", "xa", "ab", "abc", "abcabc", "cd", "xab"))
    }
    triples = [(ids[a], ids[b], ids["xab" if b == "xa" else a + b]) for a, b in merges]
    made = _made([ids[symbol] for symbol in "abcd"], triples, len(ids))
    assert made == {ids[text] for text in (*"abcd", "ab", "abc", "abcabc", "cd")}
