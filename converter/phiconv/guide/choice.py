"""What there is to choose from for one model: size, memory, quality and speed of each sensible recipe."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from phiconv.conversion.outline import is_outline
from phiconv.conversion.planning import make_plan
from phiconv.errors import InputError, UnsupportedModelError, UsageError
from phiconv.guide.memory import beside_weights, running_size
from phiconv.guide.offers import offers_of
from phiconv.guide.qualities import quality_of
from phiconv.ir.model import name_of as folder_name
from phiconv.recipes import TARGETS, Choices, assign
from phiconv.recipes.mixtures import LADDERS
from phiconv.runtimes import USUAL
from phiconv_formats import FORMATS

if TYPE_CHECKING:
    from pathlib import Path

    from phiconv.guide.devices import Device
    from phiconv.guide.offers import Offer, Speed
    from phiconv.guide.qualities import Quality
    from phiconv.ir.model import Hyperparameters, Model
    from phiconv.runtimes import Runtime
    from phiconv_formats.shared.output import OutputTensor

__all__ = ["Choice", "Row", "choose", "model_name"]

_USUAL_CONTEXT = 4096

_NO_GAP = 0.97
"""A recipe of so much of the largest size leaves nothing worth another one."""


@dataclass(frozen=True, slots=True)
class Row:
    """One output that there may be.

    Attributes:
        runtime: What runs it.
        recipe: Its recipe.
        size: Bytes of its files.
        exact: Whether that is the size of all files; else it is that of the weights alone.
        memory: Bytes that it takes to run.
        quality: What was measured of the recipe; None if nothing was.
        speed: How fast it answers, beside the runtime's other rows.
        fits: Whether it fits the memory.
        recommended: Whether it is the one to take for this runtime.
        command: What makes it.
        output: What that writes, for a shell.
    """

    runtime: Runtime
    recipe: str
    size: int
    exact: bool
    memory: int
    quality: Quality | None
    speed: Speed
    fits: bool
    recommended: bool
    command: str
    output: str


@dataclass(frozen=True, slots=True)
class Choice:
    """All that fits, and what was left out.

    Attributes:
        model: The model.
        context: Tokens of a text, for the memory.
        shortened: More were asked for than the model was made for.
        budget: Bytes of memory; None where nobody has said.
        device: What it is for; None for all.
        rows: What fits, runtime by runtime, the largest first.
        too_large: What does not.
        refused: Formats that cannot hold the model, and why.
        between: By runtime: a command whose output uses the memory up, where no recipe does.
    """

    model: Model
    context: int
    shortened: bool
    budget: int | None
    device: Device | None
    rows: tuple[Row, ...]
    too_large: tuple[Row, ...]
    refused: dict[str, str]
    between: dict[str, str]


def choose(
    model: Model, *, context: int = 4096, budget: int | None = None, device: Device | None = None
) -> Choice:
    """Plans every sensible output of a model.

    Args:
        model: The model, or the outline of one.
        context: Tokens of the longest text; no more than the model was made for are counted.
        budget: Bytes of memory that there are.
        device: What it is for; None for one runtime of each format.

    Raises:
        UnsupportedModelError: Plain tensors, or no format that is asked for can hold it.
    """
    hp = model.hyperparameters
    if hp is None:
        raise UnsupportedModelError(
            "plain tensors, which no runtime loads", path=model.path, hint="config.json is missing"
        )
    case = _Case(model, hp, min(context, hp.max_position_embeddings), budget, device)
    rows: list[Row] = []
    refused: dict[str, str] = {}
    between: dict[str, str] = {}
    for runtime in [device.runtime] if device else USUAL:
        found, reason = case.rows(runtime)
        if not found:
            refused[runtime.format] = reason
            continue
        best = case.recommended(found)
        rows += [replace(row, recommended=row is best) for row in found]
        if best is not None and (command := case.between(found, best)):
            between[runtime.name] = command
    if not rows:
        reason = next(iter(refused.values()))
        what = f"{device.format} cannot hold it" if device else "no format can hold it"
        raise UnsupportedModelError(f"{what}: {reason}", path=model.path)
    return Choice(
        model,
        case.context,
        context > case.context,
        budget,
        device,
        tuple(row for row in rows if row.fits),
        tuple(row for row in rows if not row.fits),
        refused,
        between,
    )


def model_name(path: Path) -> str:
    """What to call a model: after its folder, or after a config.json of another name."""
    named = path.suffix == ".json" and path.name != "config.json" and not path.name.endswith(".index.json")
    return path.stem if named else folder_name(path)


@dataclass(frozen=True, slots=True)
class _Case:
    """What is asked for: the arguments of `choose`, the context no longer than the model was made for."""

    model: Model
    hp: Hyperparameters
    context: int
    budget: int | None
    device: Device | None

    def rows(self, runtime: Runtime) -> tuple[list[Row], str]:
        """What a runtime can have, and why it cannot have the rest."""
        only = self.device.recipes if self.device and self.device.only else ()
        found, reason = [], ""
        try:
            tensors = self.tensors(runtime.format)
        except InputError as error:
            return [], error.message
        for offer in offers_of(runtime.format, only):
            if self.device is None and offer.extra:
                continue
            try:
                found.append(self.row(runtime, offer, tensors))
            except (InputError, UsageError) as error:
                reason = reason or error.message
        return found, reason

    def tensors(self, format_name: str) -> list[OutputTensor] | None:
        """What is stored, for the outline of a model without a tokenizer; None where it can be planned."""
        if self.model.tokenizer is not None or not is_outline(self.model):
            return None
        writer = FORMATS[format_name].writer
        assert writer is not None  # noqa: S101 - it is offered
        return writer().tensors(self.model)

    def row(self, runtime: Runtime, offer: Offer, tensors: list[OutputTensor] | None) -> Row:
        """One output."""
        size, exact = self.size(offer, tensors)
        memory = running_size(size, self.hp, runtime, self.context)
        usual = self.device is not None and offer.recipe == self.device.recipes[0]
        return Row(
            runtime,
            offer.recipe,
            size,
            exact,
            memory,
            quality_of(offer.format, offer.recipe),
            offer.speed,
            self.budget is None or memory <= self.budget,
            recommended=False,
            command=self.command(offer.format, "" if usual else f"--quant {offer.recipe}"),
            output=self.output(offer.format),
        )

    def size(self, offer: Offer, tensors: list[OutputTensor] | None) -> tuple[int, bool]:
        """Bytes of all files, as the writer lays them out; else those of the weights alone."""
        options: dict[str, Any] = {**(self.device.options if self.device else {}), **self.room(offer.format)}
        choices = Choices(**options)
        if tensors is None:
            path = self.model.path.resolve()
            place = path.parent / f"{path.name}-converted"  # it must not lie inside the model's own folder
            plan = make_plan(self.model, place, to=offer.format, quant=offer.recipe, choices=choices)
            return plan.size, True
        encodings = assign(offer.format, offer.recipe, self.model, tensors, choices)
        bits = sum(t.tensor.size * e.bits_per_weight for t, e in zip(tensors, encodings, strict=True))
        return round(bits / 8), False

    def room(self, format_name: str) -> dict[str, int]:
        """The context as a choice, where the output has room for just so much."""
        if format_name == "litert":
            return {"context": self.context}
        if self.device is not None and self.device.options.get("target") == "qnn":
            return {"context": max(self.context // 64 * 64, 64)}
        return {}

    def recommended(self, rows: list[Row]) -> Row | None:
        """The most accurate that fits; where nobody has said how much memory there is, the usual one."""
        if self.budget is None:
            usual = self.device.recipes[0] if self.device else TARGETS[rows[0].runtime.format].PRESETS["q4"]
            return next((row for row in rows if row.recipe == usual), rows[0])
        fitting = [row for row in rows if row.fits]
        return min(fitting, key=lambda row: row.quality.divergence if row.quality else 1.0, default=None)

    def between(self, rows: list[Row], best: Row) -> str:
        """A command for an output as large as the memory allows; "" where a recipe is that already."""
        runtime = best.runtime
        if self.budget is None or best is rows[0] or runtime.format not in LADDERS:
            return ""
        size = int((self.budget - beside_weights(self.hp, runtime, self.context)) / runtime.weights)
        if best.size > _NO_GAP * size or (self.device is not None and self.device.only):
            return ""
        return self.command(runtime.format, f"--target-size {_size_option(size)}")

    def command(self, format_name: str, recipe: str) -> str:
        """What makes an output, for a shell."""
        output = self.output(format_name)
        words = ["phiconv", shlex.quote(str(self.model.path)), output]
        if self.device is not None:
            words.append(f"--for {self.device.name}")
        elif not output.endswith(FORMATS[format_name].suffixes):
            words.append(f"--to {format_name}")
        usual = min(_USUAL_CONTEXT, self.hp.max_position_embeddings)
        room = self.room(format_name).get("context", usual)
        words += [f"--context {room}"] if room != usual else []
        return " ".join([*words, recipe]).rstrip()

    def output(self, format_name: str) -> str:
        """What the output is called, a file where the format is one, else a folder; no shell minds it."""
        target = FORMATS[format_name]
        name = re.sub(r"[^\w.-]+", "-", model_name(self.model.path)).lstrip("-")
        if target.folder:
            return f"{name}-{self.device.name if self.device else format_name}"
        return name + target.file_suffix


def _size_option(size: int) -> str:
    """Bytes as ``--target-size`` takes them, rounded down."""
    return f"{size // 10**7 / 100:g}G" if size >= 10**9 else f"{size // 10**6}M"
