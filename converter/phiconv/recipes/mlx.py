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
    BF16,
    F16,
    F32,
    MLX_MXFP4,
    MLX_MXFP8,
    MLX_NVFP4,
    BlockEncoding,
    FloatEncoding,
    mlx_affine,
    same_meaning,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from phiconv.ir import Encoding
    from phiconv.ir.model import Model
    from phiconv.recipes.choices import Choices
    from phiconv_formats.shared.output import OutputTensor

__all__ = ["ALIASES", "DEFAULTS", "OPTIONS", "PRESETS", "assign", "cast", "check_type"]

PRESETS = {"q4": "4bit", "q8": "8bit", "f16": "f16", "bf16": "bf16", "f32": "f32"}
"""What ``--q4``, ``--q8`` and so on mean."""

ALIASES = {"fp16": "f16", "fp32": "f32", "float16": "f16", "bfloat16": "bf16", "float32": "f32"}
"""Other names for recipes, as folders on the hub are called."""

OPTIONS = frozenset("tensor_types allow_requantize dtype match_runtime short_context effort".split())
"""The fields of `phiconv.recipes.Choices` that mean something here."""

_FLOATS = {"f16": F16, "bf16": BF16, "f32": F32}
_BITS = (2, 3, 4, 5, 6, 8)
_GROUPS = (64, 32, 128)  # the usual one first
_MICROSCALING = {"mxfp4": MLX_MXFP4, "mxfp8": MLX_MXFP8, "nvfp4": MLX_NVFP4}
_MIXED = {"mixed_2_6": (2, 6), "mixed_3_4": (3, 4), "mixed_3_6": (3, 6), "mixed_4_6": (4, 6)}


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
        return _FLOATS.get(self.kind) or _MICROSCALING[self.kind]


def _schemes() -> dict[str, Scheme]:
    result = {name: Scheme(name) for name in (*_FLOATS, *_MICROSCALING)}
    for group_size in _GROUPS:
        suffix = "" if group_size == _GROUPS[0] else f"-g{group_size}"
        for bits in _BITS:
            result[f"{bits}bit{suffix}"] = Scheme("affine", bits, group_size, bits)
        for name, (low, high) in _MIXED.items():
            result[f"{name}{suffix}"] = Scheme("affine", low, group_size, high)
    return result


DEFAULTS = _schemes()
"""Every recipe, by its name."""

ALIASES |= {f"{name}-g{_GROUPS[0]}": name for name, s in DEFAULTS.items() if s.group_size == _GROUPS[0]}

_ROUTER = Scheme("affine", 8, 64, 8)


def assign(recipe: str, model: Model, tensors: Sequence[OutputTensor], choices: Choices) -> list[Encoding]:
    """The encoding of every tensor.

    Args:
        recipe: A key of `DEFAULTS`.
        model: Its architecture and number of layers decide some choices.
        tensors: What will be stored, under the names of mlx-lm.
        choices: What the user wants otherwise.

    Raises:
        UsageError: A mixed recipe for a model that mlx-lm does not mix.
    """
    if recipe.startswith("mixed") and not any("down_proj" in t.name for t in tensors):
        raise UsageError(f"mlx-lm has no {recipe} for this model", hint="choose 4bit or another plain one")
    dtype = cast(recipe, model, choices)
    return [_encoding(t, DEFAULTS[recipe], dtype, model, choices) for t in tensors]


def cast(recipe: str, model: Model, choices: Choices) -> FloatEncoding:
    """The float type of the folder: as chosen, else the recipe itself, else what the model says it is in."""
    if choices.dtype is not None:
        if choices.dtype not in _FLOATS:
            raise UsageError(f"no dtype {choices.dtype!r}", hint=f"one of {', '.join(_FLOATS)}")
        if recipe in _FLOATS and recipe != choices.dtype:
            raise UsageError(f"--dtype {choices.dtype} contradicts {recipe}", hint="give one of them")
        return _FLOATS[choices.dtype]
    if recipe in _FLOATS:
        return _FLOATS[recipe]
    config = model.card.config
    named = config.get("torch_dtype") or config.get("dtype")
    if isinstance(named, str) and (alias := ALIASES.get(named)):
        return _FLOATS[alias]
    stored = [t.encoding for t in model.stored.values()]
    return max(_FLOATS.values(), key=stored.count) if any(e in stored for e in _FLOATS.values()) else F16


def check_type(name: str) -> None:
    """Raises `UsageError` unless a single matrix can get this scheme."""
    _scheme(name)


def _scheme(name: str) -> Scheme:
    known = {n: s for n, s in DEFAULTS.items() if s.bits == s.high_bits}
    key = name.lower().replace("_", "-")
    key = ALIASES.get(key, key)
    if key not in known:
        raise UsageError(f"no tensor can be turned into {name!r}", hint=f"one of {', '.join(known)}")
    return known[key]


def _encoding(
    tensor: OutputTensor, scheme: Scheme, dtype: FloatEncoding, model: Model, choices: Choices
) -> Encoding:
    if len(tensor.tensor.shape) < 2:
        return dtype
    high = _more_bits(tensor, model)
    is_router = tensor.role is not None and tensor.role.name == "router"
    if is_router and scheme.kind not in _FLOATS and scheme.bits != 8 and not choices.match_runtime:
        scheme = _ROUTER
    for pattern, name in choices.tensor_types:
        if pattern.search(tensor.name):
            scheme = _scheme(name)
            break
    if choices.dtype is None:  # blocks that MLX has keep their scales, whatever the rest is in
        known = (scheme.encoding(kind, high=high) for kind in _FLOATS.values())
        kept = next((e for e in known if same_meaning(tensor.tensor.encoding, e)), None)
        if isinstance(kept, BlockEncoding):
            return kept
    encoding = scheme.encoding(dtype, high=high)
    return encoding if tensor.tensor.columns % encoding.block_size == 0 else dtype


def _more_bits(tensor: OutputTensor, model: Model) -> bool:
    """The head; and values and the way out of the feed-forward part, in some of the layers.

    A fused matrix counts as values: its name has "v_proj" in it.
    """
    if tensor.name.startswith("lm_head."):
        return True
    layer = re.match(r"model\.layers\.(\d+)\.", tensor.name)
    if layer is None or not any(part in tensor.name for part in ("v_proj", "down_proj")):
        return False
    assert model.hyperparameters is not None  # noqa: S101 - MLX has no files of plain tensors
    index, count = int(layer[1]), model.hyperparameters.num_hidden_layers
    return index < count // 8 or index >= 7 * count // 8 or (index - count // 8) % 3 == 2
