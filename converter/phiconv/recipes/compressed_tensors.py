"""The recipes of llm-compressor, as data: which scheme the linear layers of a compressed-tensors folder get.

Facts from llm-compressor 0.14. Embedding, head, norms, biases and the router of a mixture of experts stay
floats, as in the peer's examples. Where its rounding on a processor without a GPU makes a code another one
than that of the exact quotient, the exact one is taken, unless the runtime's own choice is asked for.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from phiconv.errors import UsageError, printable
from phiconv.ir import BF16, BlockEncoding, CodebookEncoding, FloatEncoding, same_meaning
from phiconv.ir.server import (
    CT_MXFP4,
    CT_MXFP8,
    CT_NVFP4,
    FP8_BLOCK,
    compressed_fp8,
    compressed_int,
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

__all__ = ["KEPT", "OPTIONS", "PRESETS", "RECIPES", "TYPES", "assign", "cast", "refusal", "type_of"]

PRESETS = {"q4": "w4a16", "q8": "w8a8", "f16": "f16", "bf16": "bf16", "f32": "f32"}
"""What ``--q4``, ``--q8`` and so on mean."""

OPTIONS = frozenset(
    "tensor_types allow_requantize dtype match_runtime effort calibration target_size bits_per_weight".split()
)
"""The fields of `phiconv.recipes.Choices` that mean something here."""

KEPT = ("token_embedding", "output", "router")
"""The matrices that stay floats."""

_GROUPS = (128, 64, 32, 0)  # the usual one first, 0 for a whole row
_MICROSCALING = {"nvfp4a16": CT_NVFP4, "mxfp4a16": CT_MXFP4, "mxfp8": CT_MXFP8}
_FP8 = ("fp8-dynamic", "fp8-block")

RECIPES = Grammar(
    (
        Family(("w4a16",), (("", "asym"),), _GROUPS),
        Family(("w8a16",), groups=_GROUPS),
        Family(("w8a8", "w4a8", *_FP8, *_MICROSCALING)),
        Family(tuple(FLOATS)),
    ),
    FLOAT_ALIASES | {"int8": "w8a8", "fp8": "fp8-dynamic", "mxfp4": "mxfp4a16", "nvfp4": "nvfp4a16"},
)
"""How the recipes are called."""

TYPES = RECIPES
"""What a single matrix can be turned into."""


@dataclass(frozen=True, slots=True)
class Scheme:
    """What a matrix becomes.

    Attributes:
        kind: The stem of a recipe's name.
        group_size: Weights with one scale; 0 for a whole row.
        symmetric: Whether integers lie around 0.
        runtime: Whether they are found the peer's way.
    """

    kind: str
    group_size: int = 0
    symmetric: bool = True
    runtime: bool = False

    def encoding(self, columns: int, dtype: FloatEncoding) -> Encoding | None:
        """The encoding of rows of this length in a folder of this type; None if there is none."""
        if self.kind in FLOATS:
            return FLOATS[self.kind]
        if self.kind in _MICROSCALING:
            found = _MICROSCALING[self.kind]
            return found if columns % found.block_size == 0 else None
        size = self.group_size or columns
        if self.kind == "fp8-block":
            size = math.gcd(FP8_BLOCK, columns)
        if size % 8 or columns % size:
            return None
        if self.kind in _FP8:
            return compressed_fp8(self.kind, size, dtype, runtime=self.runtime)
        return compressed_int(self.kind, size, dtype, symmetric=self.symmetric, runtime=self.runtime)


def _scheme(name: Name) -> Scheme:
    group = 128 if name.stem == "w4a8" else name.group
    return Scheme(name.stem, group, "asym" not in name.variants)


def assign(recipe: str, model: Model, tensors: Sequence[OutputTensor], choices: Choices) -> list[Encoding]:
    """The encoding of every tensor.

    Args:
        recipe: One of the names of `RECIPES`.
        model: What it says it is in.
        tensors: What will be stored, under the names of a checkpoint.
        choices: What the user wants otherwise.

    Raises:
        UsageError: A matrix whose rows cannot be cut into groups.
    """
    dtype = cast(recipe, model, choices)
    usual = replace(type_of(recipe), runtime=choices.match_runtime)
    return [_encoding(t, usual, dtype, choices) for t in tensors]


def _encoding(tensor: OutputTensor, scheme: Scheme, dtype: FloatEncoding, choices: Choices) -> Encoding:
    if len(tensor.tensor.shape) < 2:
        return dtype
    if tensor.role is None or tensor.role.name in KEPT:
        scheme = Scheme(dtype.name)
    for pattern, name in choices.overrides:
        if pattern.search(tensor.name):
            scheme = replace(type_of(name), runtime=choices.match_runtime)
            break
    if choices.dtype is None and (kept := _as_stored(tensor, scheme)) is not None:
        return kept
    found = scheme.encoding(tensor.tensor.columns, dtype)
    if found is None:
        raise refusal(tensor, scheme.group_size)
    return found


def _as_stored(tensor: OutputTensor, scheme: Scheme) -> Encoding | None:
    """The scheme's encoding that stored blocks have, whatever the type of the rest; None if it is another."""
    stored, columns = tensor.tensor.encoding, tensor.tensor.columns
    own_types = (scheme.encoding(columns, kind) for kind in FLOATS.values())
    kept = next((e for e in own_types if e is not None and same_meaning(stored, e)), None)
    return kept if isinstance(kept, BlockEncoding | CodebookEncoding) else None


def refusal(tensor: OutputTensor, group_size: int) -> UsageError:
    """What to say of a matrix whose rows cannot be cut into groups."""
    columns = tensor.tensor.columns
    what = f"groups of {group_size}" if group_size else "groups"
    return UsageError(
        f"rows of {columns} weights cannot be cut into {what}: tensor {printable(tensor.name)}",
        hint="choose smaller groups, -channel, or a float type for it with --tensor-type",
    )


def cast(recipe: str, model: Model, choices: Choices) -> FloatEncoding:
    """The float type of the folder."""
    return folder_dtype(recipe, model, choices, BF16)


def type_of(name: str) -> Scheme:
    """What a single matrix is turned into, by its name; an unknown one raises `UsageError`."""
    return _scheme(RECIPES.read(name))
