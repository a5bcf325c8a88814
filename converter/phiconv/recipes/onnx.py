"""The recipes of ONNX Runtime's model builder, as data: what each matrix of an ONNX model becomes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from phiconv.errors import UsageError
from phiconv.ir import BF16, F16, F32, FloatEncoding

if TYPE_CHECKING:
    from collections.abc import Sequence

    from phiconv.ir import Encoding
    from phiconv.model import Model
    from phiconv.recipes import Choices
    from phiconv_formats.output import OutputTensor

__all__ = ["ALIASES", "DEFAULTS", "OPTIONS", "PRESETS", "assign", "cast", "check_type"]

PRESETS = {"q4": "int4", "q8": "int8", "f16": "f16", "bf16": "bf16", "f32": "f32"}
"""What ``--q4``, ``--q8`` and so on mean."""

ALIASES = {"fp16": "f16", "fp32": "f32"}
"""Other names for recipes."""

OPTIONS = frozenset(
    "tensor_types allow_requantize match_runtime short_context target accuracy_level".split()
)
"""The fields of `phiconv.recipes.Choices` that mean something here."""

DEFAULTS = {"f32": F32, "f16": F16, "bf16": BF16}


def assign(recipe, model, tensors, choices):
    e = DEFAULTS[recipe]
    return [e if t.role is not None and len(t.tensor.shape) > 1 else F32 for t in tensors]


def cast(recipe: str, model: Model, choices: Choices) -> FloatEncoding | None:
    return None


def check_type(name: str) -> None:
    raise UsageError(name)
