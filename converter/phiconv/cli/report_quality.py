"""What a person, or a program with ``--json``, looks at after an evaluation; and the text that goes in."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from phiconv.errors import InputError, printable
from phiconv_formats.shared.files import read_small_file
from phiconv_formats.shared.links import following_links

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from phiconv.api import Evaluation, Model
    from phiconv.quality.scores import Interval

__all__ = ["evaluation_lines", "evaluation_objects", "evaluation_table", "measured_so_far", "read_text"]

_LARGEST_TEXT = 1 << 30


def read_text(path: Path) -> str:
    """The text of a file, without a byte order mark; line ends stay as they are.

    Raises:
        InputError: It cannot be read, or is not UTF-8.
    """
    try:
        with following_links():  # no part of a model: whoever names it means it
            return read_small_file(path, _LARGEST_TEXT).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(
            "is not UTF-8", path=path, at=f"byte {error.start}", hint="save it as UTF-8"
        ) from error


@contextmanager
def measured_so_far(dest: Path, *, quiet: bool) -> Iterator[None]:
    """Says where the work of an interrupted conversion is kept."""
    try:
        yield
    except KeyboardInterrupt:
        names = {"calibration": "what was measured", "unfinished": "what is quantized"}
        kept = {
            path: what
            for name, what in names.items()
            for folder in (dest.parent, dest)
            for path in folder.glob(f"*.{name}*")
        }
        for path in sorted(kept) if not quiet else ():
            line = f"{path} keeps {kept[path]}: the same command goes on from there; or remove it"
            click.echo(printable(line, 4096), err=True)
        raise


def evaluation_objects(models: Sequence[Model], results: Sequence[Evaluation]) -> list[dict[str, Any]]:
    """Evaluations, for ``--json``."""
    return [
        {"path": str(model.path), "bits_per_weight": _bits(model), **asdict(result)}
        for model, result in zip(models, results, strict=True)
    ]


def evaluation_lines(result: Evaluation) -> list[str]:
    """An evaluation, for people."""
    lines = [
        f"perplexity {result.perplexity:.4f} ± {result.perplexity_error:.4f}",
        f"likeliest token right: {100 * result.accuracy:.2f} %",
        f"{result.tokens} tokens scored in {result.windows} windows of {result.context}",
    ]
    other = result.divergence
    if other is None:
        return lines
    return [
        *lines,
        f"reference: perplexity {other.perplexity:.4f}, ratio {other.ratio:.5f} ± {other.ratio_error:.5f}",
        (
            f"divergence from it: mean {other.mean:.6f}{_between(other.mean_interval)}, median "
            f"{other.median:.6f}, 99 % {other.percentile_99:.6f}"
        ),
        (
            f"the worst of it: 99.9 % {other.percentile_999:.6f}{_between(other.percentile_999_interval)}, "
            f"maximum {other.maximum:.6f}"
        ),
        f"same likeliest token: {_percent(other.same_top, other.same_top_interval)} %",
    ]


def evaluation_table(models: Sequence[Model], results: Sequence[Evaluation]) -> list[str]:
    """Several evaluations, for people: a row for each model, and what the reference gave below."""
    first = results[0]
    rows = [("bits", "perplexity", *(_COLUMNS if first.divergence else ()), "")]
    for model, result in zip(models, results, strict=True):
        row = [f"{_bits(model):.2f}", f"{result.perplexity:.4f}"]
        if (other := result.divergence) is not None:
            row.append(f"{other.mean:.6f}{_between(other.mean_interval)}")
            row.append(f"{other.percentile_999:.4f}")
            row.append(_percent(other.same_top, other.same_top_interval))
        rows.append((*row, printable(model.path)))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(map(str.rjust, row[:-1], widths)) + f"  {row[-1]}".rstrip() for row in rows]
    lines.append(f"{first.tokens} tokens scored in {first.windows} windows of {first.context}")
    if first.divergence is not None:
        lines.append(f"reference: perplexity {first.divergence.perplexity:.4f}")
    return lines


_COLUMNS = ("mean divergence", "99.9 %", "same token %")


def _bits(model: Model) -> float:
    """Bits per weight, over all that is stored."""
    bits = sum(t.size * t.encoding.bits_per_weight for t in model.stored.values())
    return bits / max(model.size, 1)


def _between(interval: Interval | None) -> str:
    return "" if interval is None else f" ({interval[0]:.6f} to {interval[1]:.6f})"


def _percent(value: float, interval: Interval | None) -> str:
    ends = "" if interval is None else f" ({100 * interval[0]:.2f} to {100 * interval[1]:.2f})"
    return f"{100 * value:.2f}{ends}"
