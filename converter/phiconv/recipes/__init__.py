"""Which encoding each tensor gets: per target and preset, as data; one module per target."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from phiconv.errors import UsageError
from phiconv.recipes import gguf

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from phiconv.importance import ImportanceMatrix
    from phiconv.ir import Effort, Encoding
    from phiconv.model import Model
    from phiconv_formats.output import OutputTensor

__all__ = ["TARGETS", "Choices", "assign", "find_recipe", "override"]

TARGETS = {"gguf": gguf}
"""The recipes of each target: ``PRESETS``, ``DEFAULTS`` (by name), ``ALIASES`` and ``assign``."""


@dataclass(frozen=True, slots=True)
class Choices:
    """What the user wants otherwise than the recipe.

    Attributes:
        pure: Every matrix in the recipe's default type.
        output_tensor_type, token_embedding_type: Types of the two ends of the model.
        leave_output_tensor: The output matrix stays as it is stored.
        tensor_types: Types of the tensors whose names a pattern is found in; the first pattern wins.
        allow_requantize: Quantize also what is quantized already.
        effort: "exact" for the runtime's own bytes, "fast" for a quicker search where there is one.
        importance: The importance matrix, if there is one.
    """

    pure: bool = False
    output_tensor_type: str | None = None
    token_embedding_type: str | None = None
    leave_output_tensor: bool = False
    tensor_types: tuple[tuple[re.Pattern[str], str], ...] = ()
    allow_requantize: bool = False
    effort: Effort = "exact"
    importance: ImportanceMatrix | None = None


def override(text: str) -> tuple[re.Pattern[str], str]:
    """Parses ``REGEX=TYPE``.

    Raises:
        UsageError: It is not of this form.
    """
    pattern, _, name = text.rpartition("=")
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise UsageError(f"--tensor-type {text}: {error}") from error
    if not pattern or not name:
        raise UsageError(f"--tensor-type {text}: write it as REGEX=TYPE")
    gguf.encoding_of(name)
    return compiled, name


def find_recipe(target: str, name: str | None, stored: Collection[Encoding] = ()) -> str:
    """The name of a recipe, by preset or by the target's own name; case does not matter, and "-" is "_".

    Args:
        target: Name of the format to write.
        name: The preset or recipe; None keeps the precision that most matrices are stored in.
        stored: The encodings of the source's matrices, for that.

    Raises:
        UsageError: The target has no such recipe.
    """
    known = TARGETS[target]
    if name is None:
        floats = {"F32": 0, "F16": 0, "BF16": 0}
        for encoding in stored:
            if encoding.name.upper() in floats:
                floats[encoding.name.upper()] += 1
        return max(floats, key=lambda n: floats[n])
    name = known.PRESETS.get(name.lower(), name).upper().replace("-", "_")
    name = known.ALIASES.get(name, name)
    if name not in known.DEFAULTS:
        names = ", ".join(known.DEFAULTS)
        raise UsageError(f"{target} has no quantization {name!r}", hint=f"one of {names}")
    return name


def assign(
    target: str, recipe: str, model: Model, tensors: Sequence[OutputTensor], choices: Choices
) -> list[Encoding]:
    """The encoding of every tensor, in order; see the target's module for the rules."""
    encodings: list[Encoding] = TARGETS[target].assign(recipe, model, tensors, choices)
    return encodings
