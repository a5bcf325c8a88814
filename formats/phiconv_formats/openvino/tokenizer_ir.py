"""A tokenizer and its detokenizer as OpenVINO IRs, which openvino-tokenizers runs and openvino-genai loads.

    text -> pieces at the added tokens -> words -> ids -> cut to length -> special tokens -> a padded matrix
    ids  -> bytes -> joined -> text

The operations are those of the openvino-tokenizers library. Between them a text is three tensors: where each
string begins, where it ends (int32), and the bytes of all strings; and a batch of rows of strings, or of ids,
has two more in front: where each row begins and ends.
"""

from __future__ import annotations

import struct
from itertools import accumulate
from typing import TYPE_CHECKING, Literal

import numpy as np

from phiconv.tokenization.tokenizer import SentencePieceOptions, TokenType
from phiconv_formats.openvino.ir_document import Document, Port
from phiconv_formats.openvino.tokenizer_patterns import added_tokens_expression, split_expression
from phiconv_formats.openvino.tokenizer_tables import decoder_strings, encoder_tables
from phiconv_formats.openvino.tokenizer_words import marking_expressions

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from phiconv.tokenization.tokenizer import Tokenizer

__all__ = ["MAX_LENGTH", "tokenizer_ir"]

MAX_LENGTH = 2**31 - 64 - 1
"""The length to which a text is cut unless something else is asked for: none that a text has."""

_RAGGED = ("i32", "i32")
_STRINGS = ("i32", "i32", "u8")
_PIECES = (*_RAGGED, *_STRINGS, "boolean")  # with a mark on those that are tokens already
_EXTENSION = "extension"
_STRING_OPS = "opset15"
_CACHED_PIECES = "1000"


def tokenizer_ir(
    tokenizer: Tokenizer,
    *,
    max_length: int | None = None,
    padding_side: Literal["left", "right"] = "left",
    truncation_side: Literal["left", "right"] = "right",
) -> dict[str, bytes]:
    """A tokenizer as the files that OpenVINO GenAI looks for.

    Args:
        tokenizer: Of a model.
        max_length: Tokens to which a text is cut, those put around it included; None cuts nothing, until the
            runtime is asked to.
        padding_side: Where the shorter texts of a batch are filled up; a model that writes on needs "left".
        truncation_side: Where a text that is too long is cut.

    Returns:
        The contents of openvino_tokenizer.xml and .bin, and openvino_detokenizer.xml and .bin, by name.

    Raises:
        UnsupportedModelError: A tokenizer that OpenVINO's operations cannot express.
        ConfigError: A token or the chat template has a character that the files cannot hold.
    """
    rt_info = _rt_info(tokenizer)
    encoder = Document("tokenizer")
    text = encoder.one("Parameter", (), "string", name="string_input", shape="?", element_type="string")
    strings = encoder.layer("StringTensorUnpack", [text], _STRINGS, version=_STRING_OPS)
    rows = _encode(encoder, tokenizer, strings)
    room = (MAX_LENGTH if max_length is None else max_length) - sum(map(len, _around(tokenizer)))
    rows = _cut(encoder, rows, max(room, 0), truncation_side)
    rows = _put_special_tokens(encoder, tokenizer, rows)
    _pad(encoder, rows, _pad_id(tokenizer) or 0, padding_side)
    decoder = Document("detokenizer")
    _decode(decoder, tokenizer)
    return {
        "openvino_tokenizer.xml": encoder.xml(rt_info),
        "openvino_tokenizer.bin": encoder.binary(),
        "openvino_detokenizer.xml": decoder.xml(rt_info),
        "openvino_detokenizer.bin": decoder.binary(),
    }


def _rt_info(tokenizer: Tokenizer) -> dict[str, str]:
    """What openvino-genai reads beside the graph."""
    ids = {role: tokenizer.special_ids.get(role) for role in ("bos", "eos")} | {"pad": _pad_id(tokenizer)}
    info = {f"{role}_token_id": str(i) for role, i in ids.items() if i is not None}
    if (template := tokenizer.chat_templates.get("default")) is not None:
        info["chat_template"] = template
    # Without a version, openvino-genai takes the file for one of before 2024.5, which could do less.
    return info | {"openvino_tokenizers_version": "2025.4.0.0"}


