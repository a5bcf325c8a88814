"""The command ``phiconv report``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from phiconv.cli.common import FOLLOW_LINKS, FORCE_HTML, JOBS, LORA, PATH, QUIET
from phiconv.cli.group import Command

if TYPE_CHECKING:
    from pathlib import Path

    from phiconv.conversion.adapters import Lora

__all__ = ["report"]


@click.command(cls=Command)
@click.argument("a", type=PATH)
@click.argument("b", type=PATH, nargs=-1, required=True, metavar="B...")
@click.option("--output", "-o", type=PATH, required=True, help="The page, like report.html.")
@click.option("--text", type=PATH, metavar="FILE", help="A text in UTF-8 that all models read.")
@click.option(
    "--context",
    type=click.IntRange(2, 1 << 20),
    default=512,
    show_default=True,
    help="Tokens of the windows that the text is cut into.",
)
@click.option("--reference-file", type=PATH, help="Keeps what is computed of A, for the next time.")
@LORA
@FOLLOW_LINKS
@FORCE_HTML
@JOBS
@QUIET
def report(
    a: Path,
    b: tuple[Path, ...],
    output: Path,
    text: Path | None,
    context: int,
    reference_file: Path | None,
    lora: list[Lora],
    force: bool,
    jobs: int | None,
    quiet: bool,
) -> None:
    """Write a page with pictures of what became of A: one or several B.

    Adapters are merged into A.
    """
    from phiconv import api
    from phiconv.cli.report import progress_display
    from phiconv.cli.report_quality import read_text
    from phiconv.errors import printable
    from phiconv.units import size_text

    words = None if text is None else read_text(text)
    with progress_display(quiet=quiet) as progress:
        api.report(
            api.open_model(a, lora=lora),
            b,
            output,
            text=words,
            reference_file=reference_file,
            context=context,
            jobs=jobs,
            force=force,
            progress=progress,
        )
    if not quiet:
        click.echo(printable(f"{output}: {size_text(output.stat().st_size)}", 4096), err=True)
