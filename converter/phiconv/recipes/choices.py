"""What the user wants otherwise than a recipe says."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, get_args

from phiconv.errors import UsageError
from phiconv.ir import Effort
from phiconv.recipes.grammar import FLOAT_ALIASES, FLOATS
from phiconv.spelling import known_as

if TYPE_CHECKING:
    from phiconv.ir.importance import ImportanceMatrix
    from phiconv.ir.ranges import Ranges
    from phiconv_formats.calibration.reader import Calibration

__all__ = ["Choices", "override", "spelled"]

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


@dataclass(frozen=True, slots=True)
class Choices:
    """What the user wants otherwise than the recipe.

    Attributes:
        pure: Every matrix in the recipe's default type.
        output_tensor_type, token_embedding_type: Types of the two ends of the model.
        leave_output_tensor: The output matrix stays as it is stored.
        tensor_types: Types of the tensors whose names a pattern is found in; the first pattern wins.
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
        plain: The source is plain tensors and no model: names and numbers, which no runtime loads.
    """

    pure: bool = False
    output_tensor_type: str | None = None
    token_embedding_type: str | None = None
    leave_output_tensor: bool = False
    tensor_types: tuple[tuple[re.Pattern[str], str], ...] = ()
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
    target_size: int | None = None
    bits_per_weight: float | None = None


def spelled(choices: Choices) -> Choices:
    """The choices with their words as they are spelled here; an unknown word stays, to be refused by name."""
    given = {name: getattr(choices, name) for name in _WORDS}
    meant: dict[str, Any] = {n: word and (known_as(word, *_WORDS[n]) or word) for n, word in given.items()}
    return replace(choices, **meant)


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
    return compiled, name
