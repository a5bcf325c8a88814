"""What the commands of all modules share: how errors are printed, and options of the same meaning."""

from __future__ import annotations

import os
import sys
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, ParamSpec, TypeVar

import click

from phiconv.errors import PhiconvError, printable

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["CONFIG", "JOBS", "JSON", "PATH", "QUIET", "reporting"]

P = ParamSpec("P")
R = TypeVar("R")

PATH = click.Path(path_type=Path)
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


def reporting(command: Callable[P, R]) -> Callable[P, R]:
    """One line on stderr for every error that is meant for people, and the exit code that goes with it."""

    @wraps(command)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return command(*args, **kwargs)
        except PhiconvError as error:
            click.echo(f"phiconv: {error}", err=True)
            sys.exit(error.exit_code)
        except KeyboardInterrupt:
            click.echo("phiconv: interrupted", err=True)
            sys.exit(130)
        except MemoryError:
            click.echo("phiconv: out of memory; give --jobs 1", err=True)
            sys.exit(1)
        except Exception as error:
            if os.environ.get("PHICONV_DEBUG"):
                raise
            what = f"{type(error).__name__}: {printable(error)}"
            click.echo(f"phiconv: {what}; set PHICONV_DEBUG=1 to see where, and please report it", err=True)
            sys.exit(1)

    return wrapper
