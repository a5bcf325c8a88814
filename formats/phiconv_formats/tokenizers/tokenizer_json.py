"""tokenizer.json of the Hugging Face `tokenizers` library: vocabulary, merges, and the kind of tokenizer.

The kind and the split of the text are read from the structure of the file (its pre-tokenizer and its
normalizer), so that a fine-tune or a smaller vocabulary is recognised like the original.
"""

from __future__ import annotations

import base64
import io
import re
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar, cast

from phiconv.errors import ConfigError, MalformedFileError, printable
from phiconv.tokenization.tokenizer import (
    GPT2_SPLIT,
    SMOLLM_SPLIT,
    SPLITS,
    AddedToken,
    Kind,
    Metaspace,
    SentencePieceOptions,
    Split,
    SplitName,
)
from phiconv_formats.shared.strict_json import load_json_object
from phiconv_formats.tokenizers.schema import check_tokenizer_json

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

__all__ = [
    "DIGIT",
    "MAX_BYTES",
    "REGEX_OF_SPLIT",
    "WRONG_FILES",
    "TokenizerJson",
    "check_vocabulary",
    "expect",
    "merge_lines",
    "parse_merges",
    "read_added_token",
    "read_tokenizer_json",
]

MAX_BYTES = 64 << 20
"""The largest tokenizer.json that is read; the largest of a Phi model has 15.5 MB."""

WRONG_FILES = "take the tokenizer files that belong to these weights"
"""What to do about a vocabulary that does not fit the model."""

_MAX_MERGES = 500_000
"""The most that are read; Llama 3 has 280147."""

_MAX_MERGES_BYTES = 16 << 20

T = TypeVar("T")

Merges: TypeAlias = "tuple[tuple[str, str], ...]"
_Steps: TypeAlias = "list[dict[str, Any]]"
_SPACE = "\u2581"
_NAMES = {bool: "true or false", dict: "an object", int: "an integer", list: "an array", str: "a string"}

DIGIT = r"\p{N}"
"""The expression of a digit."""

REGEX_OF_SPLIT = {name: regex for regex, name in reversed(SPLITS.items())}
"""One regular expression for each known split: the first of its spellings."""


@dataclass(frozen=True, slots=True)
class TokenizerJson:
    """The parts of a tokenizer.json, checked.

    Attributes:
        vocabulary: Id by token, without the added tokens that are not in it.
        unknown: The token for what has no other.
        post_processors: Of the text's tokens; they say which special tokens are put around it.
        nfc, ignore_merges: Those of `Tokenizer`.
    """

    kind: Kind
    vocabulary: Mapping[str, int]
    merges: Merges
    added: tuple[AddedToken, ...]
    unknown: str | None
    split: Split | None
    sentencepiece: SentencePieceOptions | None
    post_processors: tuple[Mapping[str, Any], ...]
    nfc: bool = False
    ignore_merges: bool = False


