"""Which encoding each tensor gets: per target and preset, as data; one module per target."""

from __future__ import annotations

import re
from dataclasses import fields
from typing import TYPE_CHECKING

from phiconv.errors import UsageError
from phiconv.ir import FloatEncoding, plain_name
from phiconv.recipes import awq, compressed_tensors, gguf, gptq, litert, mlx, onnx, openvino, safetensors
from phiconv.recipes.choices import Choices, override
from phiconv.recipes.encoders import encoder_encoding
from phiconv.recipes.kept import keep_blocks
from phiconv.recipes.target import Recipes

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from phiconv.ir import Encoding
    from phiconv.ir.model import Model
    from phiconv_formats.shared.output import OutputTensor

__all__ = [
    "TARGETS",
    "Choices",
    "Recipes",
    "assign",
    "cast",
    "check",
    "choose",
    "find_recipe",
    "override",
]


TARGETS: dict[str, Recipes] = {
    "gguf": gguf,
    "litert": litert,
    "mlx": mlx,
    "onnx": onnx,
    "openvino": openvino,
    "safetensors": safetensors,
    "compressed-tensors": compressed_tensors,
    "gptq": gptq,
    "awq": awq,
}
"""The recipes of each target, by its name in `phiconv_formats.FORMATS`."""

# The preset for a source whose matrices are mostly quantized, where the user asks for none.
_DECODED = {"safetensors": "f16"}

# How the command line calls the fields of `Choices`.
_FLAGS = {"tensor_types": "--tensor-type", "importance": "--imatrix", "bits_per_weight": "--bpw"}


def find_recipe(target: str, name: str | None, stored: Collection[Encoding] = ()) -> str:
    """The name of a recipe, by preset or by the target's own name; case does not matter, and "_" is "-".

    Args:
        target: Name of the format to write.
        name: The preset or recipe; None keeps the precision that most matrices are stored in, if that is a
            float type.
        stored: The encodings of the source's matrices, for that.

    Raises:
        UsageError: The target has no such recipe.
    """
    known = TARGETS[target]
    if name is None:
        floats = {"f32": 0, "f16": 0, "bf16": 0}
        for encoding in stored:
            if plain_name(encoding) in floats:
                floats[plain_name(encoding)] += 1
        usual = max(floats, key=lambda n: floats[n])
        if target in _DECODED and 2 * sum(floats.values()) < len(stored):
            usual = _DECODED[target]
        return known.PRESETS[usual]
    wanted = known.PRESETS.get(name.lower(), name)
    if wanted == name and (bits := re.fullmatch(r"q(\d)", name.lower())):
        raise UsageError(f"{target} has no quantization {name!r}", hint=_nearest_preset(int(bits[1]), known))
    if known.RECIPES.find(wanted) is None and (theirs := _of_another(wanted, target)):
        near = known.RECIPES.near(wanted) or known.PRESETS[_preset(wanted, known)]
        raise UsageError(
            f"{target} has no quantization {name!r}, which is one of {theirs}",
            hint=f"here it would be {near}; phiconv formats lists them all",
        )
    return known.RECIPES.read(wanted, f"{target} has no quantization").spelling


def choose(
    target: str, name: str | None, model: Model, tensors: Sequence[OutputTensor], choices: Choices
) -> tuple[str, list[Encoding]]:
    """The recipe, and the encoding of every tensor.

    Without a name the tensors of a quantized GGUF stay as they are in another GGUF, and so do the quantized
    matrices of others where the target has such blocks (see `keep_blocks`); for the rest see `find_recipe`.

    The matrices of an encoder are treated as `encoders` says.

    Raises:
        UsageError: The target has no such recipe, or does not know a choice.
    """
    recipe, found = _choose(target, name, model, [t for t in tensors if not t.in_encoder], choices)
    return recipe, _with_encoders(target, recipe, model, tensors, choices, found)


