"""The YAML head of a model's README.md: only what llama.cpp puts into ``general.*``, in the right types."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import yaml
from gguf import Metadata

from phiconv.errors import MalformedFileError

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["read_model_card"]

_LIMIT = 4 << 20

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


def read_model_card(folder: Path | None) -> dict[str, Any]:
    """Reads README.md of a model folder; {} where there is none.

    Raises:
        MalformedFileError: The head is not YAML, or the file is far too large for a model card.
    """
    path = folder / "README.md" if folder else None
    if path is None or not path.is_file():
        return {}
    if path.stat().st_size > _LIMIT:
        raise MalformedFileError(
            f"larger than {_LIMIT} bytes", path=path, hint="rename it, to convert without it"
        )
    try:
        card = Metadata.load_model_card(folder)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError, ValueError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise MalformedFileError(
            f"the head is not valid YAML ({first})", path=path, hint="rename it, to convert without it"
        ) from error
    texts = {k: card[k] for k in _TEXTS if isinstance(card.get(k), str)}
    lists = {k: card[k] for k in _TEXTS_OR_LISTS if _is_text_or_list(card.get(k))}
    return texts | lists


def _is_text_or_list(value: object) -> bool:
    return isinstance(value, str) or (
        isinstance(value, list) and bool(value) and all(isinstance(v, str) for v in value)
    )
