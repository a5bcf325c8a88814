"""Added tokens that OpenVINO's one expression finds otherwise than the library are named."""

from __future__ import annotations

from dataclasses import replace

import pytest

from paths import FIXTURES
from phiconv.tokenization.tokenizer import AddedToken, TokenType
from phiconv_formats.openvino.tokenizer_ir import tokenizer_ir
from phiconv_formats.openvino.tokenizer_patterns import odd_added
from phiconv_formats.tokenizers.folder import read_tokenizer

OTHERWISE = [
    ("tiny-phi3", [AddedToken(0, "w", single_word=True)], ["w"], "only as a word of its own"),
    ("tiny-phi3", [AddedToken(0, "w", normalized=True)], ["w"], "in normalized text"),
    ("nfc", [AddedToken(0, "w", normalized=True)], ["w"], "in normalized text"),
    ("tiny-phi4mini", [AddedToken(0, "w", normalized=True)], [], ""),
    ("tiny-phi4mini", [AddedToken(0, "w", lstrip=True, rstrip=True)], [], ""),
    (
        "tiny-phi4mini",
        [AddedToken(0, "w", lstrip=True), AddedToken(0, " x")],
        [" x"],
        "white space at its edge",
    ),
    ("tiny-phi4mini", [AddedToken(0, "w", lstrip=True), AddedToken(0, "wx")], ["w"], "by another rule"),
    ("tiny-phi4mini", [AddedToken(0, "<<|", normalized=True)], ["<<|"], "after all that are found"),
]


@pytest.mark.parametrize(("name", "added", "odd", "what"), OTHERWISE)
def test_added_tokens_that_are_found_otherwise_are_told(name, added, odd, what):
    folder = FIXTURES / ("tiny-phi4mini" if name == "nfc" else name)
    tokenizer = read_tokenizer(folder, vocab_size=2112, config={})
    new = [replace(token, id=len(tokenizer) + i) for i, token in enumerate(added)]
    tokenizer = replace(
        tokenizer,
        tokens=(*tokenizer.tokens, *(token.content for token in new)),
        types=(*tokenizer.types, *len(new) * [TokenType.USER_DEFINED]),
        added=(*tokenizer.added, *new),
        nfc=name == "nfc",
    )
    found = list(odd_added(tokenizer))
    assert [token.content for _, token in found] == odd
    assert all(what in said for said, _ in found)
    assert all(tokenizer_ir(tokenizer).values())
