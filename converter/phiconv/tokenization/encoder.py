"""Text to token ids and back, with the ids that the Hugging Face `tokenizers` library gives.

    text -> pieces at the added tokens -> normalized -> words -> characters or bytes -> merged tokens

The two kinds of tokenizer differ in what a word is, and in what it is made of before anything is merged.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import TYPE_CHECKING, Protocol

from phiconv.errors import UnsupportedModelError
from phiconv.tokenization import bpe
from phiconv.tokenization.added_tokens import AddedTokens
from phiconv.tokenization.characters import kinds, kinds_expression
from phiconv.tokenization.charsmap import Charsmap
from phiconv.tokenization.composition import compose
from phiconv.tokenization.tokenizer import (
    SPLITS,
    SentencePieceOptions,
    Split,
    Tokenizer,
    TokenType,
    byte_alphabet,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

__all__ = ["byte_alphabet", "decode", "encode", "piece"]

_SPACE = "\u2581"  # SentencePiece's mark of a space
_MAX_CACHED = 1 << 16
_LONGEST_CACHED = 64


def encode(tokenizer: Tokenizer, text: str, *, special: bool = False) -> list[int]:
    """Tokenizes a text.

    Args:
        tokenizer: Of a model.
        text: Any text; the tokenizer's added tokens are found in it.
        special: Put the tokens before and after it that the tokenizer's files ask for (bos, eos).

    Returns:
        Token ids. A character that the vocabulary can express in no way is left out, as the library does.

    Raises:
        UnsupportedModelError: Nobody has said how this tokenizer splits the text.
        UnicodeEncodeError: The text has half of a surrogate pair, which is no character.
    """
    ids = _encoder(_Same(tokenizer)).encode(text)
    if special:
        roles = tokenizer.special_ids
        before = [roles["bos"]] if tokenizer.add_bos and "bos" in roles else []
        after = [roles["eos"]] if tokenizer.add_eos and "eos" in roles else []
        return [*before, *ids, *after]
    return ids


def decode(tokenizer: Tokenizer, ids: Iterable[int], *, skip_special: bool = False) -> str:
    """The text of token ids.

    Args:
        tokenizer: Of a model.
        ids: Token ids; those that are no token are left out.
        skip_special: Leave out the tokens that are not part of the text.

    Returns:
        The text. Bytes that are not UTF-8 become U+FFFD. SentencePiece's space in front of the text is not
        part of it.
    """
    known = range(len(tokenizer))
    kept = (i for i in ids if i in known and not (skip_special and tokenizer.types[i] is TokenType.CONTROL))
    tokens = (token for i in kept if (token := tokenizer.tokens[i]) is not None)
    if tokenizer.kind == "byte-bpe":
        return b"".join(map(_bytes_of_token, tokens)).decode(errors="replace")
    options = tokenizer.sentencepiece or SentencePieceOptions()
    text = "".join(_pieces_to_text(tokens, byte_fallback=options.byte_fallback))
    return text.removeprefix(" ") if options.add_dummy_prefix else text


def piece(tokenizer: Tokenizer, token: int) -> str:
    """What one token is inside a text, "" for ids that are no token.

    Unlike `decode` this keeps a space in front. Bytes that are not UTF-8 by themselves become U+FFFD.
    """
    text = tokenizer.tokens[token] if token in range(len(tokenizer)) else None
    if text is None:
        return ""
    if tokenizer.kind == "byte-bpe":
        return _bytes_of_token(text).decode(errors="replace")
    options = tokenizer.sentencepiece or SentencePieceOptions()
    return "".join(_pieces_to_text([text], byte_fallback=options.byte_fallback))


# -------------------------------------------------------------------------------------------------- decoding


_BYTES = {character: byte for byte, character in byte_alphabet().items()}
_CHARACTERS = [character for _, character in sorted(byte_alphabet().items())]


def _bytes_of_token(token: str) -> bytes:
    """The bytes of a byte-level token; one with a character outside the alphabet is plain text."""
    try:
        return bytes([_BYTES[character] for character in token])
    except KeyError:
        return token.encode()


def _pieces_to_text(tokens: Iterable[str], *, byte_fallback: bool) -> Iterator[str]:
    pending = bytearray()
    for token in tokens:
        if byte_fallback and (match := re.fullmatch(r"<0x([0-9A-Fa-f]{2})>", token)):
            pending.append(int(match[1], 16))
            continue
        yield _bytes_to_text(pending)
        pending.clear()
        yield token.replace(_SPACE, " ")
    yield _bytes_to_text(pending)


def _bytes_to_text(data: bytearray) -> str:
    """Bytes in a row are one text, or else none of them is: the library's rule."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "\ufffd" * len(data)


