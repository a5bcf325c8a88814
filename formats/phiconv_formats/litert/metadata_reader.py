"""What the metadata of a .litertlm says of its tokenizer, for one that phiconv has not written.

Facts from LiteRT-LM 0.18 (runtime/proto/llm_metadata.proto, token.proto), as `metadata` has them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from phiconv_formats.folders.companions import json_bytes
from phiconv_formats.litert.metadata import START, STOP, TEMPLATE
from phiconv_formats.shared.wire import WireReader

if TYPE_CHECKING:
    from phiconv_formats.litert.container_reader import StoredSection
    from phiconv_formats.shared.files import InputFile
    from phiconv_formats.shared.wire import Field

__all__ = ["tokenizer_settings"]

_IDS, _TEXT = 1, 2
"""Of a token: ids of a sequence, or text."""

_LONGEST_SEQUENCE = 64


def tokenizer_settings(file: InputFile, section: StoredSection) -> dict[str, bytes]:
    """The files of settings that would say the same beside a tokenizer.

    Of the tokens that end a text those count that are one token.

    Raises:
        MalformedFileError: The section is no message.
    """
    wire = WireReader(file, "LiteRT-LM's metadata")
    generation: dict[str, Any] = {}
    settings: dict[str, Any] = {}
    files: dict[str, bytes] = {}
    ends: list[int] = []
    for field in wire.fields(section.start, section.stop):
        if field.number == TEMPLATE:
            files["chat_template.jinja"] = file.read_bytes(field.start, field.stop - field.start)
        elif field.number in {START, STOP}:
            token = _token(wire, field)
            role = "bos" if field.number == START else "eos"
            if isinstance(token, str):
                settings.setdefault(f"{role}_token", token)
            elif token is not None and role == "eos":
                ends.append(token)
            elif token is not None:
                generation["bos_token_id"] = token
    if ends:
        generation["eos_token_id"] = ends
    settings["add_bos_token"] = "bos_token" in settings or "bos_token_id" in generation
    return files | {
        "generation_config.json": json_bytes(generation),
        "tokenizer_config.json": json_bytes(settings),
    }


def _token(wire: WireReader, field: Field) -> int | str | None:
    """A token by its text or id; None for a sequence of several, or for nothing."""
    for part in wire.fields(field.start, field.stop):
        if part.number == _TEXT:
            return wire.text(part)
        if part.number == _IDS:
            ids = [
                n
                for inner in wire.fields(part.start, part.stop)
                for n in wire.numbers(inner, _LONGEST_SEQUENCE)
            ]
            return ids[0] if len(ids) == 1 else None
    return None
