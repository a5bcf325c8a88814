"""The command ``phiconv compare``."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

from phiconv.cli.common import (
    FOLLOW_LINKS,
    FORCE_HTML,
    HTML,
    JOBS,
    JSON,
    LORA,
    PATH,
    QUIET,
    SCHEDULER,
    adapter_paths,
    check_page,
)
from phiconv.cli.group import Command

if TYPE_CHECKING:
    from pathlib import Path

    from phiconv.conversion.adapters import Lora

__all__ = ["compare"]


@click.command(cls=Command)
@click.argument("a", type=PATH)
@click.argument("b", type=PATH)
@LORA
@FOLLOW_LINKS
@click.option("--tensors/--no-tensors", default=True, help="List every tensor.")
@HTML
@FORCE_HTML
@JSON
@JOBS
@SCHEDULER
@QUIET
def compare(
    a: Path,
    b: Path,
    lora: list[Lora],
    tensors: bool,
    html: Path | None,
    force: bool,
    as_json: bool,
    jobs: int | None,
    scheduler: str | None,
    quiet: bool,
) -> None:
    """Show how far the weights of B are from those of A, whatever their formats.

    Adapters are merged into A.
    """
    from phiconv import api
    from phiconv.cli.report import progress_display
    from phiconv.cli.report_comparison import comparison_lines, comparison_object

    read = [a, b, *adapter_paths(lora)]
    check_page(html, scheduler)
    with progress_display(quiet=quiet) as progress, api.machines(scheduler, read) as workers:
        first = api.open_model(a, lora=lora) if lora else a
        if html is None:
            found = api.compare(
                first, b, jobs=jobs or workers.jobs, executor=workers.executor, progress=progress
            )
        else:
            report = api.report(first, [b], html, jobs=jobs, force=force, progress=progress)
            found = report.candidates[0].errors.comparison
    if as_json:
        click.echo(json.dumps(comparison_object(found, tensors=tensors), indent=2))
    else:
        click.echo("\n".join(comparison_lines(found, tensors=tensors)))
