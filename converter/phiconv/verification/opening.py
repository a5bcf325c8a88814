"""Opens an output with the libraries that others open it with."""

from __future__ import annotations

from typing import TYPE_CHECKING

from phiconv.conversion.source import open_model
from phiconv.errors import InputError
from phiconv.verification.outcome import Finding
from phiconv_formats.library_checks import LIBRARY_CHECKS

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

__all__ = ["open_with_others"]


def open_with_others(folder: Path, output: str, names: Sequence[str]) -> tuple[list[str], list[Finding], str]:
    """Opens every file of a kind that a library knows, once phiconv's own reader has taken it.

    These libraries may take hostile files less well than phiconv's readers, so those come first.

    Args:
        folder: Where the files are.
        output: The name of the output in it; "" for all of the folder.
        names: The files.

    Returns:
        The libraries that opened something, what they refused, and a note.
    """
    checks = [(name, *LIBRARY_CHECKS[end]) for name in names if (end := _end(name)) in LIBRARY_CHECKS]
    try:
        open_model(folder / (output if output in names else names[0]) if output else folder)
    except InputError as error:
        return [], [], f"not opened with other libraries, since phiconv does not read it: {error.message}"
    found = [(name, library, check()(folder / name)) for name, library, check in checks]
    refused = [Finding(f"{library} refuses it: {why}", name) for name, library, why in found if why]
    return sorted({library for _, library, why in found if not why}), refused, ""


def _end(name: str) -> str:
    return name.rpartition(".")[2].lower()
