"""The changes that fuzzing makes: pure, of every kind, and never the same file throughout."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mutations import Change, JsonChange, changes, json_changes, mutate, mutate_json

DATA = bytes(range(100, 120)) + b'{"a": 12, "b": 3}'


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (Change("flip", 0.0, number=1), bytes([102]) + DATA[1:]),
        (Change("byte", 0.0, content=b"x"), b"x" + DATA[1:]),
        (Change("cut", 0.5, size=2), DATA[:18] + DATA[20:]),
        (Change("insert", 0.0, content=b"abc"), b"abc" + DATA),
        (Change("repeat", 0.0, size=4), DATA[:4] + DATA),
        (Change("swap", 0.0, 0.5, size=2), DATA[18:20] + DATA[2:18] + DATA[:2] + DATA[20:]),
        (Change("end", 0.5), DATA[:18]),
        (Change("integer", 0.0, size=8, number=1 << 62), (1 << 62).to_bytes(8, "little") + DATA[8:]),
        (Change("digits", 0.6, number=1 << 40), DATA.replace(b"12", b"1099511627776")),
    ],
)
def test_each_kind(change, expected):
    assert mutate(DATA, [change]) == expected


@given(st.binary(max_size=80), changes(content=[b"header"]))
def test_any_changes_of_any_file(data, wanted):
    assert mutate(data, wanted) == mutate(data, wanted)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (JsonChange("set", 0.0, 0.0, [1]), {"a": [1], "b": {"c": [2]}}),
        (JsonChange("delete", 0.5, 0.0, None), {"a": 1, "b": {}}),
        (JsonChange("rename", 0.0, 0.0, 7), {"a7": 1, "b": {"c": [2]}}),
        (JsonChange("copy", 0.0, 0.5, None), {"a": [2], "b": {"c": [2]}}),
    ],
)
def test_each_kind_for_json(change, expected):
    value = {"a": 1, "b": {"c": [2]}}
    assert mutate_json(value, [change]) == expected
    assert value == {"a": 1, "b": {"c": [2]}}


@given(json_changes())
def test_changed_json_stays_json(wanted):
    assert json.dumps(mutate_json({"a": [1, {"b": "c"}], "d": None}, wanted))
