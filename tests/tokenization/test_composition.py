"""Characters are composed as the Hugging Face library composes them, with any Python."""

from __future__ import annotations

from unicodedata import normalize

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phiconv.tokenization.characters import SIZE
from phiconv.tokenization.composition import compose

library = pytest.importorskip("tokenizers").normalizers.NFC()

MARKS = "\u0301\u0323\u0334\u05b0\u3099\u094d\u1161\u11a8\u07fd\u08d3\u1abf\u1df6\U00011930\U0001e130"


def test_every_character_composes_as_in_the_library():
    characters = [chr(code) for code in range(SIZE) if not 0xD800 <= code < 0xE000]
    texts = [
        f"q\u0301{c}\u0323\u0334{c}e\u0301\u0327{normalize('NFD', c)}\u05b0\u0301\u3099\u094d"
        for c in characters
    ]
    assert [
        c for c, text in zip(characters, texts, strict=True) if compose(text) != library.normalize_str(text)
    ] == []


@given(st.text(st.sampled_from("aeq\u1100\uac00\u30ab\U00011935" + MARKS) | st.characters(codec="utf-8")))
def test_any_text_composes_as_in_the_library(text):
    assert compose(text) == library.normalize_str(text)


def test_composed_text_stays():
    assert compose("e\u0301 \u212b") == "\u00e9 \u00c5"
    assert compose("\u00e9") == "\u00e9"
