"""The command line: parse, call the API, print."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, ParamSpec, TypeVar

import click
from click_default_group import DefaultGroup

from phiconv import cli_quality
from phiconv._version import __version__
from phiconv.errors import PhiconvError, printable

if TYPE_CHECKING:
    from collections.abc import Callable

    from phiconv.api import Choices, Plan, Result

__all__ = ["main"]

P = ParamSpec("P")
R = TypeVar("R")

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


def size(text: str) -> int:
    """Bytes: a number with K, M, G or T behind it, in powers of 1000 as llama.cpp's tools count them."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)B?", text, re.IGNORECASE)
    if match is None or not (value := int(float(match[1]) * _UNITS[match[2].upper()])):
        raise click.BadParameter(f"{text!r} is no size; write it like 2G or 500M")
    return value


def _reporting(command: Callable[P, R]) -> Callable[P, R]:
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


_SOURCE = click.argument("source", type=click.Path(path_type=Path))
_DEST = click.argument("dest", type=click.Path(path_type=Path))
_JSON = click.option("--json", "as_json", is_flag=True, help="Print machine-readable results on stdout.")


def _conversion_options(command: Callable[P, R]) -> Callable[P, R]:
    """Options that ``convert`` and ``plan`` share."""
    presets = {
        "q4": "The runtime's usual 4-bit quantization.",
        "q8": "The runtime's usual 8-bit quantization.",
        "f16": "float16.",
        "bf16": "bfloat16.",
        "f32": "float32.",
    }
    decorators = [
        click.option("--to", metavar="FORMAT", help="The format, when DEST is a folder."),
        *(click.option(f"--{n}", "quant", flag_value=n, help=text) for n, text in presets.items()),
        click.option("--quant", metavar="NAME", help="A quantization by the runtime's own name, e.g. Q5_1."),
        click.option("--pure", is_flag=True, help="Every matrix in the recipe's main type."),
        click.option(
            "--tensor-type",
            "tensor_types",
            metavar="REGEX=TYPE",
            multiple=True,
            help="The type of the tensors whose names the pattern is found in.",
        ),
        click.option("--output-tensor-type", metavar="TYPE", help="The type of the output matrix."),
        click.option("--token-embedding-type", metavar="TYPE", help="The type of the embedding."),
        click.option("--leave-output-tensor", is_flag=True, help="Do not quantize the output matrix."),
        click.option("--allow-requantize", is_flag=True, help="Quantize also what is quantized already."),
        click.option(
            "--effort",
            type=click.Choice(["exact", "fast"]),
            default="exact",
            show_default=True,
            help="exact: llama.cpp's own bytes; fast: a quicker search for Q4_K and Q5_K.",
        ),
        click.option("--imatrix", type=click.Path(path_type=Path), help="An importance matrix."),
        click.option("--split-max-size", type=size, help="Split the output, e.g. 2G."),
        _JSON,
    ]
    for decorator in reversed(decorators):
        command = decorator(command)
    return command


@click.group(
    cls=DefaultGroup,
    default="convert",
    default_if_no_args=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, prog_name="phiconv")
def main() -> None:
    r"""Convert and quantize Phi language models, offline.

    \b
    phiconv SOURCE DEST [--q4 | --q8 | --f16 | --bf16 | --f32 | --quant NAME]

    SOURCE is a model folder, a .safetensors file (its siblings are found) or an index of shards. DEST names
    the format by its suffix (x.gguf), or is a folder, with --to.
    """
    # An interrupted run cleans up behind itself, also when it is asked to end.
    signal.signal(signal.SIGTERM, _stop)


def _stop(number: int, frame: object) -> NoReturn:  # noqa: ARG001
    raise KeyboardInterrupt


@main.command()
@_SOURCE
@_DEST
@_conversion_options
@click.option("--force", "-f", is_flag=True, help="Replace DEST if it exists.")
@click.option("--jobs", "-j", type=click.IntRange(1, 1024), help="Threads; by default one per processor.")
@click.option(
    "--allow-nonfinite", is_flag=True, help="Convert NaN, infinity and overflows instead of refusing them."
)
@click.option("--quiet", "-q", is_flag=True, help="No progress, no summary.")
@_reporting
def convert(
    source: Path,
    dest: Path,
    to: str | None,
    quant: str | None,
    split_max_size: int | None,
    imatrix: Path | None,
    as_json: bool,
    force: bool,
    jobs: int | None,
    allow_nonfinite: bool,
    quiet: bool,
    **choices: Any,
) -> None:
    """Convert a model (the default command)."""
    from phiconv import api
    from phiconv.report import progress_display

    with progress_display(quiet=quiet) as progress:
        result = api.convert(
            source,
            dest,
            to=to,
            quant=quant,
            split_max_size=split_max_size,
            choices=_choices(**choices),
            imatrix=imatrix,
            jobs=jobs,
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
    from phiconv.report import result_lines, result_object

    if as_json:
        click.echo(json.dumps(result_object(result), indent=2))
    elif not quiet:
        for line in result_lines(result):
            click.echo(line, err=True)


@main.command()
@_SOURCE
@_DEST
@_conversion_options
@_reporting
def plan(
    source: Path,
    dest: Path,
    to: str | None,
    quant: str | None,
    split_max_size: int | None,
    imatrix: Path | None,
    as_json: bool,
    **choices: Any,
) -> None:
    """Show what a conversion would write, without reading a weight."""
    from phiconv import api
    from phiconv.report import plan_lines, plan_object

    made: Plan = api.plan(
        source,
        dest,
        to=to,
        quant=quant,
        split_max_size=split_max_size,
        choices=_choices(**choices),
        imatrix=imatrix,
    )
    click.echo(json.dumps(plan_object(made), indent=2) if as_json else "\n".join(plan_lines(made)))


@main.command()
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--tensors/--no-tensors", default=True, help="List every tensor.")
@_JSON
@_reporting
def inspect(path: Path, tensors: bool, as_json: bool) -> None:
    """Show what is in a model: architecture, tensors, types, tokenizer, chat template."""
    from phiconv import api
    from phiconv.report import inspect_lines, inspect_object

    model = api.open_model(path)
    if as_json:
        click.echo(json.dumps(inspect_object(model, tensors=tensors), indent=2))
    else:
        click.echo("\n".join(inspect_lines(model, tensors=tensors)))


@main.command()
@_JSON
@_reporting
def formats(as_json: bool) -> None:
    """List formats, presets, quantizations and supported models."""
    from phiconv.report import formats_lines, formats_object

    click.echo(json.dumps(formats_object(), indent=2) if as_json else "\n".join(formats_lines()))


cli_quality.add_commands(main, _reporting)
