"""Options of the same meaning in the commands of all modules."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

__all__ = ["CONFIG", "JOBS", "JSON", "PATH", "QUIET"]


class _Path(click.Path):
    """A path; the empty one, which would be the folder that one is in, was not meant."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The path."""
        if value == "":
            self.fail("an empty name; a variable of the shell may not be set", param, ctx)
        return super().convert(value, param, ctx)


PATH = _Path(path_type=Path, readable=False)  # whether it can be read is said by whoever reads it
CONFIG = click.option(
    "--config",
    type=PATH,
    metavar="FOLDER",
    help="Where config.json and the tokenizer are, if not with the weights.",
)
JSON = click.option("--json", "as_json", is_flag=True, help="Print machine-readable results on stdout.")
JOBS = click.option(
    "--jobs", "-j", type=click.IntRange(1, 1024), help="Threads, or processes; by default one per processor."
)
QUIET = click.option("--quiet", "-q", is_flag=True, help="No progress, no summary.")
