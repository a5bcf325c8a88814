"""The command that makes a bundle."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

from phiconv.cli.common import JSON, PATH
from phiconv.cli.group import Command

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["COMMANDS"]


@click.command(cls=Command)
@click.argument("folder", type=PATH, metavar="DIR")
@click.option(
    "--python", "pythons", default="", help="Versions of Python, like 3.11,3.13; this one by default."
)
@click.option("--platform", "platforms", default="", help="Machines, like linux-x86_64,windows-x86_64.")
@click.option("--extra", "extras", multiple=True, help="An extra of phiconv, like images; several times.")
@JSON
def bundle(folder: Path, pythons: str, platforms: str, extras: tuple[str, ...], as_json: bool) -> None:
    """Make a folder that installs phiconv where there is no network."""
    from phiconv.bundling.bundle import make_bundle
    from phiconv.bundling.platforms import targets

    files = make_bundle(folder, targets(pythons, platforms), extras)
    if as_json:
        click.echo(json.dumps({"folder": str(folder), "files": [str(path) for path in files]}, indent=2))
        return
    size = sum(path.stat().st_size for path in files)
    click.echo(f"{folder}: {len(files)} files, {size / 1e6:.0f} MB; there: python install.py")


COMMANDS = (bundle,)
"""In the order of the help."""
