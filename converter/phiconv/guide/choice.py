"""What there is to choose from for one model: size, memory, quality and speed of each sensible recipe."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

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
    shortened = context > hp.max_position_embeddings
    context = min(context, hp.max_position_embeddings)
    rows: list[Row] = []
    refused: dict[str, str] = {}
    between: dict[str, str] = {}
    for runtime in [device.runtime] if device else USUAL:
        found, reason = _rows(model, hp, runtime, context, budget, device)
        if not found:
            refused[runtime.format] = reason
            continue
        best = _recommended(found, runtime.format, budget, device)
        rows += [replace(row, recommended=row is best) for row in found]
        if budget is not None and best is not None:
            between[runtime.name] = _between(model, hp, runtime, found, best, context, budget, device)
    if not rows:
        reason = next(iter(refused.values()))
        what = f"{device.format} cannot hold it" if device else "no format can hold it"
        raise UnsupportedModelError(f"{what}: {reason}", path=model.path)
    return Choice(
        model,
        context,
        shortened,
        budget,
        device,
        tuple(row for row in rows if row.fits),
        tuple(row for row in rows if not row.fits),
        refused,
        {name: command for name, command in between.items() if command},
    )


def model_name(path: Path) -> str:
    """What to call a model: after its folder, or after a config.json of another name."""
    named = path.suffix == ".json" and path.name != "config.json" and not path.name.endswith(".index.json")
    return path.stem if named else folder_name(path)


def _rows(
    model: Model,
    hp: Hyperparameters,
    runtime: Runtime,
    context: int,
    budget: int | None,
    device: Device | None,
) -> tuple[list[Row], str]:
    """What a runtime can have, and why it cannot have the rest."""
    found, reason = [], ""
    for offer in _offers(runtime, device):
        try:
            found.append(_row(model, hp, runtime, offer, context, budget, device))
        except (InputError, UsageError) as error:
            reason = reason or error.message
    return found, reason


def _offers(runtime: Runtime, device: Device | None) -> list[Offer]:
    if device is None:
        return [offer for offer in offers_of(runtime.format) if not offer.extra]
    return offers_of(runtime.format, device.recipes if device.only else ())


def _row(
    model: Model,
    hp: Hyperparameters,
    runtime: Runtime,
    offer: Offer,
    context: int,
    budget: int | None,
    device: Device | None,
) -> Row:
    size, exact = _size(model, offer, context, device)
    memory = running_size(size, hp, runtime, context)
    usual = device is not None and offer.recipe == device.recipes[0]
    wanted = "" if usual else f"--quant {offer.recipe}"
    return Row(
        runtime,
        offer.recipe,
        size,
        exact,
        memory,
        quality_of(offer.format, offer.recipe),
        offer.speed,
        budget is None or memory <= budget,
        recommended=False,
        command=_command(model, offer.format, wanted, context, device),
        output=_output(model, offer.format, device),
    )


def _size(model: Model, offer: Offer, context: int, device: Device | None) -> tuple[int, bool]:
    """Bytes of all files, as the writer lays them out; without a tokenizer those of the weights alone."""
    choices = Choices(**dict(device.options if device else {}), **_fixed(offer.format, context, device))  # type: ignore[arg-type]
    if model.tokenizer is not None:
        plan = make_plan(model, _place(model), to=offer.format, quant=offer.recipe, choices=choices)
        return plan.size, True
    if not is_outline(model):
        make_plan(model, _place(model), to=offer.format, quant=offer.recipe, choices=choices)  # refuses it
    writer = FORMATS[offer.format].writer
    assert writer is not None  # noqa: S101 - it is offered
    tensors = writer().tensors(model)
    encodings = assign(offer.format, offer.recipe, model, tensors, choices)
    bits = sum(t.tensor.size * e.bits_per_weight for t, e in zip(tensors, encodings, strict=True))
    return round(bits / 8), False


def _fixed(format_name: str, context: int, device: Device | None) -> dict[str, int]:
    """The context, where the output has room for just so much."""
    if format_name == "litert":
        return {"context": context}
    if device is not None and device.options.get("target") == "qnn":
        return {"context": max(context // 64 * 64, 64)}
    return {}


def _place(model: Model) -> Path:
    """Where an output might go: anywhere but inside the model's own folder."""
    path = model.path.resolve()
    return path.parent / f"{path.name}-converted"


def _recommended(rows: list[Row], format_name: str, budget: int | None, device: Device | None) -> Row | None:
    """The most accurate that fits; where nobody has said how much memory there is, the usual one."""
    if budget is None:
        usual = device.recipes[0] if device else TARGETS[format_name].PRESETS["q4"]
        return next((row for row in rows if row.recipe == usual), rows[0])
    fitting = [row for row in rows if row.fits]
    return min(fitting, key=lambda row: row.quality.divergence if row.quality else 1.0, default=None)


def _between(
    model: Model,
    hp: Hyperparameters,
    runtime: Runtime,
    rows: list[Row],
    best: Row,
    context: int,
    budget: int,
    device: Device | None,
) -> str:
    """A command for an output as large as the memory allows; "" where a recipe is that already."""
    if runtime.format not in LADDERS or best is rows[0]:
        return ""
    if device is not None and device.only:
        return ""
    size = int((budget - beside_weights(hp, runtime, context)) / runtime.weights)
    if best.size > _NO_GAP * size:
        return ""
    return _command(model, runtime.format, f"--target-size {_size_option(size)}", context, device)


def _size_option(size: int) -> str:
    """Bytes as ``--target-size`` takes them, rounded down."""
    return f"{size // 10**7 / 100:g}G" if size >= 10**9 else f"{size // 10**6}M"


def _command(model: Model, format_name: str, recipe: str, context: int, device: Device | None) -> str:
    """What makes an output, for a shell."""
    output = _output(model, format_name, device)
    words = ["phiconv", shlex.quote(str(model.path)), output]
    if device is not None:
        words.append(f"--for {device.name}")
    elif not output.endswith(FORMATS[format_name].suffixes):
        words.append(f"--to {format_name}")
    room = _fixed(format_name, context, device).get("context", _USUAL_CONTEXT)
    words += [f"--context {room}"] if room != _USUAL_CONTEXT else []
    return " ".join([*words, recipe]).rstrip()


def _output(model: Model, format_name: str, device: Device | None) -> str:
    """What the output is called: a file where the format is one, else a folder; no shell minds the name."""
    target, name = FORMATS[format_name], re.sub(r"[^\w.-]+", "-", model_name(model.path)).lstrip("-")
    return f"{name}-{device.name if device else format_name}" if target.folder else name + target.file_suffix
