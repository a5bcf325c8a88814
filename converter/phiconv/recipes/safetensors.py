"""The recipes of a safetensors folder: every weight in one float type."""

from __future__ import annotations

from typing import TYPE_CHECKING

from phiconv.errors import UsageError
from phiconv.ir import BF16, F16, F32

if TYPE_CHECKING:
    from collections.abc import Sequence

    from phiconv.ir import Encoding, FloatEncoding
    from phiconv.ir.model import Model
    from phiconv.recipes.choices import Choices
    from phiconv_formats.shared.output import OutputTensor

__all__ = ["ALIASES", "DEFAULTS", "OPTIONS", "PRESETS", "assign", "cast", "check_type"]

DEFAULTS: dict[str, FloatEncoding] = {"f16": F16, "bf16": BF16, "f32": F32}
"""Every recipe, by its name."""

PRESETS = {name: name for name in DEFAULTS}
"""What ``--f16`` and so on mean; there is no 4-bit and no 8-bit type here."""

ALIASES = {"fp16": "f16", "fp32": "f32", "float16": "f16", "bfloat16": "bf16", "float32": "f32"}
"""Other names for recipes."""

OPTIONS = frozenset({"tensor_types", "allow_requantize"})
"""The fields of `phiconv.recipes.Choices` that mean something here."""


def assign(recipe: str, model: Model, tensors: Sequence[OutputTensor], choices: Choices) -> list[Encoding]:  # noqa: ARG001
    """The encoding of every tensor: the recipe's type, or that of the first pattern that fits its name."""

    def choose(tensor: OutputTensor) -> Encoding:
        named = (_type(name) for pattern, name in choices.tensor_types if pattern.search(tensor.name))
        return tensor.required or next(named, DEFAULTS[recipe])

    return [choose(tensor) for tensor in tensors]


def cast(recipe: str, model: Model, choices: Choices) -> FloatEncoding | None:  # noqa: ARG001
    """Nothing is quantized here, so nothing is rounded before."""
    return None


def check_type(name: str) -> None:
    """Raises `UsageError` unless a tensor can be stored so."""
    _type(name)


def _type(name: str) -> FloatEncoding:
    key = name.lower()
    key = ALIASES.get(key, key)
    if key not in DEFAULTS:
        raise UsageError(f"no tensor can be stored as {name!r}", hint=f"one of {', '.join(DEFAULTS)}")
    return DEFAULTS[key]
