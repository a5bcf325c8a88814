"""The commands that compute a model: evaluate, calibrate, generate."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

__all__ = ["add_commands"]

_PATH = click.argument("path", type=click.Path(path_type=Path))
_TEXT = click.option(
    "--text",
    type=click.Path(path_type=Path),
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
_JSON = click.option("--json", "as_json", is_flag=True, help="Print machine-readable results on stdout.")
_QUIET = click.option("--quiet", "-q", is_flag=True, help="No progress.")


def add_commands(group: click.Group, reporting: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
    """Adds the commands to the command line; ``reporting`` makes one line of every error."""
    for command in (evaluate, calibrate, generate):
        assert command.callback is not None  # noqa: S101 - each is made of a function
        command.callback = reporting(command.callback)
        group.add_command(command)


@click.command()
@_PATH
@_TEXT
@click.option(
    "--reference", type=click.Path(path_type=Path), help="A model to compare with: the unquantized one."
)
@_CONTEXT
@click.option("--llama", is_flag=True, help="Score as llama-perplexity does.")
@_JSON
@_QUIET
def evaluate(
    path: Path,
    text: Path,
    reference: Path | None,
    context: int,
    llama: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Compute how well a model predicts a text: perplexity, and divergence from a reference."""
    from phiconv import api
    from phiconv.cli.report import progress_display
    from phiconv.cli.report_quality import evaluation_lines, evaluation_object, read_text

    words = read_text(text)
    with progress_display(quiet=quiet) as progress:
        result = api.evaluate(
            path, words, reference=reference, context=context, llama=llama, progress=progress
        )
    click.echo(
        json.dumps(evaluation_object(result), indent=2) if as_json else "\n".join(evaluation_lines(result))
    )


@click.command()
@_PATH
@click.option(
    "--text",
    "texts",
    type=click.Path(path_type=Path),
    multiple=True,
    help="A text file, in UTF-8; may be given several times. By default, texts that come with phiconv.",
)
@click.option(
    "--output",
    "-o",
    type=click.Path(path_type=Path),
    required=True,
    help="A .gguf to write an importance matrix, or a folder for all that --effort best needs.",
)
@click.option(
    "--calibration-tokens",
    "tokens",
    type=click.IntRange(1, 1 << 30),
    help="About how many tokens to compute, evenly from all texts: 8192 for a folder, all for a .gguf.",
)
@_CONTEXT
@click.option("--force", "-f", is_flag=True, help="Replace the output if it exists.")
@_QUIET
def calibrate(
    path: Path,
    texts: tuple[Path, ...],
    output: Path,
    tokens: int | None,
    context: int,
    force: bool,
    quiet: bool,
) -> None:
    """Measure on some texts what goes into a model's matrices."""
    from phiconv import api
    from phiconv.cli.report import progress_display
    from phiconv.cli.report_quality import read_text

    words = [read_text(text) for text in texts] or None
    names = [text.name for text in texts] if texts else ""
    try:
        with progress_display(quiet=quiet) as progress:
            found = api.calibrate(
                path,
                words,
                output,
                tokens=tokens,
                context=context,
                dataset=names,
                force=force,
                progress=progress,
            )
    except KeyboardInterrupt:
        kept = output.with_name(f"{output.name}.partial")
        if not quiet and kept.is_dir():
            click.echo(f"{kept} keeps what is done: the same command goes on from there", err=True)
        raise
    if not quiet:
        what = "the calibration" if found.is_dir() else "the importance matrix"
        click.echo(f"{found}: {what} of {path} on {', '.join(names) or 'the texts of phiconv'}", err=True)


@click.command()
@_PATH
@click.option("--prompt", required=True, help="The text to continue.")
@click.option(
    "--count",
    "-n",
    type=click.IntRange(1, 1 << 20),
    default=32,
    show_default=True,
    help="Most tokens to generate.",
)
@_JSON
def generate(path: Path, prompt: str, count: int, as_json: bool) -> None:
    """Continue a text with the likeliest tokens, to see whether a model works."""
    from phiconv import api
    from phiconv.tokenization.encoder import decode

    model = api.open_model(path)
    ids: list[int] = []
    shown = ""
    for token in api.generate(model, prompt, count):
        assert model.tokenizer is not None  # noqa: S101 - or else there would be no ids
        ids.append(token)
        text = decode(model.tokenizer, ids)
        # A character may need another token to be whole.
        if not as_json and not text.endswith("\ufffd"):
            click.echo(text.removeprefix(shown), nl=False)
            shown = text
    if as_json:
        click.echo(json.dumps({"ids": ids, "text": text}, indent=2))
    else:
        click.echo(text.removeprefix(shown))
