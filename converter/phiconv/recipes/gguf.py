"""The recipes of llama-quantize: which type each tensor of a GGUF gets.

Facts from llama.cpp's src/llama-quant.cpp (release v0.5.0), as far as they concern the Phi architectures. A
recipe has a default type; the first rule (see `gguf_rules`) that fits a tensor replaces it. Rows that do not
divide into blocks get the fallback.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING

from phiconv.errors import UsageError
from phiconv.ir import FloatEncoding
from phiconv.quantizers import QUANTIZERS
from phiconv.quantizers.repack import stays
from phiconv.recipes.gguf_rules import RULES, Place
from phiconv.recipes.grammar import FLOAT_ALIASES, Family, Grammar
from phiconv_formats.gguf.types import GGML_TYPES
from phiconv_formats.gguf.writer import FILE_TYPES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from phiconv.ir import Encoding
    from phiconv.ir.model import Model
    from phiconv.recipes.choices import Choices
    from phiconv_formats.shared.output import OutputTensor

__all__ = [
    "DEFAULTS",
    "OPTIONS",
    "PRESETS",
    "RECIPES",
    "TYPES",
    "as_stored",
    "assign",
    "cast",
    "needs_importance",
    "type_of",
]

PRESETS = {
    "q2": "Q2_K", "q3": "Q3_K_M", "q4": "Q4_K_M", "q5": "Q5_K_M", "q6": "Q6_K", "q8": "Q8_0",
    "f16": "F16", "bf16": "BF16", "f32": "F32",
}  # fmt: skip
"""What ``--q4``, ``--q8`` and so on mean."""

OPTIONS = frozenset(
    "pure output_tensor_type token_embedding_type leave_output_tensor tensor_types allow_requantize effort "
    "calibration importance match_runtime short_context long_context plain "
    "target_size bits_per_weight text_only modelfile context".split()
)
"""The fields of `phiconv.recipes.Choices` that mean something here."""

_ALL = {
    "F32": "F32", "F16": "F16", "BF16": "BF16",
    "Q8_0": "Q8_0", "Q5_1": "Q5_1", "Q5_0": "Q5_0", "Q4_1": "Q4_1", "Q4_0": "Q4_0",
    "Q6_K": "Q6_K", "Q5_K_M": "Q5_K", "Q5_K_S": "Q5_K", "Q4_K_M": "Q4_K", "Q4_K_S": "Q4_K",
    "Q3_K_L": "Q3_K", "Q3_K_M": "Q3_K", "Q3_K_S": "Q3_K", "Q2_K": "Q2_K", "Q2_K_S": "Q2_K",
    "IQ4_NL": "IQ4_NL", "IQ4_XS": "IQ4_XS",
    "IQ3_M": "IQ3_S", "IQ3_S": "IQ3_S", "IQ3_XS": "IQ3_S", "IQ3_XXS": "IQ3_XXS",
    "IQ2_M": "IQ2_S", "IQ2_S": "IQ2_XS", "IQ2_XS": "IQ2_XS", "IQ2_XXS": "IQ2_XXS",
    "IQ1_M": "IQ1_M", "IQ1_S": "IQ1_S", "TQ2_0": "TQ2_0", "TQ1_0": "TQ1_0", "MXFP4_MOE": "MXFP4",
}  # fmt: skip

_TYPES = {t.name.upper(): t.encoding for t in GGML_TYPES.values()}
_BLOCKS = {t.name.upper(): t.block_size for t in GGML_TYPES.values()}

_NEED_IMPORTANCE = {"IQ3_XXS", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ1_M", "IQ1_S"}

# Types for rows that do not divide into blocks of 256; if they do not divide by 32 either, float16.
_FALLBACKS = {
    "IQ1_S": "IQ4_NL", "IQ1_M": "IQ4_NL", "IQ2_XXS": "IQ4_NL", "IQ2_XS": "IQ4_NL", "IQ2_S": "IQ4_NL",
    "IQ3_XXS": "IQ4_NL", "IQ3_S": "IQ4_NL", "IQ4_XS": "IQ4_NL",
    "Q2_K": "Q4_0", "Q3_K": "Q4_0", "TQ1_0": "Q4_0", "TQ2_0": "Q4_0",
    "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0",
}  # fmt: skip

# Part of a tensor's name -> its category; the first that is found.
_CATEGORIES = {
    "attn_qkv.weight": "attn_v",  # counts as the value matrix, the most sensitive part of it
    "attn_v.weight": "attn_v",
    "attn_k.weight": "attn_k",
    "attn_q.weight": "attn_q",
    "attn_output.weight": "attn_output",
    "ffn_up": "ffn_up",
    "ffn_gate": "ffn_gate",
    "ffn_down": "ffn_down",
}


def _can(name: str) -> bool:
    encoding = _TYPES[name]
    return isinstance(encoding, FloatEncoding) or encoding in QUANTIZERS


def _types(recipe: str) -> set[str]:
    """Every type that the recipe may need."""
    rules = [r.type for r in RULES if r.type and recipe in r.recipes.split()]
    return {_ALL[recipe], *rules}


DEFAULTS = {name: default for name, default in _ALL.items() if all(map(_can, _types(name)))}
"""Every recipe, by its name, and its default type."""

RECIPES = Grammar(
    (Family(tuple(DEFAULTS)),),
    {
        "Q3_K": "Q3_K_M",
        "Q4_K": "Q4_K_M",
        "Q5_K": "Q5_K_M",
        **{alias: name.upper() for alias, name in FLOAT_ALIASES.items()},
    },
)
"""How the recipes are called: by llama-quantize's own names."""

