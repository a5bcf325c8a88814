"""What the `tokenizers` library takes in a tokenizer.json: its components by type, and what is in each.

The library is the first that reads such a file, in every runtime that has it inside. What it refuses is no
tokenizer, even where no id depends on it, so it is refused here, too; but for the regular expressions, which
phiconv compares and never compiles. ``docs/tokenizer-json.md`` lists what differs.

Facts from `tokenizers` 0.23, by trying.
"""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Any, TypeAlias

from phiconv.errors import ConfigError, printable
from phiconv.tokenization.charsmap import Charsmap

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

__all__ = ["check_tokenizer_json"]

_DEEPEST = 127  # arrays and objects inside each other, that of the file itself included

Check: TypeAlias = "Callable[[Any, str], None]"
"""Takes a value and its place in the file; raises `_Fault`."""


class _Fault(Exception):  # noqa: N818 - never leaves this module
    """A value is not what the library takes."""

    def __init__(self, at: str, expected: str) -> None:
        super().__init__(at, expected)
        self.at, self.expected = at, expected


def check_tokenizer_json(data: Mapping[str, Any], path: Path) -> None:
    """Refuses what the library refuses, but for vocabulary, merges and sequences of components.

    Raises:
        ConfigError: A key is unknown, missing, or has a wrong value.
    """
    model = data.get("model")
    rest = {key: value for key, value in data.items() if key != "model"}
    if isinstance(model, dict):
        rest["model"] = {key: value for key, value in model.items() if key not in {"vocab", "merges"}}
    try:
        _check_depth(rest)
        _FILE(rest, "")
    except _Fault as fault:
        raise ConfigError(f"expected {fault.expected}", path=path, at=fault.at) from None


def _check_depth(data: Mapping[str, Any]) -> None:
    level, depth = [(str(key), value) for key, value in data.items()], 1
    while level := [(at, value) for at, value in level if isinstance(value, dict | list)]:
        depth += 1
        if depth > _DEEPEST:
            raise _Fault(level[0][0], f"at most {_DEEPEST} levels of arrays and objects")
        level = [
            (at, inner)
            for at, value in level
            for inner in (value.values() if isinstance(value, dict) else value)
        ]


# ----------------------------------------------------------------------------------------------------- values


def _value(expected: str, fits: Callable[[Any], bool]) -> Check:
    def check(value: Any, at: str) -> None:
        if not fits(value):
            raise _Fault(at, expected)

    return check


def _whole(bits: int) -> Check:
    return _value(f"a whole number of {bits} bits", lambda v: type(v) is int and 0 <= v < 1 << bits)


def _one_of(*texts: str) -> Check:
    return _value(f"one of {', '.join(texts)}", lambda v: type(v) is str and v in texts)


_FLAG = _value("true or false", lambda v: type(v) is bool)
_TEXT = _value("a string", lambda v: type(v) is str)
_CHARACTER = _value("one character", lambda v: type(v) is str and len(v) == 1)
_FRACTION = _value("a number from 0 to 1", lambda v: type(v) in {int, float} and 0 <= v <= 1)
_SIZE, _ID = _whole(64), _whole(32)
_ANYTHING = _value("anything", lambda _: True)


def _or_null(check: Check) -> Check:
    return lambda value, at: None if value is None else check(value, at)


def _list(check: Check) -> Check:
    def each(value: Any, at: str) -> None:
        if type(value) is not list:
            raise _Fault(at, "an array")
        for number, item in enumerate(value):
            check(item, f"{at}[{number}]")

    return each


def _pair(value: Any, at: str) -> None:
    """A token and its id."""
    if type(value) is not list or len(value) != 2:
        raise _Fault(at, "a token and its id")
    _TEXT(value[0], at)
    _ID(value[1], at)


def _charsmap(value: Any, at: str) -> None:
    """A compiled table of replacements, in base64."""
    _TEXT(value, at)
    try:
        Charsmap(base64.b64decode(value, validate=True))
    except ValueError:  # a ConfigError is one, too
        raise _Fault(at, "a SentencePiece charsmap in base64") from None


