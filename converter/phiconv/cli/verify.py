"""The command ``phiconv verify``."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

from phiconv.cli.common import BASE, CONFIG, FOLLOW_LINKS, JOBS, JSON, LORA, PATH, QUIET
from phiconv.cli.group import Command

if TYPE_CHECKING:
    from pathlib import Path

    from phiconv.conversion.adapters import Lora

__all__ = ["verify"]


@click.command(cls=Command)
@click.argument("output", type=PATH, metavar="OUT")
@click.option("--source", type=PATH, help="What OUT was made of: makes it again, and compares every byte.")
@click.option("--receipt", type=PATH, help="The receipt, if it is not beside OUT or in it.")
@CONFIG
@FOLLOW_LINKS
@LORA
@BASE
@click.option("--calibration", type=PATH, help="The folder that the conversion was given.")
@click.option("--imatrix", type=PATH, help="The importance matrix that it was given.")
@click.option("--ranges", type=PATH, help="The ranges that it was given.")
@JSON
@JOBS
@QUIET
@click.pass_context
def verify(
    ctx: click.Context,
    output: Path,
    source: Path | None,
    receipt: Path | None,
    config: Path | None,
    lora: list[Lora],
    base: Path | None,
    calibration: Path | None,
    imatrix: Path | None,
    ranges: Path | None,
    as_json: bool,
    jobs: int | None,
    quiet: bool,
) -> None:
    """Check an output against its receipt, and against its source.

    Ends with 0 if it is verified, 3 if something differs, 4 if it cannot be judged.
    """
    from phiconv import api
    from phiconv.cli.report import progress_display
    from phiconv.cli.report_verification import verification_lines, verification_object

    with progress_display(quiet=quiet) as progress:
        found = api.verify(
            output,
            source=source,
            receipt=receipt,
            config=config,
            lora=lora,
            base=base,
            calibration=calibration,
            imatrix=imatrix,
            ranges=ranges,
            jobs=jobs,
            progress=progress,
        )
    if as_json:
        click.echo(json.dumps(verification_object(found), indent=2))
    else:
        click.echo("\n".join(verification_lines(found, output)))
    ctx.exit(found.exit_code)
