"""The commands that compute a model: evaluate, calibrate, generate."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import click

from phiconv.cli.common import (
    FOLLOW_LINKS,
    FORCE_HTML,
    HTML,
    JSON,
    LORA,
    PATH,
    SCHEDULER,
    adapter_paths,
    check_page,
    lora_option,
)
from phiconv.cli.group import Command
from phiconv.cli.voice import tame
from phiconv.errors import UsageError

if TYPE_CHECKING:
    from pathlib import Path

    from phiconv.conversion.adapters import Lora

__all__ = ["COMMANDS"]

_PATH = click.argument("path", type=PATH)
_TEXT = click.option(
    "--text",
    type=PATH,
    metavar="FILE",
    required=True,
    help="A text file, in UTF-8; the longer the better.",
)
_CONTEXT = click.option(
    "--context",
    type=click.IntRange(2, 1 << 20),
    default=512,
    show_default=True,
    help="Tokens of the windows that the text is cut into.",
)
_QUIET = click.option("--quiet", "-q", is_flag=True, help="No progress.")


@click.command(cls=Command)
@click.argument("paths", type=PATH, nargs=-1, required=True, metavar="PATH...")
@_TEXT
@LORA
@FOLLOW_LINKS
@click.option("--reference", type=PATH, help="A model to compare with: the unquantized one.")
@lora_option("--reference-lora", "An adapter to merge into that.")
@click.option(
    "--reference-file", type=PATH, help="Keeps what is computed of the reference, for the next time."
)
@_CONTEXT
@click.option("--llama", is_flag=True, help="Score as llama-perplexity does.")
@HTML
@FORCE_HTML
@SCHEDULER
@JSON
@_QUIET
def evaluate(
    paths: tuple[Path, ...],
    text: Path,
    lora: list[Lora],
    reference: Path | None,
    reference_lora: list[Lora],
    reference_file: Path | None,
    context: int,
    llama: bool,
    html: Path | None,
    force: bool,
    scheduler: str | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Compute how well models predict a text: perplexity, and divergence from a reference."""
    from phiconv import api
    from phiconv.cli import report_quality
    from phiconv.cli.report import progress_display

    words = report_quality.read_text(text)
    models = [api.open_model(path, lora=lora) for path in paths]
    other = None if reference is None else api.open_model(reference, lora=reference_lora)
    read = [*paths, *([] if reference is None else [reference])]
    read += adapter_paths([*lora, *reference_lora])
    options: dict[str, Any] = {"reference_file": reference_file, "context": context, "llama": llama}
    check_page(html, scheduler)
    with (
        progress_display(quiet=quiet) as progress,
        api.machines(scheduler, read, reference_file) as workers,
    ):
        options["progress"] = progress
        if html is None:
            options |= {"executor": workers.executor, "jobs": workers.jobs}
            results = api.evaluate_all(models, words, reference=other, **options)
        elif other is None:
            raise UsageError("a page compares with another model", hint="give --reference, too")
        else:
            report = api.report(other, models, html, text=words, force=force, **options)
            assert report.text is not None  # noqa: S101 - there is one
            results = [*report.text.evaluations]
    if as_json:
        found = report_quality.evaluation_objects(models, results)
        click.echo(json.dumps(found[0] if len(found) == 1 else found, indent=2))
    elif len(results) == 1:
        click.echo("\n".join(report_quality.evaluation_lines(results[0])))
    else:
        click.echo("\n".join(report_quality.evaluation_table(models, results)))