def _pad_id(tokenizer: Tokenizer) -> int | None:
    return tokenizer.special_ids.get("pad", tokenizer.special_ids.get("eos"))


# -------------------------------------------------------------------------------------------------- constants


def _integers(document: Document, values: Sequence[int]) -> Port:
    return document.constant(np.array(values, "<i4").tobytes(), "i32", [len(values)])


def _integer(document: Document, value: int) -> Port:
    return document.constant(struct.pack("<i", value), "i32")


def _string(document: Document, text: str) -> Port:
    data = text.encode()
    return document.constant(data, "u8", [len(data)])


def _strings(document: Document, strings: Iterable[bytes]) -> list[Port]:
    """A list of strings: where each begins, where it ends, and the bytes of all."""
    parts = [*strings]
    edges = [*accumulate(map(len, parts), initial=0)]
    return [
        _integers(document, edges[:-1]),
        _integers(document, edges[1:]),
        document.constant(b"".join(parts), "u8", [edges[-1]]),
    ]


# --------------------------------------------------------------------------------------------------- encoding


def _encode(document: Document, tokenizer: Tokenizer, strings: Sequence[Port]) -> list[Port]:
    """Ids of each string: where each row of them begins and ends, and all ids."""
    pieces = [*_one_string_a_row(document, strings[0]), *strings]
    expression = _string(document, added_tokens_expression(tokenizer))
    pieces = document.layer("SpecialTokensSplit", [*pieces, expression], _PIECES, version=_EXTENSION)
    if tokenizer.kind == "byte-bpe":
        if tokenizer.nfc:
            pieces = _compose(document, pieces)
        pieces = document.layer(
            "RegexSplit",
            [*pieces, _string(document, split_expression(tokenizer.split))],
            _PIECES,
            version=_EXTENSION,
            behaviour="remove",
            invert="true",
            max_splits="-1",
        )
    else:
        pieces = _replace(document, pieces, _sentencepiece_steps(tokenizer))
    tables = encoder_tables(tokenizer)
    pieces = _replace(document, pieces, marking_expressions(tables.whole_words))
    vocabulary = _strings(document, tables.vocabulary)
    left, right = (_strings(document, [pair[side] for pair in tables.merges]) for side in (0, 1))
    return document.layer(
        "BPETokenizer",
        [*pieces[:5], *vocabulary, *left, *right],
        [*_RAGGED, "i32"],
        version=_EXTENSION,
        unk_token="",
        fuse_unk="false",
        suffix_indicator="",
        end_suffix="",
        byte_fallback="false",
        cache_capacity=_CACHED_PIECES,
    )


def _one_string_a_row(document: Document, begins: Port) -> tuple[Port, Port]:
    """Where each row begins and ends if it has one string: 0, 1, ... and 1, 2, ..."""
    zero, one = _integer(document, 0), _integer(document, 1)
    shape = document.one("ShapeOf", [begins], "i32", version="opset3", output_type="i32")
    count = document.one("Gather", [shape, zero, zero], "i32", version="opset8", batch_dims="0")
    first = document.one("Range", [zero, count, one], "i32", version="opset4", output_type="i32")
    return first, document.one("Add", [first, one], "i32", auto_broadcast="numpy")


def _compose(document: Document, pieces: Sequence[Port]) -> list[Port]:
    """Unicode's form NFC outside added tokens."""
    composed = document.layer(
        "CharsMapNormalization",
        pieces[2:],
        _PIECES[2:],
        version=_EXTENSION,
        normalization_form="nfc",
        add_dummy_prefix="false",
        remove_extra_whitespaces="false",
        escape_whitespaces="false",
        case_fold="false",
        nmt="false",
    )
    return [*pieces[:2], *composed]


def _sentencepiece_steps(tokenizer: Tokenizer) -> list[tuple[str, str]]:
    """SentencePiece's normalization: a space in front, and a mark for each space."""
    options = tokenizer.sentencepiece or SentencePieceOptions()
    return [*([(r"(?:^)([\s\S])", "▁$1")] if options.add_dummy_prefix else []), (" ", "▁")]


