"""The tokenizer of a Hugging Face model folder, from whichever of its many files are there.

    tokenizer.model                     SentencePiece's own file: pieces and scores
    tokenizer.json                      the `tokenizers` library: vocabulary, merges, split, added tokens
    vocab.json, merges.txt              a byte-level vocabulary without the rest
    tokenizer_config.json               added tokens with their flags, special tokens, chat template
    added_tokens.json, special_tokens_map.json     older forms of the same
    generation_config.json              the ids that end a generation
    chat_template.jinja (or .json), additional_chat_templates/*.jinja

Nothing in them is run: a chat template is text, and ``auto_map`` (remote code) is not looked at.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from phiconv.errors import ConfigError, MissingFileError, printable
from phiconv.tokenization.tokenizer import (
    GPT2_SPLIT,
    AddedToken,
    Kind,
    SentencePieceOptions,
    Split,
    Tokenizer,
    TokenType,
)
from phiconv_formats.shared.collector import collector_paused
from phiconv_formats.shared.files import read_small_file
from phiconv_formats.shared.strict_json import load_json_object
from phiconv_formats.tokenizers.chat_templates import read_chat_templates
from phiconv_formats.tokenizers.sentencepiece_model import read_sentencepiece_model
from phiconv_formats.tokenizers.special_tokens import find_eos_ids, find_special_ids, read_special_tokens
from phiconv_formats.tokenizers.tokenizer_json import (
    MAX_BYTES,
    WRONG_FILES,
    TokenizerJson,
    check_vocabulary,
    expect,
    merge_lines,
    parse_merges,
    read_added_token,
    read_tokenizer_json,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

__all__ = ["MAX_TOKENS", "read_tokenizer"]

MAX_TOKENS = 1 << 20
"""The largest vocabulary that is believed; that of Phi-4-mini has 200064 tokens."""

_MAX_SETTINGS = 16 << 20
_MAX_VALUES = 500_000

_BYTE_PIECE = re.compile(r"<0x[0-9A-F]{2}>")
_NO_MERGE = -1e9  # the score of Llama's own pieces that are not meant to be merged
# GPT-2's split never leaves a sign and letters in one word (but for "'re"); those of cl100k and o200k do.
_SIGN_AND_LETTERS = re.compile(r"(?!')[!-/:-@\[-`{-~][A-Za-z]{2}")


@dataclass(slots=True)
class _Base:
    """A vocabulary before its added tokens."""

    kind: Kind
    tokens: list[str | None]
    types: list[TokenType]
    scores: list[float]
    merges: tuple[tuple[str, str], ...] = ()
    split: Split | None = None
    sentencepiece: SentencePieceOptions | None = None
    nfc: bool = False
    ignore_merges: bool = False


@collector_paused()
def read_tokenizer(folder: Path, *, vocab_size: int, config: Mapping[str, Any]) -> Tokenizer | None:
    """Reads the tokenizer of a model folder.

    Where tokenizer.model and a SentencePiece tokenizer.json are both there, the vocabulary and its scores
    come from the former. From tokenizer.json alone the scores are made up such that they merge in the same
    order. (A runtime that has only scores may still merge differently where the file lacks merges that its
    tokens allow; none that was converted from SentencePiece does.)

    Ids are those that the files say. Recent releases of the `tokenizers` library renumber added tokens that
    are not in the vocabulary and leave a gap before them, which cannot be what the weights were trained with.

    Args:
        folder: The model folder.
        vocab_size: Rows of the embedding; no id may reach it.
        config: The content of config.json.

    Returns:
        The tokenizer, or None if none of its files are there.

    Raises:
        MalformedFileError: A file is not what its name says.
        MissingFileError: vocab.json is there without merges.txt, or the other way round.
        ConfigError: A key has a wrong value, or files contradict each other.
    """
    if not 0 < vocab_size <= MAX_TOKENS:
        message = f"a vocabulary of {vocab_size} tokens"
        raise ConfigError(message, path=folder / "config.json", at="vocab_size")
    json_path = folder / "tokenizer.json"
    parsed = read_tokenizer_json(json_path, vocab_size) if _there(json_path) else None
    base = _read_base(folder, parsed, vocab_size)
    if base is None:
        return None
    settings_path = folder / "tokenizer_config.json"
    settings = _load_optional(settings_path)
    special = read_special_tokens(settings, settings_path, parsed.post_processors if parsed else None)
    map_path = folder / "special_tokens_map.json"
    other = read_special_tokens(_load_optional(map_path), map_path, None)

    added = _read_added(folder, settings, parsed, base.kind, vocab_size)
    _check_covered(base, added, folder)
    _apply(base, added.values())
    roles = {*special.texts.values(), *other.texts.values()}
    backwards = base.tokens[::-1]  # of ids with one text the last one counts
    ids = {text: len(backwards) - 1 - backwards.index(text) for text in roles.intersection(backwards)}
    if base.kind == "byte-bpe":
        # A token of the vocabulary that has a role is found in the text as a whole, like an added one.
        for text in special.texts.values():
            if text in ids and ids[text] not in added:
                added[ids[text]] = AddedToken(ids[text], text, special=True)
        _apply(base, added.values())
    first_ids = ids if parsed is None else {token.content: token.id for token in reversed(parsed.added)}
    generation_path = folder / "generation_config.json"
    return Tokenizer(
        kind=base.kind,
        tokens=tuple(base.tokens),
        types=tuple(base.types),
        scores=tuple(base.scores),
        merges=base.merges,
        added=tuple(added[i] for i in sorted(added)),
        special_ids=find_special_ids((special.texts, other.texts), first_ids, ids, config, vocab_size),
        eos_ids=find_eos_ids(_load_optional(generation_path), generation_path, vocab_size),
        add_special=special.add,
        chat_templates=read_chat_templates(folder, settings, settings_path),
        split=base.split,
        sentencepiece=base.sentencepiece,
        nfc=base.nfc,
        ignore_merges=base.ignore_merges,
        add_prefix_space=prefix if isinstance(prefix := settings.get("add_prefix_space"), bool) else None,
    )


def _there(path: Path) -> bool:
    # A broken link counts: reading it says what is wrong.
    return os.path.lexists(path)


def _load_optional(path: Path) -> dict[str, Any]:
    return load_json_object(path, limit=_MAX_SETTINGS, max_values=_MAX_VALUES) if _there(path) else {}


# --------------------------------------------------------------------------------------------- the vocabulary


def _read_base(folder: Path, parsed: TokenizerJson | None, vocab_size: int) -> _Base | None:
    model_path = folder / "tokenizer.model"
    if (parsed is None or parsed.kind == "sentencepiece") and _there(model_path):
        return _base_of_model(model_path, parsed, vocab_size)
    if parsed is not None:
        return _base_of_json(parsed)
    paths = folder / "vocab.json", folder / "merges.txt"
    if not any(_there(path) for path in paths):
        return None
    for path in paths:
        if not _there(path):
            raise MissingFileError("vocab.json and merges.txt are needed together", path=path)
    return _base_of_vocab_and_merges(*paths, vocab_size)


def _base_of_model(path: Path, parsed: TokenizerJson | None, vocab_size: int) -> _Base:
    model = read_sentencepiece_model(path)
    if len(model.pieces) > vocab_size:
        message = f"{len(model.pieces)} pieces, and the embedding has {vocab_size} rows"
        raise ConfigError(message, path=path, hint=WRONG_FILES)
    if parsed is not None:
        replaced = {token.id for token in parsed.added}
        for token, i in parsed.vocabulary.items():
            if i not in replaced and i < len(model.pieces) and model.pieces[i] != token:
                message = f"token {i} is {printable(model.pieces[i], 40)!r}, and another in tokenizer.json"
                raise ConfigError(
                    message, path=path, hint="remove the one that does not belong to the weights"
                )
    return _Base(
        kind="sentencepiece",
        tokens=list(model.pieces),
        types=list(model.types),
        scores=list(model.scores),
        merges=parsed.merges if parsed else (),
        sentencepiece=model.options,
    )


def _base_of_json(parsed: TokenizerJson) -> _Base:
    size = 1 + max(parsed.vocabulary.values(), default=-1)
    tokens: list[str | None] = [None] * size
    types = [TokenType.UNUSED] * size
    normal = TokenType.NORMAL
    for token, i in parsed.vocabulary.items():
        tokens[i], types[i] = token, normal
    scores: list[float] = []
    if parsed.kind == "sentencepiece":
        scores = _scores(parsed, size)
        for token, i in parsed.vocabulary.items():
            if _BYTE_PIECE.fullmatch(token) and parsed.sentencepiece and parsed.sentencepiece.byte_fallback:
                types[i] = TokenType.BYTE
        if parsed.unknown is not None and parsed.unknown in parsed.vocabulary:
            types[parsed.vocabulary[parsed.unknown]] = TokenType.UNKNOWN
    return _Base(
        parsed.kind,
        tokens,
        types,
        scores,
        parsed.merges,
        parsed.split,
        parsed.sentencepiece,
        parsed.nfc,
        parsed.ignore_merges,
    )


def _scores(parsed: TokenizerJson, size: int) -> list[float]:
    """SentencePiece scores that merge in the order of the merges.

    A token is as good as the first merge that makes it. Llama's (and Phi-3's) own scores are the distance
    of the id from the first merged token's, negated; so are these, where ids and merges have one order.
    """
    made = dict.fromkeys(left + right for left, right in parsed.merges)
    first = min((parsed.vocabulary[token] for token in made), default=size)
    scores = [0.0] * size
    for token, i in parsed.vocabulary.items():
        if i >= first:
            scores[i] = float(first - i) if len(token) == 1 else _NO_MERGE
    last = 1.0
    for token in made:
        i = parsed.vocabulary[token]
        last = scores[i] = min(last - 1.0, float(first - i))
    return scores


def _base_of_vocab_and_merges(vocab_path: Path, merges_path: Path, vocab_size: int) -> _Base:
    vocabulary = load_json_object(vocab_path, limit=MAX_BYTES)
    check_vocabulary(vocabulary, vocab_size, vocab_path, "vocabulary")
    if any(_SIGN_AND_LETTERS.match(token) for token in vocabulary):
        message = "the text is not split as GPT-2 does it, and only tokenizer.json says how"
        raise ConfigError(message, path=vocab_path, hint="add the model's tokenizer.json")
    lines = enumerate(merge_lines(read_small_file(merges_path, MAX_BYTES), merges_path))
    texts = (line for i, line in lines if line and not (i == 0 and line.startswith("#version")))
    merges = parse_merges(texts, vocabulary, merges_path)
    split = Split("gpt2", GPT2_SPLIT)
    parsed = TokenizerJson("byte-bpe", vocabulary, merges, (), None, split, None, ())
    return _base_of_json(parsed)


# ------------------------------------------------------------------------------------------- the added tokens


def _read_added(
    folder: Path, settings: Mapping[str, Any], parsed: TokenizerJson | None, kind: Kind, vocab_size: int
) -> dict[int, AddedToken]:
    """Added tokens by id: tokenizer.json's, else tokenizer_config.json's, else added_tokens.json's."""
    path = folder / "added_tokens.json"
    older = _load_optional(path)
    check_vocabulary(older, vocab_size, path, "added tokens")
    added = {i: AddedToken(i, content) for content, i in older.items()}
    path = folder / "tokenizer_config.json"
    decoder: dict[int, AddedToken] = {}
    key = "added_tokens_decoder"
    for number, entry in expect(settings.get(key) or {}, dict, path, key).items():
        if not re.fullmatch(r"[0-9]{1,9}", number):
            raise ConfigError(f"the key {printable(number, 40)!r} is not a token id", path=path, at=key)
        decoder[int(number)] = read_added_token(entry, path, f"{key}.{number}", int(number))
    added |= decoder
    for token in parsed.added if parsed else ():
        added[token.id] = token
        setting = decoder.get(token.id)
        # The Hugging Face library takes a byte-level tokenizer's flags from tokenizer_config.json.
        if kind == "byte-bpe" and setting is not None and setting.content == token.content:
            added[token.id] = setting
    for i, token in added.items():
        if not 0 <= i < vocab_size:
            message = f"the added token {printable(token.content, 60)!r} has the id {i}, "
            message += f"and the embedding has {vocab_size} rows"
            raise ConfigError(message, path=folder, hint=WRONG_FILES)
        if not token.content:
            raise ConfigError(f"the added token {i} is empty", path=folder)
    return added


def _check_covered(base: _Base, added: Mapping[int, AddedToken], folder: Path) -> None:
    """Refuses an added token that takes the id of another token which merges need."""
    known = {i: base.tokens[i] for i in added if i < len(base.tokens)}
    covered = {text: added[i] for i, text in known.items() if text not in {None, added[i].content}}
    if base.kind != "byte-bpe" or not covered:
        return
    for left, right in base.merges:
        for text in (left, right, left + right):
            if text in covered:
                message = f"the added token {printable(covered[text].content, 60)!r} has the id of "
                message += f"{printable(text, 60)!r}, which a merge needs"
                raise ConfigError(message, path=folder, hint=WRONG_FILES)


def _apply(base: _Base, added: Iterable[AddedToken]) -> None:
    """Puts added tokens over the vocabulary."""
    for token in added:
        missing = token.id + 1 - len(base.tokens)
        if missing > 0:
            base.tokens += [None] * missing
            base.types += [TokenType.UNUSED] * missing
            if base.kind == "sentencepiece":
                base.scores += [0.0] * missing
        base.tokens[token.id] = token.content
        base.types[token.id] = TokenType.CONTROL if token.special else TokenType.USER_DEFINED
