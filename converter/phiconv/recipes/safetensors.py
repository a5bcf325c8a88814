"""The recipes of a safetensors folder: every weight in one float type."""

from __future__ import annotations

from typing import TYPE_CHECKING

from phiconv.recipes.grammar import FLOAT_ALIASES, FLOATS, Family, Grammar

if TYPE_CHECKING:
    from collections.abc import Sequence

    from phiconv.ir import Encoding, FloatEncoding
    from phiconv.ir.model import Model
    from phiconv.recipes.choices import Choices
    from phiconv_formats.shared.output import OutputTensor

__all__ = ["OPTIONS", "PRESETS", "RECIPES", "TYPES", "assign", "cast", "type_of"]

PRESETS = {name: name for name in FLOATS}
"""What ``--f16`` and so on mean; there is no 4-bit and no 8-bit type here."""

RECIPES = Grammar((Family(tuple(FLOATS)),), FLOAT_ALIASES)
"""How the recipes are called."""

TYPES = RECIPES
"""What a single tensor can be stored as."""

OPTIONS = frozenset({"tensor_types", "allow_requantize", "plain"})
"""The fields of `phiconv.recipes.Choices` that mean something here."""


def assign(recipe: str, model: Model, tensors: Sequence[OutputTensor], choices: Choices) -> list[Encoding]:  # noqa: ARG001
    """The encoding of every tensor: the recipe's type, or that of the first pattern that fits its name."""

    def choose(tensor: OutputTensor) -> Encoding:
        named = (type_of(name) for pattern, name in choices.overrides if pattern.search(tensor.name))
        return tensor.required or next(named, FLOATS[recipe])

    return [choose(tensor) for tensor in tensors]


def cast(recipe: str, model: Model, choices: Choices) -> FloatEncoding | None:  # noqa: ARG001
    """Nothing is quantized here, so nothing is rounded before."""
    return None


def type_of(name: str) -> FloatEncoding:
    """What a single tensor can be stored as, by its name; an unknown one raises `UsageError`."""
    return FLOATS[RECIPES.read(name, "no tensor can be stored as").stem]
