"""What a source must have to become the output that is asked for."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from phiconv.conversion.identity import check_identity
from phiconv.errors import (
    MalformedFileError,
    MissingFileError,
    PhiconvError,
    UnsupportedModelError,
    UsageError,
)

if TYPE_CHECKING:
    from pathlib import Path

    from phiconv.ir.model import Model
    from phiconv.recipes import Choices
    from phiconv_formats import Format

__all__ = ["check_calibration", "check_source", "for_fixed_sizes", "for_one_context", "with_senses"]

_FIXED_SIZES = ("onnx", "qnn")
"""The format and the target of graphs that hold texts of one length."""

_ROOM = {"litert"}
"""Formats whose writer makes room for texts of a length, which changes nothing else."""

_STEP = 64
"""Such a graph takes so many tokens of a prompt at once; a text is padded to a multiple of it."""

_USUAL_CONTEXT = 4096

_BLIND = {"qnn", "transformers.js"}
"""Targets and layouts of a format that sees, which have no place for encoders themselves."""

_HOLD_PLAIN_TENSORS = {"gguf", "safetensors"}


def _no_model(model: Model, target: str) -> PhiconvError:
    """What to say of plain tensors of which nobody has said that plain tensors are wanted."""
    plain = "give --plain for the tensors alone" if target in _HOLD_PLAIN_TENSORS else ""
    said = model.metadata.get("general.architecture")
    if model.format == "gguf" and said is not None:
        kind = getattr(model.metadata.get("general.type"), "value", "model")
        if kind == "mmproj":
            return UnsupportedModelError(
                "this is what a model sees or hears with (mmproj), and not the model",
                path=model.path,
                hint="give the folder that both were made of; without pictures, the model's own GGUF",
            )
        what = f"architecture {said.value!r}" if kind == "model" else f"type {kind!r}"
        return UnsupportedModelError(
            f"a GGUF of the {what} is no model that phiconv can convert; its tensors alone no runtime loads",
            path=model.path,
            hint=plain or "choose a model of another architecture",
        )
    files = "config.json, tokenizer.json (or tokenizer.model) and tokenizer_config.json"
    return MissingFileError(
        "no config.json beside these weights, and tensors alone no runtime loads",
        path=model.path,
        hint=f"put {files} there, or name their folder with --config{plain and ', or '}{plain}",
    )


def check_source(model: Model, target: str, *, plain: bool) -> None:
    """Refuses a source that cannot become a whole model, unless plain tensors are asked for.

    Args:
        model: The source.
        target: Name of the format.
        plain: Whether the user wants plain tensors.

    Raises:
        InputError: A part of a model is missing, or the target holds no plain tensors.
        UsageError: Plain tensors are wanted of what was opened as a whole model.
    """
    if not model.stored:
        hint = "it may be a vocabulary alone: take the file of the whole model"
        raise MalformedFileError("there is no tensor to convert", path=model.path, hint=hint)
    if model.architecture is None:
        as_it_is = model.format == target == "gguf" and "general.architecture" in model.metadata
        if not as_it_is and (not plain or target not in _HOLD_PLAIN_TENSORS):
            raise _no_model(model, target)
    elif plain:
        raise UsageError("--plain: this is a whole model", hint="open it with plain=True")
    # A file of the target's own format is copied with whatever it says.
    bare = {model.format, "safetensors"}  # and a folder of safetensors may be as bare as its source
    if model.architecture is not None and model.tokenizer is None and target not in bare:
        raise MissingFileError(
            "no tokenizer beside the weights",
            path=model.path,
            hint="put tokenizer.json (or tokenizer.model) and tokenizer_config.json there",
        )


def check_calibration(model: Model, choices: Choices) -> None:
    """Refuses a calibration that would not be used.

    Raises:
        InputError: It is of another model.
        UsageError: Nothing looks at it.
    """
    if choices.calibration is None:
        return
    if choices.effort != "best":
        raise UsageError("a calibration means nothing here", hint="give --effort best, which uses it")
    check_identity(choices.calibration.manifest.model, model, choices.calibration.path)


def with_senses(model: Model, target: Format, destination: Path, choices: Choices) -> Model:
    """The model with its encoders where the target has a place for them, else its language model alone.

    A destination that is a graph by itself has none, nor has a folder of `_BLIND`.
    """
    if model.senses is None:
        return model
    alone = target.folder and destination.name.lower().endswith(target.file_suffixes)
    blind = {choices.target, choices.layout} & _BLIND
    nowhere = alone or blind or model.senses.kind not in target.sees
    if choices.text_only or nowhere or model.senses.vision is None:
        return replace(model, senses=None)
    return replace(model, left_out="")


def for_one_context(model: Model, target: str, choices: Choices) -> Model:
    """The model with LongRoPE's short factors, or its long ones, at every length.

    Raises:
        UsageError: It has none, or it would be copied as it is.
    """
    option, hp = "--long-context" if choices.long_context else "--short-context", model.hyperparameters
    if model.format == target == "gguf":
        raise UsageError(f"{option}: a GGUF is copied to another one with the factors that it has")
    if hp is None or not hp.rope.short_factor:
        raise UsageError(
            f"{option} means nothing for this model: its rotary embedding is the same at all lengths"
        )
    if choices.long_context:
        rope = replace(hp.rope, short_factor=hp.rope.long_factor, short_mscale=hp.rope.long_mscale)
    else:
        rope = replace(hp.rope, long_factor=hp.rope.short_factor, long_mscale=hp.rope.short_mscale)
    return replace(model, hyperparameters=replace(hp, rope=rope))


def for_fixed_sizes(model: Model, target: str, choices: Choices) -> tuple[Model, tuple[str, ...]]:
    """The model for texts of the length that a graph of fixed sizes holds, and notes on it.

    The usual length is the original context, up to 4096 tokens. With LongRoPE a longer one takes the long
    factors, for all of its texts.

    Raises:
        UsageError: A length that there cannot be, or an output whose sizes are not fixed.
    """
    hp = model.hyperparameters
    if (target, choices.target) != _FIXED_SIZES:
        if choices.context is not None and target not in _ROOM and not choices.modelfile:
            raise UsageError(
                "--context means nothing here",
                hint="it goes with --to onnx --target qnn, --to litert, or --modelfile",
            )
        return model, ()
    if hp is None:  # which is refused later
        return model, ()
    longest = hp.max_position_embeddings // _STEP * _STEP
    usual = min(_USUAL_CONTEXT, hp.rope.original_context // _STEP * _STEP, longest) or _STEP
    context = choices.context or usual
    if context % _STEP or context > longest:
        hint = f"give a multiple of {_STEP}, up to {longest}"
        raise UsageError(f"--context {context}: no such length", hint=hint)
    notes: tuple[str, ...] = ()
    one_table = (hp.rope.short_factor, hp.rope.short_mscale) == (hp.rope.long_factor, hp.rope.long_mscale)
    if hp.rope.long_factor and not one_table:
        long = context > hp.rope.original_context
        model = for_one_context(model, target, replace(choices, short_context=not long, long_context=long))
        which = "long" if long else "short"
        notes = (f"LongRoPE's {which} factors at every length, since the graphs hold {context} tokens",)
        hp = model.hyperparameters
        assert hp is not None  # noqa: S101 - it had some
    return replace(model, hyperparameters=replace(hp, max_position_embeddings=context)), notes
