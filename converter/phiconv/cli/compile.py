"""The command ``phiconv compile``."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

from phiconv.cli.common import JSON, PATH, QUIET
from phiconv.cli.group import Command
from phiconv.errors import printable

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["compile_"]


@click.command("compile", cls=Command)
@click.argument("folder", type=PATH)
@click.argument("dest", type=PATH, required=False)
@click.option("--soc", required=True, metavar="NAME", help="The processor: 60, SC8380XP or x-elite, ...")
@click.option(
    "--share/--no-share",
    default=True,
    help="Store weights once for prompts and single tokens; Qualcomm's simulator loads no such binary.",
)
@JSON
@QUIET
def compile_(folder: Path, dest: Path | None, soc: str, share: bool, as_json: bool, quiet: bool) -> None:
    """Compile a folder of --target qnn for one of Qualcomm's processors.

    It takes onnxruntime-qnn: pip install phiconv[qnn]. DEST is a new folder, FOLDER-NAME by default.
    """
    from phiconv import api
    from phiconv.units import size_text

    def progress(name: str) -> None:
        if not quiet:
            click.echo(f"compiling {printable(name)}", err=True)

    made = api.compile_qnn(folder, dest, soc=soc, share=share, progress=progress)
    if as_json:
        found = {"folder": str(made.folder), "soc": made.soc, "files": {**made.sizes}}
        click.echo(json.dumps(found, indent=2))
    elif not quiet:
        total = size_text(sum(made.sizes.values()))
        click.echo(f"{printable(made.folder, 4096)}: {len(made.sizes)} files, {total}", err=True)
