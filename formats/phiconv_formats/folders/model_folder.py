"""What a reader finds beside the weights of a model: config.json, the tokenizer, generation_config.json."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from phiconv.ir.findings import tolerated
from phiconv.ir.model import Checkpoint, ModelCard
from phiconv_formats.shared.strict_json import load_json_object
from phiconv_formats.tokenizers.folder import read_tokenizer

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path
    from typing import Any

    from phiconv.tokenization.tokenizer import Tokenizer

__all__ = ["optional_json", "whatever_is_there", "with_folder"]

_LIMIT = 16 << 20
_MAX_VALUES = 500_000  # lists of factors, and of modules
"""Bytes of a file of settings."""


def optional_json(path: Path) -> dict[str, Any] | None:
    """The object in a file of settings; None if there is no such file.

    Raises:
        MalformedFileError: It is no JSON object, or too large.
    """
    return load_json_object(path, limit=_LIMIT, max_values=_MAX_VALUES) if path.exists() else None


def with_folder(
    weights: Checkpoint,
    config_path: Path,
    config: dict[str, Any],
    generation: Mapping[str, Any] | None = None,
) -> Checkpoint:
    """A checkpoint of weights alone as a model, with all that stands in its folder.

    Args:
        weights: The checkpoint.
        config_path: The file in that folder that says what config.json says.
        config: What it says.
        generation: What to take for generation_config.json where there is none.

    Raises:
        MalformedFileError: generation_config.json or preprocessor_config.json is no JSON object. The
            tokenizer is read later.
    """
    folder = config_path.parent

    def tokenizer(vocab_size: int) -> Tokenizer | None:
        return read_tokenizer(folder, vocab_size=vocab_size, config=config)

    found = optional_json(folder / "generation_config.json")
    card = ModelCard(
        folder,
        config,
        dict(generation or {}) if found is None else found,
        optional_json(folder / "preprocessor_config.json") or {},
    )
    return replace(weights, config=config, config_path=config_path, read_tokenizer=tokenizer, card=card)


def whatever_is_there(
    weights: Checkpoint | None, path: Path, config_path: Path, format_name: str
) -> Checkpoint | None:
    """What there is in a model's folder that cannot be opened, to look at.

    Args:
        weights: What was found of the weights.
        path: The folder, or a file in it.
        config_path: Where config.json would be.
        format_name: The format that it would be of.

    Returns:
        The weights with the folder's config.json and tokenizer, as far as they can be read; None if there is
        neither a tensor nor a config.json.
    """
    found = weights or Checkpoint(path, format_name, {})
    config = tolerated(lambda: optional_json(config_path))
    if config is None:
        return found if found.stored else None
    return tolerated(lambda: with_folder(found, config_path, config)) or replace(
        found, config=config, config_path=config_path
    )
