"""The commands that help to decide: choose, explain."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

from phiconv.cli.common import FOLLOW_LINKS, JSON, PATH
from phiconv.cli.group import Command
from phiconv.cli.options import size
from phiconv.errors import UsageError

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["COMMANDS"]

_LIST = ("list", "help", "?")


@click.command(cls=Command)
@click.argument("model", type=PATH, required=False)
@click.option("--memory", type=size, metavar="SIZE", help="How much memory there is, e.g. 8G.")
@click.option("--for", "device", metavar="NAME", help="What runs it, e.g. ollama; `list` shows all names.")
@click.option(
    "--context",
    type=click.IntRange(1, 1 << 30),
    default=4096,
    show_default=True,
    metavar="N",
    help="How many tokens a text may have.",
)
@FOLLOW_LINKS
@JSON
def choose(model: Path | None, memory: int | None, device: str | None, context: int, as_json: bool) -> None:
    """Show what MODEL can become, and which is yours.

    Sizes, memory, quality and speed of each output, and the commands that make them.
    A folder with config.json is enough: no weight is read.
    """
    from phiconv.cli import report_choice
    from phiconv.guide.devices import find_device

    if device is not None and device.lower() in _LIST:
        listed = json.dumps(report_choice.devices_object(), indent=2) if as_json else ""
        click.echo(listed or "\n".join(report_choice.devices_lines()))
        return
    if model is None:
        raise UsageError("MODEL is missing", hint="write phiconv choose MODEL, a folder with config.json")
    from phiconv.conversion.outline import open_outline
    from phiconv.guide.choice import choose as chosen

    wanted = None if device is None else find_device(device)
    found = chosen(open_outline(model), context=context, budget=memory, device=wanted)
    text = json.dumps(report_choice.choice_object(found), indent=2) if as_json else ""
    click.echo(text or "\n".join(report_choice.choice_lines(found)))


@click.command(cls=Command)
@click.argument("name", nargs=-1, required=True, metavar="NAME")
@JSON
def explain(name: tuple[str, ...], as_json: bool) -> None:
    """Say what a recipe, a type or a word means.

    For example q4_k_m, MXFP4 or group size.
    """
    from phiconv.cli.report_choice import explanation_lines, explanation_objects
    from phiconv.guide.explaining import explain as explained

    found = explained(" ".join(name))
    click.echo(
        json.dumps(explanation_objects(found), indent=2) if as_json else "\n".join(explanation_lines(found))
    )


COMMANDS = (choose, explain)
"""In the order of the help."""