# -------------------------------------------------------------------------------------------------- encoding


class _Same:
    """A tokenizer as a key: comparing two vocabularies would take longer than tokenizing a page."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and other.tokenizer is self.tokenizer

    def __hash__(self) -> int:
        return id(self.tokenizer)


@lru_cache(maxsize=2)  # a model and its reference
def _encoder(same: _Same) -> _Encoder:
    return _Encoder(same.tokenizer)


class _Algorithm(Protocol):
    """What the two kinds of tokenizer do differently."""

    merges: bpe.Merges

    def normalize(self, text: str) -> str:
        """The text as it is looked up."""

    def words(self, text: str, *, first: bool) -> Sequence[str]:
        """Parts of normalized text that never share a token; all of a text begins with the first one."""

    def symbols(self, word: str) -> list[int]:
        """A word's characters or bytes, before they are merged; or the word, if it is a token."""


class _Encoder:
    """A tokenizer made ready: its tables as dictionaries, and the words it has met."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        ids = _vocabulary(tokenizer)
        self._algorithm: _Algorithm = (
            _ByteLevel(tokenizer, ids) if tokenizer.kind == "byte-bpe" else _SentencePiece(tokenizer, ids)
        )
        self._added = AddedTokens([t for t in tokenizer.added if not t.normalized], lambda text: text)
        self._normalized = AddedTokens(
            [t for t in tokenizer.added if t.normalized], self._algorithm.normalize
        )
        self._cache: dict[str, list[int]] = {}

    def encode(self, text: str) -> list[int]:
        result: list[int] = []
        first = True
        for piece, found in self._added.split(text):
            if found is not None:
                result.append(found)
                first = False
                continue
            for part, inner in self._normalized.split(self._algorithm.normalize(piece)):
                if inner is not None:
                    result.append(inner)
                else:
                    for word in self._algorithm.words(part, first=first):
                        result += self._cache.get(word) or self._merge(word)
                first = False
        return result

    def _merge(self, word: str) -> list[int]:
        ids = bpe.merge(self._algorithm.symbols(word), self._algorithm.merges)
        if len(word) <= _LONGEST_CACHED:
            if len(self._cache) >= _MAX_CACHED:
                self._cache.clear()
            self._cache[word] = ids
        return ids


def _vocabulary(tokenizer: Tokenizer) -> dict[str, int]:
    """Id by token; where an added token has the text of another one, that one counts."""
    added = {token.id for token in tokenizer.added}
    pairs = [(token, i) for i, token in enumerate(tokenizer.tokens) if token is not None]
    ids = {token: i for token, i in pairs if i in added}
    ids.update((token, i) for token, i in pairs if i not in added)
    return ids


class _ByteLevel:
    """BPE over the bytes of the words that a regular expression finds."""

    def __init__(self, tokenizer: Tokenizer, ids: Mapping[str, int]) -> None:
        self.merges = bpe.merges_of_pairs(tokenizer.merges, ids)
        self._ids = [ids.get(character) for character in _CHARACTERS]
        self._whole_words = ids if tokenizer.ignore_merges else {}
        expression = _expression(tokenizer.split)
        self._ignores_case = "(?i:" in expression
        self._expression = kinds_expression(expression)
        self._nfc = tokenizer.nfc

    def normalize(self, text: str) -> str:
        return compose(text) if self._nfc else text

    def words(self, text: str, *, first: bool) -> list[str]:  # noqa: ARG002 - all texts are alike
        signs = kinds(text, fold=self._ignores_case)
        return [text[match.start() : match.end()] for match in self._expression.finditer(signs)]

    def symbols(self, word: str) -> list[int]:
        if self._whole_words:
            whole = self._whole_words.get("".join(_CHARACTERS[byte] for byte in word.encode()))
            if whole is not None:
                return [whole]
        return [i for byte in word.encode() if (i := self._ids[byte]) is not None]


def _expression(split: Split | None) -> str:
    """The regular expression of a split."""
    if split is not None and split.text in SPLITS:
        return split.text
    known = [text for text, name in SPLITS.items() if split is not None and name == split.name]
    if not known:
        message = f"no known way to split the text into words: {split.text if split else 'none is given'}"
        raise UnsupportedModelError(message, hint="use the tokenizer files of the original model")
    return known[0]


class _SentencePiece:
    """BPE over characters; one without a piece becomes its UTF-8 bytes, or else the unknown token."""

    def __init__(self, tokenizer: Tokenizer, ids: Mapping[str, int]) -> None:
        self._options = tokenizer.sentencepiece or SentencePieceOptions()
        self._ids = ids
        self._charsmap = Charsmap(self._options.charsmap) if self._options.charsmap else None
        types = tokenizer.types
        self._unknown = types.index(TokenType.UNKNOWN) if TokenType.UNKNOWN in types else ids.get("<unk>")
        if tokenizer.merges:
            self.merges = bpe.merges_of_pairs(tokenizer.merges, ids)
        else:
            normal = {token: i for token, i in ids.items() if types[i] is TokenType.NORMAL}
            self.merges = bpe.merges_of_scores(normal, tokenizer.scores)
        # Where no token goes on after the end of a word, words can be merged, and remembered, one by one.
        inside = re.compile(f"[^{_SPACE}]{_SPACE}")
        self._cut = _SPACE in ids and not any(
            inside.search(tokenizer.tokens[joined] or "") for _, joined in self.merges.values()
        )

    def normalize(self, text: str) -> str:
        if self._charsmap is not None:
            text = self._charsmap.replace(text)
        if self._options.remove_extra_whitespaces:
            text = re.sub(" +", " ", text.lstrip(" ").rstrip(f" {_SPACE}"))
        if self._options.metaspace is not None:
            return text
        if self._options.add_dummy_prefix and text:
            text = f" {text}"
        return text.replace(" ", _SPACE)

    def words(self, text: str, *, first: bool) -> list[str]:
        if (metaspace := self._options.metaspace) is not None:
            text = text.replace(" ", _SPACE)
            prefix = metaspace.scheme == "always" or (metaspace.scheme == "first" and first)
            if prefix and not text.startswith(_SPACE):
                text = _SPACE + text
            if metaspace.split:
                return re.findall(f"{_SPACE}[^{_SPACE}]*|[^{_SPACE}]+", text)
        return re.findall(f"{_SPACE}*[^{_SPACE}]+|{_SPACE}+", text) if self._cut else [text]

    def symbols(self, word: str) -> list[int]:
        result: list[int] = []
        for character in word:
            known = self._ids.get(character)
            if known is not None:
                result.append(known)
            elif (fallback := self._bytes(character)) is not None:
                result += fallback
            elif self._unknown is not None and result[-1:] != [self._unknown]:  # a run of them is one token
                result.append(self._unknown)
        return result

    def _bytes(self, character: str) -> list[int] | None:
        if not self._options.byte_fallback:
            return None
        found = [self._ids.get(f"<0x{byte:02X}>") for byte in character.encode()]
        known = [i for i in found if i is not None]
        return known if len(known) == len(found) else None