@click.command(cls=Command)
@_PATH
@LORA
@FOLLOW_LINKS
@click.option(
    "--text",
    "texts",
    type=PATH,
    multiple=True,
    help="A text file, in UTF-8; may be given several times. By default, texts that come with phiconv.",
)
@click.option(
    "--output",
    "-o",
    type=PATH,
    required=True,
    help="A .gguf for an importance matrix, a folder for all that --effort best needs, or a .json for the "
    "ranges that w8a16 and w4a16 need.",
)
@click.option(
    "--calibration-tokens",
    "tokens",
    type=click.IntRange(1, 1 << 30),
    help="About how many tokens to compute, evenly from all texts: all for a .gguf, else 8192.",
)
@_CONTEXT
@click.option(
    "--sensitivity",
    is_flag=True,
    help="For a folder: try also what rounding each matrix does, which --target-size and --bpw choose by.",
)
@click.option("--force", "-f", is_flag=True, help="Replace the output if it exists.")
@SCHEDULER
@_QUIET
def calibrate(
    path: Path,
    lora: list[Lora],
    texts: tuple[Path, ...],
    output: Path,
    tokens: int | None,
    context: int,
    sensitivity: bool,
    force: bool,
    scheduler: str | None,
    quiet: bool,
) -> None:
    """Measure on some texts what goes into a model's matrices."""
    from phiconv import api
    from phiconv.cli.report import progress_display
    from phiconv.cli.report_quality import read_text
    from phiconv.errors import printable

    words = [read_text(text) for text in texts] or None
    names = [text.name for text in texts] if texts else ""
    try:
        with (
            progress_display(quiet=quiet) as progress,
            api.machines(scheduler, [path, *adapter_paths(lora)], output) as workers,
        ):
            found = api.calibrate(
                api.open_model(path, lora=lora),
                words,
                output,
                tokens=tokens,
                context=context,
                dataset=names,
                force=force,
                sensitivity=sensitivity,
                executor=workers.executor,
                jobs=workers.jobs,
                progress=progress,
            )
    except KeyboardInterrupt:
        kept = output.with_name(f"{output.name}.partial")
        if not quiet and kept.is_dir():
            line = f"{kept} keeps what is done: the same command goes on from there"
            click.echo(printable(line, 4096), err=True)
        raise
    if not quiet:
        file = "the ranges" if found.suffix.lower() == ".json" else "the importance matrix"
        what = "the calibration" if found.is_dir() else file
        of = f"{found}: {what} of {path} on {', '.join(names) or 'the texts of phiconv'}"
        click.echo(printable(of, 4096), err=True)


@click.command(cls=Command)
@_PATH
@LORA
@FOLLOW_LINKS
@click.option("--prompt", required=True, help="The text to continue.")
@click.option(
    "--count",
    "-n",
    type=click.IntRange(1, 1 << 20),
    default=32,
    show_default=True,
    help="Most tokens to generate.",
)
@click.option("--image", "images", type=PATH, multiple=True, help="A picture to show it, where it sees.")
@click.option("--audio", "sounds", type=PATH, multiple=True, help="A WAV file for it to hear, 16 kHz.")
@JSON
def generate(
    path: Path,
    lora: list[Lora],
    prompt: str,
    count: int,
    images: tuple[Path, ...],
    sounds: tuple[Path, ...],
    as_json: bool,
) -> None:
    """Continue a text with the likeliest tokens, to see whether a model works."""
    from phiconv import api
    from phiconv.perception.files import read_picture, read_sound
    from phiconv.tokenization.encoder import decode

    model = api.open_model(path, lora=lora)
    shown_and_played: dict[str, Any] = {
        "pictures": [read_picture(image) for image in images],
        "sounds": [read_sound(sound) for sound in sounds],
    }
    ids: list[int] = []
    shown = ""
    # A model may be made to drive a terminal; a program gets its text as it is.
    told = tame if sys.stdout.isatty() else str
    for token in api.generate(model, prompt, count, **shown_and_played):
        assert model.tokenizer is not None  # noqa: S101 - or else there would be no ids
        ids.append(token)
        text = decode(model.tokenizer, ids)
        # A character may need another token to be whole.
        if not as_json and not text.endswith("\ufffd"):
            click.echo(told(text.removeprefix(shown)), nl=False)
            shown = text
    if as_json:
        click.echo(json.dumps({"ids": ids, "text": text}, indent=2))
    else:
        click.echo(told(text.removeprefix(shown)))


COMMANDS = (evaluate, calibrate, generate)
"""In the order of the help."""
