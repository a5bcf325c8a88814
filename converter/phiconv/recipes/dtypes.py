"""The float type of a folder: of what is not quantized, and that weights are rounded to before they are."""

from __future__ import annotations

from typing import TYPE_CHECKING

from phiconv.errors import UsageError
from phiconv.ir import F16
from phiconv.recipes.grammar import FLOAT_ALIASES, FLOATS

if TYPE_CHECKING:
    from phiconv.ir import FloatEncoding
    from phiconv.ir.model import Model
    from phiconv.recipes.choices import Choices

__all__ = ["folder_dtype"]


def folder_dtype(recipe: str, model: Model, choices: Choices, usual: FloatEncoding = F16) -> FloatEncoding:
    """The float type: as chosen, else the recipe itself, else what the model says it is in.

    Args:
        recipe: The name of the recipe.
        model: The source.
        choices: What the user wants otherwise.
        usual: What to take where the model does not say, and has no floats.

    Raises:
        UsageError: There is no such type, or the recipe is another one.
    """
    if choices.dtype is not None:
        if recipe in FLOATS and recipe != choices.dtype:
            raise UsageError(f"--dtype {choices.dtype} contradicts {recipe}", hint="give one of them")
        return FLOATS[choices.dtype]
    if recipe in FLOATS:
        return FLOATS[recipe]
    config = model.card.config
    named = config.get("torch_dtype") or config.get("dtype")
    if isinstance(named, str) and (alias := FLOAT_ALIASES.get(named)):
        return FLOATS[alias]
    stored = [t.encoding for t in model.stored.values()]
    return max(FLOATS.values(), key=stored.count) if any(e in stored for e in FLOATS.values()) else usual
