"""SentencePiece's precompiled replacements of characters, ``normalizer_spec.precompiled_charsmap``.

    uint32 n | n bytes: a double-array trie of uint32 units | replacements, each ended by a zero byte

A key's value in the trie is where its replacement begins. The trie is Darts-clone's
(https://github.com/s-yata/darts-clone): a child of a unit lies at its index XOR its offset XOR the byte.
"""

from __future__ import annotations

import struct

from phiconv.errors import ConfigError

__all__ = ["Charsmap"]

_LONGEST_KEY = 64  # bytes; those of SentencePiece's own rules have at most 12


class Charsmap:
    """Replaces the longest key at each place of a text.

    Args:
        data: The whole charsmap.

    Raises:
        ConfigError: It is no charsmap.
    """

    def __init__(self, data: bytes) -> None:
        size = int.from_bytes(data[:4], "little")
        if len(data) < 8 or size < 4 or size % 4 or 4 + size > len(data):
            raise _broken(f"a trie of {size} bytes in {len(data)} bytes")
        self._units: tuple[int, ...] = struct.unpack_from(f"<{size // 4}I", data, 4)
        self._replacements = data[4 + size :]

    def replace(self, text: str) -> str:
        """The text with every key replaced."""
        data = text.encode()
        result, at = bytearray(), 0
        while at < len(data):
            length, value = self._longest(data, at)
            if length:
                result += self._replacement(value)
                at += length
            else:
                character = _length(data[at])
                result += data[at : at + character]
                at += character
        return result.decode(errors="replace")

    def _longest(self, data: bytes, at: int) -> tuple[int, int]:
        """Length and value of the longest key at a place; a length of 0 where there is none."""
        found = (0, 0)
        unit = self._unit(0)
        index = _offset(unit)
        for length, byte in enumerate(data[at : at + _LONGEST_KEY], 1):
            index ^= byte
            unit = self._unit(index)
            if unit & 0x8000_00FF != byte:  # a leaf, or another unit's child
                break
            index ^= _offset(unit)
            if unit >> 8 & 1:  # a key ends here; its value is the child of byte 0
                found = (length, self._unit(index) & 0x7FFF_FFFF)
        return found

    def _unit(self, index: int) -> int:
        if index >= len(self._units):
            raise _broken(f"unit {index} of {len(self._units)}")
        return self._units[index]

    def _replacement(self, start: int) -> bytes:
        end = self._replacements.find(b"\0", start)
        if end < 0:
            raise _broken(f"no replacement at byte {start}")
        return self._replacements[start:end]


def _offset(unit: int) -> int:
    return unit >> 10 << ((unit & 0x200) >> 6)


def _length(first: int) -> int:
    """Bytes of a UTF-8 character, by its first."""
    return 1 + (first >= 0xC0) + (first >= 0xE0) + (first >= 0xF0)


def _broken(what: str) -> ConfigError:
    return ConfigError(
        f"not a SentencePiece charsmap: {what}",
        at="precompiled_charsmap",
        hint="download the tokenizer files again",
    )
