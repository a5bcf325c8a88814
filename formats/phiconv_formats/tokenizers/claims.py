"""Whether a tokenizer's file is what its name says, before it is copied.

A tokenizer is read from some of its files only, and the others go along with them: a stranger could have put
anything under their names.
"""

from __future__ import annotations

import io
import re
from typing import TYPE_CHECKING

from phiconv.errors import ConfigError, MalformedFileError, printable
from phiconv_formats.shared.strict_json import parse_json_object
from phiconv_formats.tokenizers.sentencepiece_model import parse_sentencepiece_model
from phiconv_formats.tokenizers.special_tokens import read_special_tokens
from phiconv_formats.tokenizers.tokenizer_json import merge_lines

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["check_ids", "check_merges", "check_special_tokens", "check_tokenizer_model"]

# A line of tiktoken's vocabularies, which Llama 3's releases call tokenizer.model.
_MAX_RANKS = 1 << 20
_RANK = re.compile(rb"[A-Za-z0-9+/]+={0,2} [0-9]{1,9}")


def check_tokenizer_model(data: bytes, path: Path) -> None:
    """Refuses a tokenizer.model that is neither SentencePiece's, of whatever kind, nor tiktoken's.

    Raises:
        MalformedFileError: It is neither.
    """
    lines = io.BytesIO(data)
    few = data.count(b"\n") < _MAX_RANKS
    if data and few and all(_RANK.fullmatch(line.rstrip(b"\r\n")) for line in lines):
        return
    try:
        parse_sentencepiece_model(data, path)
    except ConfigError:  # one of another kind than BPE is one as well
        return


def check_ids(data: bytes, path: Path) -> None:
    """Refuses a vocab.json or added_tokens.json that does not give tokens their ids.

    Raises:
        MalformedFileError: It does not.
    """
    for token, number in parse_json_object(data, path=path).items():
        if type(number) is not int or number < 0:
            raise MalformedFileError("not the id of a token", path=path, at=f"key {printable(token, 80)}")


def check_merges(data: bytes, path: Path) -> None:
    """Refuses a merges.txt whose lines, but for a first one with a version, are not two tokens.

    Raises:
        MalformedFileError: One is not, or it is not UTF-8.
    """
    for number, line in enumerate(merge_lines(data, path), 1):
        parts = line.split(" ")
        version = number == 1 and line.startswith("#version")
        if parts != [""] and not version and not (len(parts) == 2 and all(parts)):
            raise MalformedFileError("a merge is not two tokens", path=path, at=f"line {number}")


def check_special_tokens(data: bytes, path: Path) -> None:
    """Refuses a special_tokens_map.json with other than tokens.

    Raises:
        MalformedFileError: It is no JSON object.
        ConfigError: A key has a value of a wrong type.
    """
    read_special_tokens(parse_json_object(data, path=path), path, None)