def _replace(document: Document, pieces: Sequence[Port], steps: Iterable[tuple[str, str]]) -> list[Port]:
    """Replaces what expressions find outside added tokens, one after the other."""
    rows, strings = list(pieces[:2]), list(pieces[2:])
    for search, replacement in steps:
        strings = document.layer(
            "RegexNormalization",
            [*strings, _string(document, search), _string(document, replacement)],
            _PIECES[2:],
            version=_EXTENSION,
            global_replace="true",
        )
    return [*rows, *strings]


def _cut(document: Document, rows: Sequence[Port], max_length: int, side: str) -> list[Port]:
    # A constant: from 2026.4 on openvino-genai makes a setting of it, and before it needs it to be one.
    settings = [
        _integer(document, max_length),
        _string(document, side),
        _string(document, "longest_first"),
    ]
    return document.layer(
        "Truncate", [*rows, *settings], [*_RAGGED, "i32"], version=_EXTENSION, m_num_inputs="1"
    )


def _around(tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """The ids that are put before and after a text."""
    ids = {
        role: [tokenizer.special_ids[role]]
        for role in ("bos", "eos")
        if tokenizer.add_special.get(role) and role in tokenizer.special_ids
    }
    return ids.get("bos", []), ids.get("eos", [])


def _put_special_tokens(document: Document, tokenizer: Tokenizer, rows: Sequence[Port]) -> list[Port]:
    before, after = (
        [_integer(document, 0), _integer(document, len(ids)), _integers(document, ids)] if ids else []
        for ids in _around(tokenizer)
    )
    segments = [*before, *rows, *after]
    kinds = _integers(document, [0] * (len(segments) // 3))
    combined = document.layer(
        "CombineSegments", [*segments, kinds], [*_RAGGED, "i32", *_RAGGED, "i32"], version=_EXTENSION
    )
    return combined[:3]


def _pad(document: Document, rows: Sequence[Port], pad: int, side: str) -> None:
    """A matrix of ids and a mask of those that are no filling."""
    lengths = document.one("Subtract", [rows[1], rows[0]], "i32", auto_broadcast="numpy")
    longest = document.one("ReduceMax", [lengths, _integer(document, 0)], "i32", keep_dims="false")
    dense = document.layer(
        "RaggedToDense",
        [*rows, longest, _integer(document, pad)],
        ["i32", "boolean"],
        version=_EXTENSION,
        pad_right=str(side == "right").lower(),
        m_pad_max_length="false",
    )
    for port, name in zip(dense, ("input_ids", "attention_mask"), strict=True):
        wide = document.one("Convert", [port], "i64", tensor_name=name, destination_type="i64")
        document.layer("Result", [wide], (), name=f"Result_{name}")


# --------------------------------------------------------------------------------------------------- decoding


def _decode(document: Document, tokenizer: Tokenizer) -> None:
    ids = document.one("Parameter", (), "i64", name="token_ids", shape="?,?", element_type="i64")
    ids = document.one("Convert", [ids], "i32", destination_type="i32")
    left_out = [i for i, kind in enumerate(tokenizer.types) if kind is TokenType.CONTROL]
    tokens = document.layer(
        "VocabDecoder",
        [ids, *_strings(document, decoder_strings(tokenizer)), _integers(document, left_out)],
        [*_RAGGED, *_STRINGS],
        version=_EXTENSION,
        name="VocabDecoder",  # openvino-genai looks for a layer with this name
        skip_tokens="",
    )
    begins, ends = document.layer("FuzeRagged", tokens[:4], _RAGGED, version=_EXTENSION)
    strings = [begins, ends, tokens[4]]
    options = tokenizer.sentencepiece or SentencePieceOptions()
    if tokenizer.kind == "sentencepiece" and options.add_dummy_prefix:
        strings = document.layer(
            "RegexNormalization",
            [*strings, _string(document, "^ "), _string(document, "")],
            _STRINGS,
            version=_EXTENSION,
            global_replace="true",
        )
    strings = document.layer("UTF8Validate", strings, _STRINGS, version=_EXTENSION, replace_mode="true")
    text = document.one(
        "StringTensorPack", strings, "string", version=_STRING_OPS, tensor_name="string_output"
    )
    document.layer("Result", [text], (), name="Result_string_output")
