r"""Vocabulary, merges and decoded texts in the form that OpenVINO's tokenizer operations take them.

BPETokenizer cuts a word into the longest strings of the vocabulary that no merge makes, and then merges them.
It sees bytes: a byte-level token is given as the bytes that it stands for. For the ids of the Hugging Face
library, the strings that no merge makes must be single characters (or bytes) and added tokens, and nothing
else. So:

* A merge that makes a string with an added token's text in it is left out. Such a string is never met, since
  added tokens are cut out of the text before; but the added token itself would be taken for merged.
* A token that can never come out is given as bytes that no text has in it.
* A token that only a whole word can be (``ignore_merges``) is given as `tokenizer_words` says.
* A byte token such as <0x0A> is given as that byte. Its text would be found in the text <0x0A> too.
"""

from __future__ import annotations

import re
from codecs import charmap_encode
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from phiconv.errors import ConfigError, UnsupportedModelError, printable
from phiconv.tokenization.tokenizer import SentencePieceOptions, byte_alphabet
from phiconv_formats.openvino.tokenizer_words import mark, never_merged
from phiconv_formats.shared.collector import collector_paused
from phiconv_formats.tokenizers.writer import merges_of_scores

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from phiconv.tokenization.tokenizer import Tokenizer

__all__ = ["EncoderTables", "decoder_strings", "encoder_tables"]

_SPACE = "\u2581"  # SentencePiece's mark of a space
_BYTES = {character: byte for byte, character in byte_alphabet().items()}
_CHARMAP = {ord(character): byte for character, byte in _BYTES.items()}
_BYTE_PIECES = {f"<0x{byte:02X}>" for byte in range(256)}
_BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


@dataclass(frozen=True, slots=True)
class EncoderTables:
    """What BPETokenizer is given.

    Attributes:
        vocabulary: What each id stands for in the text; no two ids have the same.
        merges: Pairs of strings of the vocabulary, in the order in which they merge.
        whole_words: Texts that are a token where they are a word, and not inside of one.
    """

    vocabulary: tuple[bytes, ...]
    merges: tuple[tuple[bytes, bytes], ...]
    whole_words: tuple[str, ...] = ()


@collector_paused()
def encoder_tables(tokenizer: Tokenizer) -> EncoderTables:
    """The vocabulary and the merges of a tokenizer.

    Raises:
        UnsupportedModelError: A tokenizer that the operation cannot express.
        ConfigError: A token is no valid Unicode.
    """
    added_texts = {token.id: _utf8(token.content) for token in tokenizer.added}
    ids = {t: i for i, t in enumerate(tokenizer.tokens) if t is not None and i not in added_texts}
    byte_level = tokenizer.kind == "byte-bpe"
    symbols, byte_ids = _bytes_of_text(ids) if byte_level else _characters(tokenizer, ids)
    merges = tokenizer.merges if byte_level or tokenizer.merges else merges_of_scores(tokenizer)
    spelled = {token: (_byte_level_bytes if byte_level else _utf8)(token) for token in ids}
    has_added = re.compile(b"|".join(map(re.escape, added_texts.values())) or rb"(?!)").search
    possible = [(a, b) for a, b in merges if a in ids and b in ids and a + b in ids]
    if byte_ids and any(_BYTE_PIECES & {*pair, "".join(pair)} for pair in possible):
        raise UnsupportedModelError("bytes that are merged, which OpenVINO cannot express")
    if has_added(b"\0".join(spelled.values())):
        possible = [pair for pair in possible if not has_added(spelled["".join(pair)])]
    made = _made(symbols, possible)
    whole_words: dict[str, str] = {}
    if tokenizer.ignore_merges:
        apart = never_merged(ids, possible)
        made -= apart
        whole_words = {token: word for token in apart if (word := _word(token)) is not None}
    vocabulary: list[bytes | None] = [None] * len(tokenizer)
    for token in made:
        vocabulary[ids[token]] = spelled[token]
    for token, word in whole_words.items():
        vocabulary[ids[token]] = (mark(word) + word).encode()
    for byte, i in byte_ids.items():
        vocabulary[i] = bytes([byte])
    for i, text in added_texts.items():
        vocabulary[i] = text
    kept = [(a, b) for a, b in possible if a in made and b in made and a + b in made]
    return EncoderTables(
        tuple(_filler(i) if text is None else text for i, text in enumerate(vocabulary)),
        tuple((spelled[a], spelled[b]) for a, b in kept),
        tuple(sorted(whole_words.values())),
    )