def read_tokenizer_json(path: Path, vocab_size: int) -> TokenizerJson:
    """Reads and checks a tokenizer.json.

    Raises:
        MalformedFileError: It is not strict JSON, or too large.
        ConfigError: A key has a wrong value, or the tokenizer is of a kind that is not supported.
    """
    data = load_json_object(path, limit=MAX_BYTES)
    model = expect(data.get("model"), dict, path, "model")
    if model.get("type", "BPE") != "BPE":
        kind = printable(expect(model["type"], str, path, "model.type"), 40)
        raise ConfigError(
            f"a tokenizer of type {kind}, and only BPE is supported", path=path, at="model.type"
        )
    check_tokenizer_json(data, path)
    for key in ("continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(key):
            raise ConfigError(
                "prefixes and suffixes of tokens are not supported", path=path, at=f"model.{key}"
            )
    vocabulary = expect(model.get("vocab"), dict, path, "model.vocab")
    check_vocabulary(vocabulary, vocab_size, path, "model.vocab")
    merges = parse_merges(expect(model.get("merges"), list, path, "model.merges"), vocabulary, path)
    entries = expect(data.get("added_tokens") or [], list, path, "added_tokens")
    added = tuple(read_added_token(entry, path, f"added_tokens[{i}]") for i, entry in enumerate(entries))
    normalizers = _parts(data.get("normalizer"), "normalizers", path)
    pre_tokenizers = _parts(data.get("pre_tokenizer"), "pretokenizers", path)
    kind = _kind(normalizers, pre_tokenizers, path)
    whole_words = model.get("ignore_merges") is True
    unknown = model.get("unk_token")
    return TokenizerJson(
        kind=kind,
        vocabulary=vocabulary,
        merges=merges,
        added=added,
        unknown=None if unknown is None else expect(unknown, str, path, "model.unk_token"),
        split=_split(normalizers, pre_tokenizers, path) if kind == "byte-bpe" else None,
        sentencepiece=_options(model, normalizers, pre_tokenizers, path) if kind == "sentencepiece" else None,
        post_processors=tuple(_parts(data.get("post_processor"), "processors", path)),
        nfc=kind == "byte-bpe" and _is_nfc(normalizers),
        ignore_merges=kind == "byte-bpe" and whole_words,
    )


def expect(value: Any, kind: type[T], path: Path, at: str) -> T:
    """``value``, which must be exactly of this JSON type (true is no integer)."""
    if type(value) is not kind:
        found = "null or nothing" if value is None else _NAMES.get(type(value), "a fraction")
        raise ConfigError(f"expected {_NAMES[kind]}, found {found}", path=path, at=at)
    return value


def read_added_token(entry: Any, path: Path, at: str, token_id: int | None = None) -> AddedToken:
    """An added token as tokenizer.json, or (with its id as a key) as tokenizer_config.json has it."""
    entry = expect(entry, dict, path, at)
    flags = {
        name: expect(entry.get(name, False), bool, path, f"{at}.{name}")
        for name in ("special", "lstrip", "rstrip", "normalized", "single_word")
    }
    number = expect(entry.get("id"), int, path, f"{at}.id") if token_id is None else token_id
    return AddedToken(number, expect(entry.get("content"), str, path, f"{at}.content"), **flags)


def check_vocabulary(vocabulary: Mapping[str, Any], vocab_size: int, path: Path, at: str) -> None:
    """Refuses ids that are no integers, are there twice, or have no row in the embedding."""
    ids = list(vocabulary.values())
    if not ids:
        return
    if set(map(type, ids)) == {int} and len(set(ids)) == len(ids) and 0 <= min(ids) <= max(ids) < vocab_size:
        return
    seen: set[int] = set()
    for token, number in vocabulary.items():
        where = f"{at}[{printable(token, 60)!r}]"
        expect(number, int, path, where)
        if not 0 <= number < vocab_size:
            message = f"the id {number} has no row in the embedding of {vocab_size} tokens"
            raise ConfigError(message, path=path, at=where, hint=WRONG_FILES)
        if number in seen:
            raise ConfigError(f"the id {number} is there twice", path=path, at=where)
        seen.add(number)


def merge_lines(data: bytes, path: Path) -> Iterator[str]:
    """The lines of a merges.txt, one at a time: all of them would take many times the file.

    Raises:
        MalformedFileError: It is not UTF-8, or larger than any.
    """
    if data.count(b"\n") > _MAX_MERGES + 1 or len(data) > _MAX_MERGES_BYTES:
        raise MalformedFileError(
            f"more than {_MAX_MERGES} merges, or than {_MAX_MERGES_BYTES} bytes", path=path
        )
    at = 0
    for line in io.BytesIO(data):
        try:
            yield line.decode().rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise MalformedFileError("not valid UTF-8", path=path, at=f"byte {at + error.start}") from None
        at += len(line)


def parse_merges(merges: Iterable[Any], vocabulary: Mapping[str, int], path: Path) -> Merges:
    """Merges as pairs, from pairs or from "a b"; both tokens and the joined one must be in the vocabulary."""
    if isinstance(merges, list) and len(merges) <= _MAX_MERGES:
        found = _plain_merges(merges, vocabulary)
        if found is not None:
            return found
    pairs: list[tuple[str, str]] = []
    for index, merge in enumerate(merges):
        pair = merge.split(" ") if type(merge) is str else merge
        if type(pair) is not list or len(pair) != 2 or type(pair[0]) is not str or type(pair[1]) is not str:
            raise ConfigError("a merge is not two tokens", path=path, at=f"merge {index}")
        if isinstance(merges, list) and type(merge) is not type(merges[0]):
            raise ConfigError("merges are in two forms, texts and pairs", path=path, at=f"merge {index}")
        left, right = pair
        if left not in vocabulary or right not in vocabulary or left + right not in vocabulary:
            missing = next(token for token in (left, right, left + right) if token not in vocabulary)
            message = f"a merge needs the token {printable(missing, 60)!r}, which is not in the vocabulary"
            raise ConfigError(message, path=path, at=f"merge {index}")
        if index == _MAX_MERGES:
            raise ConfigError(f"more than {_MAX_MERGES} merges", path=path, at="merges")
        pairs.append((left, right))
    return tuple(pairs)


def _plain_merges(merges: Sequence[Any], vocabulary: Mapping[str, int]) -> Merges | None:
    """Those of `parse_merges`, a step for all at a time; None where something may be wrong with one."""
    if {*map(type, merges)} == {str}:
        pairs = tuple(tuple(merge.split(" ")) for merge in merges)
    elif {*map(type, merges)} == {list}:
        pairs = tuple(map(tuple, merges))
    else:
        return None
    if {*map(len, pairs)} != {2}:
        return None
    try:
        parts = {*chain.from_iterable(pairs)}  # the same few tokens again and again
    except TypeError:
        return None
    if {*map(type, parts)} != {str} or not parts <= vocabulary.keys():
        return None
    return cast("Merges", pairs) if _all_known([*map("".join, pairs)], vocabulary) else None


def _all_known(made: Sequence[str], vocabulary: Mapping[str, int]) -> bool:
    """Whether all tokens that merges make are in the vocabulary, most often in the same order."""
    tokens = [*vocabulary]
    first = tokens.index(made[0]) if made[0] in vocabulary else 0
    return tokens[first : first + len(made)] == made or all(map(vocabulary.__contains__, made))


def _parts(value: Any, key: str, path: Path) -> _Steps:
    """The steps of a normalizer, pre-tokenizer or post-processor; a sequence may hold sequences."""
    parts: _Steps = []
    waiting = [] if value is None else [value]
    while waiting:
        part = expect(waiting.pop(), dict, path, key)
        if part.get("type") == "Sequence":
            waiting += reversed(expect(part.get(key), list, path, key))
        else:
            expect(part.get("type"), str, path, f"{key}.type")
            parts.append(part)
    return parts


def _kind(normalizers: _Steps, pre_tokenizers: _Steps, path: Path) -> Kind:
    if any(part["type"] == "ByteLevel" for part in pre_tokenizers):
        return "byte-bpe"
    if any(part["type"] == "Metaspace" for part in pre_tokenizers) or any(
        _SPACE in (part.get("content"), part.get("prepend")) for part in normalizers
    ):
        return "sentencepiece"
    message = "neither a byte-level tokenizer (ByteLevel) nor SentencePiece's (Metaspace or U+2581)"
    raise ConfigError(message, path=path, at="pre_tokenizer")


def _split(normalizers: _Steps, pre_tokenizers: _Steps, path: Path) -> Split:
    text = " + ".join(_describe(part) for part in (*normalizers, *pre_tokenizers))
    name: SplitName | None = None
    last = pre_tokenizers[-1]
    # A normalizer may change the text before it is split, a prefix space would change its first word.
    known = not normalizers or _is_nfc(normalizers)
    if last["type"] != "ByteLevel" or last.get("add_prefix_space", True) is not False or not known:
        return Split(None, text)
    use_regex = expect(last.get("use_regex", True), bool, path, "pre_tokenizer.use_regex")
    digits = len(pre_tokenizers) + use_regex == 3 and _is_digits(pre_tokenizers[0])
    steps = pre_tokenizers[digits:]
    if len(steps) == 1 and use_regex:
        name = SPLITS[GPT2_SPLIT]
    if len(steps) == 2 and not use_regex:
        first = steps[0]
        # The words are what the expression finds, or what is left when everything else is removed.
        cut = (first.get("behavior"), first.get("invert", False))
        if first["type"] == "Split" and cut in (("Isolated", False), ("Removed", True)):
            expression = _regex(first) or text
            name = SPLITS.get(expression)
            text = text if digits else expression
    if digits:
        name = SPLITS[SMOLLM_SPLIT] if name == SPLITS[GPT2_SPLIT] else None
    return Split(name, text)


def _is_nfc(normalizers: _Steps) -> bool:
    return [part["type"] for part in normalizers] == ["NFC"]


def _is_digits(part: Mapping[str, Any]) -> bool:
    """Whether a pre-tokenizer makes each digit a word of its own."""
    if part["type"] == "Split":
        cut = (part.get("behavior"), part.get("invert", False))
        return _regex(part) == DIGIT and cut == ("Isolated", False)
    return part["type"] == "Digits" and part.get("individual_digits") is True


def _describe(part: Mapping[str, Any]) -> str:
    """One step of a tokenizer, for messages."""
    regex = _regex(part)
    return str(part["type"]) if regex is None else f"{part['type']}({regex})"


def _regex(part: Mapping[str, Any]) -> str | None:
    pattern = part.get("pattern")
    regex = pattern.get("Regex") if isinstance(pattern, dict) else None
    return regex if isinstance(regex, str) else None


def _options(
    model: Mapping[str, Any], normalizers: _Steps, pre_tokenizers: _Steps, path: Path
) -> SentencePieceOptions:
    charsmap = b""
    prefix = any(part["type"] == "Prepend" and part.get("prepend") == _SPACE for part in normalizers)
    metaspace: Metaspace | None = None
    for part in pre_tokenizers:
        if part["type"] == "Metaspace":
            scheme = part.get("prepend_scheme", "always" if part.get("add_prefix_space", True) else "never")
            if scheme not in ("always", "first", "never"):
                message = "expected always, first or never"
                raise ConfigError(message, path=path, at="pre_tokenizer.prepend_scheme")
            split = expect(part.get("split", True), bool, path, "pre_tokenizer.split")
            prefix = prefix or scheme != "never"
            metaspace = Metaspace(scheme, split) if split or scheme != "never" else None
    for part in normalizers:
        if part["type"] == "Precompiled":
            charsmap = base64.b64decode(part["precompiled_charsmap"])
    return SentencePieceOptions(
        add_dummy_prefix=prefix,
        remove_extra_whitespaces=any(re.fullmatch(r" \{2,\}", _regex(part) or "") for part in normalizers),
        byte_fallback=model.get("byte_fallback") is True,
        charsmap=charsmap,
        metaspace=metaspace,
    )
