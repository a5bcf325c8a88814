"""A dry run: every tensor's target type and the exact size of every file, before a weight is read."""

from __future__ import annotations

import math
import shutil
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Literal, TypeAlias

from phiconv.conversion.effort import with_moments
from phiconv.conversion.mixing import plan_for_size
from phiconv.conversion.names import check_names, shortened
from phiconv.conversion.requirements import check_calibration, check_source, for_one_context
from phiconv.errors import OutputError, UnsupportedModelError
from phiconv.ir import BF16, F16, F32, F64, FloatEncoding, RawEncoding, plain_name
from phiconv.ir.model import Model, name_of
from phiconv.quantizers.repack import repackable
from phiconv.recipes import Choices, cast, check, choose, spelled
from phiconv.units import size_text
from phiconv_formats import find_target
from phiconv_formats.shared.output import Label, RuntimeSettings

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from phiconv.ir import Encoding
    from phiconv_formats import Format
    from phiconv_formats.calibration.reader import Calibration
    from phiconv_formats.shared.output import OutputTensor, Package, Stream

__all__ = [
    "LOSSLESS",
    "Action",
    "Plan",
    "TensorPlan",
    "action_of",
    "check_path",
    "check_place",
    "make_plan",
    "place",
    "tensor_plans",
]


Action: TypeAlias = Literal[
    "copied", "repacked", "widened", "merged", "rounded", "quantized", "dequantized", "requantized"
]
"""What happens to the numbers of a tensor.

    copied       they stay as they are stored
    repacked     so do all codes and scales, in the layout of another format
    widened      to a float type that holds each of them
    merged       the sum with an adapter stays as it is computed, in float32
    rounded      to another float type
    quantized    from floats to blocks
    dequantized  from blocks to floats
    requantized  from blocks to other blocks
"""

LOSSLESS: frozenset[Action] = frozenset({"copied", "repacked", "widened"})
"""The actions after which not one number has changed."""


_LONGEST_NAME = 240
"""Bytes of a name that is made up here: a part of a split file has 15 more."""


@dataclass(frozen=True, slots=True)
class TensorPlan:
    """What becomes of one tensor.

    Attributes:
        name: Its name in the output.
        shape: Outermost dimension first.
        stored: How the source stores it.
        encoding: How the output will.
        nbytes: Bytes in the output.
        action: What happens to its numbers.
    """

    name: str
    shape: tuple[int, ...]
    stored: Encoding
    encoding: Encoding
    nbytes: int
    action: Action


@dataclass(frozen=True, slots=True)
class Plan:
    """A conversion that has not happened yet.

    Attributes:
        model: The source.
        folder: Where the files go.
        target: Name of the format.
        recipe: Name of the recipe.
        package: The output without its weights.
        tensors: What becomes of each tensor, in the order of the output.
        outputs: What the writer was given, in the same order.
        calibration: What was measured of the model, if anything.
        mixture: The types that were chosen for a size, as ``--tensor-type`` takes them: patterns and names.
    """

    model: Model
    folder: Path
    target: str
    recipe: str
    package: Package
    tensors: tuple[TensorPlan, ...]
    mixture: tuple[tuple[str, str], ...] = ()
    outputs: tuple[OutputTensor, ...] = ()
    calibration: Calibration | None = None

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that will be there."""
        return tuple(self.folder / f.name for f in self.package.files)

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return self.package.size

    @property
    def bits_per_weight(self) -> float:
        """Bits per weight over all tensors."""
        weights = sum(s.tensor.size for s in self.package.streams)
        return 8 * sum(s.nbytes for s in self.package.streams) / weights if weights else 0.0

    @property
    def free_space(self) -> int:
        """Bytes that are free where the output goes."""
        return shutil.disk_usage(_existing(self.folder)).free


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
    choices = spelled(choices or Choices())
    check_source(model, target.name, plain=choices.plain)
    check_calibration(model, choices)
    if choices.short_context or choices.long_context:
        model = for_one_context(model, target.name, choices)
    tensors = writer.tensors(model)
    planned = partial(_planned, model, destination, target, tensors, split_max_size)
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
    quant: str | None,
    choices: Choices,
) -> Plan:
    """The plan for a recipe and choices that say the type of each tensor."""
    assert target.writer is not None  # noqa: S101 - find_target returns formats that can be written
    recipe, encodings = choose(target.name, quant, model, tensors, choices)
    again = _check_requantizing(tensors, encodings, choices, model)
    folder, file_name = place(destination, target, model, recipe)
    check_place(model, folder, folder / file_name)
    package = target.writer().package(
        model,
        tensors,
        encodings,
        file_name=file_name,
        recipe=recipe,
        split_max_size=split_max_size,
        importance=choices.importance,
        settings=RuntimeSettings(choices.target, choices.accuracy_level, choices.layout),
    )
    check_names(folder / file.name for file in package.files)
    package = _with_choices(package, choices, cast(target.name, recipe, model, choices))
    if choices.calibration is not None:
        package = with_moments(package, tensors, model, choices.calibration)
    notes = [*package.notes, *_source_notes(model, target.name), *_choice_notes(tensors, choices, again)]
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
    notes = [
        f"--tensor-type {pattern.pattern}={name}: no tensor has such a name; they are like {tensors[0].name}"
        for pattern, name in choices.tensor_types
        if not any(pattern.search(tensor.name) for tensor in tensors)
    ]
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


def action_of(stored: Encoding, encoding: Encoding) -> Action:
    """What turns numbers of one encoding into another."""
    if stored == encoding:
        return "copied"
    if stored.name != plain_name(stored) and isinstance(encoding, FloatEncoding):
        return "merged" if encoding == F32 else "rounded"
    if repackable(stored, encoding):
        return "repacked"
    if isinstance(encoding, FloatEncoding):
        if not isinstance(stored, FloatEncoding):
            return "dequantized"
        return "widened" if encoding == F64 or (stored in {F16, BF16} and encoding == F32) else "rounded"
    return "quantized" if isinstance(stored, FloatEncoding) else "requantized"


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
    if suffix and destination.name.lower().endswith(suffix) and not destination.is_dir():
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
    if not _existing(folder).is_dir():
        raise OutputError(
            "the folder of the destination is a file", path=folder, hint="choose another folder"
        )


def check_path(destination: Path, source: Path) -> None:
    """Refuses what no file can be called, and the source."""
    check_names([destination])
    if destination.exists() and destination.samefile(source):
        raise OutputError("the destination is the source", path=destination, hint="choose another name")


def _existing(folder: Path) -> Path:
    """The folder, or the one above it that is there: an output's own folder is made when it is needed."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return folder
