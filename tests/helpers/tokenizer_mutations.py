"""Small tokenizer.json files of each kind, and what can be wrong with one, a thing at a time."""

from __future__ import annotations

import copy
import json
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["BASES", "Case", "cases"]

_FLAGS = {"single_word": False, "lstrip": False, "rstrip": True, "normalized": False, "special": True}
_BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
_SPACE = "\u2581"
_METASPACE = {"type": "Metaspace", "replacement": _SPACE, "prepend_scheme": "first", "split": False}
_SEQUENCES = [{"Sequence": {"id": name, "type_id": i}} for i, name in enumerate("AB")]
_END = {"SpecialToken": {"id": "<|end|>", "type_id": 0}}

_BYTES: dict[str, Any] = {
    "version": "1.0",
    "truncation": None,
    "padding": None,
    "added_tokens": [{"id": 9, "content": "<|end|>", **_FLAGS}],
    "normalizer": {"type": "Sequence", "normalizers": [{"type": "NFC"}]},
    "pre_tokenizer": {
        "type": "Sequence",
        "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": r"\p{N}"}, "behavior": "Isolated", "invert": False},
            {"type": "Digits", "individual_digits": True},
            _BYTE_LEVEL,
        ],
    },
    "post_processor": {
        "type": "Sequence",
        "processors": [
            _BYTE_LEVEL,
            {
                "type": "TemplateProcessing",
                "single": [_END, _SEQUENCES[0]],
                "pair": _SEQUENCES,
                "special_tokens": {"<|end|>": {"id": "<|end|>", "ids": [9], "tokens": ["<|end|>"]}},
            },
        ],
    },
    "decoder": _BYTE_LEVEL,
    "model": {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": "",
        "end_of_word_suffix": "",
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": False,
        "vocab": {"a": 0, "b": 1, "ab": 2},
        "merges": ["a b"],
    },
}
_PIECES: dict[str, Any] = {
    "version": "1.0",
    "truncation": {"direction": "Right", "max_length": 16, "strategy": "LongestFirst", "stride": 0},
    "padding": {
        "strategy": {"Fixed": 8},
        "direction": "Left",
        "pad_to_multiple_of": None,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": "<unk>",
    },
    "added_tokens": [{"id": 0, "content": "<unk>", **_FLAGS}],
    "normalizer": {
        "type": "Sequence",
        "normalizers": [
            {"type": "Prepend", "prepend": _SPACE},
            {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE},
            {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "},
            {"type": "Strip", "strip_left": True, "strip_right": True},
            {
                "type": "BertNormalizer",
                "clean_text": False,
                "handle_chinese_chars": False,
                "strip_accents": None,
                "lowercase": False,
            },
        ],
    },
    "pre_tokenizer": None,
    "post_processor": {"type": "BertProcessing", "sep": ["a", 3], "cls": ["b", 5]},
    "decoder": {
        "type": "Sequence",
        "decoders": [
            {"type": "Replace", "pattern": {"String": _SPACE}, "content": " "},
            {"type": "ByteFallback"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            {"type": "WordPiece", "prefix": "##", "cleanup": True},
            {"type": "CTC", "pad_token": "a", "word_delimiter_token": "|", "cleanup": True},
            {"type": "BPEDecoder", "suffix": "x"},
        ],
    },
    "model": {
        "type": "BPE",
        "dropout": 0.1,
        "unk_token": "<unk>",
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": True,
        "byte_fallback": True,
        "vocab": {"<unk>": 0, "<0x0A>": 1, _SPACE: 2, "a": 3, f"{_SPACE}a": 4, "b": 5},
        "merges": [[_SPACE, "a"]],
    },
}
_SPACES: dict[str, Any] = _PIECES | {
    "truncation": None,
    "padding": {**_PIECES["padding"], "strategy": "BatchLongest", "pad_to_multiple_of": 8},
    "normalizer": None,
    "pre_tokenizer": {
        "type": "Sequence",
        "pretokenizers": [
            {"type": "Punctuation", "behavior": "Isolated"},
            {"type": "CharDelimiterSplit", "delimiter": "|"},
            {"type": "FixedLength", "length": 5},
            _METASPACE,
        ],
    },
    "post_processor": None,
    "decoder": _METASPACE,
}
BASES = {"byte-level": _BYTES, "pieces": _PIECES, "spaces": _SPACES}
"""A valid file of each kind."""

_VALUES: tuple[Any, ...] = (
    *(None, True, 0, -1, 1.5, "x", "", "a b", [], {}, [None], ["x"], {"x": 1}, 1 << 40, 1 << 70),
)


class Case(NamedTuple):
    """A changed file, and what was done to it."""

    name: str
    data: bytes


def cases() -> Iterator[Case]:
    """Every base with every place changed, and what is no single change of a value."""
    for name, base in BASES.items():
        yield from _changed_values(name, base)
    yield from _changed_texts()


def _changed_values(name: str, base: dict[str, Any]) -> Iterator[Case]:
    for place in _places(base):
        where = f"{name}: {'.'.join(map(str, place))}"
        old = _at(base, place)
        for value in _VALUES:
            if type(old) is not type(value) or old != value:
                yield _case(f"{where} = {json.dumps(value)}", base, place, value)
        for what, change in (("missing", _remove), ("another name", _rename), ("twice", _repeat)):
            other = copy.deepcopy(base)
            if change(_at(other, place[:-1]), place[-1]):
                yield Case(f"{where} {what}", json.dumps(other).encode())


def _places(value: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield (*place, key)
            yield from _places(value[key], (*place, key))


def _at(value: Any, place: tuple[Any, ...]) -> Any:
    for key in place:
        value = value[key]
    return value


def _case(name: str, base: dict[str, Any], place: tuple[Any, ...], value: Any) -> Case:
    other = copy.deepcopy(base)
    _at(other, place[:-1])[place[-1]] = value
    return Case(name, json.dumps(other).encode())


def _remove(parent: Any, key: Any) -> bool:
    del parent[key]
    return True


def _rename(parent: Any, key: Any) -> bool:
    if isinstance(parent, dict):
        parent[f"{key}x"] = parent.pop(key)
    return isinstance(parent, dict)


def _repeat(parent: Any, key: Any) -> bool:
    if isinstance(parent, list):
        parent.append(copy.deepcopy(parent[key]))
    return isinstance(parent, list)


def _changed_texts() -> Iterator[Case]:
    """What cannot be said by one value: the text itself, and components that belong to other kinds."""
    text = json.dumps(_BYTES).encode()
    for part in (0, 1, 3, 7, 9):
        yield Case(f"truncated {part}", text[: len(text) * part // 10])
    yield Case("something behind it", text + b"{}")
    yield Case("byte order mark", b"\xef\xbb\xbf" + text)
    yield Case("UTF-16", text.decode().encode("utf-16"))
    yield Case("no UTF-8", text.replace(b"1.0", b"1.0\xff"))
    for name, old, new in (
        ("NaN", b'"dropout": null', b'"dropout": NaN'),
        ("infinity", b'"dropout": null', b'"dropout": Infinity'),
        ("a number too large", b'"dropout": null', b'"dropout": 1e999'),
        ("many digits", b'"dropout": null', b'"dropout": ' + b"9" * 5000),
        ("half a surrogate pair", b'"a": 0', b'"\\ud800": 0'),
        ("half a surrogate pair, low", b'"a": 0', b'"\\udc00": 0'),
        ("key twice in the file", b'"version"', b'"version": "1.0", "version"'),
        ("key twice in the model", b'"dropout"', b'"dropout": null, "dropout"'),
        ("key twice in the vocabulary", b'"b": 1', b'"b": 1, "b": 1'),
        ("key twice in a component", b'"invert"', b'"invert": false, "invert"'),
        ("trailing comma", b'"b": 1', b'"b": 1,'),
        ("comment", b'"b": 1', b'/* */ "b": 1'),
        ("control character", b'"<|end|>"', b'"\n"'),
        ("regular expression open", b"\\\\p{N}", b"("),
        ("regular expression of nothing known", b"\\\\p{N}", b"\\\\p{Nothing}"),
        ("regular expression reversed", b"\\\\p{N}", b"[z-a]"),
        ("merge of a stranger", b'"a b"', b'"a c"'),
        ("merge without its result", b'"a b"', b'"b a"'),
        ("merge of one", b'"a b"', b'"a"'),
        ("merge of three", b'"a b"', b'"a b c"'),
        ("merge twice", b'"a b"', b'"a b", "a b"'),
        ("merges of two forms", b'"a b"', b'"a b", ["a", "b"]'),
        ("id beyond the embedding", b'"ab": 2', b'"ab": 99999'),
        ("id of 32 bits", b'"ab": 2', b'"ab": 4294967295'),
        ("id of 33 bits", b'"ab": 2', b'"ab": 4294967296'),
        ("id twice", b'"ab": 2', b'"ab": 1'),
    ):  # fmt: skip
        assert old in text, name
        yield Case(name, text.replace(old, new, 1))
    for depth in (40, 126, 150, 5000):
        nested = b"[" * depth + b"]" * depth
        yield Case(
            f"{depth} levels", text.replace(b'"individual_digits"', b'"x": %b, "individual_digits"' % nested)
        )
    yield from _other_kinds()


def _other_kinds() -> Iterator[Case]:
    models = {
        "Unigram": {"unk_id": 0, "vocab": [["<unk>", 0.0], ["a", -1.0]], "byte_fallback": False},
        "WordLevel": {"vocab": {"a": 0}, "unk_token": "a"},
        "WordPiece": {
            "vocab": {"a": 0},
            "unk_token": "a",
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
        },
        "Nonsense": {"vocab": {"a": 0}},
    }
    for kind, model in models.items():
        yield Case(f"model {kind}", json.dumps(_BYTES | {"model": {"type": kind, **model}}).encode())
    for charsmap in ("", "AAAA", "AAAAAA==", "%%%", "a"):
        part = {"type": "Precompiled", "precompiled_charsmap": charsmap}
        for name in ("byte-level", "spaces"):
            yield Case(
                f"{name}: charsmap {charsmap}", json.dumps(BASES[name] | {"normalizer": part}).encode()
            )
    added = _BYTES["added_tokens"][0]
    for name, tokens in {
        "added token twice": [added, added],
        "two added tokens with one id": [added, added | {"content": "<|x|>"}],
        "added token with another id": [added, added | {"id": 10}],
        "added token over the vocabulary": [added | {"id": 2}],
        "added token beyond the embedding": [added | {"id": 1 << 31}],
    }.items():
        yield Case(name, json.dumps(_BYTES | {"added_tokens": tokens}).encode())