def _object(
    required: Mapping[str, Check] | None = None,
    optional: Mapping[str, Check] | None = None,
    *,
    closed: bool = False,
) -> Check:
    """An object with these keys; other ones are passed over, unless it is ``closed``."""
    needed, others = required or {}, optional or {}

    def check(value: Any, at: str) -> None:
        if type(value) is not dict:
            raise _Fault(at, "an object")
        for key in value:
            if closed and key not in needed and key not in others:
                raise _Fault(_inside(at, printable(key, 60)), "no such key")
        for key, inner in needed.items():
            if key not in value:
                raise _Fault(at, f"the key {key}")
            inner(value[key], _inside(at, key))
        for key, inner in others.items():
            if key in value:
                inner(value[key], _inside(at, key))

    return check


def _inside(at: str, key: str) -> str:
    return f"{at}.{key}" if at else key


def _one_key(**keys: Check) -> Check:
    """An object with one key, which says what its value is."""

    def check(value: Any, at: str) -> None:
        if type(value) is not dict or len(value) != 1 or not keys.keys() >= value.keys():
            raise _Fault(at, f"an object with one key, {' or '.join(keys)}")
        (key,) = value
        keys[key](value[key], _inside(at, key))

    return check


def _component(sequence: str, **types: Check) -> Check:
    """A component, by its type; a Sequence holds others under a key of its own."""

    def check(value: Any, at: str) -> None:
        waiting = [(value, at)]
        while waiting:
            part, place = waiting.pop()
            kind = part.get("type") if type(part) is dict else None
            if kind == "Sequence":
                inner = part.get(sequence)
                _list(_ANYTHING)(inner, _inside(place, sequence))
                waiting += [(each, f"{place}.{sequence}[{i}]") for i, each in enumerate(inner)]
            elif type(kind) is not str or kind not in types:
                raise _Fault(place, "a component that the tokenizers library has")
            else:
                types[kind](part, place)

    return check


# --------------------------------------------------------------------------------------------- the components


_NOTHING = _object()
_PATTERN = _one_key(String=_TEXT, Regex=_TEXT)
_BEHAVIOR = _one_of("Removed", "Isolated", "MergedWithPrevious", "MergedWithNext", "Contiguous")
_BYTE_LEVEL = _object({"add_prefix_space": _FLAG, "trim_offsets": _FLAG}, {"use_regex": _FLAG})
_REPLACE = _object({"pattern": _PATTERN, "content": _TEXT})
_METASPACE = _object(
    {"replacement": _CHARACTER},
    {
        "prepend_scheme": _one_of("always", "first", "never"),
        "split": _or_null(_FLAG),
        "add_prefix_space": _or_null(_FLAG),
        "str_rep": _or_null(_TEXT),
    },
)

_NORMALIZER = _component(
    "normalizers",
    BertNormalizer=_object(
        {"clean_text": _FLAG, "handle_chinese_chars": _FLAG, "lowercase": _FLAG},
        {"strip_accents": _or_null(_FLAG)},
    ),
    ByteLevel=_NOTHING,
    Lowercase=_NOTHING,
    NFC=_NOTHING,
    NFD=_NOTHING,
    NFKC=_NOTHING,
    NFKD=_NOTHING,
    Nmt=_NOTHING,
    Precompiled=_object({"precompiled_charsmap": _charsmap}),
    Prepend=_object({"prepend": _TEXT}),
    Replace=_REPLACE,
    Strip=_object({"strip_left": _FLAG, "strip_right": _FLAG}),
    StripAccents=_NOTHING,
)
_PRE_TOKENIZER = _component(
    "pretokenizers",
    BertPreTokenizer=_NOTHING,
    ByteLevel=_BYTE_LEVEL,
    CharDelimiterSplit=_object({"delimiter": _CHARACTER}),
    Digits=_object({"individual_digits": _FLAG}),
    FixedLength=_object({}, {"length": _SIZE}),
    Metaspace=_METASPACE,
    Punctuation=_object({}, {"behavior": _BEHAVIOR}),
    Split=_object({"pattern": _PATTERN, "behavior": _BEHAVIOR, "invert": _FLAG}),
    UnicodeScripts=_NOTHING,
    Whitespace=_NOTHING,
    WhitespaceSplit=_NOTHING,
)
_DECODER = _component(
    "decoders",
    BPEDecoder=_object({"suffix": _TEXT}),
    ByteFallback=_NOTHING,
    ByteLevel=_BYTE_LEVEL,
    CTC=_object({"pad_token": _TEXT, "word_delimiter_token": _TEXT, "cleanup": _FLAG}),
    Fuse=_NOTHING,
    Metaspace=_METASPACE,
    Replace=_REPLACE,
    Strip=_object({"content": _CHARACTER, "start": _SIZE, "stop": _SIZE}),
    WordPiece=_object({"prefix": _TEXT, "cleanup": _FLAG}),
)

