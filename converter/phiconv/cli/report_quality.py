"""What a person, or a program with ``--json``, looks at after an evaluation; and the text that goes in."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from phiconv.errors import InputError
from phiconv_formats.shared.files import read_small_file

if TYPE_CHECKING:
    from pathlib import Path

    from phiconv.api import Evaluation

__all__ = ["evaluation_lines", "evaluation_object", "read_text"]

_LARGEST_TEXT = 1 << 30


def read_text(path: Path) -> str:
    """The text of a file, without a byte order mark; line ends stay as they are.

    Raises:
        InputError: It cannot be read, or is not UTF-8.
    """
    try:
        return read_small_file(path, _LARGEST_TEXT).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(
            "is not UTF-8", path=path, at=f"byte {error.start}", hint="save it as UTF-8"
        ) from error


def evaluation_object(result: Evaluation) -> dict[str, Any]:
    """An evaluation, for ``--json``."""
    return asdict(result)


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
            f"divergence from it: mean {other.mean:.6f} ± {other.error:.6f}, median {other.median:.6f}, "
            f"99 % {other.percentile_99:.6f}, maximum {other.maximum:.6f}"
        ),
        f"same likeliest token: {100 * other.same_top:.2f} ± {100 * other.same_top_error:.2f} %",
    ]
