"""Which encoding each tensor gets: per target and preset, as data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from phiconv import ir
from phiconv.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Collection

    from phiconv_formats.output import OutputTensor

__all__ = ["PRESETS", "RECIPES", "Recipe", "find_recipe"]


@dataclass(frozen=True, slots=True)
class Recipe:
    """One way to quantize a model for one target.

    Attributes:
        name: As the target's own tool spells it.
        encoding: What every matrix gets that is free to choose.
        fallback: What a matrix gets whose rows do not divide into blocks.
    """

    name: str
    encoding: ir.Encoding
    fallback: ir.Encoding = ir.F16

    def choose(self, tensor: OutputTensor) -> ir.Encoding:
        """The encoding of one tensor."""
        if tensor.required is not None:
            return tensor.required
        fits = tensor.tensor.columns % self.encoding.block_size == 0
        return self.encoding if fits else self.fallback


RECIPES: dict[str, dict[str, Recipe]] = {
    "gguf": {
        r.name: r
        for r in (
            Recipe("F32", ir.F32),
            Recipe("F16", ir.F16),
            Recipe("BF16", ir.BF16),
            Recipe("Q8_0", ir.Q8_0),
            Recipe("Q5_1", ir.Q5_1),
            Recipe("Q5_0", ir.Q5_0),
            Recipe("Q4_1", ir.Q4_1),
            Recipe("Q4_0", ir.Q4_0),
        )
    },
}
"""Recipes by target and name."""

PRESETS: dict[str, dict[str, str]] = {
    "gguf": {"q4": "Q4_0", "q8": "Q8_0", "f16": "F16", "bf16": "BF16", "f32": "F32"},
}
"""What ``--q4``, ``--q8`` and so on mean to each target."""


def find_recipe(target: str, name: str | None, stored: Collection[ir.Encoding] = ()) -> Recipe:
    """Finds a recipe by preset or by the target's own name; case does not matter, and "-" is "_".

    Args:
        target: Name of the format to write.
        name: The preset or recipe; None keeps the precision that most matrices are stored in.
        stored: The encodings of the source's matrices, for that.

    Raises:
        UsageError: The target has no such recipe.
    """
    known = RECIPES[target]
    if name is None:
        name = max(known, key=[e.name.upper() for e in stored].count)
    name = PRESETS[target].get(name.lower(), name).upper().replace("-", "_")
    if name not in known:
        names = ", ".join(known)
        raise UsageError(f"{target} has no quantization {name!r}", hint=f"one of {names}")
    return known[name]
