"""The texts that a model reads for a calibration where none are given: prose, code, chat, several languages.

NOTICE says where they are from. Their order counts: every fourth one is kept apart to judge by.
"""

from __future__ import annotations

from pathlib import Path

__all__ = ["supplied_texts"]


def supplied_texts() -> dict[str, str]:
    """The texts by name, in order."""
    files = sorted(Path(__file__).parent.glob("*.txt"))
    return {file.name: file.read_bytes().decode() for file in files}
