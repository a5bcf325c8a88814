"""What recipes cost, as measured: the table that ``benchmarks/qualities.py`` makes."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

__all__ = ["Quality", "models_measured", "quality_of"]


@dataclass(frozen=True, slots=True)
class Quality:
    """What a recipe did to the predictions of small trained models.

    Attributes:
        divergence: Mean Kullback-Leibler divergence of the predictions from those of the unquantized model,
            in nats; 0 is no change.
        same_first: The share of positions where both find the same token the likeliest.
    """

    divergence: float
    same_first: float


@cache
def _table() -> dict[str, dict[str, Quality]]:
    found = _file()["recipes"]
    assert isinstance(found, dict)  # noqa: S101 - the script writes it so
    return {form: {name: Quality(**one) for name, one in some.items()} for form, some in found.items()}


@cache
def _file() -> dict[str, object]:
    value = json.loads(Path(__file__).with_name("qualities.json").read_text(encoding="utf-8"))
    assert isinstance(value, dict)  # noqa: S101
    return value


def quality_of(format_name: str, recipe: str) -> Quality | None:
    """What was measured of a recipe, by the name that plans have; None if nothing was."""
    return _table().get(format_name, {}).get(recipe)


def models_measured() -> list[str]:
    """The models that it was measured on."""
    names = _file()["models"]
    assert isinstance(names, list)  # noqa: S101
    return names
