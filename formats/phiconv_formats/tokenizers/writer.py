"""A tokenizer as the files of a Hugging Face model folder: `tokenizer_files` the other way round.

    tokenizer.json            for the `tokenizers` library: vocabulary, merges, split, added tokens
    tokenizer_config.json     special tokens, added tokens once more, chat templates

Each added token stands in the vocabulary too. That changes no id of a text, and recent releases of the
library would otherwise renumber those behind a gap.
"""

from __future__ import annotations

import base64
import json
from typing import TYPE_CHECKING, Any

from phiconv.errors import ConfigError, UnsupportedModelError, printable
from phiconv.tokenization.tokenizer import GPT2_SPLIT, ROLES, TokenType
from phiconv_formats.tokenizers.tokenizer_json import DIGIT, REGEX_OF_SPLIT

if TYPE_CHECKING:
    from collections.abc import Mapping

    from phiconv.tokenization.tokenizer import AddedToken, SentencePieceOptions, Split, Tokenizer

__all__ = ["merges_of_scores", "tokenizer_files"]

_SPACE = "\u2581"
_LONGEST_PIECE = 256  # SentencePiece makes pieces of at most 16 characters, unless it is told otherwise
_SENTENCEPIECE = "LlamaTokenizer"
_AS_THE_FILE_SAYS = "PreTrainedTokenizerFast"
_PHI_SPLITS = ("gpt2", "cl100k", "o200k")
_BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}


def tokenizer_files(tokenizer: Tokenizer, byte_level: str = "GPT2Tokenizer") -> dict[str, bytes]:
    """The files of a tokenizer by name, as JSON in UTF-8.

    Args:
        tokenizer: What to write.
        byte_level: The class of a byte-level one (see `Architecture.byte_level`).

    Raises:
        UnsupportedModelError: A way of splitting text that phiconv cannot write down.
        ConfigError: Two ids with one text, or a text that is no valid Unicode.
    """
    files = {
        "tokenizer.json": _tokenizer_json(tokenizer),
        "tokenizer_config.json": _settings(tokenizer, byte_level),
    }
    try:
        return {name: _serialize(content) for name, content in files.items()}
    except UnicodeEncodeError as error:
        text = printable(error.object[error.start : error.end])
        raise ConfigError(f"a text of the tokenizer is no valid Unicode: {text}") from None


def _serialize(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content, ensure_ascii=False, indent=1) + "\n").encode()


# ------------------------------------------------------------------------------------------- tokenizer.json


def _tokenizer_json(tokenizer: Tokenizer) -> dict[str, Any]:
    vocabulary = {token: i for i, token in enumerate(tokenizer.tokens) if token is not None}
    if len(vocabulary) != sum(token is not None for token in tokenizer.tokens):
        raise ConfigError("two tokens of the vocabulary have one text")
    added = [{"id": token.id, **_flags(token)} for token in tokenizer.added]
    kind = _byte_level if tokenizer.kind == "byte-bpe" else _sentencepiece
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        **kind(tokenizer, vocabulary),
    }


def _flags(token: AddedToken) -> dict[str, Any]:
    names = ("content", "single_word", "lstrip", "rstrip", "normalized", "special")
    return {name: getattr(token, name) for name in names}


def _byte_level(tokenizer: Tokenizer, vocabulary: Mapping[str, int]) -> dict[str, Any]:
    return {
        "normalizer": {"type": "NFC"} if tokenizer.nfc else None,
        "pre_tokenizer": _pre_tokenizer(tokenizer.split),
        "post_processor": _template(tokenizer) or _BYTE_LEVEL,
        "decoder": _BYTE_LEVEL,
        "model": _bpe(vocabulary, tokenizer.merges, unknown=None, byte_fallback=False)
        | {"ignore_merges": tokenizer.ignore_merges},
    }


def _pre_tokenizer(split: Split | None) -> dict[str, Any]:
    if split is None or split.name is None:
        raise UnsupportedModelError(
            f"the way in which the tokenizer splits text is not known: {split.text if split else '?'}",
            hint="use the tokenizer files of the original model",
        )
    if split.name == "gpt2":  # the library's own
        return _BYTE_LEVEL
    # SmolLM's in two steps: ONNX Runtime GenAI knows neither the library's Digits nor the one expression.
    expressions = [DIGIT, GPT2_SPLIT] if split.name == "smollm" else [REGEX_OF_SPLIT[split.name]]
    steps = [
        {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}
        for regex in expressions
    ]
    return {"type": "Sequence", "pretokenizers": [*steps, _BYTE_LEVEL | {"use_regex": False}]}


