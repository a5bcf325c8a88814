r"""Chat templates: where a model folder has them, and with which line ends they are written.

Jinja takes CR LF and CR for line feeds. Not every runtime's reading of Jinja does, and a carriage return that
is left stands in the prompt. So a template has line feeds only, wherever it came from and goes to. Escapes
inside of its strings (``'\r\n'``) are no line ends and stay.
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Any

from phiconv.errors import ConfigError, MalformedFileError
from phiconv_formats.shared.files import read_small_file
from phiconv_formats.shared.links import refuse_outside
from phiconv_formats.shared.strict_json import load_json_object
from phiconv_formats.tokenizers.tokenizer_json import expect

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

__all__ = ["read_chat_templates", "settings_with_line_feeds", "with_line_feeds"]

_MAX_TEMPLATE = 4 << 20
_MAX_TEMPLATES = 64


def with_line_feeds(template: str) -> str:
    """A template whose lines end as Jinja's own do."""
    return re.sub("\r\n?", "\n", template)


def settings_with_line_feeds(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The content of tokenizer_config.json with its templates so; everything else stays as it is."""
    result = dict(settings)
    value = settings.get("chat_template")
    if isinstance(value, str):
        result["chat_template"] = with_line_feeds(value)
    elif isinstance(value, dict):
        result["chat_template"] = {name: _changed(template) for name, template in value.items()}
    elif isinstance(value, list):
        result["chat_template"] = [
            {**entry, "template": _changed(entry["template"])}
            if isinstance(entry, dict) and "template" in entry
            else entry
            for entry in value
        ]
    return result


def _changed(value: Any) -> Any:
    return with_line_feeds(value) if isinstance(value, str) else value


def read_chat_templates(folder: Path, settings: Mapping[str, Any], settings_path: Path) -> dict[str, str]:
    """Chat templates by name, from tokenizer_config.json or else from files of their own.

    Args:
        folder: The model folder.
        settings: The content of tokenizer_config.json.
        settings_path: That file.

    Raises:
        MalformedFileError: A file is not what its name says.
        ConfigError: A key has a wrong value, or there are too many templates.
    """
    found = _read(folder, settings, settings_path)
    return {name: with_line_feeds(template) for name, template in found.items()}


def _read(folder: Path, settings: Mapping[str, Any], settings_path: Path) -> dict[str, str]:
    value = settings.get("chat_template")
    path = settings_path
    # A broken link counts as a file: reading it says what is wrong.
    if value is None and os.path.lexists(folder / "chat_template.jinja"):
        return _read_files(folder)
    if value is None and os.path.lexists(folder / "chat_template.json"):
        path = folder / "chat_template.json"
        value = load_json_object(path, limit=_MAX_TEMPLATE).get("chat_template")
    if value is None:
        return {}
    if isinstance(value, dict):
        return {k: expect(v, str, path, f"chat_template.{k}") for k, v in value.items()}
    if isinstance(value, list):
        result = {}
        for i, entry in enumerate(value):
            at = f"chat_template[{i}]"
            template = expect(entry, dict, path, at)
            name = expect(template.get("name"), str, path, f"{at}.name")
            result[name] = expect(template.get("template"), str, path, f"{at}.template")
        return result
    return {"default": expect(value, str, path, "chat_template")}


def _read_files(folder: Path) -> dict[str, str]:
    paths = {"default": folder / "chat_template.jinja"}
    others = folder / "additional_chat_templates"
    refuse_outside(others, folder)
    names = sorted(others.glob("*.jinja")) if others.is_dir() else []
    if len(names) > _MAX_TEMPLATES:
        raise ConfigError(f"{len(names)} chat templates, and at most {_MAX_TEMPLATES} are read", path=others)
    paths |= {path.stem: path for path in names}
    result = {}
    for name, path in paths.items():
        try:
            result[name] = read_small_file(path, _MAX_TEMPLATE, within=folder).decode()
        except UnicodeDecodeError as error:
            raise MalformedFileError("not valid UTF-8", path=path, at=f"byte {error.start}") from None
    return result
