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
from collections import defaultdict
from dataclasses import dataclass
from itertools import accumulate, compress, pairwise, repeat
from typing import TYPE_CHECKING

import numpy as np

from phiconv.errors import ConfigError, UnsupportedModelError, printable
from phiconv.tokenization.tokenizer import SentencePieceOptions, byte_alphabet
from phiconv_formats.openvino.tokenizer_words import mark, never_merged
from phiconv_formats.shared.collector import collector_paused
from phiconv_formats.tokenizers.writer import merges_of_scores

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from numpy.typing import NDArray

    from phiconv.tokenization.tokenizer import Tokenizer

__all__ = ["EncoderTables", "decoder_strings", "encoder_tables"]

_SPACE = "\u2581"  # SentencePiece's mark of a space
_BYTES = {character: byte for byte, character in byte_alphabet().items()}
_BYTE_OF = np.full(2 + max(map(ord, _BYTES)), -1, np.int16)
"""The byte that a character of a byte-level token stands for; -1 for others, and all beyond are the last."""
_BYTE_OF[[*map(ord, _BYTES)]] = [*_BYTES.values()]
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
    own = [*tokenizer.tokens]
    for i in added_texts:
        own[i] = None
    ids = {token: i for token, i in zip(own, range(len(own)), strict=True) if token is not None}
    byte_level = tokenizer.kind == "byte-bpe"
    symbols, byte_ids = _bytes_of_text(ids) if byte_level else _characters(tokenizer, ids)
    texts = ["" if token is None else token for token in tokenizer.tokens]
    spelled = _byte_level_bytes(texts) if byte_level else [*map(_utf8, texts)]
    possible = _merge_ids(tokenizer.merges or ([] if byte_level else merges_of_scores(tokenizer)), ids)
    if byte_ids and np.isin(possible, [ids[piece] for piece in _BYTE_PIECES & ids.keys()]).any():
        raise UnsupportedModelError("bytes that are merged, which OpenVINO cannot express")
    has_added = re.compile(b"|".join(map(re.escape, added_texts.values())) or rb"(?!)").search
    if has_added(b"\0".join(map(spelled.__getitem__, ids.values()))):
        possible = possible[:, [not has_added(spelled[whole]) for whole in possible[2].tolist()]]
    made = _made(map(ids.__getitem__, symbols), possible.T.tolist(), len(texts))
    whole_words: dict[int, str] = {}
    if tokenizer.ignore_merges:
        apart = never_merged(ids, [(texts[a], texts[b]) for a, b, _ in possible.T.tolist()])
        made -= {ids[token] for token in apart}
        whole_words = {ids[token]: word for token in apart if (word := _word(token)) is not None}
    vocabulary = [spelled[i] if i in made else _filler(i) for i in range(len(texts))]
    for i, word in whole_words.items():
        vocabulary[i] = (mark(word) + word).encode()
    for byte, i in byte_ids.items():
        vocabulary[i] = bytes([byte])
    for i, text in added_texts.items():
        vocabulary[i] = text
    kept = possible[:, np.isin(possible, [*made]).all(axis=0)]
    left, right = ([*map(spelled.__getitem__, side.tolist())] for side in kept[:2])
    return EncoderTables(
        tuple(vocabulary), tuple(zip(left, right, strict=True)), tuple(sorted(whole_words.values()))
    )


@collector_paused()
def decoder_strings(tokenizer: Tokenizer) -> list[bytes]:
    """What each id adds to the text: nothing where the ids have a gap.

    Raises:
        ConfigError: A token is no valid Unicode.
    """
    texts = ["" if token is None else token for token in tokenizer.tokens]
    return _byte_level_bytes(texts) if tokenizer.kind == "byte-bpe" else [*map(_piece_bytes, texts)]


def _word(token: str) -> str | None:
    """The text of a byte-level token; None where it is none, such as a part of a character."""
    try:
        return bytes([_BYTES[character] for character in token]).decode()
    except (KeyError, UnicodeDecodeError):
        return None


def _filler(i: int) -> bytes:
    """A string for an id that no text has; the first two bytes are never part of UTF-8."""
    return b"\xff\xfe%d" % i


def _merge_ids(merges: Sequence[tuple[str, str]], ids: Mapping[str, int]) -> NDArray[np.intp]:
    """The ids of the two parts and of the whole of each merge, shape (3, n); of those with three tokens."""
    wholes = [*map("".join, merges)]
    texts = [*ids]
    first = texts.index(wholes[0]) if wholes and wholes[0] in ids else 0
    # Most vocabularies have the wholes in the order of the merges, and then none has to be looked up.
    in_order = texts[first : first + len(wholes)] == wholes
    found = np.empty((3, len(wholes)), np.intp)
    for row, side in zip(found, zip(*merges, strict=True), strict=False):
        row[:] = [*map(ids.get, side, repeat(-1))]
    found[2] = (
        [*ids.values()][first : first + len(wholes)] if in_order else [*map(ids.get, wholes, repeat(-1))]
    )
    return found[:, (found >= 0).all(axis=0)]


def _made(symbols: Iterable[int], merges: Iterable[Sequence[int]], size: int) -> set[int]:
    """The tokens that come out of merging symbols, the symbols included.

    Args:
        symbols: Their ids.
        merges: The ids of the two parts and of the whole of each.
        size: More than any id.
    """
    made, others = bytearray(size), []
    for symbol in symbols:
        made[symbol] = True
    for merge in merges:  # nearly always after those that make its parts
        left, right, whole = merge
        if made[left] and made[right]:
            made[whole] = True
        else:
            others.append(merge)
    found = {*compress(range(size), made)}
    return _made_in_any_order(found, others) if others else found


def _made_in_any_order(symbols: Collection[int], merges: Iterable[Sequence[int]]) -> set[int]:
    """`_made`, where a merge may come before those that make its parts."""
    merges_with: defaultdict[int, list[Sequence[int]]] = defaultdict(list)
    for merge in merges:
        for part in merge[:2]:
            merges_with[part].append(merge)
    made = set(symbols)
    waiting = list(made)
    while waiting:
        for left, right, whole in merges_with[waiting.pop()]:
            if left in made and right in made and whole not in made:
                made.add(whole)
                waiting.append(whole)
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


def _byte_level_bytes(tokens: Sequence[str]) -> list[bytes]:
    """The bytes of byte-level tokens; one with a character outside the alphabet is plain text."""
    characters = np.frombuffer("".join(tokens).encode("utf-32-le", "surrogatepass"), "<u4")
    found = _BYTE_OF[np.minimum(characters, len(_BYTE_OF) - 1)]
    data = found.astype(np.uint8).tobytes()
    edges = [*accumulate(map(len, tokens), initial=0)]
    spelled = [data[start:stop] for start, stop in pairwise(edges)]
    outside = np.searchsorted(edges, np.flatnonzero(found < 0), side="right") - 1
    for i in {*outside.tolist()}:
        spelled[i] = _utf8(tokens[i])
    return spelled


def _piece_bytes(token: str) -> bytes:
    if match := _BYTE_PIECE.fullmatch(token):
        return bytes([int(match[1], 16)])
    return _utf8(token.replace(_SPACE, " "))
