"""Names of files: how long one may be, and what a temporary file is called."""

from __future__ import annotations

import os
import re
import secrets
import zlib
from typing import TYPE_CHECKING

from phiconv.errors import OutputError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

__all__ = [
    "RECEIPT_HEAD",
    "check_names",
    "destination_of",
    "inner_name",
    "name_within",
    "new_token",
    "partial_name",
    "receipt_name",
    "shortened",
    "token_of",
]

_PARTIAL = re.compile(r"\.(.+)\.([0-9a-f]{8})\.partial", re.DOTALL)
_LONGEST = 200  # bytes of the name within; with all around it, less than any usual file system takes
_USUAL_LIMIT = 255  # bytes on Unix, UTF-16 units on Windows


RECEIPT_HEAD = b'{\n "_type": "https://in-toto.io/Statement/v1",\n "subject": ['
"""How a receipt begins."""


def inner_name(name: str) -> str:
    """A name as it stands in that of its temporary file: one that is too long is cut, and told by a sum."""
    shorter = shortened(name, _LONGEST)
    return name if shorter == name else f"{shortened(name, _LONGEST - 9)}~{zlib.crc32(os.fsencode(name)):08x}"


def shortened(name: str, limit: int) -> str:
    """As much of a name as fits into so many bytes."""
    data = os.fsencode(name)
    # Cut between two characters: there are file systems that take nothing but UTF-8.
    return name if len(data) <= limit else data[:limit].decode("utf-8", "ignore")


def new_token() -> str:
    """What the names of the temporary files of one run have in common."""
    return secrets.token_hex(4)


def partial_name(path: Path, token: str = "") -> Path:
    """A name for a temporary file, or folder, beside ``path``; without a token it is a new one."""
    return path.with_name(f".{inner_name(path.name)}.{token or new_token()}.partial")


def receipt_name(output: str) -> str:
    """What the receipt of an output is called: of a file, or of a folder as a whole ("")."""
    if not output:
        return "receipt.json"
    shorter = shortened(output, _USUAL_LIMIT - len(".receipt.json"))
    if shorter != output:
        shorter = f"{shortened(output, len(os.fsencode(shorter)) - 9)}~{zlib.crc32(os.fsencode(output)):08x}"
    return f"{shorter}.receipt.json"


def name_within(name: str) -> str:
    """What a temporary file is for, as `inner_name` gives it; "" for any other name."""
    match = _PARTIAL.fullmatch(name)
    return match[1] if match else ""


def token_of(name: str) -> str:
    """The token in the name of a temporary file; "" for any other name."""
    match = _PARTIAL.fullmatch(name)
    return match[2] if match else ""


def destination_of(path: Path) -> Path:
    """A path as people know it: without the names of temporary files and folders."""
    return type(path)(*(name_within(part) or part for part in path.parts))


def check_names(paths: Iterable[Path]) -> None:
    """Refuses paths that the file system does not take, before any work is done.

    Raises:
        OutputError: A name in one is too long.
    """
    for path in paths:
        limit = _limit(path.parent)
        length = max(map(_length, path.parts), default=0)
        if length > limit:
            raise OutputError(
                f"a name of {length} bytes, and the file system takes {limit}",
                path=path,
                hint="choose a shorter name",
            )


def _length(name: str) -> int:
    return len(name.encode("utf-16-le", "surrogatepass")) // 2 if os.name == "nt" else len(os.fsencode(name))


def _limit(folder: Path) -> int:
    """The longest name in a folder, or in the one above that is there."""
    for place in (folder, *folder.parents):
        try:
            return os.pathconf(place, "PC_NAME_MAX")
        except (AttributeError, OSError, ValueError):
            continue
    return _USUAL_LIMIT
