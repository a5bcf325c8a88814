"""Which tokens are special and what for, and which of them are put around the text.

The files say it several times, and not always the same. The order of belief is that of llama.cpp's converter:
the tokenizer's own files come before config.json, and what the post-processor of tokenizer.json does comes
before the flags of tokenizer_config.json. The eos ids of generation_config.json are kept beside the rest.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

from phiconv.errors import ConfigError
from phiconv.tokenization.tokenizer import ROLES
from phiconv_formats.tokenizers.tokenizer_json import expect

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

__all__ = ["SpecialTokens", "find_eos_ids", "find_special_ids", "read_special_tokens"]

_Item: TypeAlias = "tuple[str | None, str | None]"  # a special token, or else the name of the text


@dataclass(slots=True)
class SpecialTokens:
    """What the tokenizer's files say, before ids are looked up.

    Attributes:
        texts: Content by role.
        add: Whether a token is added, by role.
    """

    texts: dict[str, str] = field(default_factory=dict)
    add: dict[str, bool] = field(default_factory=dict)


def read_special_tokens(
    settings: Mapping[str, Any], path: Path, post_processors: Sequence[Mapping[str, Any]] | None
) -> SpecialTokens:
    """The special tokens of tokenizer_config.json (or of special_tokens_map.json).

    Args:
        settings: The file's content.
        path: The file.
        post_processors: Those of tokenizer.json; None where there is no such file.

    Raises:
        ConfigError: A key has a value of a wrong type.
    """
    special = SpecialTokens()
    for role in ROLES:
        value = settings.get(f"{role}_token")
        at = f"{role}_token"
        if isinstance(value, dict):
            value, at = value.get("content"), f"{at}.content"
        if value is not None:
            special.texts[role] = expect(value, str, path, at)
    if post_processors is not None:
        special.texts = _fill(special.texts)
        for processor in post_processors:
            if processor["type"] == "ByteLevel":
                special.add.setdefault("bos", False)
                special.add.setdefault("eos", False)
            elif processor["type"] == "TemplateProcessing":
                _read_template(special, processor, path)
    for role in ROLES:
        value = settings.get(f"add_{role}_token")
        if isinstance(value, bool):
            special.add.setdefault(role, value)
    return special


def _fill(texts: Mapping[str, str]) -> dict[str, str]:
    """A tokenizer without bos or eos uses cls and sep for them (BERT's names)."""
    result = dict(texts)
    for role, other in (("bos", "cls"), ("eos", "sep")):
        if role not in result and other in result:
            result[role] = result[other]
    return result


def _read_template(special: SpecialTokens, processor: Mapping[str, Any], path: Path) -> None:
    """What a TemplateProcessing puts before, between and after one and two texts."""
    single, pair = (_template(processor, key, path) for key in ("single", "pair"))
    texts = special.texts
    first, last = (single[0][0], single[-1][0]) if len(single) > 1 else (None, None)
    if first is not None:
        texts.setdefault("bos", first)
        if first != texts["bos"]:
            texts.setdefault("cls", first)
        special.add["bos"] = first in (texts["bos"], texts.get("cls"))
    if last is not None:
        if last != texts.get("eos", last):  # what ends the text is the eos, so the other one ends a turn
            texts["eot"] = texts["eos"]
        texts["eos"] = last
        special.add["eos"] = True
    start = int(first is not None and pair[:1] != [] and pair[0][0] == first)
    stop = len(pair) - int(last is not None and pair[-1:] != [] and pair[-1][0] == last)
    _read_pair(special, pair[start:stop], ended=last is not None)


def _read_pair(special: SpecialTokens, pair: Sequence[_Item], *, ended: bool) -> None:
    """What a template puts between two texts."""
    if len(pair) < 3 or (pair[0][1], pair[-1][1]) != ("A", "B"):
        return
    texts = special.texts
    known = [token is not None and token in (texts.get("sep"), texts.get("eos")) for token, _ in pair[1:-1]]
    # A lone eos between two texts ends the first of them, if eos also ends the second.
    special.add["sep"] = (known[0] and not ended) or (len(known) == 2 and known[1])
    if special.add["sep"] and "eos" in texts:
        texts.setdefault("sep", texts["eos"])


def _template(processor: Mapping[str, Any], key: str, path: Path) -> list[_Item]:
    """Items of a template: the special token, or else the name of the text."""
    items = []
    for item in expect(processor.get(key) or [], list, path, f"post_processor.{key}"):
        found: list[str | None] = []
        for kind in ("SpecialToken", "Sequence"):
            value = expect(item, dict, path, f"post_processor.{key}").get(kind)
            name = (
                None if value is None else expect(value, dict, path, f"post_processor.{key}.{kind}").get("id")
            )
            found.append(None if name is None else expect(name, str, path, f"post_processor.{key}.{kind}.id"))
        items.append((found[0], found[1]))
    return items


def find_special_ids(
    texts: Sequence[Mapping[str, str]],
    first_ids: Mapping[str, int],
    ids: Mapping[str, int],
    config: Mapping[str, Any],
    limit: int,
) -> dict[str, int]:
    """Ids by role, from the first source that has one.

    Args:
        texts: Content by role, of tokenizer_config.json and then of special_tokens_map.json.
        first_ids: Id by content among the added tokens that come before config.json.
        ids: Id by content among all tokens: the last resort.
        config: config.json.
        limit: Ids from here on name no token; they are passed over.

    Raises:
        ConfigError: An id of config.json is negative.
    """
    roles = (*ROLES, "eot")
    result = {role: first_ids[texts[0][role]] for role in roles if texts[0].get(role) in first_ids}
    inner = config.get("text_config")
    for role in roles:
        key = f"{role}_token_id"
        value = config.get(key)
        if value is None and isinstance(inner, dict):
            value = inner.get(key)
        # true is no id, and a list belongs to the generation settings.
        if type(value) is int and role not in result:
            if value < 0:
                message = f"a token id of {value}"
                raise ConfigError(message, path="config.json", at=key, hint="use null for none")
            if value < limit:
                result[role] = value
    for source in texts:
        for role in roles:
            if role not in result and source.get(role) in ids:
                result[role] = ids[source[role]]
    return result


def find_eos_ids(generation: Mapping[str, Any], path: Path, limit: int) -> tuple[int, ...]:
    """The ids of generation_config.json that end a generation; those that name no token are passed over.

    Raises:
        ConfigError: They are no ids.
    """
    value = generation.get("eos_token_id")
    values = value if isinstance(value, list) else [] if value is None else [value]
    ids = [expect(v, int, path, "eos_token_id") for v in values]
    if any(i < 0 for i in ids):
        raise ConfigError(f"a token id of {min(ids)}", path=path, at="eos_token_id")
    return tuple(dict.fromkeys(i for i in ids if i < limit))
