"""The tokenizer's files as ONNX Runtime GenAI (0.18) reads them, and what it does otherwise."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from phiconv_formats.folders.companions import companion_files, json_bytes, made_tokenizer_files
from phiconv_formats.tokenizers.limits import added_token_notes, check_bytes, odd_added_tokens

if TYPE_CHECKING:
    from collections.abc import Mapping

    from phiconv.ir.model import Model
    from phiconv.tokenization.tokenizer import Tokenizer

__all__ = ["renamed_tokens", "tokenizer_files", "tokenizer_notes"]

_RUNTIME = "ONNX Runtime GenAI"
_MODULE = "tokenizer_module.json"
"""Keys in it come before those of tokenizer_config.json, for this runtime and nobody else."""

_MERGES_SPACES = "GemmaTokenizer"
"""The class whose texts the runtime does not cut at each space, so that runs of spaces are merged.

Written into tokenizer_config.json it would tell transformers to tokenize a Llama without the space in front.
"""


def tokenizer_files(model: Model, context: int) -> dict[str, bytes]:
    """What the runtime's tokenizer reads: tokenizer.json in any case.

    Args:
        model: Whose tokenizer.
        context: The longest text in tokens.

    Raises:
        UnsupportedModelError: A vocabulary that the runtime answers with ids that do not exist.
    """
    check_bytes(model, f"{_RUNTIME} makes the id -1 of it")
    tokenizer = model.tokenizer
    files = companion_files(model)
    if tokenizer is not None and _must_be_made(tokenizer, files):
        made = made_tokenizer_files(model)
        files = made | files | {"tokenizer.json": made["tokenizer.json"]}
    settings = json.loads(files.get("tokenizer_config.json", b"{}"))
    # Some models have 1e30 here, which the runtime's parser does not take for a length.
    files["tokenizer_config.json"] = json_bytes({**settings, "model_max_length": context})
    if tokenizer is not None and _merges_spaces(tokenizer):
        files[_MODULE] = json_bytes({"tokenizer_class": _MERGES_SPACES})
    return files


def renamed_tokens(files: Mapping[str, bytes], names: Mapping[int, str]) -> dict[str, bytes]:
    """The files that this runtime reads, with other texts for some added tokens.

    Args:
        files: tokenizer.json and tokenizer_config.json, from which the tokenizer has been read.
        names: The texts by id.
    """
    tokenizer, settings = (json.loads(files[name]) for name in ("tokenizer.json", "tokenizer_config.json"))
    entries = {entry["id"]: [entry] for entry in tokenizer.get("added_tokens") or ()}
    for number, entry in (settings.get("added_tokens_decoder") or {}).items():
        entries.setdefault(int(number), []).append(entry)
    for token, text in names.items():
        for entry in entries.get(token, ()):
            entry["content"] = text
    return {"tokenizer.json": json_bytes(tokenizer), "tokenizer_config.json": json_bytes(settings)}


def _must_be_made(tokenizer: Tokenizer, files: Mapping[str, bytes]) -> bool:
    """Whether the runtime needs another tokenizer.json than the source's: it does not know ``Digits``."""
    return "tokenizer.json" not in files or (tokenizer.split is not None and tokenizer.split.name == "smollm")


def _merges_spaces(tokenizer: Tokenizer) -> bool:
    """Whether a token may have more than one space, as SentencePiece's usually do."""
    options = tokenizer.sentencepiece
    return tokenizer.kind == "sentencepiece" and not (
        options and options.metaspace and options.metaspace.split
    )


def tokenizer_notes(tokenizer: Tokenizer | None) -> list[str]:
    """What the runtime does otherwise than the tokenizer, one line each."""
    notes = []
    options = tokenizer.sentencepiece if tokenizer is not None else None
    if options is not None:
        for option, what in (
            (options.metaspace, "puts a space in front only of some texts (Metaspace)"),
            (options.remove_extra_whitespaces, "removes white space"),
            (options.charsmap, "replaces characters"),
            (not options.byte_fallback, "has an unknown token instead of bytes"),
        ):
            if option:
                notes.append(f"this tokenizer {what}, which {_RUNTIME} does not do: some ids differ")
    odd = odd_added_tokens(tokenizer, strips_before=False, strips_after=lambda token: token.rstrip)
    return [*notes, *added_token_notes(_RUNTIME, odd)]
