"""The tokenizer of a GGUF file: `vocabulary` the other way round.

What a file cannot say follows what llama.cpp does with it: which added tokens swallow white space (by the
model's name), and which tokens end a generation (by their text).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gguf.constants import Keys

from phiconv.errors import UnsupportedModelError, printable
from phiconv.tokenization.tokenizer import AddedToken, SentencePieceOptions, Split, Tokenizer, TokenType
from phiconv_formats.gguf.left_out import supplied_pre
from phiconv_formats.gguf.vocabulary import (
    ADD_KEYS,
    ID_KEYS,
    PRE_OF_NFC,
    PRES_OF_WHOLE_WORDS,
    SPLIT_OF_PRE,
    strips_after,
)
from phiconv_formats.tokenizers.chat_templates import with_line_feeds
from phiconv_formats.tokenizers.tokenizer_json import check_vocabulary, parse_merges

if TYPE_CHECKING:
    from collections.abc import Sequence

    from phiconv.tokenization.tokenizer import Kind
    from phiconv_formats.gguf.entries import Entries

__all__ = ["ENDS", "read_vocabulary"]

_KINDS: dict[str, Kind] = {"llama": "sentencepiece", "gpt2": "byte-bpe"}
_NO_TOKENIZER = {None, "none", "no_vocab"}
_TYPES = {int(kind): kind for kind in TokenType}
_ADDED = {TokenType.CONTROL, TokenType.USER_DEFINED}

ENDS = frozenset(
    (
        "<|end|> <|im_end|> <|endoftext|> </s> "  # Phi, Qwen, SmolLM, Llama 2
        "<|eot_id|> <|eom_id|> <|end_of_text|> "  # Llama 3
        "<end_of_turn> <eos> <EOT> _<EOT> [EOT] [EOS] <end_of_utterance> <turn|> <|tool_response> [e~[ "
        "<\uff5cend\u2581of\u2581sentence\uff5c> "
        "<|fim_pad|> <fim-pad> <fim_pad> <PAD> [PAD] "  # where a file is filled in, text ends with these
        "<|fim_repo|> <|repo_name|> <fim-repo> <REPO> <reponame> <|file_sep|>"
    ).split()
)
"""Texts of tokens that end a generation for llama.cpp, whatever the file says (``special_eog_ids``).

