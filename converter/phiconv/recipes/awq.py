"""The recipes of AWQ's layout, as data: 4 bits with zero points, rounded to nearest.

Facts from GPTQModel 7.7 and AutoAWQ 0.2.9, the layout that they call gemm. (The search for scales of
activations that gave the method its name needs a calibration; ``--effort best`` has another way to use one.)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from phiconv.recipes import gptq
from phiconv.recipes.grammar import FLOAT_ALIASES, FLOATS, Family, Grammar

if TYPE_CHECKING:
    from collections.abc import Sequence

    from phiconv.ir import Encoding
    from phiconv.ir.model import Model
    from phiconv.recipes.choices import Choices
    from phiconv_formats.shared.output import OutputTensor

__all__ = ["OPTIONS", "PRESETS", "RECIPES", "TYPES", "assign", "cast", "type_of"]

PRESETS = {"q4": "4bit", "f16": "f16", "bf16": "bf16", "f32": "f32"}
"""What ``--q4`` and so on mean; there are no 8 bits here."""

OPTIONS = gptq.OPTIONS
"""The fields of `phiconv.recipes.Choices` that mean something here."""

RECIPES = Grammar(
    (Family(("4bit",), groups=(128, 64, 32)), Family(tuple(FLOATS))),
    FLOAT_ALIASES | {"int4": "4bit", "w4a16": "4bit", "gemm": "4bit"},
)
"""How the recipes are called."""

TYPES = RECIPES
"""What a single matrix can be turned into."""

cast = gptq.cast


def assign(recipe: str, model: Model, tensors: Sequence[OutputTensor], choices: Choices) -> list[Encoding]:
    """The encoding of every tensor; see `phiconv.recipes.gptq.assign`."""
    return gptq.assign_all(type_of(recipe), type_of, cast(recipe, model, choices), tensors, choices)


def type_of(name: str) -> gptq.Scheme:
    """What a single matrix is turned into, by its name; an unknown one raises `UsageError`."""
    found = RECIPES.read(name)
    return gptq.Scheme(found.stem, "awq", found.group)
