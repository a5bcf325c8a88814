"""What made an output: phiconv itself, and what it ran in."""

from __future__ import annotations

import functools
import hashlib
import platform
from pathlib import Path

import numpy as np

import phiconv_formats
from phiconv._version import __version__

__all__ = ["own_sources", "versions"]

_ROOTS = (Path(__file__).parents[1], Path(phiconv_formats.__file__).parent)


def versions() -> dict[str, str]:
    """What ran, and in which version."""
    return {"phiconv": __version__, "numpy": np.__version__, "python": platform.python_version()}


@functools.cache
def own_sources() -> str:
    """The SHA-256 sum of phiconv's own files: of a list of names and sums, as ``sha256sum`` prints it."""
    total = hashlib.sha256()
    for root in _ROOTS:
        files = (p for p in root.rglob("*") if p.is_file() and p.parent.name != "__pycache__")
        for path in sorted(files, key=lambda p: p.relative_to(root).as_posix()):
            name = path.relative_to(root.parent).as_posix()
            total.update(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {name}\n".encode())
    return total.hexdigest()