TYPES = Grammar(
    (Family(tuple(filter(_can, _TYPES))),), {alias: name.upper() for alias, name in FLOAT_ALIASES.items()}
)
"""What a single tensor can be quantized to, by ggml's own names."""


def assign(recipe: str, model: Model, tensors: Sequence[OutputTensor], choices: Choices) -> list[Encoding]:
    """The encoding of every tensor.

    Args:
        recipe: A key of `DEFAULTS`.
        model: Its shape decides some rules.
        tensors: What will be stored, in llama-quantize's order: rules count them.
        choices: What the user wants otherwise.

    Raises:
        UsageError: A type that phiconv cannot quantize to, or one that needs an importance matrix.
    """
    mixer = _Mixer(recipe, model, [_category(t.name) for t in tensors], choices)
    result = []
    for tensor in tensors:
        encoding = tensor.required or _encoding(tensor, _category(tensor.name), mixer, choices)
        known = choices.importance.weights if choices.importance else {}
        # What is measured for the best codes has importance weights for all matrices, too.
        missing = tensor.name not in known and choices.effort != "best"
        if missing and needs_importance(recipe, encoding, tensor.name):
            raise UsageError(
                f"{encoding.name} makes no usable model without importance weights for {tensor.name}",
                hint="give --imatrix, or choose a larger type",
            )
        result.append(encoding)
    return result


def as_stored(model: Model, tensors: Sequence[OutputTensor], choices: Choices) -> str | None:
    """The recipe that another GGUF says it has, if its tensors are to stay as they are.

    None where the user wants another type of one, or where all are floats, which a recipe describes as well.
    """
    asked = (choices.output_tensor_type, choices.token_embedding_type, choices.tensor_types, choices.pure)
    quantized = any(not isinstance(t.tensor.encoding, FloatEncoding) for t in tensors)
    if model.format != "gguf" or any(asked) or not quantized:
        return None
    said = model.metadata.get("general.file_type")
    names = {number: name for name, number in FILE_TYPES.items()}
    if said is not None and said.value in names:
        return names[said.value]
    found = [t.tensor.encoding.name.upper() for t in tensors if len(t.tensor.shape) > 1]
    usual = max(found, key=found.count, default="F32")
    return usual if usual in FILE_TYPES else "GUESSED"


def cast(recipe: str, model: Model, choices: Choices) -> FloatEncoding | None:  # noqa: ARG001
    """Nothing is rounded before it is quantized."""
    return None


def needs_importance(recipe: str, encoding: Encoding, name: str) -> bool:
    """Whether llama-quantize refuses this type for this tensor without an importance matrix."""
    kind = encoding.name.upper()
    return name not in {"token_embd.weight", "output.weight"} and (
        kind in _NEED_IMPORTANCE or (kind == "Q2_K" and recipe == "Q2_K_S")
    )


