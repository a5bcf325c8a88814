"""The recipes of GPTQ's layout, as data: integers rounded to nearest, around the middle code.

Facts from GPTQModel 7.7. Runtimes have one type of integers for a whole model there; embedding, head, norms,
biases and the router of a mixture of experts stay floats.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from phiconv.errors import UsageError, printable
from phiconv.ir import BF16, F16, FloatEncoding
from phiconv.ir.hub_encodings import grouped_integers
from phiconv.recipes.compressed_tensors import KEPT, refusal
from phiconv.recipes.dtypes import folder_dtype
from phiconv.recipes.grammar import FLOAT_ALIASES, FLOATS, Family, Grammar

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from phiconv.ir import Encoding
    from phiconv.ir.model import Model
    from phiconv.recipes.choices import Choices
    from phiconv.recipes.grammar import Name
    from phiconv_formats.shared.output import OutputTensor

__all__ = ["OPTIONS", "PRESETS", "RECIPES", "TYPES", "Scheme", "assign", "assign_all", "cast", "type_of"]

PRESETS = {"q4": "4bit", "q8": "8bit", "f16": "f16", "bf16": "bf16", "f32": "f32"}
"""What ``--q4``, ``--q8`` and so on mean."""

OPTIONS = frozenset("tensor_types allow_requantize dtype match_runtime effort calibration".split())
"""The fields of `phiconv.recipes.Choices` that mean something here."""

_GROUPS = (128, 64, 32, 0)  # the usual one first, 0 for a whole row

RECIPES = Grammar(
    (Family(("4bit", "8bit"), (("", "v2"),), _GROUPS), Family(tuple(FLOATS))),
    FLOAT_ALIASES | {"int4": "4bit", "int8": "8bit", "w4a16": "4bit", "w8a16": "8bit"},
)
"""How the recipes are called; v2 stores zero points as they are, and not less 1."""

TYPES = RECIPES
"""What a single matrix can be turned into."""


@dataclass(frozen=True, slots=True)
class Scheme:
    """What a matrix becomes.

    Attributes:
        kind: The stem of a recipe's name.
        method: Who stores it how, see `phiconv.ir.hub_encodings.grouped_integers`.
        group_size: Weights with one scale; 0 for a whole row.
    """

    kind: str
    method: str = "gptq"
    group_size: int = 0

    def encoding(self, tensor: OutputTensor, *, runtime: bool) -> Encoding | None:
        """The encoding of a matrix; None if there is none."""
        if self.kind in FLOATS:
            return FLOATS[self.kind]
        size, bits = self.group_size or tensor.tensor.columns, int(self.kind[0])
        if size % 8 or tensor.tensor.columns % size:
            return None
        symmetric = self.method != "awq"
        return grouped_integers(self.method, bits, size, F16, symmetric=symmetric, runtime=runtime)


def assign(recipe: str, model: Model, tensors: Sequence[OutputTensor], choices: Choices) -> list[Encoding]:
    """The encoding of every tensor.

    Args:
        recipe: One of the names of `RECIPES`.
        model: What it says it is in.
        tensors: What will be stored, under the names of a checkpoint.
        choices: What the user wants otherwise.

    Raises:
        UsageError: A matrix whose rows or columns the layout has no words for; several types of integers.
    """
    return assign_all(type_of(recipe), type_of, cast(recipe, model, choices), tensors, choices)


def assign_all(
    usual: Scheme,
    scheme_of: Callable[[str], Scheme],
    dtype: FloatEncoding,
    tensors: Sequence[OutputTensor],
    choices: Choices,
) -> list[Encoding]:
    """The encoding of every tensor, of GPTQ and AWQ.

    Args:
        usual: The scheme of most matrices.
        scheme_of: The scheme of a type that is named.
        dtype: The float type of the folder.
        tensors: What will be stored.
        choices: What the user wants otherwise.
    """
    named = [(pattern, scheme_of(name)) for pattern, name in choices.overrides]
    schemes = []
    for tensor in tensors:
        kept = len(tensor.tensor.shape) < 2 or tensor.role is None or tensor.role.name in KEPT
        own = (scheme for pattern, scheme in named if pattern.search(tensor.name))
        schemes.append(next(own, Scheme(dtype.name) if kept else usual))
    if len({scheme for scheme in schemes if scheme.kind not in FLOATS}) > 1:
        raise UsageError("there is one type of integers for all matrices", hint="name a float type for some")
    return [
        dtype if len(t.tensor.shape) < 2 else _encoding(t, scheme, runtime=choices.match_runtime)
        for t, scheme in zip(tensors, schemes, strict=True)
    ]


def _encoding(tensor: OutputTensor, scheme: Scheme, *, runtime: bool) -> Encoding:
    found = scheme.encoding(tensor, runtime=runtime)
    if found is None:
        raise refusal(tensor, scheme.group_size)
    if not isinstance(found, FloatEncoding) and tensor.tensor.rows % 8:
        raise UsageError(
            f"{tensor.tensor.rows} rows do not fill words of 8: tensor {printable(tensor.name)}",
            hint="choose a float type for it with --tensor-type, or compressed-tensors",
        )
    return found


def cast(recipe: str, model: Model, choices: Choices) -> FloatEncoding:
    """The float type of the folder."""
    return folder_dtype(recipe, model, choices, BF16)


def type_of(name: str) -> Scheme:
    """What a single matrix is turned into, by its name; an unknown one raises `UsageError`."""
    return _scheme(RECIPES.read(name))


def _scheme(name: Name) -> Scheme:
    return Scheme(name.stem, "gptq-v2" if "v2" in name.variants else "gptq", name.group)
