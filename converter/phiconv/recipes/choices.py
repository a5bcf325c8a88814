"""What the user wants otherwise than a recipe says."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias, cast, get_args

from phiconv.brief import Brief
from phiconv.errors import UsageError
from phiconv.ir import Effort
from phiconv.recipes.grammar import FLOAT_ALIASES, FLOATS
from phiconv.spelling import did_you_mean, known_as

if TYPE_CHECKING:
    from collections.abc import Iterable

    from phiconv.ir.importance import ImportanceMatrix
    from phiconv.ir.ranges import Ranges
    from phiconv_formats.calibration.reader import Calibration

__all__ = ["Choices", "Override", "override"]

Override: TypeAlias = "tuple[re.Pattern[str], str]"
"""A pattern, found anywhere in a tensor's name, and the type of such tensors."""

# The choices that are words: how each is spelled here, and what others call it.
_WORDS = {
    "dtype": (FLOATS, FLOAT_ALIASES),
    "effort": (get_args(Effort), {}),
    "layout": (("genai", "transformers.js"), {"transformersjs": "transformers.js", "js": "transformers.js"}),
    "attention": (("gqa", "standard"), {"group-query": "gqa", "groupqueryattention": "gqa"}),
    "target": (
        ("cpu", "cuda", "dml", "webgpu", "qnn", "gpu"),
        {"directml": "dml", "direct-ml": "dml", "web-gpu": "webgpu", "qualcomm": "qnn", "hexagon": "qnn"},
    ),
}


# The choices that are numbers: the least and the most.
_BETWEEN = {
    "context": (1, math.inf),
    "accuracy_level": (0, 4),
    "ratio": (0, 1),
    "target_size": (1, math.inf),
    "bits_per_weight": (0, math.inf),
}


@dataclass(frozen=True, slots=True, repr=False)
class Choices(Brief):
    """What the user wants otherwise than the recipe. It is checked when it is made.

    Attributes:
        pure: Every matrix in the recipe's default type.
        output_tensor_type, token_embedding_type: Types of the two ends of the model.
        leave_output_tensor: The output matrix stays as it is stored.
        tensor_types: Types of the tensors whose names a pattern is found in; the first pattern wins. Written
            as ``{"ffn_down": "Q6_K"}``, or as pairs; patterns are texts or compiled.
        allow_requantize: Quantize also what is quantized already.
        effort: "exact" for the runtime's own bytes, "fast" for a quicker search where there is one, "best"
            for the codes that make the least error of the outputs on the texts of the calibration.
        calibration: What was measured of the model, for "best".
        importance: The importance matrix, if there is one.
        dtype: The float type ("f16", "bf16", "f32") of what is not quantized, and that weights are rounded to
            before they are.
        match_runtime: Every choice as the runtime's own tool makes it, also where phiconv's is better.
        short_context: The output is for texts within the original context only: LongRoPE's short factors at
            every length, for runtimes that do not switch.
        long_context: LongRoPE's long factors at every length, for runtimes that switch in the middle of a
            text, as where a prompt is computed in chunks.
        target: The kind of processor that the output is for, where the runtime has more than one.
        context: How many positions there is room for, where that is fixed when a file is written.
        layout: Whose folder it is, where an output can stand in more than one: "genai" or "transformers.js".
        attention: Of which operators, where there are several ways: "gqa" (ONNX Runtime's own) or "standard".
        ranges: Between which numbers activations lie, for recipes that quantize them.
        accuracy_level: ONNX Runtime's, of products with quantized matrices: from 0, float32, to 4, int8.
        ratio: The share of the layers' weights that get 4 bits, the least sensitive matrices first; None for
            all of them.
        all_layers: The two ends of the model get the recipe's type, too.
        target_size: Bytes that the output may have: each matrix gets a type such that predictions suffer
            least.
        bits_per_weight: The same, by the mean over all tensors.
        text_only: Of a model that sees or hears the language model alone.
        modelfile: A Modelfile for Ollama stands beside a GGUF; ``context`` is then what it says.
        plain: The source is plain tensors and no model: names and numbers, which no runtime loads.

    Raises:
        UsageError: A value that means nothing, or two that contradict each other.
    """

    pure: bool = False
    output_tensor_type: str | None = None
    token_embedding_type: str | None = None
    leave_output_tensor: bool = False
    tensor_types: Mapping[str, str] | Iterable[tuple[str | re.Pattern[str], str]] = ()
    allow_requantize: bool = False
    effort: Effort = "exact"
    importance: ImportanceMatrix | None = None
    calibration: Calibration | None = None
    dtype: str | None = None
    match_runtime: bool = False
    short_context: bool = False
    long_context: bool = False
    target: str | None = None
    context: int | None = None
    layout: str | None = None
    attention: str | None = None
    ranges: Ranges | None = None
    accuracy_level: int | None = None
    ratio: float | None = None
    all_layers: bool = False
    text_only: bool = False
    plain: bool = False
    modelfile: bool = False
    target_size: int | None = None
    bits_per_weight: float | None = None

    def __post_init__(self) -> None:
        for name, (known, aliases) in _WORDS.items():
            if (word := getattr(self, name)) is not None:
                meant = known_as(word, known, aliases) if isinstance(word, str) else None
                if meant is None:
                    hint = did_you_mean(str(word), known, f"one of {', '.join(known)}")
                    raise UsageError(f"--{name} {word}: no such {name}", hint=hint)
                object.__setattr__(self, name, meant)
        for name, (least, most) in _BETWEEN.items():
            if (number := getattr(self, name)) is not None and not _between(number, least, most):
                says = f"from {least} to {most}" if most < math.inf else f"at least {least}"
                raise UsageError(f"no {name.replace('_', ' ')} {number}", hint=says)
        if self.short_context and self.long_context:
            raise UsageError("--short-context contradicts --long-context", hint="give one of them")
        if self.target_size is not None and self.bits_per_weight is not None:
            raise UsageError("--target-size and --bpw both say how large", hint="give one of them")
        object.__setattr__(self, "tensor_types", _overrides(self.tensor_types))

    @property
    def overrides(self) -> tuple[Override, ...]:
        """``tensor_types``, compiled."""
        return cast("tuple[Override, ...]", self.tensor_types)


def _between(number: object, least: float, most: float) -> bool:
    return isinstance(number, int | float) and not isinstance(number, bool) and least <= number <= most


def _overrides(given: Any) -> tuple[Override, ...]:
    """Patterns and types, the patterns compiled."""
    found = []
    for pair in given.items() if isinstance(given, Mapping) else given:
        match pair:
            case (str() | re.Pattern() as pattern, str() as name):
                found.append(_compiled(pattern, name))
            case _:
                raise UsageError(f"tensor_types: {pair} is no pair of a pattern and a type")
    return tuple(found)


def _compiled(pattern: str | re.Pattern[str], name: str) -> Override:
    try:
        return re.compile(pattern), name
    except re.error as error:
        raise UsageError(f"--tensor-type {pattern}={name}: {error}") from error


def override(text: str) -> Override:
    """Parses ``REGEX=TYPE``.

    Raises:
        UsageError: It is not of this form.
    """
    pattern, _, name = text.rpartition("=")
    if not pattern or not name:
        raise UsageError(f"--tensor-type {text}: write it as REGEX=TYPE")
    return _compiled(pattern, name)
