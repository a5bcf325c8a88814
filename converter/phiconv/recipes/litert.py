"""The recipes of litert-quantizer, as data: which scheme each matrix of a LiteRT model gets.

Facts from litert-quantizer 0.11, by whose names they go: ``wi4b32`` is integer weights of 4 bits in blocks
of 32. phiconv differs in one thing, unless the runtime's own choice is asked for: beside 4 bits the embedding
and the head get 8, which costs little and nearly halves the divergence of small models.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from phiconv.architectures.architecture import ENDS
from phiconv.errors import UsageError
from phiconv.ir import F16, F32, FloatEncoding, litert_block, litert_channel
from phiconv.quantizers.repack import stays
from phiconv.recipes.grammar import FLOAT_ALIASES, Family, Grammar

if TYPE_CHECKING:
    from collections.abc import Sequence

    from phiconv.ir import Encoding
    from phiconv.ir.model import Model
    from phiconv.recipes.choices import Choices
    from phiconv_formats.shared.output import OutputTensor

__all__ = ["OPTIONS", "PRESETS", "RECIPES", "TYPES", "assign", "cast", "type_of"]

PRESETS = {"q4": "wi4b32", "q8": "wi8", "f16": "f16", "bf16": "f16", "f32": "f32"}
"""What ``--q4``, ``--q8`` and so on mean; XNNPACK has no bfloat16."""

OPTIONS = frozenset(
    "tensor_types allow_requantize match_runtime short_context long_context effort calibration all_layers "
    "target context target_size bits_per_weight".split()
)
"""The fields of `phiconv.recipes.Choices` that mean something here."""

_TARGETS = ("cpu", "gpu")
_FLOATS: dict[str, FloatEncoding] = {"f32": F32, "f16": F16}
_BLOCKS = {"wi4b32": 32, "wi4b64": 64, "wi4b128": 128}
_BITS = {"wi8": 8, "wi4": 4}
_LEAST_COLUMNS = 4
"""Rows of integers are cut into quads."""

RECIPES = Grammar(
    (Family((*_BITS, *_BLOCKS)), Family(tuple(_FLOATS))),
    {
        **{alias: name for alias, name in FLOAT_ALIASES.items() if name in _FLOATS},
        **{f"dynamic_{name}_afp32": name for name in (*_BITS, *_BLOCKS)},
    },
)
"""How the recipes are called."""

TYPES = RECIPES
"""What a single matrix can be turned into."""


def assign(
    recipe: str,
    model: Model,  # noqa: ARG001 - a `Recipes`
    tensors: Sequence[OutputTensor],
    choices: Choices,
) -> list[Encoding]:
    """The encoding of every tensor.

    Args:
        recipe: One of the names of `RECIPES`.
        model: The source.
        tensors: What will be stored.
        choices: What the user wants otherwise.

    Raises:
        UsageError: A target that there is not, or ``--all-layers`` for a recipe that has nothing to choose.
    """
    name = RECIPES.read(recipe).stem
    if choices.target not in {None, *_TARGETS}:
        raise UsageError(f"no target {choices.target!r} of litert", hint=f"one of {', '.join(_TARGETS)}")
    has_ends = name not in _FLOATS and name != "wi8"
    if choices.all_layers and not has_ends:
        raise UsageError(f"--all-layers means nothing for {recipe}", hint="choose 4 bits")
    wide = has_ends and not (choices.all_layers or choices.match_runtime)
    return [t.required or _chosen(t, name, choices, wide=wide) for t in tensors]


def _chosen(tensor: OutputTensor, name: str, choices: Choices, *, wide: bool) -> Encoding:
    columns = tensor.tensor.columns
    assert tensor.role is not None  # noqa: S101 - a graph has no plain tensors
    for pattern, other in choices.overrides:
        if pattern.search(tensor.name):
            return _encoding(type_of(other), columns)
    own = _encoding(name, columns)
    if wide and tensor.role.name in ENDS:
        eight = _encoding("wi8", columns)
        return own if stays(tensor.tensor.encoding, own, eight) else eight
    if tensor.role.name == "token_embedding" and choices.target == "gpu" and isinstance(own, FloatEncoding):
        return _encoding("wi8", columns)  # the GPU's delegate looks no floats up
    return own


def _encoding(name: str, columns: int) -> Encoding:
    """The encoding of rows of this length: 8 bits where they cannot be cut into blocks."""
    if name in _FLOATS:
        return _FLOATS[name]
    if name in _BLOCKS and columns % _BLOCKS[name] == 0:
        return litert_block(_BLOCKS[name])
    if columns % _LEAST_COLUMNS:
        return F16
    return litert_channel(_BITS.get(name, 8), columns)


def cast(recipe: str, model: Model, choices: Choices) -> FloatEncoding | None:  # noqa: ARG001 - a `Recipes`
    """None: weights are quantized as they are stored."""
    return None


def type_of(name: str) -> str:
    """What a single matrix is turned into, by its name; an unknown one raises `UsageError`."""
    return RECIPES.read(name).stem