_TEMPLATE = _list(
    _one_key(
        SpecialToken=_object({"id": _TEXT, "type_id": _ID}),
        Sequence=_object({"id": _one_of("A", "B"), "type_id": _ID}),
    )
)
_ADDED_IN_TEMPLATE = _object({"id": _TEXT, "ids": _list(_ID), "tokens": _list(_TEXT)})
_TEMPLATE_KEYS = _object({"single": _TEMPLATE, "pair": _TEMPLATE, "special_tokens": _NOTHING})


def _template_processing(value: Any, at: str) -> None:
    """Templates of one and of two texts, and the tokens in them."""
    _TEMPLATE_KEYS(value, at)
    known = value["special_tokens"]
    for name, token in known.items():
        place = f"{at}.special_tokens.{printable(name, 60)}"
        _ADDED_IN_TEMPLATE(token, place)
        if len(token["ids"]) != len(token["tokens"]):
            raise _Fault(place, "as many ids as tokens")
    for key in ("single", "pair"):
        used = {item["SpecialToken"]["id"] for item in value[key] if "SpecialToken" in item}
        if missing := sorted(used - known.keys()):
            raise _Fault(f"{at}.special_tokens", f"the token {printable(missing[0], 60)}, which {key} has")


_POST_PROCESSOR = _component(
    "processors",
    BertProcessing=_object({"sep": _pair, "cls": _pair}),
    ByteLevel=_BYTE_LEVEL,
    RobertaProcessing=_object({"sep": _pair, "cls": _pair}),
    TemplateProcessing=_template_processing,
)

# --------------------------------------------------------------------------------------------------- the file


_DIRECTION = _one_of("Left", "Right")
_TRUNCATION = _object(
    {
        "max_length": _SIZE,
        "strategy": _one_of("LongestFirst", "OnlyFirst", "OnlySecond"),
        "stride": _SIZE,
    },
    {"direction": _DIRECTION},
)
_FIXED = _one_key(Fixed=_SIZE)


def _padding_strategy(value: Any, at: str) -> None:
    if value != "BatchLongest":
        _FIXED(value, at)


_PADDING = _object(
    {
        "strategy": _padding_strategy,
        "direction": _DIRECTION,
        "pad_id": _ID,
        "pad_type_id": _ID,
        "pad_token": _TEXT,
    },
    {"pad_to_multiple_of": _or_null(_SIZE)},
)
_ADDED_TOKEN = _object(
    {
        "id": _ID,
        "content": _TEXT,
        **dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), _FLAG),
    }
)
_MODEL = _object(
    {},
    {
        "dropout": _or_null(_FRACTION),
        "unk_token": _or_null(_TEXT),
        "continuing_subword_prefix": _or_null(_TEXT),
        "end_of_word_suffix": _or_null(_TEXT),
        "fuse_unk": _or_null(_FLAG),
        "byte_fallback": _or_null(_FLAG),
        "ignore_merges": _or_null(_FLAG),
    },
)
_FILE = _object(
    {"model": _MODEL},
    {
        "version": _one_of("1.0"),
        "truncation": _or_null(_TRUNCATION),
        "padding": _or_null(_PADDING),
        "added_tokens": _list(_ADDED_TOKEN),
        "normalizer": _or_null(_NORMALIZER),
        "pre_tokenizer": _or_null(_PRE_TOKENIZER),
        "post_processor": _or_null(_POST_PROCESSOR),
        "decoder": _or_null(_DECODER),
    },
    closed=True,
)
