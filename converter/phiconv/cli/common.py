"""Options of the same meaning in the commands of all modules."""

from __future__ import annotations

from pathlib import Path

import click

__all__ = ["JOBS", "JSON", "PATH", "QUIET"]

PATH = click.Path(path_type=Path, readable=False)  # whether it can be read is said by whoever reads it
JSON = click.option("--json", "as_json", is_flag=True, help="Print machine-readable results on stdout.")
JOBS = click.option(
    "--jobs", "-j", type=click.IntRange(1, 1024), help="Threads, or processes; by default one per processor."
)
QUIET = click.option("--quiet", "-q", is_flag=True, help="No progress, no summary.")