def decoder_strings(tokenizer: Tokenizer) -> list[bytes]:
    """What each id adds to the text: nothing where the ids have a gap.

    Raises:
        ConfigError: A token is no valid Unicode.
    """
    decoded = _byte_level_bytes if tokenizer.kind == "byte-bpe" else _piece_bytes
    return [b"" if token is None else decoded(token) for token in tokenizer.tokens]


def _word(token: str) -> str | None:
    """The text of a byte-level token; None where it is none, such as a part of a character."""
    try:
        return bytes([_BYTES[character] for character in token]).decode()
    except (KeyError, UnicodeDecodeError):
        return None


def _filler(i: int) -> bytes:
    """A string for an id that no text has; the first two bytes are never part of UTF-8."""
    return b"\xff\xfe%d" % i


def _made(symbols: Collection[str], merges: Iterable[tuple[str, str]]) -> set[str]:
    """The tokens that come out of merging symbols, the symbols included."""
    made, others = set(symbols), []
    for pair in merges:  # nearly always after those that make its parts
        if pair[0] in made and pair[1] in made:
            made.add("".join(pair))
        else:
            others.append(pair)
    return _made_in_any_order(made, others) if others else made


def _made_in_any_order(symbols: Collection[str], merges: Iterable[tuple[str, str]]) -> set[str]:
    """`_made`, where a merge may come before those that make its parts."""
    merges_with: defaultdict[str, list[tuple[str, str]]] = defaultdict(list)
    for pair in merges:
        for part in pair:
            merges_with[part].append(pair)
    made = set(symbols)
    waiting = list(made)
    while waiting:
        for left, right in merges_with[waiting.pop()]:
            joined = left + right
            if left in made and right in made and joined not in made:
                made.add(joined)
                waiting.append(joined)
    return made


# --------------------------------------------------------------------------------------------- the two kinds


def _bytes_of_text(ids: Mapping[str, int]) -> tuple[set[str], dict[int, int]]:
    """The characters that stand for bytes; a byte without one is left out of a text, as it should be."""
    return _BYTES.keys() & ids.keys(), {}


def _characters(tokenizer: Tokenizer, ids: Mapping[str, int]) -> tuple[set[str], dict[int, int]]:
    """The characters with a token of their own; and the ids of the bytes that stand for all others."""
    options = tokenizer.sentencepiece or SentencePieceOptions()
    for option, what in (
        (options.charsmap, "that replaces characters"),
        (options.remove_extra_whitespaces, "that removes white space"),
        (options.metaspace, "that puts a space in front only of some texts (Metaspace)"),
        (not options.byte_fallback, "without bytes to fall back to"),
    ):
        if option:
            raise UnsupportedModelError(f"a SentencePiece tokenizer {what}, which OpenVINO cannot express")
    characters = {token for token in ids if len(token) == 1}
    byte_ids = {int(piece[3:5], 16): ids.get(piece) for piece in sorted(_BYTE_PIECES)}
    # A byte of ASCII is a character too, which then comes first.
    found = {
        byte: i
        for byte, i in byte_ids.items()
        if i is not None and not (byte < 0x80 and chr(byte) in characters)
    }
    if missing := [byte for byte, i in byte_ids.items() if i is None]:
        raise UnsupportedModelError(f"the vocabulary has no token for the byte {missing[0]:#04x}")
    return characters, found


def _utf8(token: str) -> bytes:
    try:
        return token.encode()
    except UnicodeEncodeError:
        raise ConfigError(f"a token is no valid Unicode: {printable(token, 60)}") from None


def _byte_level_bytes(token: str) -> bytes:
    """The bytes of a byte-level token; one with a character outside the alphabet is plain text."""
    try:
        return charmap_encode(token, "strict", _CHARMAP)[0]
    except UnicodeEncodeError:
        return _utf8(token)


def _piece_bytes(token: str) -> bytes:
    if match := _BYTE_PIECE.fullmatch(token):
        return bytes([int(match[1], 16)])
    return _utf8(token.replace(_SPACE, " "))
