"""What there is to choose from, for a person or for a program with ``--json``."""

from __future__ import annotations

import textwrap
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from phiconv.cli.report import table
from phiconv.conversion.outline import is_outline
from phiconv.errors import printable
from phiconv.guide.choice import model_name
from phiconv.guide.devices import DEVICES
from phiconv.guide.qualities import models_measured
from phiconv.units import count_text, size_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from phiconv.guide.choice import Choice, Row
    from phiconv.guide.devices import Device
    from phiconv.guide.explaining import Explanation

__all__ = [
    "choice_lines",
    "choice_object",
    "devices_lines",
    "devices_object",
    "explanation_lines",
    "explanation_objects",
]

_WIDTH = 80
_HEAD = ("", "runs in", "recipe", "size", "memory", "lost", "same", "speed")
_SHORT = {"compressed-tensors": "server"}
_NUMBERS = frozenset({3, 4, 5, 6})


def choice_object(choice: Choice) -> dict[str, Any]:
    """A choice, for ``--json``."""
    return {
        "model": str(choice.model.path),
        "architecture": choice.model.architecture,
        "weights": choice.model.size,
        "weights_there": not is_outline(choice.model),
        "context": choice.context,
        "memory_bytes": choice.budget,
        "for": choice.device.name if choice.device else None,
        "measured_on": models_measured(),
        "rows": [_row_object(row) for row in (*choice.rows, *choice.too_large)],
        "between": choice.between,
        "refused": choice.refused,
    }


def _row_object(row: Row) -> dict[str, Any]:
    return {
        "runtime": row.runtime.name,
        "format": row.runtime.format,
        "recipe": row.recipe,
        "bytes": row.size,
        "exact": row.exact,
        "memory_bytes": row.memory,
        "divergence": row.quality.divergence if row.quality else None,
        "same_first": row.quality.same_first if row.quality else None,
        "speed": row.speed,
        "fits": row.fits,
        "recommended": row.recommended,
        "command": row.command,
        "output": row.output,
        "run": row.runtime.run,
    }


def choice_lines(choice: Choice) -> list[str]:
    """A choice, for people."""
    what = f"{printable(model_name(choice.model.path), 40)}: {count_text(choice.model.size)} weights"
    where = f"for {choice.device.title}, " if choice.device else ""
    room = f" in {size_text(choice.budget)}" if choice.budget is not None else ""
    lines = [*_wrapped(f"{what}, {where}texts of {choice.context} tokens{room}"), ""]
    if choice.rows:
        lines += [*_table(choice.rows), "", *_commands(choice)]
    else:
        least = min(choice.too_large, key=lambda row: row.memory)
        lines += _wrapped(
            f"Nothing fits: the smallest, {least.recipe} for {least.runtime.title}, takes "
            f"{size_text(least.memory)}. Give a shorter --context, or take a smaller model."
            f"{'' if choice.device else ' With --for NAME smaller ones are tried, too.'}"
        )
        return lines
    return [*lines, "", *_notes(choice)]


def _table(rows: Sequence[Row]) -> list[str]:
    cells, before = [_HEAD], ""
    for row in rows:
        title = row.runtime.title
        quality = row.quality
        cells.append(
            (
                "*" if row.recommended else " ",
                title if title != before else "",
                row.recipe,
                size_text(row.size) + ("" if row.exact else "+"),
                size_text(row.memory),
                f"{quality.divergence:.4f}" if quality else "?",
                f"{100 * quality.same_first:.0f} %" if quality else "?",
                row.speed,
            )
        )
        before = title
    return [line[2:] for line in table(cells, _NUMBERS)]


def _commands(choice: Choice) -> list[str]:
    """The commands of what is recommended, and of what would use the memory up."""
    lines = []
    for row in choice.rows:
        if row.recommended:
            lines.append(printable(row.command, 4096))
            if choice.device:
                name = row.output.removesuffix(".gguf").lower()
                run = row.runtime.command(row.output, name, choice.device.processor or "CPU")
                lines += ["and then", printable(run, 4096)]
    if choice.device:
        lines += [f"or, to use all of the memory\n{printable(c, 4096)}" for c in choice.between.values()]
    return lines