def _encoding(tensor: OutputTensor, category: str, mixer: _Mixer, choices: Choices) -> Encoding:
    """What the user asks for comes first, then the recipe; whatever it is must fit."""
    asked = _asked(tensor, category, choices)
    if asked is not None:
        return asked
    default, columns = DEFAULTS[mixer.recipe], tensor.tensor.columns
    own, stored = _TYPES[_fitting(default, columns)], tensor.tensor.encoding
    if choices.pure or default in {"F32", "F16", "BF16"}:
        return own
    mixed = _TYPES[_fitting(mixer.choose(tensor, category), columns)]
    return own if not choices.allow_requantize and stays(stored, own, mixed) else mixed


def _asked(tensor: OutputTensor, category: str, choices: Choices) -> Encoding | None:
    """The options for the two ends of the model, then those by name."""
    if category == "output" and choices.leave_output_tensor:
        return tensor.tensor.encoding
    if category == "output" and choices.output_tensor_type:
        return _TYPES[type_of(choices.output_tensor_type)]
    if category == "token_embd" and choices.token_embedding_type:
        return _TYPES[type_of(choices.token_embedding_type)]
    for pattern, name in choices.overrides:
        if pattern.search(tensor.name):
            return _TYPES[_fitting(type_of(name), tensor.tensor.columns)]
    return None


class _Mixer:
    """A recipe at work on one model: it counts the tensors of each category that it has chosen for."""

    def __init__(self, recipe: str, model: Model, categories: Sequence[str], choices: Choices) -> None:
        self.recipe = recipe
        self.choices = choices
        self.tied = "output" not in categories
        self.values = categories.count("attn_v")
        self.seen: Counter[str] = Counter()
        self.shape = _shape(model)

    def choose(self, tensor: OutputTensor, category: str) -> str:
        if self.tied and category == "token_embd":
            if self.choices.output_tensor_type:
                return type_of(self.choices.output_tensor_type)
            category = "output"
        place = self.place(tensor, category)
        self.seen[category] += 1
        for rule in RULES:
            if rule.fits(self.recipe, category, place):
                return rule.type or DEFAULTS[self.recipe]
        return DEFAULTS[self.recipe]

    def place(self, tensor: OutputTensor, category: str) -> Place:
        layers, gqa, experts = self.shape
        layer = re.match(r"blk\.(\d+)\.", tensor.name)
        by_layer = experts > 1 and category.startswith("ffn_") and layer is not None
        return Place(
            index=int(layer[1]) if by_layer and layer else self.seen[category],
            count=self.values if category == "attn_v" else layers,
            gqa=gqa,
            experts=experts,
            stacked=len(tensor.tensor.shape) > 2,
            importance=self.choices.importance is not None,
            divides=tensor.tensor.columns % _BLOCKS[DEFAULTS[self.recipe]] == 0,
        )


def _shape(model: Model) -> tuple[int, int, int]:
    """Layers, attention heads per key/value head, and experts (0 if dense), whatever the model came from."""
    if (hp := model.hyperparameters) is not None:
        experts = hp.experts.count if hp.experts else 0
        return hp.num_hidden_layers, hp.num_attention_heads // hp.num_key_value_heads, experts
    keys = {key.partition(".")[2]: getattr(value, "value", None) for key, value in model.metadata.items()}

    def number(key: str, default: int) -> int:
        value = keys.get(key)
        return value if type(value) is int and value > 0 else default

    heads = number("attention.head_count", 1)
    gqa = heads // number("attention.head_count_kv", heads)
    return number("block_count", 0), max(gqa, 1), number("expert_count", 0)


def _category(name: str) -> str:
    if name in {"output.weight", "token_embd.weight"}:
        return name.removesuffix(".weight")
    return next((category for part, category in _CATEGORIES.items() if part in name), "other")


def _fitting(name: str, columns: int) -> str:
    """The type, or what rows that do not divide into its blocks get instead."""
    for candidate in (name, _FALLBACKS.get(name, name)):
        if columns % _BLOCKS.get(candidate, 1) == 0:
            return candidate
    return "F16"


def type_of(name: str) -> str:
    """llama.cpp's name of a type; one that phiconv cannot quantize to raises `UsageError`."""
    return TYPES.read(name, "no tensor can be quantized to").stem
