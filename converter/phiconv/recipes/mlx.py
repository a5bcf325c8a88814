"""The recipes of mlx_lm.convert, as data: which scheme each matrix of an MLX folder gets.

Facts from mlx-lm 0.32 (convert.py, utils.py). A matrix whose rows do not divide into groups stays a float, as
there. phiconv differs in one thing: the router of a mixture of experts, a tiny matrix on which much depends,
is kept at 8 bits, unless the runtime's own choice is asked for.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from phiconv.errors import UsageError
from phiconv.ir import (
    MLX_MXFP4,
    MLX_MXFP8,
    MLX_NVFP4,
    BlockEncoding,
    FloatEncoding,
    mlx_affine,
    same_meaning,
)
from phiconv.recipes.dtypes import folder_dtype
from phiconv.recipes.grammar import FLOAT_ALIASES, FLOATS, Family, Grammar

if TYPE_CHECKING:
    from collections.abc import Sequence

    from phiconv.ir import Encoding
    from phiconv.ir.model import Model
    from phiconv.recipes.choices import Choices
    from phiconv.recipes.grammar import Name
    from phiconv_formats.shared.output import OutputTensor

__all__ = ["OPTIONS", "PRESETS", "RECIPES", "TYPES", "assign", "cast", "type_of"]

PRESETS = {f"q{bits}": f"{bits}bit" for bits in (2, 3, 4, 5, 6, 8)} | {name: name for name in FLOATS}
"""What ``--q4``, ``--q8`` and so on mean."""

OPTIONS = frozenset(
    "tensor_types allow_requantize dtype match_runtime short_context long_context effort calibration "
    "target_size bits_per_weight text_only".split()
)
"""The fields of `phiconv.recipes.Choices` that mean something here."""

_GROUPS = (64, 32, 128)  # the usual one first
_MICROSCALING = {"mxfp4": MLX_MXFP4, "mxfp8": MLX_MXFP8, "nvfp4": MLX_NVFP4}

TYPES = Grammar(
    (
        Family((*FLOATS, *_MICROSCALING)),
        Family(("2bit", "3bit", "4bit", "5bit", "6bit", "8bit"), groups=_GROUPS),
    ),
    FLOAT_ALIASES,
)
"""What a single matrix can be turned into."""

_MIXED = Family(("mixed_2_6", "mixed_3_4", "mixed_3_6", "mixed_4_6"), groups=_GROUPS)

RECIPES = Grammar((*TYPES.families, _MIXED), FLOAT_ALIASES)
"""How the recipes are called."""


@dataclass(frozen=True, slots=True)
class Scheme:
    """What a matrix becomes: a float type, a microscaling format, or integers of some bits in groups.

    Attributes:
        kind: "affine", or a key of the tables of floats and of microscaling formats.
        bits, group_size: Of integers.
        high_bits: Of the more important matrices; ``bits`` for all unless the recipe mixes.
    """

    kind: str
    bits: int = 0
    group_size: int = 0
    high_bits: int = 0

    def encoding(self, dtype: FloatEncoding, *, high: bool = False) -> Encoding:
        """The encoding in a model whose floats are of this type."""
        if self.kind == "affine":
            return mlx_affine(self.high_bits if high else self.bits, self.group_size, dtype)
        return FLOATS.get(self.kind) or _MICROSCALING[self.kind]


def _scheme(name: Name) -> Scheme:
    if not name.group:
        return Scheme(name.stem)
    bits = [int(digit) for digit in name.stem if digit.isdigit()]
    return Scheme("affine", bits[0], name.group, bits[-1])


_ROUTER = Scheme("affine", 8, 64, 8)


def assign(recipe: str, model: Model, tensors: Sequence[OutputTensor], choices: Choices) -> list[Encoding]:
    """The encoding of every tensor.

    Args:
        recipe: One of the names of `RECIPES`.
        model: Its architecture and number of layers decide some choices.
        tensors: What will be stored, under the names of mlx-lm.
        choices: What the user wants otherwise.

    Raises:
        UsageError: A mixed recipe for a model that mlx-lm does not mix.
    """
    if recipe.startswith("mixed") and not any("down_proj" in t.name for t in tensors):
        raise UsageError(f"mlx-lm has no {recipe} for this model", hint="choose 4bit or another plain one")
    dtype = cast(recipe, model, choices)
    scheme = _scheme(RECIPES.read(recipe))
    return [_encoding(t, scheme, dtype, model, choices) for t in tensors]


def cast(recipe: str, model: Model, choices: Choices) -> FloatEncoding:
    """The float type of the folder."""
    return folder_dtype(recipe, model, choices)


def type_of(name: str) -> Scheme:
    """What a single matrix is turned into, by its name; an unknown one raises `UsageError`."""
    return _scheme(TYPES.read(name))


def _encoding(
    tensor: OutputTensor, scheme: Scheme, dtype: FloatEncoding, model: Model, choices: Choices
) -> Encoding:
    if len(tensor.tensor.shape) < 2:
        return dtype
    high = _more_bits(tensor, model)
    is_router = tensor.role is not None and tensor.role.name == "router"
    if is_router and scheme.kind not in FLOATS and scheme.bits != 8 and not choices.match_runtime:
        scheme = _ROUTER
    for pattern, name in choices.overrides:
        if pattern.search(tensor.name):
            scheme = type_of(name)
            break
    if choices.dtype is None:  # blocks that MLX has keep their scales, whatever the rest is in
        known = (scheme.encoding(kind, high=high) for kind in FLOATS.values())
        kept = next((e for e in known if same_meaning(tensor.tensor.encoding, e)), None)
        if isinstance(kept, BlockEncoding):
            return kept
    encoding = scheme.encoding(dtype, high=high)
    return encoding if tensor.tensor.columns % encoding.block_size == 0 else dtype


def _more_bits(tensor: OutputTensor, model: Model) -> bool:
    """The head; and values and the way out of the feed-forward part, in some of the layers.

    A fused matrix counts as values: its name has "v_proj" in it.
    """
    if "lm_head." in tensor.name:
        return True
    layer = re.search(r"\bmodel\.layers\.(\d+)\.", tensor.name)
    if layer is None or not any(part in tensor.name for part in ("v_proj", "down_proj")):
        return False
    assert model.hyperparameters is not None  # noqa: S101 - MLX has no files of plain tensors
    index, count = int(layer[1]), model.hyperparameters.num_hidden_layers
    return index < count // 8 or index >= 7 * count // 8 or (index - count // 8) % 3 == 2