def _notes(choice: Choice) -> list[str]:
    names = " and ".join(models_measured())
    usual = "* the usual one. With --memory 8G it is the most accurate that fits."
    notes = [
        usual if choice.budget is None else "* the most accurate that fits.",
        "memory: the files, a cache for the text, and what the runtime was measured to take beside them.",
        (
            "lost, same: how far predictions moved (0 is not at all), and how often the first choice stayed. "
            f"Measured on small models ({names}): a guide to the order. A large model loses less."
        ),
        "--effort best loses less at the same size, and takes longer.",
    ]
    if choice.shortened:
        notes.append(f"The model was made for texts of {choice.context} tokens at most.")
    if any(not row.exact for row in (*choice.rows, *choice.too_large)):
        notes.append("+ the weights alone: the tokenizer is not there, so its files cannot be counted.")
    unmeasured = {row.runtime.title: "" for row in choice.rows if not row.runtime.overhead}
    if unmeasured:
        notes.append(f"{', '.join(unmeasured)}: what it takes beside files and cache was not measured.")
    if choice.between and not choice.device:
        option = next(iter(choice.between.values())).partition("--target-size")[2].strip()
        notes.append(f"Memory between two recipes is used up by a size, such as --target-size {option}.")
    if choice.too_large:
        notes.append(f"too large: {len(choice.too_large)} more.")
    notes += [f"not as {name}: {printable(reason, 200)}" for name, reason in choice.refused.items()]
    if is_outline(choice.model):
        notes.append("The weights are not there yet: download them before you convert.")
    if choice.device is None:
        notes.append("Which one is yours? phiconv choose --for list has the names of devices.")
    return [line for note in notes for line in _wrapped(note)]


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, _WIDTH, subsequent_indent="  ", break_on_hyphens=False, break_long_words=False)


# -------------------------------------------------------------------------------------------------- devices


def devices_object() -> list[dict[str, Any]]:
    """The devices, for ``--json``."""
    return [
        {
            "name": d.name,
            "title": d.title,
            "aliases": list(d.aliases),
            "format": d.format,
            "recipe": d.recipes[0],
            "options": dict(d.options),
            "run": d.runtime.run,
            "install": d.runtime.install,
            "source": d.source,
        }
        for d in DEVICES.values()
    ]


def devices_lines() -> list[str]:
    """The devices, for people."""
    head = ("NAME", "what it is", "it gets")
    rows = [head, *((d.name, d.title, _gets(d)) for d in DEVICES.values())]
    text = "phiconv MODEL DEST --for NAME chooses format, recipe and target. docs/choose.md has the sources."
    return [*(line[2:] for line in table(rows)), "", *_wrapped(text)]


def _gets(device: Device) -> str:
    """Format and recipe, and of the former only what tells it apart."""
    words = (_SHORT.get(device.format, device.format), device.recipes[0], device.options.get("target", ""))
    return " ".join(str(word) for word in words if word)


# ------------------------------------------------------------------------------------------------- explaining


def explanation_objects(found: Sequence[Explanation]) -> list[dict[str, Any]]:
    """What a name means, for ``--json``."""
    return [asdict(each) for each in found]


def explanation_lines(found: Sequence[Explanation]) -> list[str]:
    """What a name means, for people."""
    lines: list[str] = []
    for each in found:
        lines += [*([""] if lines else []), f"{each.name} ({each.kind})"]
        for text in (" ".join(each.sentences), f"From: {each.origin}", f"Used by: {each.where}"):
            lines += [f"  {line}" for line in textwrap.wrap(text, _WIDTH - 2, break_on_hyphens=False)]
    return lines