def _with_encoders(
    target: str,
    recipe: str,
    model: Model,
    tensors: Sequence[OutputTensor],
    choices: Choices,
    found: list[Encoding],
) -> list[Encoding]:
    """The encodings of all tensors, where those of the decoder are known."""
    recipes, rest = TARGETS[target], iter(found)

    def of_encoder(tensor: OutputTensor) -> Encoding:
        encoding = encoder_encoding(target, recipes, recipe, tensor, model, choices)
        return onnx.in_graph(encoding, recipe, choices) if target == "onnx" else encoding

    return [of_encoder(tensor) if tensor.in_encoder else next(rest) for tensor in tensors]


def _choose(
    target: str, name: str | None, model: Model, tensors: Sequence[OutputTensor], choices: Choices
) -> tuple[str, list[Encoding]]:
    """The recipe, and the encoding of every tensor of the decoder."""
    if name is None and target == "gguf" and (recipe := gguf.as_stored(model, tensors, choices)):
        check(target, choices)
        return recipe, [tensor.tensor.encoding for tensor in tensors]
    stored = [t.tensor.encoding for t in tensors if t.required is None and len(t.tensor.shape) > 1]
    recipe = find_recipe(target, name, stored)
    if name is None and not all(isinstance(encoding, FloatEncoding) for encoding in stored):
        check(target, choices)
        if (kept := keep_blocks(TARGETS[target], model, tensors, choices, recipe)) is not None:
            return kept
    return recipe, assign(target, recipe, model, tensors, choices)


def _of_another(name: str, target: str) -> str:
    """Another target that has a recipe of this name; "" if none has."""
    return next((t for t, recipes in TARGETS.items() if t != target and recipes.RECIPES.find(name)), "")


def _preset(name: str, recipes: Recipes) -> str:
    """The preset of about as many bits as a name of another target says."""
    bits = int(next(iter(re.findall(r"\d+", name)), "16"))
    preset = next(p for most, p in ((5, "q4"), (8, "q8"), (16, "f16"), (1 << 30, "f32")) if bits <= most)
    return preset if preset in recipes.PRESETS else "f16"


def _nearest_preset(bits: int, recipes: Recipes) -> str:
    """A hint: the preset of the next number of bits, rather more than fewer."""
    known = {int(name[1:]): name for name in recipes.PRESETS if re.fullmatch(r"q\d", name)}
    if not known:
        return f"it has {', '.join(f'--{name}' for name in recipes.PRESETS)}; phiconv formats lists them all"
    name = known[min(known, key=lambda each: (abs(each - bits), -each))]
    return f"the nearest is --{name}, which is {recipes.PRESETS[name]}; phiconv formats lists them all"


def assign(
    target: str, recipe: str, model: Model, tensors: Sequence[OutputTensor], choices: Choices
) -> list[Encoding]:
    """The encoding of every tensor, in order; see the target's module for the rules.

    Raises:
        UsageError: A choice that the target does not know.
    """
    check(target, choices)
    own = [tensor for tensor in tensors if not tensor.in_encoder]
    found = TARGETS[target].assign(recipe, model, own, choices)
    return _with_encoders(target, recipe, model, tensors, choices, found)


def check(target: str, choices: Choices) -> None:
    """Refuses choices that the target does not know.

    Raises:
        UsageError: There is one.
    """
    recipes = TARGETS[target]
    for field in fields(choices):
        if field.name not in recipes.OPTIONS and getattr(choices, field.name) != field.default:
            flag = _FLAGS.get(field.name) or "--" + field.name.replace("_", "-")
            raise UsageError(f"{flag} means nothing for {target}")
    for _, name in choices.overrides:
        recipes.type_of(name)


def cast(target: str, recipe: str, model: Model, choices: Choices) -> FloatEncoding | None:
    """What the target rounds weights to before it quantizes them; None for as they are."""
    return TARGETS[target].cast(recipe, model, choices)
