"""A GGUF, opened with the reader of the ``gguf`` package, which is llama.cpp's own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gguf.gguf_reader import GGUFReader

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["refusal"]


def refusal(path: Path) -> str:
    """Why it is refused; "" if it is not."""
    try:
        GGUFReader(path)
    except Exception as error:  # noqa: BLE001 - it has no errors of its own
        return str(error) or type(error).__name__
    return ""
