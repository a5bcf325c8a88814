"""No recipe means "as it is": quantized matrices keep their blocks wherever the target has such blocks, too.

What a target can hold is asked by the names of its types, with the same rules as ``--tensor-type``: a type
whose encoding takes the stored blocks over without quantizing again is one to keep.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING

from phiconv.errors import UsageError
from phiconv.ir import FloatEncoding
from phiconv.quantizers.repack import repackable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from phiconv.ir import Encoding
    from phiconv.ir.model import Model
    from phiconv.recipes.choices import Choices
    from phiconv.recipes.target import Recipes
    from phiconv_formats.shared.output import OutputTensor

__all__ = ["keep_blocks"]


def keep_blocks(
    recipes: Recipes, model: Model, tensors: Sequence[OutputTensor], choices: Choices, floats: str
) -> tuple[str, list[Encoding]] | None:
    """The recipe that most matrices are stored by, and the encoding of every tensor.

    Args:
        recipes: Those of the target.
        model: The source.
        tensors: What will be stored.
        choices: What the user wants otherwise.
        floats: The type of matrices whose blocks the target does not have.

    Returns:
        None where the target can keep less than half of the quantized weights: then all become floats.
    """
    matrices = [t for t in tensors if t.required is None and len(t.tensor.shape) > 1]
    quantized = [t for t in matrices if not isinstance(t.tensor.encoding, FloatEncoding)]
    types = {
        t.tensor.encoding: _type_of(t, recipes, model, choices, floats)
        for t in {t.tensor.encoding: t for t in quantized}.values()
    }
    kept: Counter[str] = Counter()
    for tensor in quantized:
        kept[types[tensor.tensor.encoding]] += tensor.tensor.size
    total = kept.total()
    del kept[""]
    if 2 * kept.total() <= total:
        return None
    usual = _recipe(max(kept, key=lambda name: kept[name]), recipes, floats)
    names = {t.name: types.get(t.tensor.encoding) or floats for t in matrices}
    patterns = [
        (_exactly([n for n, own in names.items() if own == name]), name)
        for name in dict.fromkeys(names.values())
    ]
    asked = replace(choices, tensor_types=(*choices.overrides, *patterns))
    return usual, recipes.assign(usual, model, tensors, asked)


def _type_of(tensor: OutputTensor, recipes: Recipes, model: Model, choices: Choices, floats: str) -> str:
    """The type that keeps the blocks of a matrix, of the same size if it can be; "" if there is none."""
    stored, found = tensor.tensor.encoding, ("", 0)
    for name in recipes.TYPES.names():
        asked = replace(choices, tensor_types=((_exactly([tensor.name]), name),))
        try:
            (encoding,) = recipes.assign(_recipe(name, recipes, floats), model, [tensor], asked)
        except UsageError:  # not for this matrix
            continue
        if stored == encoding:
            return name
        if repackable(stored, encoding) and encoding.block_size > found[1]:
            found = name, encoding.block_size
    return found[0]


def _recipe(name: str, recipes: Recipes, floats: str) -> str:
    """The recipe that is called after a type, or ``floats`` where none is."""
    known = recipes.RECIPES.find(name)
    named = (recipe for recipe in recipes.RECIPES.names() if recipe.startswith(f"{name}_"))
    return known.spelling if known else next(named, floats)


def _exactly(names: Sequence[str]) -> re.Pattern[str]:
    """A pattern for these names, and no others."""
    return re.compile(f"^(?:{'|'.join(map(re.escape, names))})$")
