"""The command line: parse, call the API, print."""

from __future__ import annotations

import json
import signal
from typing import TYPE_CHECKING, Any, NoReturn, ParamSpec, TypeVar

import click
from click_default_group import DefaultGroup

from phiconv._version import __version__
from phiconv.cli import quality as cli_quality
from phiconv.cli.common import CONFIG, JOBS, JSON, PATH, QUIET, reporting
from phiconv.cli.compare import compare
from phiconv.cli.options import conversion_options

if TYPE_CHECKING:
    from pathlib import Path

    from phiconv.api import Choices, Plan, Result

__all__ = ["main"]

P = ParamSpec("P")
R = TypeVar("R")

_SOURCE = click.argument("source", type=PATH)
_DEST = click.argument("dest", type=PATH)


# click leaves the lines behind "\b" as they are.
_HELP = """Convert and quantize Phi language models, offline.

\b
phiconv SOURCE DEST [--q4 | --q8 | --f16 | --bf16 | --f32 | --quant NAME]

SOURCE is a model folder, a file of weights (its siblings are found) or an index of shards. DEST names the
format by its suffix (x.gguf), or is a folder, with --to.
"""


@click.group(
    cls=DefaultGroup,
    help=_HELP,
    default="convert",
    default_if_no_args=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, prog_name="phiconv")
def main() -> None:
    """The command line."""
    # An interrupted run cleans up behind itself, also when it is asked to end.
    signal.signal(signal.SIGTERM, _stop)


def _stop(number: int, frame: object) -> NoReturn:  # noqa: ARG001
    raise KeyboardInterrupt


@main.command()
@_SOURCE
@_DEST
@conversion_options
@click.option("--force", "-f", is_flag=True, help="Replace DEST if it exists.")
@JOBS
@click.option(
    "--allow-nonfinite", is_flag=True, help="Convert NaN, infinity and overflows instead of refusing them."
)
@QUIET
@reporting
def convert(
    source: Path,
    dest: Path,
    to: str | None,
    quant: str | None,
    split_max_size: int | None,
    imatrix: Path | None,
    config: Path | None,
    repack_only: bool,
    as_json: bool,
    force: bool,
    jobs: int | None,
    allow_nonfinite: bool,
    quiet: bool,
    **choices: Any,
) -> None:
    """Convert a model (the default command)."""
    from phiconv import api
    from phiconv.cli.report import progress_display

    with progress_display(quiet=quiet) as progress:
        result = api.convert(
            source,
            dest,
            to=to,
            quant=quant,
            split_max_size=split_max_size,
            choices=_choices(**choices),
            imatrix=imatrix,
            config=config,
            repack_only=repack_only,
            jobs=jobs,
            processes=True,
            force=force,
            allow_nonfinite=allow_nonfinite,
            progress=progress,
        )
    _print_result(result, as_json=as_json, quiet=quiet)


def _choices(*, tensor_types: tuple[str, ...], **others: Any) -> Choices:
    """What the options say otherwise than the recipe."""
    from phiconv.recipes import Choices, override

    return Choices(tensor_types=tuple(override(text) for text in tensor_types), **others)


def _print_result(result: Result, *, as_json: bool, quiet: bool) -> None:
    from phiconv.cli.report import result_lines, result_object

    if as_json:
        click.echo(json.dumps(result_object(result), indent=2))
    elif not quiet:
        for line in result_lines(result):
            click.echo(line, err=True)


@main.command()
@_SOURCE
@_DEST
@conversion_options
@reporting
def plan(
    source: Path,
    dest: Path,
    to: str | None,
    quant: str | None,
    split_max_size: int | None,
    imatrix: Path | None,
    config: Path | None,
    repack_only: bool,
    as_json: bool,
    **choices: Any,
) -> None:
    """Show what a conversion would write, without reading a weight."""
    from phiconv import api
    from phiconv.cli.report import plan_lines, plan_object

    made: Plan = api.plan(
        source,
        dest,
        to=to,
        quant=quant,
        split_max_size=split_max_size,
        choices=_choices(**choices),
        imatrix=imatrix,
        config=config,
        repack_only=repack_only,
    )
    click.echo(json.dumps(plan_object(made), indent=2) if as_json else "\n".join(plan_lines(made)))


@main.command()
@click.argument("path", type=PATH)
@click.option("--tensors/--no-tensors", default=True, help="List every tensor.")
@CONFIG
@JSON
@reporting
def inspect(path: Path, tensors: bool, config: Path | None, as_json: bool) -> None:
    """Show what is in a model: architecture, tensors, types, tokenizer, chat template."""
    from phiconv import api
    from phiconv.cli.report import inspect_lines, inspect_object

    model = api.open_model(path, config=config)
    if as_json:
        click.echo(json.dumps(inspect_object(model, tensors=tensors), indent=2))
    else:
        click.echo("\n".join(inspect_lines(model, tensors=tensors)))


@main.command()
@JSON
@reporting
def formats(as_json: bool) -> None:
    """List formats, presets, quantizations and supported models."""
    from phiconv.cli.report_formats import formats_lines, formats_object

    click.echo(json.dumps(formats_object(), indent=2) if as_json else "\n".join(formats_lines()))


main.add_command(compare)
cli_quality.add_commands(main, reporting)
