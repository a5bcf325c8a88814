"""Strict JSON: what it returns is what the standard parser returns, and what it refuses is named."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from phiconv.errors import MalformedFileError
from phiconv_formats.shared.strict_json import load_json, load_json_object, parse_json


def parse(data):
    return parse_json(data, path="folder/config.json")


def test_an_escaped_backslash_before_u_is_a_text():
    assert parse(rb'["\\ud800", {"\\uDEAD": "\ud83d\ude00"}]') == ["\\ud800", {"\\uDEAD": "\U0001f600"}]


REFUSED = {
    "nothing": (b"", "line 1 column 1: not valid JSON"),
    "two_values": (b'{"a": 1}\n{}', "line 2 column 1: not valid JSON"),
    "single_quotes": (b"{'a': 1}", "line 1 column 2: not valid JSON"),
    "trailing_comma": (b"[1,]", "not valid JSON"),
    "comment": (b"{} // no", "not valid JSON"),
    "control_character": (b'"a\nb"', "not valid JSON"),
    "duplicate_key": (b'{"x": {"a": 1, "b": 2, "a": 1}}', "key a: the key is there twice"),
    "duplicate_escaped_key": (b'{"a": 1, "\\u0061": 1}', "key a: the key is there twice"),
    "nan": (b"[NaN]", "NaN is not a JSON number"),
    "infinity": (b"[Infinity]", "Infinity is not"),
    "minus_infinity": (b'{"a": -Infinity}', "-Infinity is not"),
    "huge_number": (b"[1e999]", "the number 1e999 is too large"),
    "huge_negative_number": (b"-1.5e308000", "is too large"),
    "long_integer": (b"1" * 5000, "too many digits"),
    "long_integer_of_an_object": (b'{"a": -' + b"9" * 100_000 + b"}", "too many digits"),
    "deep_arrays": (b"[" * 100_000, "nested too deeply"),
    "deep_objects": (b'{"a":' * 100_000, "nested too deeply"),
    "deep_and_closed": (b"[" * 100_000 + b"]" * 100_000, "nested too deeply"),
    "lone_high_surrogate": (b'{"a": ["\\ud800"]}', "key a: a string holds half of a surrogate pair"),
    "lone_low_surrogate": (b'"\\uDC00 \\ud83d\\ude00"', "half of a surrogate pair"),
    "lone_surrogate_after_a_backslash": (rb'"\\\ud800"', "half of a surrogate pair"),
    "lone_surrogate_value": (rb'{"b": 1, "a": "\uDEAD"}', "key a: a string holds half of a surrogate pair"),
    "lone_surrogate_key": (b'{"x": {"\\ud83d": 1}}', "half of a surrogate pair"),
    "hidden_surrogate": (b'"\\\\ud83d\\ude00"', "half of a surrogate pair"),
    "utf16": ('{"a": 1}'.encode("utf-16"), "byte 0: not valid UTF-8"),
    "utf32": ("{}".encode("utf-32-le"), "not valid JSON"),
    "latin1": (b'{"a": "\xe9"}', "byte 7: not valid UTF-8"),
    "encoded_surrogate": (b'"\xed\xa0\x80"', "byte 1: not valid UTF-8"),
    "overlong": (b'"\xc0\xaf"', "byte 1: not valid UTF-8"),
    "byte_order_mark": (b"\xef\xbb\xbf{}", "byte order mark"),
    "too_many_values": (b"[" + b"[]," * 4_000_000 + b"1]", "more than 180 MiB of memory"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name, refused):
    data, says = REFUSED[name]
    error = refused(parse, data, says=says, kind=MalformedFileError)
    assert str(error).startswith("folder/config.json: ")


def test_the_place_in_the_file_is_named():
    with pytest.raises(MalformedFileError, match=r"^f: header, line 1 column 1: not valid"):
        parse_json(b"x", path="f", at="header")


def test_a_hostile_key_cannot_break_the_line(refused):
    refused(parse, b'{"\\u001b[2J\\n": 1, "\\u001b[2J\\n": 1}', says=r"key \x1b[2J\n: ")


def test_the_number_of_values_is_bounded():
    assert parse_json(b"[1, 2, 3]", path="f", max_values=3) == [1, 2, 3]
    with pytest.raises(MalformedFileError, match="more than 2 values"):
        parse_json(b"[1, 2, 3]", path="f", max_values=2)


def test_surrogate_pairs_and_escapes_are_fine():
    text = b'{"\\ud83d\\ude00": "\\\\ud800 \\u0120", "a": ["\\uD83D\\uDE00"]}'
    assert parse(text) == {"😀": "\\ud800 Ġ", "a": ["😀"]}


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda children: st.lists(children) | st.dictionaries(st.text(), children),
    max_leaves=20,
)


@settings(max_examples=50)
@given(json_values, st.booleans())
def test_agrees_with_the_standard_parser(value, ascii_only):
    data = json.dumps(value, ensure_ascii=ascii_only).encode()
    assert parse(data) == value


@given(st.binary(max_size=40) | st.text(alphabet='{}[]",:0eE+-.\\ud8tna ', max_size=40).map(str.encode))
def test_any_bytes_give_a_value_or_the_typed_error(data):
    try:
        value = parse(data)
    except MalformedFileError:
        return
    assert json.loads(json.dumps(value, ensure_ascii=False).encode()) == value


def test_load_json(tmp_path):
    path = tmp_path / "config.json"
    path.write_text('{"a": [1, 2.5, null, true]}')
    assert load_json(path, limit=27) == load_json_object(path, limit=27) == {"a": [1, 2.5, None, True]}
    with pytest.raises(MalformedFileError, match="27 bytes, and such a file has at most 26"):
        load_json(path, limit=26)


@pytest.mark.parametrize(
    ("text", "kind"),
    [("[]", "an array"), ("1", "a number"), ('"a"', "a string"), ("true", "true or false"), ("null", "null")],
)
def test_load_json_object_wants_an_object(tmp_path, text, kind):
    (tmp_path / "f").write_text(text)
    with pytest.raises(MalformedFileError, match=f"expected a JSON object, found {kind}"):
        load_json_object(tmp_path / "f", limit=100)