def _sentencepiece(tokenizer: Tokenizer, vocabulary: Mapping[str, int]) -> dict[str, Any]:
    options = tokenizer.sentencepiece
    prefix = options is None or options.add_dummy_prefix
    unknown = tokenizer.special_ids.get("unk")
    if TokenType.UNKNOWN in tokenizer.types:
        unknown = tokenizer.types.index(TokenType.UNKNOWN)
    decoders = [
        {"type": "Replace", "pattern": {"String": _SPACE}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
        *([{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if prefix else []),
    ]
    return {
        "normalizer": {"type": "Sequence", "normalizers": _normalizers(options, prefix=prefix)},
        "pre_tokenizer": _metaspace(options),
        "post_processor": _template(tokenizer),
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": _bpe(
            vocabulary,
            tokenizer.merges or merges_of_scores(tokenizer),
            unknown=_text(tokenizer, unknown),
            byte_fallback=options is None or options.byte_fallback,
        ),
    }


def _normalizers(options: SentencePieceOptions | None, *, prefix: bool) -> list[dict[str, Any]]:
    steps: list[dict[str, Any]] = []
    if options is not None and options.charsmap:
        charsmap = base64.b64encode(options.charsmap).decode()
        steps.append({"type": "Precompiled", "precompiled_charsmap": charsmap})
    if options is not None and options.remove_extra_whitespaces:
        steps.append({"type": "Strip", "strip_left": True, "strip_right": True})
        steps.append({"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "})
    if options is not None and options.metaspace is not None:
        return steps
    if prefix:
        steps.append({"type": "Prepend", "prepend": _SPACE})
    return [*steps, {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}]


def _metaspace(options: SentencePieceOptions | None) -> dict[str, Any] | None:
    if options is None or options.metaspace is None:
        return None
    scheme, split = options.metaspace.scheme, options.metaspace.split
    return {"type": "Metaspace", "replacement": _SPACE, "prepend_scheme": scheme, "split": split}


def merges_of_scores(tokenizer: Tokenizer) -> tuple[tuple[str, str], ...]:
    """Merges that do what SentencePiece does with scores: the pair whose piece has the highest comes first.

    Several pairs may make one piece. SentencePiece takes the leftmost of them; a list needs an order, which
    is that of their ids.
    """
    normal = [i for i, kind in enumerate(tokenizer.types) if kind == TokenType.NORMAL]
    ids = {token: i for i in normal if (token := tokenizer.tokens[i]) is not None}
    ranked = [
        (-tokenizer.scores[i], ids[piece[:at]], ids[piece[at:]], (piece[:at], piece[at:]))
        for piece, i in ids.items()
        if len(piece) <= _LONGEST_PIECE
        for at in range(1, len(piece))
        if piece[:at] in ids and piece[at:] in ids
    ]
    return tuple(pair for _, _, _, pair in sorted(ranked))


def _bpe(
    vocabulary: Mapping[str, int],
    merges: tuple[tuple[str, str], ...],
    *,
    unknown: str | None,
    byte_fallback: bool,
) -> dict[str, Any]:
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": unknown,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": unknown is not None,
        "byte_fallback": byte_fallback,
        "ignore_merges": False,
        "vocab": vocabulary,
        "merges": [list(pair) for pair in merges],
    }


def _template(tokenizer: Tokenizer) -> dict[str, Any] | None:
    """The post-processor that puts bos before a text and eos behind it; None where it has nothing to put."""
    ids = {
        role: tokenizer.special_ids.get(role) for role in ("bos", "eos") if tokenizer.add_special.get(role)
    }
    texts = {role: text for role, i in ids.items() if (text := _text(tokenizer, i)) is not None}
    if not texts:
        return None

    def around(name: str, number: int) -> list[dict[str, Any]]:
        special = {role: [{"SpecialToken": {"id": text, "type_id": number}}] for role, text in texts.items()}
        text = {"Sequence": {"id": name, "type_id": number}}
        return [*special.get("bos", []), text, *special.get("eos", [])]

    return {
        "type": "TemplateProcessing",
        "single": around("A", 0),
        "pair": [*around("A", 0), *around("B", 1)],
        "special_tokens": {
            text: {"id": text, "ids": [ids[role]], "tokens": [text]} for role, text in texts.items()
        },
    }


def _text(tokenizer: Tokenizer, token: int | None) -> str | None:
    """The text of an id; None where it names no token."""
    return tokenizer.tokens[token] if token is not None and token < len(tokenizer) else None


# ------------------------------------------------------------------------------------- tokenizer_config.json


def _settings(tokenizer: Tokenizer, byte_level: str) -> dict[str, Any]:
    settings: dict[str, Any] = {
        f"add_{role}_token": add for role, add in tokenizer.add_special.items() if role in ROLES
    }
    if tokenizer.kind == "byte-bpe":
        settings["add_prefix_space"] = False
    settings["added_tokens_decoder"] = {str(token.id): _flags(token) for token in tokenizer.added}
    for role in ROLES:
        if (text := _text(tokenizer, tokenizer.special_ids.get(role))) is not None:
            settings[f"{role}_token"] = text
    templates = tokenizer.chat_templates
    if set(templates) == {"default"}:
        settings["chat_template"] = templates["default"]
    elif templates:
        settings["chat_template"] = [{"name": k, "template": v} for k, v in templates.items()]
    settings["clean_up_tokenization_spaces"] = False
    if tokenizer.kind == "sentencepiece":
        settings["legacy"] = False
    return settings | {"tokenizer_class": _class(tokenizer, byte_level)}


def _class(tokenizer: Tokenizer, byte_level: str) -> str:
    """The class of transformers."""
    if tokenizer.kind == "sentencepiece":
        return _SENTENCEPIECE
    split = tokenizer.split
    phi = split is None or (split.name in _PHI_SPLITS and not tokenizer.nfc and not tokenizer.ignore_merges)
    return byte_level if phi else _AS_THE_FILE_SAYS
