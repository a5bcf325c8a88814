"""SentencePiece's tokenizer.model: a protobuf message, read with a small strict reader of the wire format.

    ModelProto       1 pieces (repeated), 2 trainer_spec, 3 normalizer_spec
    SentencePiece    1 piece, 2 score, 3 type
    TrainerSpec      3 model_type, 35 byte_fallback
    NormalizerSpec   2 precompiled_charsmap, 3 add_dummy_prefix, 4 remove_extra_whitespaces

(https://github.com/google/sentencepiece, src/sentencepiece_model.proto). Fields that are not listed do not
change how text is tokenized, or cannot be told to a runtime, and are passed over.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from phiconv.errors import ConfigError, MalformedFileError
from phiconv.tokenization.tokenizer import SentencePieceOptions, TokenType
from phiconv_formats.shared.files import read_small_file

if TYPE_CHECKING:
    from collections.abc import Iterator
    from os import PathLike

__all__ = ["SentencePieceModel", "parse_sentencepiece_model", "read_sentencepiece_model"]

MAX_BYTES = 32 << 20
"""The largest tokenizer.model that is read; Phi-3's has half a megabyte."""

_BPE = 2  # TrainerSpec.ModelType
_MODEL_TYPES = {1: "unigram", 2: "BPE", 3: "word", 4: "character"}

Field: TypeAlias = "tuple[int, int | bytes]"
"""A field's number, and its value: an integer for a varint, else the bytes."""


@dataclass(frozen=True, slots=True)
class SentencePieceModel:
    """The pieces by id, and the options."""

    pieces: tuple[str, ...]
    scores: tuple[float, ...]
    types: tuple[TokenType, ...]
    options: SentencePieceOptions


def read_sentencepiece_model(path: str | PathLike[str]) -> SentencePieceModel:
    """Reads a tokenizer.model.

    Raises:
        MalformedFileError: It is not such a file.
        ConfigError: Its tokenizer is of another kind than BPE.
    """
    return parse_sentencepiece_model(read_small_file(path, MAX_BYTES), path)


def parse_sentencepiece_model(data: bytes, path: str | PathLike[str]) -> SentencePieceModel:
    """The same from the file's bytes; ``path`` is for messages."""
    try:
        return _read_model(data)
    except _WireError as error:
        raise MalformedFileError(
            f"not a SentencePiece model: {error}", path=path, hint="download it again"
        ) from None
    except _NotBpeError as error:
        message = f"a SentencePiece model of type {error}, and only BPE is supported"
        raise ConfigError(message, path=path, at="trainer_spec.model_type") from None


class _WireError(ValueError):
    """Bytes that are not the message they should be."""


class _NotBpeError(ValueError):
    """A SentencePiece model of another type."""


def _read_model(data: bytes) -> SentencePieceModel:
    pieces: list[str] = []
    scores: list[float] = []
    types: list[TokenType] = []
    trainer = normalizer = b""
    for number, value in _fields(data):
        if number == 1:
            piece, score, kind = _read_piece(_bytes(value), len(pieces))
            pieces.append(piece)
            scores.append(score)
            types.append(kind)
        elif number == 2:
            trainer += _bytes(value)  # a message that is there twice is merged
        elif number == 3:
            normalizer += _bytes(value)
    if not pieces:
        raise _WireError("it has no pieces")
    if len(set(pieces)) != len(pieces):
        raise _WireError("a piece is there twice")
    options = _read_options(dict(_fields(trainer)), dict(_fields(normalizer)))
    return SentencePieceModel(tuple(pieces), tuple(scores), tuple(types), options)


def _read_piece(data: bytes, index: int) -> tuple[str, float, TokenType]:
    fields = dict(_fields(data))
    kind = _integer(fields.get(3, TokenType.NORMAL))
    if not TokenType.NORMAL <= kind <= TokenType.BYTE:
        raise _WireError(f"piece {index} has the type {kind}")
    score = _bytes(fields.get(2, b"\0\0\0\0"))
    if len(score) != 4:
        raise _WireError(f"the score of piece {index} is not a 32-bit float")
    value: float = struct.unpack("<f", score)[0]
    if value - value != 0:  # NaN or infinity
        raise _WireError(f"the score of piece {index} is {value}")
    try:
        text = _bytes(fields.get(1, b"")).decode()
    except UnicodeDecodeError:
        raise _WireError(f"piece {index} is not UTF-8") from None
    if not text:
        raise _WireError(f"piece {index} is empty")
    return text, value, TokenType(kind)


def _read_options(
    trainer: dict[int, int | bytes], normalizer: dict[int, int | bytes]
) -> SentencePieceOptions:
    model_type = _integer(trainer.get(3, 1))
    if model_type != _BPE:
        raise _NotBpeError(_MODEL_TYPES.get(model_type, str(model_type)))
    return SentencePieceOptions(
        add_dummy_prefix=bool(_integer(normalizer.get(3, 1))),
        remove_extra_whitespaces=bool(_integer(normalizer.get(4, 1))),
        byte_fallback=bool(_integer(trainer.get(35, 0))),
        charsmap=_bytes(normalizer.get(2, b"")),
    )


def _fields(data: bytes) -> Iterator[Field]:
    """The fields of a message, in their order."""
    at, end = 0, len(data)
    while at < end:
        tag = data[at]
        at += 1
        if tag >= 0x80:
            tag, at = _varint(data, at - 1)
        number, wire = tag >> 3, tag & 7
        if not 0 < number < 1 << 29:
            raise _WireError(f"a field with the number {number} before byte {at}")
        if wire == 0:
            value, at = _varint(data, at)
            yield number, value
            continue
        if wire == 2:
            size, at = _varint(data, at)
        elif wire in {1, 5}:
            size = 8 if wire == 1 else 4
        else:
            raise _WireError(f"a field of wire type {wire} before byte {at}")
        if size > end - at:
            raise _WireError(f"a field of {size} bytes at byte {at}, and {end - at} bytes are left")
        yield number, data[at : at + size]
        at += size


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            raise _WireError("it ends inside a number")
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise _WireError(f"a number of more than 10 bytes before byte {at}")


def _integer(value: int | bytes) -> int:
    if isinstance(value, bytes):
        raise _WireError("bytes where a number belongs")
    return value


def _bytes(value: int | bytes) -> bytes:
    if isinstance(value, int):
        raise _WireError("a number where bytes belong")
    return value
