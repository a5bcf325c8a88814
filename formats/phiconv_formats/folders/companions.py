"""The files that stand around the weights in a model folder: tokenizer, chat template, generation settings.

They are data, copied as they are where the source is a folder (but for the line ends of chat templates), and
made from the tokenizer otherwise. Every target that is a folder takes them from here.
"""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

from phiconv.architectures import ARCHITECTURES
from phiconv_formats.shared.files import read_small_file
from phiconv_formats.shared.strict_json import load_json_object
from phiconv_formats.tokenizers.chat_templates import settings_with_line_feeds
from phiconv_formats.tokenizers.claims import (
    check_ids,
    check_merges,
    check_special_tokens,
    check_tokenizer_model,
)
from phiconv_formats.tokenizers.writer import tokenizer_files

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from phiconv.ir.model import Model
    from phiconv.ir.rope import RopeScaling

__all__ = [
    "companion_files",
    "corrected_keys",
    "json_bytes",
    "made_tokenizer_files",
    "model_config",
    "own_config",
    "portable",
    "rotary_section",
    "scaling_object",
]

_LIMIT = 64 << 20
_TOKENIZER_FILES: dict[str, Callable[[bytes, Path], None] | None] = {
    "tokenizer.json": None,  # the tokenizer has been read from it
    "tokenizer.model": check_tokenizer_model,
    "vocab.json": check_ids,
    "merges.txt": check_merges,
    "added_tokens.json": check_ids,
    "special_tokens_map.json": check_special_tokens,
}
"""What is copied as it is, and what looks at it first."""

# What belongs to another machine, to remote code, or to the source's own quantization.
_DROPPED = ("_name_or_path", "auto_map", "quantization", "quantization_config")

_TEMPLATE = "chat_template.jinja"
_SETTINGS = "tokenizer_config.json"


def json_bytes(value: Any, *, indent: int | None = 2) -> bytes:
    """A JSON file as people read it; without ``indent`` on one line."""
    return json.dumps(value, indent=indent, ensure_ascii=False).encode("utf-8") + b"\n"


def own_config(model: Model) -> dict[str, Any]:
    """The source's config.json, without what is not for another folder, and right about the weights."""
    return portable(model.card.config) | corrected_keys(model)


def portable(config: Mapping[str, Any]) -> dict[str, Any]:
    """A file's keys without those that are not for another folder."""
    return {key: value for key, value in config.items() if key not in _DROPPED}


def rotary_section(config: Mapping[str, Any]) -> dict[str, Any]:
    """The rotary keys that count: those of ``rope_scaling``, or else ``rope_parameters``; {} for neither."""
    return dict(config.get("rope_scaling") or config.get("rope_parameters") or {})


def corrected_keys(model: Model) -> dict[str, Any]:
    """The keys that announce biases and a tied head, and those of the rotary embedding at the top.

    Only those are here about which config.json is wrong, or that it contradicts further down.
    """
    if model.architecture is None or model.hyperparameters is None:
        return {}
    config = model.card.config
    present = {role.name for role in model.tensors if role.part == "bias"}
    keys = ARCHITECTURES[model.architecture].bias_keys
    found = {key: bool(present & {*roles}) for key, roles in keys.items()}
    found["tie_word_embeddings"] = model.hyperparameters.tie_word_embeddings
    wrong: dict[str, Any] = {key: flag for key, flag in found.items() if flag != bool(config.get(key))}
    inside = rotary_section(config)
    for key in ("rope_theta", "partial_rotary_factor"):
        if key in inside and config.get(key, inside[key]) != inside[key]:
            wrong[key] = inside[key]
    return wrong


def scaling_object(scaling: RopeScaling) -> dict[str, Any]:
    """``rope_scaling`` of config.json."""
    result: dict[str, Any] = {"rope_type": scaling.kind, "factor": scaling.factor}
    if scaling.kind == "llama3":
        result |= {
            "low_freq_factor": scaling.low_freq_factor,
            "high_freq_factor": scaling.high_freq_factor,
            "original_max_position_embeddings": scaling.original_context,
        }
    return result


def model_config(model: Model) -> dict[str, Any]:
    """The config.json beside a graph of a model: `own_config`, with the rotary factors that the graph has."""
    assert model.hyperparameters is not None  # noqa: S101 - no graph is made without
    config, rope = own_config(model), model.hyperparameters.rope
    for key in ("rope_parameters", "rope_scaling"):
        if rope.long_factor and isinstance(section := config.get(key), dict):
            config[key] = section | {"long_factor": list(rope.long_factor)}
            if "long_mscale" in section:
                config[key]["long_mscale"] = rope.long_mscale
            short = {"short_factor": list(rope.short_factor), "short_mscale": rope.short_mscale}
            config[key] |= {name: own for name, own in short.items() if section.get(name, own) != own}
    return config


def companion_files(model: Model) -> dict[str, bytes]:
    """Names and contents of what belongs beside the weights.

    The chat template stands in a file of its own and inside tokenizer_config.json, since runtimes look for it
    in either place.
    """
    folder = model.card.folder
    files = made_tokenizer_files(model) if folder is None else _from_folder(folder)
    settings = json.loads(files[_SETTINGS]) if _SETTINGS in files else {}
    template = model.tokenizer.chat_templates.get("default") if model.tokenizer else None
    if template is not None:
        files[_TEMPLATE] = template.encode("utf-8")
        if "chat_template" not in settings:
            files[_SETTINGS] = json_bytes({**settings, "chat_template": template})
    if generation := _generation(model):
        files["generation_config.json"] = json_bytes(generation)
    return files


def made_tokenizer_files(model: Model) -> dict[str, bytes]:
    """The tokenizer's files, made from what is known of it."""
    if model.tokenizer is None or model.architecture is None:
        return {}
    return tokenizer_files(model.tokenizer, ARCHITECTURES[model.architecture].byte_level)


def _generation(model: Model) -> dict[str, Any]:
    """The generation settings; a source that has none as a file knows all the same what ends a text."""
    result = dict(model.card.generation)
    if model.card.folder is None and model.tokenizer and model.tokenizer.eos_ids:
        result.setdefault("eos_token_id", list(model.tokenizer.eos_ids))
    return result


def _from_folder(folder: Path) -> dict[str, bytes]:
    """The files as they are, when each is what its name says."""
    files = {}
    for name, check in _TOKENIZER_FILES.items():
        if os.path.lexists(folder / name):  # a broken link counts: reading it says what is wrong
            files[name] = read_small_file(folder / name, _LIMIT)
            if check is not None:
                check(files[name], folder / name)
    if os.path.lexists(folder / _SETTINGS):
        settings = load_json_object(folder / _SETTINGS, limit=_LIMIT)
        settings.pop("auto_map", None)  # remote code stays where it is
        files[_SETTINGS] = json_bytes(settings_with_line_feeds(settings))
    return files
