"""SentencePiece's character replacements: what is no such thing is refused."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phiconv.errors import ConfigError
from phiconv.tokenization.charsmap import Charsmap


def charsmap(units, replacements=b"x\0"):
    return struct.pack(f"<{len(units) + 1}I", 4 * len(units), *units) + replacements


def one_key(byte, value):
    """A trie whose only key is one byte."""
    units = [0] * 1024
    units[0] = 256 << 10  # the children of the root lie from unit 256 on
    units[256 ^ byte] = 512 << 10 | 1 << 8 | byte  # a key ends here; its value lies at 256 ^ byte ^ 512
    units[256 ^ byte ^ 512] = 0x8000_0000 | value
    return units


def test_a_key_is_replaced_and_the_rest_stays():
    made = Charsmap(charsmap(one_key(ord("b"), 2), b"x\0yz\0"))
    assert made.replace("abc b\u00e9\U0001f642") == "ayzc yz\u00e9\U0001f642"
    assert made.replace("") == ""


@pytest.mark.parametrize("data", [b"\0", b"", b"\xff\xff\xff\xff1234", struct.pack("<II", 3, 0)])
def test_no_charsmap(data):
    with pytest.raises(ConfigError, match="not a SentencePiece charsmap"):
        Charsmap(data)


@pytest.mark.parametrize("units", [[0x3FFFFF << 10], one_key(ord("b"), 9)])
def test_a_charsmap_that_points_outside_itself(units):
    with pytest.raises(ConfigError, match="not a SentencePiece charsmap"):
        Charsmap(charsmap(units)).replace("bbb")


@given(st.binary(min_size=4, max_size=200), st.text(max_size=20))
def test_any_bytes_are_read_or_refused(data, text):
    data = struct.pack("<I", len(data) // 4 * 4) + data
    try:
        Charsmap(data).replace(text)
    except ConfigError as error:
        assert "charsmap" in str(error)  # noqa: PT017 - most bytes are refused, and some are not