Those of gpt-oss and Solar are not among them: there they undo what ``<|end|>`` says.
"""


def read_vocabulary(entries: Entries, vocab_size: int) -> Tokenizer | None:
    """Reads the tokenizer.

    Args:
        entries: The file's metadata.
        vocab_size: Rows of the embedding; no id may reach it.

    Returns:
        The tokenizer, or None where the file has none.

    Raises:
        ConfigError, MalformedFileError: A key is missing, has a wrong value, or does not fit the others.
        UnsupportedModelError: A tokenizer of another kind.
    """
    model = entries.text(Keys.Tokenizer.MODEL)
    if model in _NO_TOKENIZER:
        return None
    if model not in _KINDS:
        raise UnsupportedModelError(
            f"a tokenizer of the kind {printable(model, 40)!r}, and {' and '.join(_KINDS)} are supported",
            path=entries.path,
            at=f"key {Keys.Tokenizer.MODEL}",
        )
    kind = _KINDS[model]
    texts = _texts(entries, vocab_size)
    types = _types(entries, len(texts))
    # Rows of the embedding without a token are there under a made-up name.
    tokens = [
        None if not text or (types[i] == TokenType.UNUSED and text == f"[PAD{i}]") else text
        for i, text in enumerate(texts)
    ]
    while tokens and tokens[-1] is None:
        tokens.pop()
    types = [TokenType.UNUSED if token is None else types[i] for i, token in enumerate(tokens)]
    special_ids = _special_ids(entries, len(texts))
    pre = entries.text(Keys.Tokenizer.PRE)
    whole_words = kind == "byte-bpe" and pre in PRES_OF_WHOLE_WORDS
    return Tokenizer(
        kind=kind,
        tokens=tuple(tokens),
        types=tuple(types),
        scores=_scores(entries, len(texts), types) if kind == "sentencepiece" else (),
        merges=_merges(entries, tokens) if kind == "byte-bpe" else (),
        added=_added(tokens, types, entries.text(Keys.General.NAME) or ""),
        special_ids=special_ids,
        eos_ids=_eos_ids(tokens, special_ids.get("eos"), special_ids.get("eot")),
        add_special=_add_special(entries, whole_words=whole_words),
        chat_templates=_chat_templates(entries),
        split=_split(entries) if kind == "byte-bpe" else None,
        sentencepiece=_options(entries, types) if kind == "sentencepiece" else None,
        nfc=kind == "byte-bpe" and pre == PRE_OF_NFC,
        ignore_merges=whole_words,
        add_prefix_space=entries.flag(Keys.Tokenizer.ADD_PREFIX) if kind == "byte-bpe" else None,
    )


def _texts(entries: Entries, vocab_size: int) -> list[str]:
    texts = entries.texts(Keys.Tokenizer.LIST)
    if texts is None:
        raise entries.error(Keys.Tokenizer.LIST, "missing")
    # The last one of equal texts has the id in a dict, so a text that is there twice leaves an id out.
    ids = {text: i for i, text in enumerate(texts)}
    if len(ids) != len(texts):
        twice = next(text for i, text in enumerate(texts) if ids[text] != i)
        raise entries.error(Keys.Tokenizer.LIST, f"the token {printable(twice, 60)!r} is there twice")
    check_vocabulary(ids, vocab_size, entries.path, f"key {Keys.Tokenizer.LIST}")
    return texts


def _types(entries: Entries, count: int) -> list[TokenType]:
    numbers = entries.integers(Keys.Tokenizer.TOKEN_TYPE, count)
    if numbers is None:
        return [TokenType.NORMAL] * count  # as in the runtime
    if unknown := set(numbers) - set(_TYPES):
        raise entries.error(Keys.Tokenizer.TOKEN_TYPE, f"there is no token type {min(unknown)}")
    return [_TYPES[number] for number in numbers]


def _scores(entries: Entries, count: int, types: Sequence[TokenType]) -> tuple[float, ...]:
    """Scores by id; those of added tokens and of gaps are made up by whoever wrote the file."""
    scores = entries.numbers(Keys.Tokenizer.SCORES, count)
    if scores is None:
        raise entries.error(Keys.Tokenizer.SCORES, "missing")
    made_up = {*_ADDED, TokenType.UNUSED}
    return tuple(0.0 if types[i] in made_up else scores[i] for i in range(len(types)))


def _merges(entries: Entries, tokens: Sequence[str | None]) -> tuple[tuple[str, str], ...]:
    merges = entries.texts(Keys.Tokenizer.MERGES)
    if merges is None:
        raise entries.error(Keys.Tokenizer.MERGES, "missing")
    return parse_merges(merges, {token: i for i, token in enumerate(tokens) if token}, entries.path)


def _added(tokens: Sequence[str | None], types: Sequence[TokenType], name: str) -> tuple[AddedToken, ...]:
    """Control and user-defined tokens: the runtime finds them in the text as a whole."""
    return tuple(
        AddedToken(i, token, special=types[i] == TokenType.CONTROL, rstrip=strips_after(name, token))
        for i, token in enumerate(tokens)
        if token is not None and types[i] in _ADDED
    )


def _special_ids(entries: Entries, count: int) -> dict[str, int]:
    found = {role: entries.integer(key) for role, key in ID_KEYS.items()}
    # The runtime, too, passes over an id that names no token.
    return {role: token for role, token in found.items() if token is not None and token < count}


def _add_special(entries: Entries, *, whole_words: bool) -> dict[str, bool]:
    found = {role: add for role, key in ADD_KEYS.items() if (add := entries.flag(key)) is not None}
    return {"bos": True} | found if whole_words else found


def _eos_ids(tokens: Sequence[str | None], *ends: int | None) -> tuple[int, ...]:
    named = [end for end in ends if end is not None]
    return tuple(dict.fromkeys([*named, *(i for i, token in enumerate(tokens) if token in ENDS)]))


def _chat_templates(entries: Entries) -> dict[str, str]:
    default = entries.text(Keys.Tokenizer.CHAT_TEMPLATE)
    result = {} if default is None else {"default": default}
    for name in entries.texts(Keys.Tokenizer.CHAT_TEMPLATES) or []:
        template = entries.text(Keys.Tokenizer.CHAT_TEMPLATE_N.format(name=name))
        if template is None:
            message = f"there is no template of the name {printable(name, 40)!r}"
            raise entries.error(Keys.Tokenizer.CHAT_TEMPLATES, message)
        result.setdefault(name, template)
    return {name: with_line_feeds(template) for name, template in result.items()}


def _split(entries: Entries) -> Split:
    pre = entries.text(Keys.Tokenizer.PRE) or supplied_pre(entries) or "default"
    return Split(SPLIT_OF_PRE.get(pre), pre)


def _options(entries: Entries, types: Sequence[TokenType]) -> SentencePieceOptions:
    prefix = entries.flag(Keys.Tokenizer.ADD_PREFIX)
    return SentencePieceOptions(
        add_dummy_prefix=prefix is not False,
        remove_extra_whitespaces=entries.flag(Keys.Tokenizer.REMOVE_EXTRA_WS) or False,
        byte_fallback=TokenType.BYTE in types,
    )
