"""A dry run: every tensor's target type and the exact size of every file, before a weight is read."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from phiconv.conversion.effort import with_moments
from phiconv.conversion.mixing import plan_for_size
from phiconv.conversion.names import check_names, shortened
from phiconv.conversion.plans import LOSSLESS, Plan, TensorPlan, action_of, existing
from phiconv.conversion.requirements import (
    check_calibration,
    check_source,
    for_fixed_sizes,
    for_one_context,
    with_senses,
)
from phiconv.errors import OutputError, UnsupportedModelError
from phiconv.ir import FloatEncoding, RawEncoding
from phiconv.ir.model import Model, name_of
from phiconv.quantizers.repack import repackable
from phiconv.recipes import Choices, cast, check, choose
from phiconv.units import size_text
from phiconv_formats import find_target
from phiconv_formats.shared.output import Label, RuntimeSettings

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from phiconv.ir import Encoding
    from phiconv_formats import Format
    from phiconv_formats.shared.output import OutputTensor, Package, Stream

__all__ = [
    "check_path",
    "check_place",
    "make_plan",
    "place",
    "tensor_plans",
]


_LONGEST_NAME = 240
"""Bytes of a name that is made up here: a part of a split file has 15 more."""


def make_plan(
    model: Model,
    destination: Path,
    *,
    to: str | None = None,
    quant: str | None = None,
    split_max_size: int | None = None,
    choices: Choices | None = None,
    repack_only: bool = False,
) -> Plan:
    """Plans a conversion; see `phiconv.convert` for the arguments.

    Raises:
        UsageError: Options that the target does not know.
        UnsupportedModelError: A model that the target cannot hold.
        OutputError: A destination that cannot be written to.
    """
    check_path(destination, model.path)
    target = find_target(destination, to)
    assert target.writer is not None  # noqa: S101 - find_target returns formats that can be written
    writer = target.writer()
    choices = choices or Choices()
    check_source(model, target.name, plain=choices.plain)
    check_calibration(model, choices)
    if choices.short_context or choices.long_context:
        model = for_one_context(model, target.name, choices)
    model = with_senses(model, target, destination, choices)
    model, notes = for_fixed_sizes(model, target.name, choices)
    tensors = writer.tensors(model)
    planned = partial(_planned, model, destination, target, tensors, split_max_size, notes)
    if choices.target_size is None and choices.bits_per_weight is None:
        plan = planned(quant, choices)
    else:
        check(target.name, choices)
        plan, types = plan_for_size(target.name, model, tensors, quant, choices, planned)
        plan = replace(plan, mixture=types)
    if repack_only:
        _check_lossless(plan.tensors, model)
    return plan


def _planned(
    model: Model,
    destination: Path,
    target: Format,
    tensors: list[OutputTensor],
    split_max_size: int | None,
    sizes: tuple[str, ...],
    quant: str | None,
    choices: Choices,
) -> Plan:
    """The plan for a recipe and choices that say the type of each tensor; ``sizes`` are notes on those."""
    recipe, encodings = choose(target.name, quant, model, tensors, choices)
    again = _check_requantizing(tensors, encodings, choices, model)
    folder, file_name = place(destination, target, model, recipe)
    check_place(model, folder, folder / file_name)
    package = _packed(target, model, tensors, encodings, file_name, recipe, split_max_size, choices)
    check_names(folder / file.name for file in package.files)
    package = _with_choices(package, choices, cast(target.name, recipe, model, choices))
    if choices.calibration is not None:
        package = with_moments(package, tensors, model, choices.calibration)
    notes = [
        *package.notes,
        *sizes,
        *_source_notes(model, target.name),
        *_choice_notes(tensors, choices, again),
    ]
    plans = tensor_plans(tensors, package)
    if quant is None:
        notes += _growth(plans, target.name)
    package = replace(package, notes=tuple(notes), label=Label(file_name, target.name, recipe))
    return Plan(
        model,
        folder,
        target.name,
        recipe,
        package,
        plans,
        outputs=tuple(tensors),
        calibration=choices.calibration,
    )


def _packed(
    target: Format,
    model: Model,
    tensors: Sequence[OutputTensor],
    encodings: Sequence[Encoding],
    file_name: str,
    recipe: str,
    split_max_size: int | None,
    choices: Choices,
) -> Package:
    """The output, as its writer lays it out."""
    assert target.writer is not None  # noqa: S101 - find_target returns formats that can be written
    return target.writer().package(
        model,
        tensors,
        encodings,
        file_name=file_name,
        recipe=recipe,
        split_max_size=split_max_size,
        importance=choices.importance,
        settings=RuntimeSettings(
            choices.target,
            choices.accuracy_level,
            choices.layout,
            choices.attention,
            choices.ranges,
            choices.context,
            choices.modelfile,
        ),
    )


def _growth(plans: Sequence[TensorPlan], target: str) -> list[str]:
    """A note where quantized weights become floats although nobody asked for that."""
    decoded = [plan for plan in plans if plan.action == "dequantized"]
    if not decoded:
        return []
    before = sum(math.prod(plan.shape) * plan.stored.bits_per_weight / 8 for plan in decoded)
    after = sum(plan.nbytes for plan in decoded)
    sizes = f"{size_text(after)} instead of {size_text(before)}"
    return [f"{len(decoded)} quantized tensors become floats, {sizes}; {target} has other types, see --quant"]


def _source_notes(model: Model, target: str) -> list[str]:
    """Notes on what the source does not say, or is wrong about; a copy in its own format says no more."""
    hp = model.hyperparameters
    notes = [model.left_out] if model.left_out else []
    notes += model.merged if target == model.format else (*model.merged, *model.card.supplied)
    if hp is None or hp.tie_word_embeddings or model.card.config.get("tie_word_embeddings") is not True:
        return notes
    if model.merged:
        return [*notes, "config.json says tie_word_embeddings, but not with this adapter: both are kept"]
    said = "config.json says tie_word_embeddings"
    return [
        *notes,
        f"{said}, but the stored lm_head.weight is another matrix than the embedding: both are kept",
    ]


def _choice_notes(tensors: Sequence[OutputTensor], choices: Choices, again: int) -> list[str]:
    """Notes on what the user wants, such as a type by name that no tensor has got (a slip of the pen)."""
    notes = []
    for pattern, name in choices.overrides:
        found = [tensor for tensor in tensors if pattern.search(tensor.name)]
        reason = f"no tensor has such a name; they are like {tensors[0].name}"
        if found:
            reason = "only an encoder's tensors have such names, and their types cannot be chosen"
        if all(tensor.in_encoder for tensor in found):
            notes.append(f"--tensor-type {pattern.pattern}={name}: {reason}")
    if choices.plain:
        notes.append("plain tensors, without architecture and tokenizer: no runtime loads this as a model")
    if again:
        what = "tensors were quantized a second time"
        notes.append(f"{again} {what}, which costs more quality than doing it once")
    return notes


def _check_requantizing(
    tensors: Sequence[OutputTensor], encodings: Sequence[Encoding], choices: Choices, model: Model
) -> int:
    """Refuses to quantize what is quantized already, unless that is allowed; returns how many that are."""
    count = 0
    for tensor, encoding in zip(tensors, encodings, strict=True):
        stored = tensor.tensor.encoding
        if repackable(stored, encoding) or isinstance(stored, FloatEncoding):
            continue
        if isinstance(stored, RawEncoding):
            raise UnsupportedModelError(
                f"is stored as {stored.name}, which phiconv cannot decode",
                path=model.path,
                at=f"tensor {tensor.name}",
            )
        if isinstance(encoding, FloatEncoding):  # decoded, which is no second quantization
            continue
        count += 1
        if not choices.allow_requantize:
            raise UnsupportedModelError(
                f"is stored as {stored.name}: as {encoding.name} it loses more than the original would",
                path=model.path,
                at=f"tensor {tensor.name}",
                hint="convert the original checkpoint, or give --allow-requantize",
            )
    return count


def _with_choices(package: Package, choices: Choices, dtype: FloatEncoding | None) -> Package:
    """Tells every stream of a quantized tensor what to round to first, its importance, how hard to try."""
    found = choices.importance or (choices.calibration.importance() if choices.calibration else None)

    def change(stream: Stream) -> Stream:
        if isinstance(stream.encoding, FloatEncoding):
            return stream
        weights = found.of(stream.name, stream.tensor) if found else None
        return replace(stream, importance=weights, effort=choices.effort, cast=dtype)

    return replace(package, streams=tuple(map(change, package.streams)))


def tensor_plans(tensors: list[OutputTensor], package: Package) -> tuple[TensorPlan, ...]:
    """What becomes of each tensor."""
    return tuple(
        TensorPlan(
            t.name,
            t.tensor.shape,
            t.tensor.encoding,
            s.encoding,
            s.nbytes,
            action_of(t.tensor.encoding, s.encoding),
        )
        for t, s in zip(tensors, package.streams, strict=True)
    )


def _check_lossless(tensors: Sequence[TensorPlan], model: Model) -> None:
    """Refuses a plan in which any number changes."""
    for tensor in tensors:
        if tensor.action not in LOSSLESS:
            raise UnsupportedModelError(
                f"would be {tensor.action}, from {tensor.stored.name} to {tensor.encoding.name}",
                path=model.path,
                at=f"tensor {tensor.name}",
                hint="choose the type that it has, or leave --repack-only out",
            )


def place(destination: Path, target: Format, model: Model, recipe: str) -> tuple[Path, str]:
    """Folder and file name of the output; in a folder the file is named after the model and the recipe.

    Files of a format that is a folder have names of their own, unless the destination names one.
    """
    suffix = target.file_suffix
    if destination.name.lower().endswith(target.file_suffixes) and not destination.is_dir():
        if not destination.parent.is_dir():
            raise OutputError(
                "the folder of the destination does not exist", path=destination.parent, hint="make it first"
            )
        return destination.parent, destination.name
    if target.folder:
        return destination, ""
    end = f"-{recipe}{suffix}"
    return destination, shortened(name_of(model.path), _LONGEST_NAME - len(end)) + end


def check_place(model: Model, folder: Path, file: Path) -> None:
    """Refuses to write over the source, into it, or to where nothing can be written."""
    if model.path.is_dir() and folder.resolve().is_relative_to(model.path.resolve()):
        raise OutputError(
            "the destination is inside the source folder", path=file, hint="choose another folder"
        )
    check_path(file, model.path)
    if not existing(folder).is_dir():
        raise OutputError(
            "the folder of the destination is a file", path=folder, hint="choose another folder"
        )


def check_path(destination: Path, source: Path) -> None:
    """Refuses what no file can be called, and the source."""
    check_names([destination])
    if destination.exists() and destination.samefile(source):
        raise OutputError("the destination is the source", path=destination, hint="choose another name")
