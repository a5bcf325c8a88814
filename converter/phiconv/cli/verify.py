"""The commands ``phiconv sign`` and ``phiconv verify``."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

from phiconv.cli.common import BASE, CONFIG, FOLLOW_LINKS, JOBS, JSON, LORA, PATH, QUIET
from phiconv.cli.group import Command
from phiconv.errors import printable

if TYPE_CHECKING:
    from pathlib import Path

    from phiconv.conversion.adapters import Lora

__all__ = ["sign", "verify"]


@click.command(cls=Command)
@click.argument("output", type=PATH, metavar="OUT")
@click.option("--source", type=PATH, help="What OUT was made of: makes it again, and compares every byte.")
@click.option("--receipt", type=PATH, help="The receipt, if it is not beside OUT or in it.")
@CONFIG
@FOLLOW_LINKS
@LORA
@BASE
@click.option("--calibration", type=PATH, help="The folder that the conversion was given.")
@click.option("--imatrix", type=PATH, help="The importance matrix that it was given.")
@click.option("--ranges", type=PATH, help="The ranges that it was given.")
@click.option("--key", type=PATH, metavar="PUBLIC.pem", help="Whose signature it must have.")
@click.option("--signature", type=PATH, help="The signature, if it is not beside OUT or in it.")
@JSON
@JOBS
@QUIET
@click.pass_context
def verify(
    ctx: click.Context,
    output: Path,
    source: Path | None,
    receipt: Path | None,
    config: Path | None,
    lora: list[Lora],
    base: Path | None,
    calibration: Path | None,
    imatrix: Path | None,
    ranges: Path | None,
    key: Path | None,
    signature: Path | None,
    as_json: bool,
    jobs: int | None,
    quiet: bool,
) -> None:
    """Check an output against its receipt, its signature, and its source.

    Ends with 0 if it is verified, 3 if something differs, 4 if it cannot be judged.
    """
    from phiconv import api
    from phiconv.cli.report import progress_display
    from phiconv.cli.report_verification import verification_lines, verification_object

    with progress_display(quiet=quiet) as progress:
        found = api.verify(
            output,
            source=source,
            receipt=receipt,
            config=config,
            lora=lora,
            base=base,
            calibration=calibration,
            imatrix=imatrix,
            ranges=ranges,
            key=key,
            signature=signature,
            jobs=jobs,
            progress=progress,
        )
    if as_json:
        click.echo(json.dumps(verification_object(found), indent=2))
    else:
        click.echo("\n".join(verification_lines(found, output)))
    ctx.exit(found.exit_code)


@click.command(cls=Command)
@click.argument("output", type=PATH, metavar="OUT")
@click.option(
    "--key", type=PATH, required=True, metavar="PRIVATE.pem", help="A key on the curve P-256, P-384 or P-521."
)
@click.option(
    "-o",
    "--signature",
    "--output",
    type=PATH,
    help="Where the signature goes; by default beside OUT, or in it.",
)
@click.option("--password-file", type=PATH, help="A file whose first line is the password of the key.")
@click.option("--force", "-f", is_flag=True, help="Replace a signature that is there.")
@JSON
@JOBS
@QUIET
def sign(
    output: Path,
    key: Path,
    signature: Path | None,
    password_file: Path | None,
    force: bool,
    as_json: bool,
    jobs: int | None,
    quiet: bool,
) -> None:
    """Sign an output together with its receipt, with a key of your own.

    It takes model-signing: pip install phiconv[sign]. The form is that of OpenSSF Model Signing.
    """
    from phiconv import api
    from phiconv_formats.shared.files import read_small_file

    password = None if password_file is None else read_small_file(password_file, 1 << 16).partition(b"\n")[0]
    place = api.sign(output, key, signature, password=password, force=force, jobs=jobs)
    if as_json:
        click.echo(json.dumps({"signature": str(place)}, indent=2))
    elif not quiet:
        click.echo(f"signed: {printable(place, 120)}", err=True)
