"""The head of a model's README.md: only what llama.cpp puts into ``general.*``, in the right types.

The head is YAML, which can ask for far more than a few words: values that refer to others and grow without
bound, tags that make objects, numbers and dates of any kind. So only the lines of known keys are looked at,
and of these only the parser's events: texts, and lists of texts. A README.md is nothing that a conversion
depends on, so what cannot be read is left out, with a note.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import yaml

from phiconv.errors import InputError
from phiconv_formats.shared.files import read_small_file

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path
    from typing import NoReturn, TypeAlias

    Value: TypeAlias = str | list[str]

__all__ = ["read_model_card"]

_LIMIT = 4 << 20
_LONGEST = 1 << 16
"""Characters of all known keys and their values; the YAML parser is slow."""

_TEXTS = (
    "name author version organization description finetune basename size_label url doi uuid repo_url "
    "model_name model_author model_version model_organization model_description model_finetune "
    "model_basename model_size_label model_url model_doi model_uuid model_repo_url model_creator "
    "model_type license_name license_link"
).split()
_TEXTS_OR_LISTS = (
    "license base_model base_models base_model_sources datasets dataset dataset_sources tags pipeline_tag "
    "languages language"
).split()

_KEY = re.compile(r"""(["']?)(\w+)\1[ ]*:(?=[ ]|$)""")
_GOES_ON = (" ", "-", "#", "]")  # or the line is empty
_TEXT_TAG = "tag:yaml.org,2002:str"
_RESOLVER: Any = yaml.resolver.Resolver()


def read_model_card(folder: Path | None) -> tuple[dict[str, Value], list[str]]:
    """Reads README.md of a model folder.

    Returns:
        What it says, and notes on what of it cannot be read; nothing where there is none.
    """
    path = folder / "README.md" if folder else None
    if path is None or not path.exists():
        return {}, []
    try:
        lines = read_small_file(path, _LIMIT).decode().splitlines()
    except UnicodeDecodeError as error:
        return {}, [f"README.md is left out: not valid UTF-8, at byte {error.start}"]
    except InputError as error:
        return {}, [f"README.md is left out: {error.message}"]
    found: dict[str, Value] = {}
    unread: list[str] = []
    left = _LONGEST
    for key, block in _known_blocks(_head(lines)):
        found.pop(key, None)  # of a key that is there twice, the last counts
        left -= len(block)
        try:
            value = _value(block) if left >= 0 else _refuse()
        except (yaml.YAMLError, ValueError, OverflowError):  # the last for an impossible character
            unread.append(key)
            continue
        if value and (isinstance(value, str) or key in _TEXTS_OR_LISTS):
            found[key] = value
    if not unread:
        return found, []
    return found, [f"README.md: {', '.join(dict.fromkeys(unread))} cannot be read, and left out"]


def _head(lines: list[str]) -> Iterator[str]:
    """The lines between the first "---", which must be the first of all, and the next."""
    if lines[:1] == ["---"]:
        for line in lines[1:]:
            if line == "---":
                return
            yield line.replace("\t", "  ")  # which YAML has not, and cards have


def _known_blocks(lines: Iterable[str]) -> Iterator[tuple[str, str]]:
    """The known keys of the outermost level, each with the lines that it stands on."""
    key, block = "", list[str]()
    for line in lines:
        if not line or line.startswith(_GOES_ON):
            block.append(line)
            continue
        if key:
            yield key, "\n".join(block)
        match = _KEY.match(line)
        key = match[2] if match and match[2] in {*_TEXTS, *_TEXTS_OR_LISTS} else ""
        block = [line]
    if key:
        yield key, "\n".join(block)


def _value(block: str) -> Value | None:
    """The value of a key: a text, a list of texts, or None for anything else that is harmless.

    Raises:
        yaml.YAMLError: It is not YAML.
        ValueError: It has an alias, an anchor, a tag, a list inside of a list, or is no text at all.
    """
    events = yaml.parse(block, Loader=yaml.SafeLoader)
    _skip(events, yaml.StreamStartEvent, yaml.DocumentStartEvent, yaml.MappingStartEvent, yaml.ScalarEvent)
    first = next(events)
    if isinstance(first, yaml.SequenceStartEvent):
        if first.anchor or first.tag:
            _refuse()
        items: list[str | None] = []
        while not isinstance(event := next(events), yaml.SequenceEndEvent):
            # Norwegian is no "no".
            items.append("no" if getattr(event, "value", "") == "no" else _text(event))
        value: Value | None = None if None in items else [item for item in items if item is not None]
    else:
        value = _text(first)
    _skip(events, yaml.MappingEndEvent, yaml.DocumentEndEvent, yaml.StreamEndEvent)
    return value


def _refuse() -> NoReturn:
    raise ValueError("neither a text nor a list of texts")


def _skip(events: Iterator[yaml.Event], *kinds: type[yaml.Event]) -> None:
    for kind in kinds:
        if not isinstance(next(events), kind):
            _refuse()


def _text(event: yaml.Event) -> str | None:
    """The text of a scalar; None where YAML takes it for something else, such as a number."""
    if not isinstance(event, yaml.ScalarEvent) or event.anchor or event.tag:
        _refuse()
    event.value.encode()  # half of a surrogate pair can be written, and not be kept
    if _RESOLVER.resolve(yaml.ScalarNode, event.value, event.implicit) != _TEXT_TAG:
        return None
    return str(event.value)
