"""The command line: parse, call the API, print."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from phiconv._version import __version__
from phiconv.cli import carry, guide
from phiconv.cli import quality as cli_quality
from phiconv.cli.common import CONFIG, FOLLOW_LINKS, JOBS, JSON, PATH, QUIET, SCHEDULER, adapter_paths
from phiconv.cli.compare import compare
from phiconv.cli.compile import compile_
from phiconv.cli.group import Command, Group
from phiconv.cli.options import conversion_options
from phiconv.cli.page import report
from phiconv.cli.verify import sign, verify
from phiconv.cli.voice import tell
from phiconv.errors import UsageError
from phiconv.spelling import folded

if TYPE_CHECKING:
    from pathlib import Path

    from phiconv.api import Result
    from phiconv.conversion.adapters import Lora

__all__ = ["main"]

# click leaves the lines behind "\b" as they are.
_HELP = """Convert and quantize Phi language models, offline.

\b
phiconv SOURCE DEST [--q4 | --q8 | --f16 | --bf16 | --f32 | --quant NAME]
phiconv SOURCE DEST --for ollama      (or mac, intel-npu, android, browser ...)

SOURCE is a model folder, a file of weights (its siblings are found) or an index of shards. DEST names the
format by its suffix (x.gguf), or is a folder, with --to.
"""


@click.group(
    cls=Group,
    help=_HELP,
    default="convert",
    default_if_no_args=False,
    context_settings={
        "help_option_names": ["-h", "--help"],
        "max_content_width": 100,
        "token_normalize_func": folded,
    },
)
@click.version_option(__version__, prog_name="phiconv")
def main() -> None:
    """The command line."""


@main.command()
@conversion_options
@click.option("--force", "-f", is_flag=True, help="Replace DEST if it exists.")
@JOBS
@SCHEDULER
@click.option(
    "--allow-nonfinite", is_flag=True, help="Convert NaN, infinity and overflows instead of refusing them."
)
@click.option("--dry-run", is_flag=True, hidden=True)  # what llama.cpp's converter calls a plan
@QUIET
def convert(
    source: Path,
    dest: Path,
    as_json: bool,
    force: bool,
    jobs: int | None,
    scheduler: str | None,
    allow_nonfinite: bool,
    dry_run: bool,
    quiet: bool,
    texts: tuple[Path, ...],
    calibration_tokens: int | None,
    **options: Any,
) -> None:
    """Convert a model (the default command)."""
    from phiconv import api
    from phiconv.cli.report import progress_display
    from phiconv.cli.report_quality import measured_so_far, read_text

    if dry_run:
        _plan(source, dest, as_json=as_json, **options)
        return
    wishes = _wishes(dest, **options)
    with (
        measured_so_far(dest, quiet=quiet),
        progress_display(quiet=quiet) as progress,
        api.machines(scheduler, _read(source, **options), dest) as workers,
    ):
        result = api.convert(
            source,
            dest,
            executor=workers.executor,
            jobs=jobs or workers.jobs,
            processes=True,
            force=force,
            allow_nonfinite=allow_nonfinite,
            progress=progress,
            text=[read_text(path) for path in texts] or None,
            calibration_tokens=calibration_tokens,
            **wishes,
        )
    _print_result(result, options["device"], as_json=as_json, quiet=quiet)


def _read(source: Path, **options: Any) -> list[Path]:
    """The paths that workers read from."""
    others = [options["calibration"], options["base"], *adapter_paths(options["lora"])]
    return [source, *(path for path in others if path is not None)]


def _wishes(
    dest: Path,
    *,
    device: str | None,
    to: str | None,
    quant: str | None,
    split_max_size: int | None,
    imatrix: Path | None,
    calibration: Path | None,
    ranges: Path | None,
    config: Path | None,
    lora: list[Lora],
    base: Path | None,
    adapter_only: bool,
    repack_only: bool,
    receipt: bool,
    tensor_types: tuple[str, ...],
    **choices: Any,
) -> dict[str, Any]:
    """The options as `api.plan` and `api.convert` take them; those that are left are `Choices`."""
    from phiconv.guide.devices import find_device, fitted
    from phiconv.recipes import Choices, override

    if device is not None:
        to, quant, choices = fitted(find_device(device), dest, to, quant, choices)
    return {
        "to": to,
        "quant": quant,
        "split_max_size": split_max_size,
        "imatrix": imatrix,
        "calibration": calibration,
        "ranges": ranges,
        "config": config,
        "lora": lora,
        "base": base,
        "adapter_only": adapter_only,
        "repack_only": repack_only,
        "receipt": receipt,
        "choices": Choices(tensor_types=tuple(override(text) for text in tensor_types), **choices),
    }


def _print_result(result: Result, device: str | None, *, as_json: bool, quiet: bool) -> None:
    from phiconv.cli.report import result_lines, result_object
    from phiconv.guide.devices import find_device
    from phiconv.guide.running import run_command

    run = run_command(result.plan, None if device is None else find_device(device))
    if as_json:
        click.echo(json.dumps(result_object(result, run), indent=2))
    elif not quiet:
        for line in result_lines(result, run):
            click.echo(line, err=True)


@main.command()
@conversion_options
def plan(
    source: Path,
    dest: Path,
    as_json: bool,
    texts: tuple[Path, ...],  # noqa: ARG001 - nothing is measured for a plan
    calibration_tokens: int | None,  # noqa: ARG001
    **options: Any,
) -> None:
    """Show what a conversion would write, without reading a weight."""
    _plan(source, dest, as_json=as_json, **options)


def _plan(source: Path, dest: Path, *, as_json: bool, **options: Any) -> None:
    from phiconv import api
    from phiconv.cli.report import plan_lines, plan_object
    from phiconv_formats.shared.collector import collector_paused

    with collector_paused():
        made = api.plan(source, dest, **_wishes(dest, **options))
        text = json.dumps(plan_object(made), indent=2) if as_json else "\n".join(plan_lines(made))
    click.echo(text)


@main.command()
@click.argument("path", type=PATH)
@click.option("--tensors/--no-tensors", default=True, help="List every tensor.")
@CONFIG
@FOLLOW_LINKS
@JSON
def inspect(path: Path, tensors: bool, config: Path | None, as_json: bool) -> None:
    """Show what is in a model, or in what is refused: architecture, tensors, types, tokenizer."""
    from phiconv import api
    from phiconv.cli.report_inspection import inspection_lines, inspection_object
    from phiconv_formats.shared.collector import collector_paused

    with collector_paused():
        seen = api.examine(path, config=config)
        found = inspection_object(seen, tensors=tensors) if as_json else {}
        lines = [] if as_json else inspection_lines(seen, tensors=tensors)
    click.echo(json.dumps(found, indent=2) if as_json else "\n".join(lines))
    if seen.error is not None:
        tell(seen.error, as_json=False)  # it is in the object
        click.get_current_context().exit(seen.error.exit_code)


@main.command()
@JSON
def formats(as_json: bool) -> None:
    """List formats, presets, quantizations and supported models."""
    from phiconv.cli.report_formats import formats_lines, formats_object

    click.echo(json.dumps(formats_object(), indent=2) if as_json else "\n".join(formats_lines()))


@click.command("help", cls=Command)
@click.argument("command", required=False)
def help_(command: str | None) -> None:
    """Show this text, or that of a command."""
    parent = click.get_current_context().parent
    assert parent is not None  # noqa: S101 - it is a command of a group
    if command is None:
        click.echo(parent.get_help())
        return
    if (found := main.commands.get(folded(command))) is None:
        raise UsageError(f"unknown command {command!r}", hint=f"one of {', '.join(main.commands)}")
    click.echo(found.get_help(click.Context(found, info_name=found.name, parent=parent)))


_COMMANDS = (*guide.COMMANDS, compare, report, sign, verify, compile_, *cli_quality.COMMANDS)

for _command in (*_COMMANDS, *carry.COMMANDS, help_):
    main.add_command(_command)
